"""The stages of an interleaved run, on one GPU or several in parallel: screen all points, confirm the flagged ones.

A point stays on one GPU with both sides and all of its rounds, together with the other points of its case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from threading import Lock

import msgspec

from bench.execute.lanes import Dealer, Lanes, Say
from bench.execute.pairs import OpenSide, PairEvent, Runner, StageStarted, opened
from bench.execute.tasks import HERE, Around
from bench.execute.trees import Tree
from bench.judge import times as judge
from bench.model.case import Case
from bench.model.gpus import Gpu
from bench.model.pairs import PairPoint, PairRun, Stage
from bench.model.records import UsedGpu

Unit = list[PairPoint]


def run_pairs(
    run: PairRun, sides: tuple[Tree, Tree], open_side: OpenSide, *, screen: bool = True, around: Around = HERE
) -> Generator[PairEvent, None, None]:
    """Screen all points and confirm the flagged ones; without a screen, confirm all. Raises CannotJudge."""
    begun = time.monotonic()
    spent_s = run.duration_s
    with ExitStack() as stack:
        lanes = _opened(run, sides, open_side, around, stack)
        if screen:
            yield from _timed(run, _stage(run, lanes, "screen", run.points), begun, spent_s)
        flagged = judge.flagged_pairs(run.points, run.gate) if screen else run.points
        if flagged:
            yield from _timed(run, _stage(run, lanes, "confirm", flagged), begun, spent_s)
    run.duration_s = spent_s + time.monotonic() - begun


def _timed(run: PairRun, events: Iterable[PairEvent], begun: float, spent_s: float) -> Generator[PairEvent, None, None]:
    for event in events:
        run.duration_s = spent_s + time.monotonic() - begun
        yield event


@dataclass
class _Lane:
    """One GPU and its points. `run` is the whole one, or one of its points with times of its own."""

    run: PairRun
    runner: Runner


def _opened(
    run: PairRun, sides: tuple[Tree, Tree], open_side: OpenSide, around: Around, stack: ExitStack
) -> list[_Lane]:
    """A lane for each GPU, opened side by side."""
    if len(around.gpus) < 2:
        gpu = around.gpus[0] if around.gpus else None
        return [_Lane(run, Runner(run, stack.enter_context(opened(*sides, run, open_side, gpu))))]
    turn = Lock() if around.one_at_a_time else None
    run.gpus = [UsedGpu(gpu.uuid) for gpu in around.gpus]

    def one(part: PairRun, gpu: Gpu) -> _Lane:
        # On the stack at once: whoever did open is closed should another fail.
        return _Lane(part, Runner(part, stack.enter_context(opened(*sides, part, open_side, gpu)), turn))

    with ThreadPoolExecutor(len(around.gpus)) as pool:
        parts = zip(_parts(run, around.gpus), around.gpus, strict=True)
        futures = [pool.submit(one, part, gpu) for part, gpu in parts if part.points]
        return [future.result() for future in futures]


def _parts(run: PairRun, gpus: Sequence[Gpu]) -> list[PairRun]:
    """The run as one for each GPU: they have the same points, dealt case by case, and count their time themselves."""
    cases: dict[Case, Unit] = {}
    for point in run.points:
        cases.setdefault(point.case, []).append(point)
    shares = Dealer([gpu.uuid for gpu in gpus], cases.values()).shares(len)
    for place, gpu in enumerate(gpus):
        for point in (point for unit in shares[gpu.uuid] for point in unit):
            point.gpu = place
    return [
        msgspec.structs.replace(run, points=[point for point in run.points if point.gpu == place])
        for place in range(len(gpus))
    ]


def _stage(run: PairRun, lanes: Sequence[_Lane], stage: Stage, points: Sequence[PairPoint]) -> Iterator[PairEvent]:
    """One stage on all lanes, which begin it together: what is flagged is known when all have screened."""
    try:
        if len(lanes) == 1:
            yield from lanes[0].runner.stage(stage, points)
        else:
            yield from _side_by_side(lanes, stage, points)
    finally:
        _add_up(run, lanes)


def _side_by_side(lanes: Sequence[_Lane], stage: Stage, points: Sequence[PairPoint]) -> Iterator[PairEvent]:
    wanted = [point for point in points if point.status == "ok"]
    began = False

    def lane_of(lane: _Lane) -> Callable[[Say[PairEvent]], None]:
        own = [point for point in wanted if any(point is other for other in lane.run.points)]

        def run(say: Say[PairEvent]) -> None:
            for event in lane.runner.stage(stage, own):
                if say.stopping.is_set():
                    return
                say(event)

        return run

    with ThreadPoolExecutor(len(lanes)) as pool:
        nothing: Dealer[Unit] = Dealer((), ())
        with closing(Lanes[PairEvent](nothing).run([lane_of(lane) for lane in lanes], pool)) as events:
            for event in events:
                if not isinstance(event, StageStarted):
                    yield event
                elif not began:  # each lane says so of its own points
                    began = True
                    yield StageStarted(stage, len(wanted), event.processes)


def _add_up(run: PairRun, lanes: Sequence[_Lane]) -> None:
    """What a run of several lanes says of itself; and which GPU the only one of a run was."""
    for lane in lanes:
        run.env = run.env or lane.run.env
    if len(lanes) > 1:
        run.start_s = max(lane.run.start_s for lane in lanes)
        run.open_s = max(lane.run.open_s for lane in lanes)
    elif not run.gpus and run.env is not None and (uuid := run.env.volatile.get("gpu_uuid")) is not None:
        run.gpus = [UsedGpu(str(uuid))]
        for point in run.points:
            point.gpu = 0
