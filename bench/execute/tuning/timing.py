"""Times of tiles, each in a process of its own: a fresh one has another memory layout, which moves a time too.

Functions here run in a spawned process; what they take and return travels between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import log
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch

from bench import contenders
from bench.clocks import graph
from bench.clocks.graph import CapturedGraph
from bench.execute.measure import NotMeasured, verify_eager
from bench.execute.tuning.subjects import Cell, Tile
from bench.model.records import ResultsError
from bench.workload.tensors import Workload, make_workload
from csgmv_embed.launch import tiles

SEED = 1
NODES, BLOCKS, BLOCK_MS = 40, 5, 0.4
INDEX_SETS = 8
TURNS = 4  # of either side in a proof: rule, tile, tile, rule
T = TypeVar("T")


class Screened(NamedTuple):
    """The fastest tile of a cell in one process, beside the rule's."""

    cell: Cell
    best: Tile
    best_us: float
    rule_us: float


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments) in a process that has done nothing else; raises what it raises."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def screen(cells: Sequence[Cell]) -> list[Screened]:
    """Each cell's fastest tile by one graph each. Raises ResultsError if one gives wrong results."""
    tables: dict[Any, Any] = {}
    found = []
    for cell in cells:
        workload = _workload(cell, tables)
        times = {tile: _time_us(_captured(cell, workload, tile)) for tile in cell.tiles}
        best = min(times, key=times.__getitem__)
        found.append(Screened(cell, best, times[best], times[cell.tiles[0]]))
    return found


def compare(pairs: Sequence[tuple[Cell, Tile]]) -> list[tuple[float, float]]:
    """(time of the tile, time of the rule's), us, for each pair: medians over graphs sampled in turns."""
    tables: dict[Any, Any] = {}
    found = []
    for cell, tile in pairs:
        workload = _workload(cell, tables)
        rule, other = (_captured(cell, workload, each) for each in (cell.tiles[0], tile))
        turns = [(rule, other, other, rule)[turn % 4] for turn in range(2 * TURNS)]
        taken: dict[int, list[float]] = {id(rule): [], id(other): []}
        for side in turns:
            taken[id(side)].append(_time_us(side))
        found.append((median(taken[id(other)]), median(taken[id(rule)])))
    return found


def log_ratio(times: tuple[float, float]) -> float:
    """Of a tile's time to the rule's: negative where the tile is faster."""
    return log(times[0] / times[1])


def _workload(cell: Cell, tables: dict[Any, Any]) -> Workload:
    """The tensors of a cell; cells whose tables are the same share them, and only those are kept."""
    device = torch.device("cuda", torch.cuda.current_device())
    workload = make_workload(cell.case, seed=SEED, index_sets=INDEX_SETS, device=device)
    shared = tables.get(cell.case.tables)
    if shared is None:
        tables.clear()
        tables[cell.case.tables] = shared = workload.tables
    workload.tables = shared
    return workload


def _captured(cell: Cell, workload: Workload, tile: Tile) -> CapturedGraph:
    """A graph of launches that use this tile, after a check of the results."""
    contender = contenders.build(cell.contender, cell.case.op)
    with tiles.forced(**{cell.kernel: tile}):
        launch = contender.setup(workload, static=False)
        try:
            verify_eager(contender, workload, launch)
        except NotMeasured as error:
            raise ResultsError(f"{cell.kernel} with {tile} at {cell.case.label}: {error}") from None
        return graph.capture(launch, index_sets=INDEX_SETS, nodes=NODES)


def _time_us(captured: CapturedGraph) -> float:
    return median(graph.sample(captured, blocks=BLOCKS, block_ms=BLOCK_MS, flush=None))
