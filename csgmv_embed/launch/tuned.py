"""Tiles that were measured to be faster than the rule's, by GPU model: `tuned/<GPU name>.json`.

`python -m bench tune` writes such a file on its GPU. Its *grids* say for each kernel, and each size of an element in
bytes, at which sizes was measured; its *rows* are the cells of these grids where a tile beat the rule by more than the
noise of fresh processes, with both times and the least that this proves. A call belongs to the cell of the next larger
sizes, or of the largest; where that cell has no row, or its GPU no file, the rule holds.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "tuned"
Sizes = tuple[int, ...]
Cell = tuple[str, int, Sizes]  # kernel, element_bytes, where


class Grid(NamedTuple):
    """At which sizes a kernel was measured: the steps of each of its axes, rising."""

    kernel: str
    element_bytes: int
    axes: tuple[str, ...]
    steps: tuple[Sizes, ...]

    def cell(self, sizes: Sizes) -> Sizes:
        """The cell that a call of these sizes belongs to."""
        return tuple(_at_least(size, steps) for size, steps in zip(sizes, self.steps, strict=True))


class TunedRow(NamedTuple):
    """A tile, by the fields of its kernel's, and what it gained over the rule's where it was measured."""

    kernel: str
    element_bytes: int
    at: Sizes
    tile: dict[str, int]
    tuned_us: float
    rule_us: float
    gain_pct: float  # at least, of the rule's time


class Table(NamedTuple):
    """What is known of a GPU."""

    grids: dict[tuple[str, int], Grid]
    rows: dict[Cell, TunedRow]


@lru_cache(maxsize=4096)
def tuned(gpu: str, kernel: str, element_bytes: int, sizes: Sizes) -> dict[str, int] | None:
    """The fields of the tile for these sizes, in the order of the kernel's axes; None where the rule holds."""
    table = read_table(gpu)
    grid = table.grids.get((kernel, element_bytes))
    row = table.rows.get((kernel, element_bytes, grid.cell(sizes))) if grid else None
    return row.tile if row else None


@lru_cache
def read_table(gpu: str) -> Table:
    """What is known of a GPU by its name; nothing where it has not been tuned for."""
    path = table_path(gpu)
    if not gpu or not path.exists():
        return Table({}, {})
    content = json.loads(path.read_text(encoding="utf-8"))
    grids = [_grid(fields) for fields in content["grids"]]
    rows = [TunedRow(**{**fields, "at": tuple(fields["at"])}) for fields in content["rows"]]
    return Table(
        {(grid.kernel, grid.element_bytes): grid for grid in grids},
        {(row.kernel, row.element_bytes, row.at): row for row in rows},
    )


def table_path(gpu: str) -> Path:
    """Where the table of a GPU is kept."""
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def _grid(fields: dict[str, Any]) -> Grid:
    axes, steps = tuple(fields["axes"]), tuple(tuple(steps) for steps in fields["steps"])
    return Grid(fields["kernel"], fields["element_bytes"], axes, steps)


def _at_least(value: int, steps: Sizes) -> int:
    """The smallest step that is not below value, or the largest there is."""
    return min((step for step in steps if step >= value), default=max(steps))
