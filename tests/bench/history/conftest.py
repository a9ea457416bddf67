"""Fixtures of the history's tests."""

from tests.support.history import machine

__all__ = ["machine"]
