"""Fixtures of the history's tests; the bisection runs the gate's pairs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "gate"))

from history_support import machine

__all__ = ["machine"]
