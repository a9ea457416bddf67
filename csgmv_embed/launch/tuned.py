"""Tiles that were measured to be faster than the rule's, by GPU model: `tuned/<GPU name>.json`.

`python -m bench tune` writes such a file on its GPU. For each kernel and element size in bytes, *grids* are the sizes
that were measured. *rows* are the cells of these grids in which a tile beat the rule by more than the noise of fresh
processes, with both times and the smallest gain that they prove. A call belongs to the cell of the next larger sizes,
or of the largest. The rule holds if that cell has no row, or the GPU no file.
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
    """The sizes at which a kernel was measured: the steps of each axis, in rising order."""

    kernel: str
    element_bytes: int
    axes: tuple[str, ...]
    steps: tuple[Sizes, ...]

    def cell(self, sizes: Sizes) -> Sizes:
        """The cell that a call of these sizes belongs to."""
        return tuple(_at_least(size, steps) for size, steps in zip(sizes, self.steps, strict=True))


class TunedRow(NamedTuple):
    """A tile, as the fields of its kernel's tile, and its gain over the rule's where it was measured."""

    kernel: str
    element_bytes: int
    at: Sizes
    tile: dict[str, int]
    tuned_us: float
    rule_us: float
    gain_pct: float  # at least, of the rule's time


class Table(NamedTuple):
    """The grids and rows of a GPU."""

    grids: dict[tuple[str, int], Grid]
    rows: dict[Cell, TunedRow]


@lru_cache(maxsize=4096)
def tuned(gpu: str, kernel: str, element_bytes: int, sizes: Sizes) -> dict[str, int] | None:
    """The fields of the tile for these sizes, given in the order of the kernel's axes. None where the rule holds."""
    table = read_table(gpu)
    grid = table.grids.get((kernel, element_bytes))
    row = table.rows.get((kernel, element_bytes, grid.cell(sizes))) if grid else None
    return row.tile if row else None


@lru_cache
def read_table(gpu: str) -> Table:
    """The table of a GPU model; an empty one if the GPU has not been tuned."""
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
    """Path of the table of a GPU."""
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def _grid(fields: dict[str, Any]) -> Grid:
    axes, steps = tuple(fields["axes"]), tuple(tuple(steps) for steps in fields["steps"])
    return Grid(fields["kernel"], fields["element_bytes"], axes, steps)


def _at_least(value: int, steps: Sizes) -> int:
    """The smallest step that is not below value, or the largest there is."""
    return min((step for step in steps if step >= value), default=max(steps))
