"""Runs sweeps, pairs of two trees, commits and tuning. Prints nothing, and leaves all judging to bench.judge."""
