"""The contenders of the installed SGLang, and what its objects need without a server."""
