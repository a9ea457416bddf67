"""Profiling sessions, which explain why a point is slow. Nothing here yields a timing record."""
