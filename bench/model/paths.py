"""Where things lie in a checkout, and how a path is printed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "bench" / "baselines"
RESULTS = ROOT / "results"


def results_path(what: str) -> Path:
    """A new file below results/."""
    return RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{what}.json"


def shown(path: Path) -> str:
    """A path as a person in the checkout would type it."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
