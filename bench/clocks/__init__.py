"""One module for each clock, that is, each way of measuring a launch."""
