"""What is tuned: every kernel, at sizes on its grid, with the rule's tile first and others worth timing."""

from __future__ import annotations

from typing import get_args

import pytest

from bench.execute.tuning import subjects
from bench.model.registry import provides
from csgmv_embed.launch import tiles
from csgmv_embed.launch.tiles import Kernel, Plan

BY_KERNEL = {subject.kernel: subject for subject in subjects.SUBJECTS}


def test_no_kernel_is_left_out() -> None:
    assert set(BY_KERNEL) == set(get_args(Kernel))


@pytest.mark.parametrize("kernel", BY_KERNEL)
def test_a_cell_is_on_the_grid_and_begins_with_the_rules_tile(kernel: Kernel) -> None:
    subject = BY_KERNEL[kernel]
    grid = subject.grid()
    cells = list(subject.cells())
    assert len({cell.at for cell in cells}) == len(cells) > 2
    for cell in cells:
        assert grid.cell(cell.at) == cell.at and len(cell.at) == len(subject.axes)
        assert provides(cell.contender, cell.case.op, cell.case.site)
        assert len(cell.tiles) == len(set(cell.tiles)) > 2
        assert {type(tile) for tile in cell.tiles} == {type(cell.tiles[0])}


@pytest.mark.parametrize("plan", subjects.PLANS)
@pytest.mark.parametrize("rows_contiguous", [True, False])
@pytest.mark.parametrize(("tokens", "rank"), [(1, 8), (32, 64), (16384, 256)])
def test_tiles_of_a_lookup_are_powers_of_two_and_never_mostly_empty(
    plan: Plan, tokens: int, rank: int, rows_contiguous: bool
) -> None:
    found = subjects.lookup_tiles(plan, tokens, rank, rows_contiguous)
    assert found[0] == tiles.lookup_rule(tokens, rank, rows_contiguous)
    for tile in found:
        assert all(value > 0 and value & (value - 1) == 0 for value in tile)
        assert tile[1] <= rank
    longest = max(tile[0] for tile in found[1:])
    assert longest <= (16 if plan == "segments" else max(8, 2 * tokens))
