"""Fixtures of the suite's tests."""

from tests.support.sweep import fake

__all__ = ["fake"]
