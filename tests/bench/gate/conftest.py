"""Fixtures of the gate's tests."""

from tests.support.gate import run

__all__ = ["run"]
