"""Where the recorded facts and files of the profilers lie."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "profiles"
DATA = FOLDER / "data"
