"""Tables of a history and of profiles at any width: what they are about stays, and no figure is cut."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from bench.cli.history import view
from bench.show import history, profiles
from profiles import records

EXPERIMENTS = Path(__file__).parents[3] / "docs" / "experiments"
widths = pytest.mark.parametrize("width", [60, 80, 120, 200])


def rendered(found: RenderableType, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(found)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@widths
def test_a_history_shows_each_commit_its_time_and_its_change(width: int) -> None:
    found = view(EXPERIMENTS / "planted-slow", None, ["graph"], ["csgmv_embed-vocab_major"], [], None)
    lines = rendered(history.tables(found), width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert re.search(r"f9de85d33\b.*\b1\.31\b", text) and re.search(r"cbcd906a7\b.*\b1\.45\b.*\+10\.9 %", text)
    assert ("2026-11-24" in text) == (width >= 80), "the date where there is room"
    assert ("Merge: the SGLang plugin" in text) == (width >= 120), "and then its subject"


@widths
@pytest.mark.parametrize(
    ("name", "core"),
    [
        ("h100-ncu", r"decode 256 r64.*ours-vocab.*cold.*\b32\b"),
        ("h100-layer-and-head-ncu", r"layer decode.*ours.*cold.*\b\d+\b"),
        ("h100-trace", r"decode.*ours.*graph.*\d\.\d+.*\d\.\d+"),
    ],
)
def test_a_profile_shows_each_point_and_its_first_figures(name: str, core: str, width: int) -> None:
    lines = rendered(profiles.shown(records.read(EXPERIMENTS / f"{name}.json"), EXPERIMENTS), width)
    assert all(len(line) <= width for line in lines)
    assert re.search(core, " ".join(lines)), "in one row, or where that has no room in lines of its own"
