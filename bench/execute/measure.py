"""Measures one point in its process: verifies it against the oracle, then samples. Prints nothing."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench import contenders
from bench.clocks import markers
from bench.model.case import Case, TablesKey
from bench.model.config import Measure, PlannedPoint
from bench.model.environment import nvml_device
from bench.model.gpus import state_of
from bench.model.records import CacheAchieved, CacheState, Check, Point, Round, Status, worse
from bench.workload import traffic
from bench.workload.tensors import Workload, make_workload, set_bytes

if TYPE_CHECKING:
    from bench.clocks.graph import CapturedGraph
    from bench.contenders.base import Contender, Launch

COLD_FACTOR = 3  # bytes touched between reuses, in units of the L2, from which rows must come from memory again
FLOOR_BLOCKS = 3  # of the empty graph, beside each point: the floor in the state that the point was measured in
ORACLE = "bench.workload.reference"
SETS_LIMIT_BYTES = 8 << 30  # of all index sets together: ids, inputs and outputs
Tables = dict[str, torch.Tensor]


class NotMeasured(Exception):
    """The point ends here, with a status and its reason."""

    def __init__(self, status: Status, reason: str, check: Check | None = None) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason
        self.check = check


@dataclass
class Bench:
    """What a worker process keeps between points: the device, its anchors' floors, the last tables."""

    device: torch.device
    settings: Measure
    process: int
    empty_graph: CapturedGraph | None = None
    eager_floor_us: float = 0.0
    l2_bytes: int = 0
    _tables_key: TablesKey | None = None
    _tables: Tables = field(default_factory=dict)

    def workload(self, case: Case, index_sets: int) -> Workload:
        """The tensors of a case. Tables of the last case are kept: most neighbours share them."""
        reuse = COLD_FACTOR * self.l2_bytes if case.cache == "cold" else 0
        workload = make_workload(
            case, seed=self.settings.seed, index_sets=index_sets, device=self.device, reuse_bytes=reuse
        )
        if case.tables != self._tables_key:
            self._tables_key, self._tables = case.tables, {}
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        workload.tables = self._tables
        return workload


def measure(bench: Bench, planned: PlannedPoint, index: int) -> Point:
    """The point's record for this process. The caller records any unexpected exception."""
    point = Point(planned.case, planned.contender, planned.clock, index, "ok")
    start = perf_counter()
    with markers.span(planned.name, payload=index):
        try:
            contender = contenders.build(planned.contender, planned.case.op, planned.case.site)
            if reason := contenders.unavailable(contender):
                raise NotMeasured("skipped", reason)
            {"graph": _graph, "eager": _eager, "prepare": _prepare, "work": _work}[planned.clock](
                bench, contender, point
            )
        except NotMeasured as end:
            point.status, point.reason, point.check = end.status, end.reason, end.check or point.check
    point.wall_s = perf_counter() - start
    return point


def _graph(bench: Bench, contender: Contender, point: Point) -> None:
    from bench.clocks import graph
    from bench.clocks.anchors import empty_graph_us

    settings = bench.settings
    sets = index_sets(bench, point.case)
    with markers.span("setup"):
        workload = bench.workload(point.case, sets)
        _describe(point, contender, workload, bench)
    cold = point.case.cache == "cold"
    flush = graph.flush_buffer(bench.l2_bytes, bench.device) if cold else None
    assert bench.empty_graph is not None
    point.floor_us = [empty_graph_us(bench.empty_graph, settings.block_ms, FLOOR_BLOCKS)]
    for seed in _layout_seeds(bench):
        workload.relayout(seed)
        with markers.span("setup"):
            launch = contender.setup(workload, static=True)
        with markers.span("warmup"):
            captured = graph.capture(launch, index_sets=sets, nodes=settings.nodes)
        point.nodes = captured.nodes
        with markers.span("verify"):
            point.check = worse(point.check, verify_graph(contender, workload, captured))
        with markers.span("sample"):
            blocks = graph.sample(captured, blocks=settings.blocks, block_ms=settings.block_ms, flush=flush)
        point.rounds.append(_round(bench, seed, blocks))
        del captured, launch
    point.cache = _cache_state(point, sets, bench.l2_bytes, flushed=cold)


