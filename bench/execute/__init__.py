"""Runs things: sweeps, pairs of two trees, commits, tuning. Prints nothing; judges by bench.judge alone."""
