"""Runs pairs: two persistent workers on one GPU take turns A B B A. Yields events, decides and prints nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Protocol, TypeVar

import msgspec

from bench.execute.isolate import Start, Worker, WorkerDied, WorkerKind
from bench.execute.protocol import (
    Begin,
    Begun,
    Ended,
    Finish,
    Prepare,
    Prepared,
    Request,
    Side,
    SideLost,
    Visit,
    Visited,
)
from bench.execute.trees import Tree
from bench.judge import times as judge
from bench.model.case import shuffled_by_tables
from bench.model.config import Measure, PlannedPoint
from bench.model.gpus import Gpu
from bench.model.pairs import PairPoint, PairRound, PairRun, SideName, Stage
from bench.model.verdict import CannotJudge

T = TypeVar("T")
SEED_STEP = 1_000_003  # between the layout seeds of the two sides: they must not share their layouts


class OpenSide(Protocol):
    """Opens a side that is ready to begin. gpu: the one to use, if there are several."""

    def __call__(self, tree: Tree, settings: Measure, contenders: tuple[str, ...], gpu: Gpu | None = None) -> Side: ...


class StageStarted(msgspec.Struct, frozen=True):
    """A stage begins: this many points in this many pairs of processes."""

    stage: Stage
    points: int
    processes: int


class PairMeasured(msgspec.Struct, frozen=True):
    """One point has its rounds of one pair of processes."""

    stage: Stage
    point: PairPoint


PairEvent = StageStarted | PairMeasured


class PairWorker(Worker):
    """The worker process of one side."""

    module = "bench.execute.pair_start"

    def tell(self, request: Request, kind: type[T], timeout_s: float) -> T:
        """Send a message and return the answer.

        Raises WorkerDied if the process has died, SideLost if only its child has.
        """
        answer: T | Ended = self._exchange(request, kind | Ended, timeout_s)  # type: ignore[arg-type]
        if isinstance(answer, kind):
            return answer
        raise SideLost(getattr(answer, "reason", None) or "the measuring process ended unexpectedly")


class WorkerSide:
    """A Side with a real worker, which is replaced when it dies or hangs."""

    def __init__(
        self,
        tree: Tree,
        kind: WorkerKind,
        settings: Measure,
        contenders: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._tree, self._kind, self._settings, self._contenders = tree, kind, settings, contenders
        self._environment = tree.environment() | dict(environment or {})
        self._worker: PairWorker | None = None
        self._begun = False
        self._open()

    def begin(self, begin: Begin) -> Begun:
        worker = self._worker or self._open()
        begun = self._tell(worker, begin, Begun)
        self._begun = True
        expected = self._tree.library / "__init__.py"
        if begun.library != (str(expected) if expected.exists() else ""):
            raise CannotJudge(f"{self._tree.subject.label}: the worker loaded {begun.library}; expected {expected}")
        if self._tree.sglang is not None and not self._tree.is_in(begun.env):
            raise CannotJudge(
                f"{self._tree.subject.label}: the worker imported another SGLang; expected none before it on the path"
            )
        return begun

    def prepare(self, planned: PlannedPoint, layout_seed: int, extra_share: float) -> Prepared:
        prepared = self._tell(self._alive(), Prepare(planned, layout_seed, extra_share), Prepared)
        if prepared.lost:  # a worker that has seen a lost context is not worth keeping
            self._begun = False
            self.close()
        return prepared

    def visit(self, blocks: int) -> Visited:
        return self._tell(self._alive(), Visit(blocks), Visited)

    def finish(self) -> None:
        if self._worker is not None and self._begun:
            self._begun = False
            with suppress(SideLost):  # gone is finished
                self._tell(self._worker, Finish(), Ended)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _open(self) -> PairWorker:
        start = Start(self._kind, self._settings, 0, self._contenders)
        try:
            self._worker = PairWorker(start, self._environment)
        except WorkerDied as death:
            raise CannotJudge(f"{self._tree.subject.label}: its library cannot be driven: {death}") from None
        return self._worker

    def _alive(self) -> PairWorker:
        assert self._worker is not None and self._begun, "begin comes first"
        return self._worker

    def _tell(self, worker: PairWorker, request: Request, kind: type[T]) -> T:
        try:
            return worker.tell(request, kind, self._settings.point_timeout_s)
        except SideLost:
            self._begun = False
            raise
        except WorkerDied as death:
            self._begun = False
            self.close()
            raise SideLost(str(death)) from None


@contextmanager
def opened(a: Tree, b: Tree, run: PairRun, open_side: OpenSide, gpu: Gpu | None = None) -> Iterator[tuple[Side, Side]]:
    """Both sides, started in parallel, because most of a start is imports, which do not use the GPU."""
    names = tuple(dict.fromkeys(point.contender for point in run.points))
    begun = time.monotonic()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        futures = [pool.submit(open_side, tree, run.measure, names, gpu) for tree in (a, b)]
        sides: list[Side] = []
        errors: list[BaseException] = []
        for future in futures:
            try:
                side = future.result()
                stack.callback(side.close)
                sides.append(side)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        run.start_s += time.monotonic() - begun
        yield sides[0], sides[1]


class Runner:
    """Runs stages of one PairRun on two open sides and adds rounds to its points. `turn` is held while it measures."""

    def __init__(
        self, run: PairRun, sides: tuple[Side, Side], turn: AbstractContextManager[object] | None = None
    ) -> None:
        self._run, self._turn = run, turn or nullcontext()
        self._sides = sides
        self._rng = random.Random(run.seed)
        self._processes = 0  # over both stages, so that no two pairs of processes share a number or a layout
        self._layouts = 0

    def stage(self, stage: Stage, points: Sequence[PairPoint]) -> Generator[PairEvent, None, None]:
        """All rounds of a stage, over the points that have not failed and that no earlier wave has cleared."""
        gate = self._run.gate
        processes, layouts = (
            (gate.screen_processes, gate.screen_layouts)
            if stage == "screen"
            else (gate.confirm_processes, gate.confirm_layouts)
        )
        points = [point for point in points if point.status == "ok"]
        yield StageStarted(stage, len(points), processes)
        for index in range(processes):
            points = [point for point in points if point.status == "ok" and not judge.is_cleared(point, gate)]
            todo = shuffled_by_tables(points, lambda point: point.case, self._rng)
            ahead = min(gate.wave - index % gate.wave, processes - index) - 1
            yield from self._process(stage, todo, layouts, ahead)
            self._processes += 1

    def _process(self, stage: Stage, todo: list[PairPoint], layouts: int, ahead: int) -> Iterator[PairEvent]:
        remaining = list(todo)
        while remaining:  # more than one turn only after a crash
            self._begin(Begin(self._processes, ahead, remaining[0].planned))
            alive = True
            while remaining and alive:
                point = remaining.pop(0)
                begun = time.monotonic()
                with self._turn:
                    alive = self._point(stage, point, layouts)
                point.wall_s += time.monotonic() - begun
                yield PairMeasured(stage, point)
            if alive:
                self._untimed(lambda side: side.finish())

    def _begin(self, begin: Begin) -> None:
        """New processes, side by side: nothing is timed yet."""

        def on(side: Side) -> Begun:
            side.finish()  # nothing to do, unless the other side was lost
            return side.begin(begin)

        try:
            begun, _ = self._untimed(on)
        except SideLost as loss:
            raise CannotJudge(f"a worker cannot start a measuring process: {loss}") from None
        if self._run.env is None:
            self._run.env = begun.env

    def _untimed(self, call: Callable[[Side], T]) -> tuple[T, T]:
        """Call both sides at once, in time that belongs to no point."""
        begun = time.monotonic()
        try:
            return self._on_both(call)
        finally:
            self._run.open_s += time.monotonic() - begun

    def _on_both(self, call: Callable[[Side], T]) -> tuple[T, T]:
        """Call both sides at once; which of them is the first alternates, for it takes the memory it likes."""
        order = (0, 1) if self._processes % 2 == 0 else (1, 0)
        with ThreadPoolExecutor(2) as pool:
            asked = {index: pool.submit(call, self._sides[index]) for index in order}
            return asked[0].result(), asked[1].result()

    def _point(self, stage: Stage, point: PairPoint, layouts: int) -> bool:
        """Rounds of one point; whether both sides still live."""
        current: SideName = "A"
        try:
            for _ in range(layouts):
                seeds = self._run.seed + self._layouts, self._run.seed + SEED_STEP + self._layouts
                prepared = self._prepare(point, seeds)
                for name, answer in zip(("A", "B"), prepared, strict=True):
                    if answer.status != "ok":
                        _fail(point, "A" if name == "A" else "B", answer)
                        return not any(item.lost for item in prepared)
                point.nodes = prepared[0].nodes
                first: SideName = "A" if self._layouts % 2 == 0 else "B"
                self._layouts += 1
                visits = []
                for current in _turns(first):
                    visits.append((current, self._side(current).visit(self._run.gate.visit_blocks)))
                point.rounds.append(_round(stage, self._processes, first, seeds, visits))
        except SideLost as loss:
            _fail(point, current, Prepared("crashed", str(loss)))
            return False
        return True

    def _prepare(self, point: PairPoint, seeds: tuple[int, int]) -> tuple[Prepared, Prepared]:
        """Both sides side by side: nothing is timed here."""
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(_prepared, side, point, seed, share)
                for side, seed, share in zip(self._sides, seeds, (0.0, point.extra_share), strict=True)
            ]
            return asked[0].result(), asked[1].result()

    def _side(self, name: SideName) -> Side:
        return self._sides[0 if name == "A" else 1]


def _prepared(side: Side, point: PairPoint, seed: int, share: float) -> Prepared:
    try:
        return side.prepare(point.planned, seed, share)
    except SideLost as loss:
        return Prepared("crashed", str(loss), lost=True)


def _turns(first: SideName) -> tuple[SideName, ...]:
    """A B B A, or B A A B: a drift that is linear in time cancels."""
    return ("A", "B", "B", "A") if first == "A" else ("B", "A", "A", "B")


def _fail(point: PairPoint, side: SideName, answer: Prepared) -> None:
    point.status, point.side, point.reason = answer.status, side, answer.reason


def _round(
    stage: Stage, process: int, first: SideName, seeds: tuple[int, int], visits: list[tuple[SideName, Visited]]
) -> PairRound:
    of = {name: [visit for side, visit in visits if side == name] for name in ("A", "B")}
    return PairRound(
        stage=stage,
        process=process,
        first=first,
        a_layout_seed=seeds[0],
        b_layout_seed=seeds[1],
        a_blocks_us=[value for visit in of["A"] for value in visit.blocks_us],
        b_blocks_us=[value for visit in of["B"] for value in visit.blocks_us],
        a_sm_mhz=[visit.sm_mhz for visit in of["A"]],
        b_sm_mhz=[visit.sm_mhz for visit in of["B"]],
        throttle=sorted({reason for _, visit in visits for reason in visit.throttle}),
    )