def _eager(bench: Bench, contender: Contender, point: Point) -> None:
    from bench.clocks import eager

    settings = bench.settings
    sets = index_sets(bench, point.case)
    with markers.span("setup"):
        workload = bench.workload(point.case, sets)
        _describe(point, contender, workload, bench)
    point.floor_us = [bench.eager_floor_us]
    for seed in _layout_seeds(bench):
        workload.relayout(seed)
        with markers.span("setup"):
            launch = contender.setup(workload, static=False)
        with markers.span("verify"):
            point.check = worse(point.check, verify_eager(contender, workload, launch))
        with markers.span("sample"):
            blocks, host = eager.sample(launch, index_sets=sets, calls=settings.eager_calls, blocks=settings.blocks)
        point.rounds.append(_round(bench, seed, blocks, host))
    point.cache = _cache_state(point, sets, bench.l2_bytes, flushed=False)


def _prepare(bench: Bench, contender: Contender, point: Point) -> None:
    from bench.clocks import prepare

    settings = bench.settings
    workload = bench.workload(point.case, 1)
    for seed in _layout_seeds(bench):
        with markers.span("setup"):
            preparation = contender.preparation(workload)
        if preparation is None:
            raise NotMeasured("skipped", "this contender plans no batch on the host")
        with preparation as prepared:
            prepared.prepare()
            with markers.span("verify"):
                point.check = verify_eager(contender, workload, prepared.launch)
            with markers.span("sample"):
                blocks = prepare.sample(prepared.prepare, calls=settings.prepare_calls, blocks=settings.blocks)
        point.rounds.append(_round(bench, seed, blocks))


def _work(bench: Bench, contender: Contender, point: Point) -> None:
    from bench.clocks.work import tracing
    from bench.model.records import Work

    if not contender.kernels():
        raise NotMeasured("skipped", "the work clock counts Triton kernels; this contender launches none")
    workload = bench.workload(point.case, 1)
    launch = contender.setup(workload, static=True)
    outputs: list[torch.Tensor] = []
    workload.restore()
    try:
        counted = tracing.count(lambda: outputs.append(_poisoned(launch, 0)))
    except tracing.TooManyPrograms as reason:
        raise NotMeasured("skipped", str(reason)) from None
    if not counted.launches:
        raise NotMeasured("error", f"no Triton kernel was launched; expected {contender.kernels()}")
    point.check = _compare(contender, workload, outputs[:1])
    _describe(point, contender, workload, bench)
    point.work = Work(counted.counts, launches=counted.launches)


def compile_point(bench: Bench, point: Point) -> None:
    """Add the compiled figures to a counted point. For a process without TRITON_INTERPRET."""
    from bench.clocks.work import compiled

    assert point.work is not None
    contender = contenders.build(point.contender, point.case.op, point.case.site)
    launch = contender.setup(bench.workload(point.case, 1), static=True)
    found = compiled.compile_launch(lambda: launch(0))
    point.work.launches = compiled.with_binaries(point.work.launches, found.launches)
    point.work.compiled = found.kernels


