"""The command line: every verb, and the only place that knows its arguments."""
