"""Fixtures of the suite's tests."""

from tests.support.gate import run
from tests.support.history import machine
from tests.support.slices import slices_on_the_cpu
from tests.support.sweep import fake

__all__ = ["fake", "machine", "run", "slices_on_the_cpu"]
