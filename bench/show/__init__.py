"""Tables, progress, exports, the page: the only place that formats."""
