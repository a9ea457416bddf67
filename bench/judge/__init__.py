"""Decisions on records. Pure functions, which run and print nothing."""
