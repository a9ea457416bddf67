"""The only place that prints or formats."""
