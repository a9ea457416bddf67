"""Fixtures of the gate's tests."""

from gate_support import run

__all__ = ["run"]
