"""Fixtures of the suite's tests."""

from tests.support.gate import run
from tests.support.history import machine
from tests.support.sweep import fake

__all__ = ["fake", "machine", "run"]
