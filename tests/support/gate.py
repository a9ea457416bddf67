"""What the tests of the gate share: files to judge, a machine that is not there, the command line in this process."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from math import exp
from pathlib import Path

import msgspec
import pytest

from bench.cli import main as cli
from bench.execute.interleaved import Machine
from bench.execute.protocol import Begin, Begun, Prepared, SideLost, Visited
from bench.execute.trees import Tree
from bench.model import config, store
from bench.model.config import Measure, Plan, PlannedPoint
from bench.model.gpus import Gpu
from bench.model.records import Anchor, CompiledFigures, Environment, Point, Results, Round, Work, WorkCounts
from bench.model.verdict import Subject

LOADED = config.load()
GATE = LOADED.gate
ROOT = config.DEFAULT_PATH.parent
# Six processes of two layouts on a real GPU: 16 points each of our kernel and of two peers, and the anchors.
AA = ROOT / "docs" / "results" / "h200-aa.json"
OURS = "csgmv_embed-vocab_major"


# Points of the profile that the gate judges unasked.
QUICK_POINTS = len(config.make_plan(LOADED, "quick", clocks=["graph"], contenders=["csgmv_embed-*"]).points)


@dataclass
class Outcome:
    """What a call of the command line left."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line, in this process, with an instrument of the test's own."""

    def call(*arguments: object, instrument: Machine | None = None) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments], instrument)
        captured = capsys.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return call


@cache
def _pickled_aa() -> bytes:
    return pickle.dumps(store.read(AA))


def aa() -> Results:
    """A copy of its own, that a test may change: the file is read and examined once."""
    found: Results = pickle.loads(_pickled_aa())
    return found


def scaled(results: Results, factor: float, chosen: Callable[[Point], bool] = lambda point: True) -> Results:
    """The same file with the times of some points multiplied."""
    for point in results.points:
        if chosen(point):
            for item in point.rounds:
                item.blocks_us = [value * factor for value in item.blocks_us]
    return results


def ours(results: Results) -> list[Point]:
    return [point for point in results.points if point.contender == OURS]


def saved(path: Path, results: Results) -> Path:
    store.write(path, results)
    return path


def jittered(results: Results, sd: float = 0.003, seed: int = 0) -> Results:
    """Another run of the same machine: every round moved a little."""
    rng = random.Random(seed)
    for point in results.points:
        for item in point.rounds:
            factor = exp(rng.gauss(0.0, sd))
            item.blocks_us = [value * factor for value in item.blocks_us]
    return results


def first(results: Results) -> Callable[[Point], bool]:
    return lambda point: point.key == ours(results)[0].key


# Changes to a result: most make it unfit to be judged, or to be a baseline.


def identity(**changes: object) -> Callable[[Results], None]:
    def change(results: Results) -> None:
        assert results.env is not None
        results.env.identity |= changes  # type: ignore[arg-type]

    return change


def version(results: Results) -> None:
    results.code.bench_version = "0" * 16


def no_points(results: Results) -> None:
    results.points = [point for point in results.points if point.contender != OURS]


def fewer_points(results: Results) -> None:
    results.points.remove(ours(results)[0])


def anchors_moved(results: Results) -> None:
    for anchor in results.anchors:
        if anchor.name == "gather":
            anchor.values = [value * 1.05 for value in anchor.values]


def no_anchors(results: Results) -> None:
    results.anchors = [anchor for anchor in results.anchors if anchor.name != "copy_bandwidth"]


def throttled(results: Results) -> None:
    ours(results)[0].rounds[3].throttle = ["thermal"]


def other_seed(results: Results) -> None:
    results.run.seed = 2


def failed(results: Results) -> None:
    ours(results)[0].status, ours(results)[0].reason = "wrong", "error 0.5 of the oracle's largest value"


def other_nodes(results: Results) -> None:
    ours(results)[0].nodes = 20


def one_round(results: Results) -> None:
    del ours(results)[0].rounds[1:]


def no_environment(results: Results) -> None:
    results.env = None


def foreign(path: Path) -> str:
    path.write_bytes(AA.read_bytes().replace(b"csgmv-bench-results", b"another-tool", 1))
    return "schema.name is 'another-tool'; expected 'csgmv-bench-results'"


COUNTS = WorkCounts(1, 9, 8, 3, 1, 4096, 2048, 128, 64)
COMPILED = CompiledFigures("kernel", 90, 4, 24, 0, 0, 128, 128, 200)


def work_results(**changes: int) -> Results:
    """Counted points of a profile; `changes` are figures of the first one."""
    results = aa()
    results.anchors = []
    points = ours(results)[:3]
    for point in points:
        point.clock, point.rounds, point.nodes, point.cache = "work", [], None, None
        point.work = Work(COUNTS, [COMPILED])
    first = points[0].work
    assert first is not None
    counted = {name: value for name, value in changes.items() if name in WorkCounts.__struct_fields__}
    compiled = {name: value for name, value in changes.items() if name not in counted}
    first.counts = msgspec.structs.replace(COUNTS, **counted)
    first.compiled = [msgspec.structs.replace(COMPILED, **compiled)]
    results.points = points
    return results


