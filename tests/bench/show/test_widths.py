"""Tables of a history and of profiles at any width: what they are about stays, and no figure is cut."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console, RenderableType

from bench.cli.history import view
from bench.show import history, profiles
from bench.show.fit import Column, Fitted
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
        ("h100-layer-and-head-ncu", r"cold cache.*layer decode.*ours.*\b\d+\b"),
        ("h100-trace", r"decode.*ours.*graph.*\d\.\d+.*\d\.\d+"),
    ],
)
def test_a_profile_shows_each_point_and_its_first_figures(name: str, core: str, width: int) -> None:
    lines = rendered(profiles.shown(records.read(EXPERIMENTS / f"{name}.json"), EXPERIMENTS), width)
    assert all(len(line) <= width for line in lines)
    assert re.search(core, " ".join(lines)), "in one row, or where that has no room in lines of its own"


SECTORS_OVERFETCH_KB = r"csgmv-chunk16,?\s+(sect/req )?4\.4,?\s+(overfetch )?15\.5,?\s+(L2 kB )?539\b"


@widths
def test_ncus_figures_come_before_how_they_were_taken(width: int) -> None:
    record = records.read(EXPERIMENTS / "h100-ncu.json")
    text = " ".join(rendered(profiles.shown(record, EXPERIMENTS), width))
    cold, warm = text.index("graph clock, cold cache"), text.index("graph clock, warm cache")
    found = re.search(SECTORS_OVERFETCH_KB, text)
    assert found and cold < found.start() < warm, "the state of the caches is told once, in the title"
    assert "programs " not in text[cold:warm] or width > 80


@pytest.mark.parametrize("width", [60, 80])
def test_ncus_figures_fit_beside_the_longest_labels(width: int) -> None:
    """Of linear layers, whose labels have the model and the site."""
    record, linear = records.read(EXPERIMENTS / "h100-ncu.json"), {"op": "linear", "site": "gate_up", "model": "8b"}
    assert isinstance(record.body, records.NcuBody)
    for kernel in [*record.body.kernels, *record.body.useful]:
        kernel.case = msgspec.structs.replace(kernel.case, skew=0.0, **linear)
    lines = rendered(profiles.shown(record, EXPERIMENTS), width)
    assert re.search(SECTORS_OVERFETCH_KB, " ".join(lines)) and all(len(line) <= width for line in lines)
    assert any(line.startswith("linear 8b gate_up decode 256 r64") for line in lines)


def test_prose_in_a_line_is_told_from_its_columns_name() -> None:
    columns = [Column("case", ["decode 256 r64 adapters=64"]), Column("note", ["measured differently"], words=True)]
    assert rendered(Fitted("", columns), 30)[1:] == ["decode 256 r64 adapters=64,", "note: measured differently"]
