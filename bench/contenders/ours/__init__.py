"""The contenders of this repository's library and plugin."""
