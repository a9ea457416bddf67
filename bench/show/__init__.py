"""Tables, progress, exports and the page. Only this package formats."""
