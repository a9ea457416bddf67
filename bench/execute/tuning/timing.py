"""Times tiles, each in its own process, because a fresh process has another memory layout, which changes a time too.

Functions here run in a spawned process, so their arguments and results must be picklable. Compiling takes longer than
timing, so many processes do it in parallel beforehand and check each tile's results. The compiled kernels are on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import log
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch

from bench import contenders
from bench.clocks import graph
from bench.clocks.graph import CapturedGraph
from bench.contenders.base import Contender, Launch
from bench.execute.measure import Bench, NotMeasured, index_sets, verify_eager
from bench.execute.tuning.subjects import Cell, Tile
from bench.model import config
from bench.model.gpus import Gpu
from bench.model.records import ResultsError
from bench.workload.tensors import Workload
from csgmv_embed.launch import tiles

NODES, BLOCKS, BLOCK_MS = 24, 5, 0.4
MOST_LANES = 8  # processes that compile side by side
TURNS = 4  # of either side in a proof: rule, tile, tile, rule
T = TypeVar("T")


class Screened(NamedTuple):
    """The fastest tile of a cell in one process, and the rule's."""

    cell: Cell
    best: Tile
    best_us: float
    rule_us: float


def in_fresh_process(function: Callable[..., T], *arguments: Any, gpu: Gpu | None = None) -> T:
    """Run function(*arguments) in a process that has done nothing else; raises what it raises.

    gpu: the only one it sees.
    """
    environment = gpu.environment if gpu else {}
    with ProcessPoolExecutor(1, get_context("spawn"), _set_environment, (environment,)) as pool:
        return pool.submit(function, *arguments).result()


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)  # before the process asks for its GPU


def verify_all(cells: Sequence[Cell]) -> None:
    """Compile and check every tile of every cell, in parallel. Raises ResultsError if one gives wrong results."""
    lanes = min(MOST_LANES, os.cpu_count() or 1, len(cells))
    with ProcessPoolExecutor(lanes, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(verify, cells):
            pass


def verify(cell: Cell) -> None:
    """Check every tile of a cell. Raises ResultsError."""
    bench = _bench()
    workload = bench.workload(cell.case, 1)
    for tile in cell.tiles:
        contender, launch = _set_up(cell, workload, tile)
        try:
            with tiles.forced(**{cell.kernel: tile}):
                verify_eager(contender, workload, launch)
        except NotMeasured as error:
            raise ResultsError(f"{cell.kernel} with {tile} at {cell.case.label}: {error}") from None


def screen(cells: Sequence[Cell]) -> list[Screened]:
    """Find each cell's fastest tile, with one graph each."""
    bench = _bench()
    found = []
    for cell in cells:
        workload = bench.workload(cell.case, index_sets(bench, cell.case))
        times = {tile: _time_us(_captured(cell, workload, tile)) for tile in cell.tiles}
        best = min(times, key=times.__getitem__)
        found.append(Screened(cell, best, times[best], times[cell.tiles[0]]))
    return found


def compare(pairs: Sequence[tuple[Cell, Tile]]) -> list[tuple[float, float]]:
    """(time of the tile, time of the rule's), us, for each pair: medians over graphs sampled in turns."""
    bench = _bench()
    found = []
    for cell, tile in pairs:
        workload = bench.workload(cell.case, index_sets(bench, cell.case))
        rule, other = (_captured(cell, workload, each) for each in (cell.tiles[0], tile))
        turns = [(rule, other, other, rule)[turn % 4] for turn in range(2 * TURNS)]
        taken: dict[int, list[float]] = {id(rule): [], id(other): []}
        for side in turns:
            taken[id(side)].append(_time_us(side))
        found.append((median(taken[id(other)]), median(taken[id(rule)])))
    return found


def log_ratio(times: tuple[float, float]) -> float:
    """Log of a tile's time over the rule's: negative if the tile is faster."""
    return log(times[0] / times[1])


def _bench() -> Bench:
    """The suite's own way to tensors and index sets, for graphs of fewer nodes."""
    device = torch.device("cuda", torch.cuda.current_device())
    settings = msgspec.structs.replace(config.load().measure, nodes=NODES)
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return Bench(device, settings, process=0, l2_bytes=l2_bytes)


def _set_up(cell: Cell, workload: Workload, tile: Tile) -> tuple[Contender, Launch]:
    contender = contenders.build(cell.contender, cell.case.op, cell.case.site)
    with tiles.forced(**{cell.kernel: tile}):
        return contender, contender.setup(workload, static=False)


def _captured(cell: Cell, workload: Workload, tile: Tile) -> CapturedGraph:
    """A graph of launches that use this tile."""
    _, launch = _set_up(cell, workload, tile)
    with tiles.forced(**{cell.kernel: tile}):
        return graph.capture(launch, index_sets=len(workload.index_sets), nodes=NODES)


def _time_us(captured: CapturedGraph) -> float:
    return median(graph.sample(captured, blocks=BLOCKS, block_ms=BLOCK_MS, flush=None))
