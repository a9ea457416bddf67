"""Profiling sessions: from "this point is slow" to "here is why". Nothing here yields a timing record."""
