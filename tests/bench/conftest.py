"""Fixtures of the suite's tests."""

from sweep_support import fake

__all__ = ["fake"]