ENV = Environment({"gpu": "Fake GPU", "triton": "3.6.0"}, "0" * 16, {})


@dataclass
class FakeGpu:
    """A machine whose times are known. `slowdown` is the log effect of side B by point; noise is per process."""

    process_sd: float = 0.003
    slowdown: Callable[[PlannedPoint], float] = lambda planned: 0.0
    prepared: Callable[[str, PlannedPoint, int], Prepared] = lambda side, planned, process: Prepared("ok", nodes=60)
    chance: Callable[[PlannedPoint, int], float] = lambda planned, process: 0.0  # on side B, by process
    throttle: Callable[[str, int], list[str]] = lambda side, process: []
    dies: Callable[[str, PlannedPoint, int], bool] = lambda side, planned, process: False
    seed: int = 0
    log: list[tuple[object, ...]] = field(default_factory=list)
    opened: dict[tuple[str, int], range] = field(
        default_factory=dict
    )  # by side and process: what was open from then on
    clock: Iterator[int] = field(default_factory=itertools.count)

    def instrument(self, **changes: object) -> Machine:
        made = Machine(
            has_gpu=lambda: True,
            sweep=self.sweep,  # type: ignore[arg-type]
            open_side=self.open_side,
            open_trees=fake_trees,
            knows_commit=lambda sha: False,
            commit_of=lambda rev: rev,
            config_at=lambda sha, config: config,
            layout_seed=lambda: 7,
        )
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def open_side(self, tree: Tree, settings: Measure, contenders: tuple[str, ...], gpu: Gpu | None = None) -> FakeSide:
        name = "A" if tree.path.name == "a" else "B"
        self.log.append(("open", name, contenders))
        return FakeSide(self, name, gpu.uuid if gpu else None)

    def sweep(self, plan: Plan, results: Results, path: Path, *_: object) -> Iterable[object]:
        """In the place of bench.execute.sweep.sweep: rounds of the same machine as h200-aa.json."""
        known = {point.key: point for point in aa().points}
        results.env, results.anchors = aa().env, [Anchor(a.name, a.unit, list(a.values)) for a in aa().anchors]
        rng = random.Random(self.seed)
        for planned in plan.points:
            point = known[planned.case, planned.contender, planned.clock]
            level = exp(self.slowdown(planned))
            base = sorted(item.blocks_us[0] for item in point.rounds)[len(point.rounds) // 2]
            point.rounds = [
                Round(process, layout, [base * level * exp(rng.gauss(0.0, self.process_sd))])
                for process in range(plan.measure.processes)
                for layout in range(plan.measure.rounds)
            ]
            results.points.append(point)
            self.log.append(("swept", planned.name, plan.measure.processes))
        return iter(())


class FakeSide:
    """One side on a FakeGpu."""

    def __init__(self, gpu: FakeGpu, name: str, device: str | None = None) -> None:
        self.gpu, self.name, self.device = gpu, name, device
        self.process = -1
        self.begun = False
        self.now: PlannedPoint | None = None
        self.level = 1.0

    def begin(self, begin: Begin) -> Begun:
        assert not self.begun, "begun twice"
        self.begun, self.process = True, begin.process
        self.gpu.log.append(("begin", self.name, begin.process))
        self.gpu.opened.setdefault((self.name, begin.process), range(begin.process, begin.process + begin.ahead + 1))
        return Begun(ENV, "")

    def prepare(self, planned: PlannedPoint, layout_seed: int, extra_share: float) -> Prepared:
        assert self.begun
        answer = self.gpu.prepared(self.name, planned, self.process)
        self.begun = not answer.lost
        self.now = planned
        effect = self.gpu.slowdown(planned) + self.gpu.chance(planned, self.process) if self.name == "B" else 0.0
        rng = random.Random(f"{self.gpu.seed} {self.name} {self.process} {planned.name}")
        self.level = 2.0 * exp(effect + rng.gauss(0.0, self.gpu.process_sd)) * (1 + extra_share)
        self.gpu.log.append(("prepare", self.name, planned.name, layout_seed, self.process))
        return answer

    def visit(self, blocks: int) -> Visited:
        assert self.begun and self.now is not None
        if self.gpu.dies(self.name, self.now, self.process):
            self.begun = False
            raise SideLost("measuring process ended by SIGSEGV")
        # The machine drifts: turns must cancel that.
        drift = 1 + 0.001 * (next(self.gpu.clock) % 4)
        self.gpu.log.append(("visit", self.name, blocks))
        return Visited([self.level * drift] * blocks, 1980, self.gpu.throttle(self.name, self.process))

    def finish(self) -> None:
        if self.begun:
            self.gpu.log.append(("finish", self.name, self.process))
        self.begun = False

    def close(self) -> None:
        self.gpu.log.append(("close", self.name))


@contextlib.contextmanager
def fake_trees(before: str | None, after: str | None) -> Iterator[tuple[Tree, Tree]]:
    a = Tree(Subject("aaaaaaaaa", "a" * 40 if before in (None, "HEAD") else before, False, "1"), Path("/fake/a"))
    yield a, Tree(Subject("bbbbbbbbb", "b" * 40, False, "2"), Path("/fake/b"))
