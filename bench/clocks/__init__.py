"""One module a clock: a way of measuring a launch."""