def index_sets(bench: Bench, case: Case) -> int:
    """How many index sets to rotate over: warm sets fit half the L2 together, cold sets are all different.

    Their number is limited by the memory set aside for them. Cold sets are then reused, after much else has been
    touched.
    """
    from bench.clocks.graph import set_counts

    settings = bench.settings
    cold = case.cache == "cold"
    counts = set_counts(settings.nodes, settings.nodes if cold else settings.max_index_sets)
    counts = [count for count in counts if count * set_bytes(case) <= SETS_LIMIT_BYTES]
    if not cold:
        smallest = traffic.minimum(make_workload(case, seed=settings.seed, index_sets=1, device=torch.device("cpu")))
        counts = [count for count in counts if count * smallest <= bench.l2_bytes // 2]
    return counts[-1] if counts else 1


def _cache_state(point: Point, sets: int, l2_bytes: int, *, flushed: bool) -> CacheState:
    """What was achieved: warm if all sets stay in the L2, cold if no row can have stayed there, else mixed."""
    touched = sets * (point.required_bytes or 0)
    achieved: CacheAchieved = "warm" if touched <= l2_bytes else "mixed"
    if flushed or touched >= COLD_FACTOR * l2_bytes:
        achieved = "cold"
    return CacheState(achieved, sets, touched, l2_bytes, flushed)


def _layout_seeds(bench: Bench) -> list[int]:
    settings = bench.settings
    return [settings.seed + bench.process * settings.rounds + index for index in range(settings.rounds)]


def _describe(point: Point, contender: Contender, workload: Workload, bench: Bench) -> None:
    point.minimum_bytes = traffic.minimum(workload)
    point.required_bytes = contender.required_bytes(workload)


def verify_graph(contender: Contender, workload: Workload, captured: CapturedGraph) -> Check:
    """Replay and compare.

    An op that adds in place is replayed on restored logits, in a graph with one launch for each set.
    """
    if contender.in_place:
        captured = captured.once()
        workload.restore()
    else:
        captured.poison()
    captured.replay()
    torch.cuda.synchronize()
    return _compare(contender, workload, captured.outputs)


def verify_eager(contender: Contender, workload: Workload, launch: Launch, index_sets: int | None = None) -> Check:
    """Compare each index set's launch with the oracle, or only the first `index_sets` of them."""
    workload.restore()
    count = len(workload.index_sets) if index_sets is None else index_sets
    return _compare(contender, workload, [_poisoned(launch, index) for index in range(count)])


def _poisoned(launch: Launch, index_set: int) -> torch.Tensor:
    """The output of a launch during which torch fills what it allocates uninitialised with NaN."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports all of torch's compiler: seconds
    try:
        return launch(index_set)
    finally:
        torch.set_deterministic_debug_mode(mode)


def _compare(contender: Contender, workload: Workload, outputs: list[torch.Tensor]) -> Check:
    """Every output against the oracle; raises NotMeasured with status wrong if one differs by more than allowed."""
    worst, tolerance = 0.0, contender.tolerance(workload.case)
    for index_set, output in enumerate(outputs):
        expected, output = contender.oracle(workload, index_set), contender.result(workload, output)
        if output.shape != expected.shape or output.dtype != workload.dtype:
            raise NotMeasured(
                "wrong",
                f"output is {tuple(output.shape)} {output.dtype}, expected {tuple(expected.shape)} {workload.dtype}",
            )
        expected = expected.double()
        error = (output.double() - expected).abs_().amax() / expected.abs().amax().clamp(min=1e-30)
        worst = max(worst, float("inf") if error.isnan() else float(error))
    check = Check(ORACLE, worst if np.isfinite(worst) else None, tolerance, worst <= tolerance)
    if not check.passed:
        shown = f"{worst:.3g}" if np.isfinite(worst) else "NaN: elements not written"
        allowed = f"at most {tolerance:g} allowed"
        raise NotMeasured("wrong", f"error {shown} of the oracle's largest value; {allowed}", check)
    return check


def _round(bench: Bench, seed: int, blocks: list[float], host: list[float] | None = None) -> Round:
    return Round(bench.process, seed, blocks, host, *gpu_state())


def gpu_state() -> tuple[int | None, list[str]]:
    """SM clock and the active reasons for a lowered clock, right after sampling."""
    found = nvml_device()
    return (None, []) if found is None else state_of(*found)
