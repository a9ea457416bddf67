"""Decisions on records: pure functions, nothing is run or printed."""
