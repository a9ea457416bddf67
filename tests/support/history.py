"""What the tests of the history share: libraries that are a line of text, workers whose times are known, entries."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path

import msgspec
import pytest

from bench.execute import history as running
from bench.execute import sweep as loop
from bench.execute.commits import EXPORT_FILE, LIBRARY, Exported, ExportedSource
from bench.execute.history import HistoryEvent, Session
from bench.execute.isolate import Answer, Ask, Hello, Start, WorkerDied
from bench.model import config, store
from bench.model.case import Case
from bench.model.config import Plan, PlannedPoint
from bench.model.history import Commit, Entry
from bench.model.records import (
    Anchor,
    Check,
    Code,
    Environment,
    Point,
    Results,
    Round,
    Run,
    Schema,
    Selection,
    Work,
    WorkCounts,
)
from bench.model.sources import hash_library

SETTINGS = msgspec.structs.replace(config.load().measure, rounds=2)
HISTORY = config.load().history
RUN_ID = "00000000-0000-4000-8000-000000000000"
PASSED = Check("oracle", 0.0, 0.0, passed=True)
OURS, PEER = "csgmv_embed-vocab_major", "sglang_triton"
GPU = {"gpu": "Fake GPU", "torch": "2", "triton": "3.6.0"}


def sha(number: int) -> str:
    """A hash whose first digits are the commit's number."""
    return f"{number:09d}".ljust(40, "0")


def commit(number: int, library: str | None = None) -> Commit:
    time = f"2026-01-{1 + number // 24:02d}T{number % 24:02d}:00:00+00:00"
    parent = sha(number - 1) if number else None
    return Commit(sha(number), f"commit {number}", time, parent, library or f"library {number}")


def planned(batch_size: int = 32, contender: str = OURS, clock: str = "graph") -> PlannedPoint:
    return PlannedPoint(Case("decode", batch_size, 1, 64), contender, clock)  # type: ignore[arg-type]


def exported(folder: Path, count: int, without: Sequence[int] = (), same: dict[int, int] | None = None) -> Path:
    """A folder of that many commits; `without` have no library, `same` maps a commit to the one it shares it with."""
    same = same or {}
    commits = [commit(number, f"library {same.get(number, number)}") for number in range(count)]
    for number, item in enumerate(commits):
        if number not in without:
            library = folder / item.sha / LIBRARY
            library.mkdir(parents=True)
            (library / "__init__.py").write_text(f"LEVEL = {same.get(number, number)}\n", encoding="utf-8")
    store.write(folder / EXPORT_FILE, Exported(commits))
    return folder


@dataclass
class Machine:
    """What the workers see: times by library, drift by process, noise, and which of them die."""

    level_us: Callable[[int], float] = lambda number: 2.0
    drift: Callable[[int], float] = lambda process: 0.0  # log, of every point
    sd: float = 0.0
    dies_at_start: set[int] = field(default_factory=set)
    dies_at_point: set[int] = field(default_factory=set)
    env_key: str = "key"
    wrong_library: bool = False
    log: list[tuple[int, int, tuple[str, ...]]] = field(default_factory=list)  # library, process, contenders
    running: int = 0


class FakeWorker:
    """In the place of a Worker on a GPU; it finds its library where a real one would."""

    machine: Machine

    def __init__(self, start: Start, environment: dict[str, str]) -> None:
        library = Path(environment["PYTHONPATH"].split(":")[0]) / LIBRARY
        assert environment["PYTHONSAFEPATH"] == "1"
        scope: dict[str, int] = {}
        exec((library / "__init__.py").read_text(encoding="utf-8"), scope)
        self.number, self.process = scope["LEVEL"], start.process
        self.machine.log.append((self.number, start.process, start.contenders))
        if self.number in self.machine.dies_at_start:
            where = library.parents[1]
            raise WorkerDied(f"worker ended with exit status 1: ...{where}/x.py ImportError: no name")
        digest = "" if self.machine.wrong_library else hash_library(library.resolve().parent)
        identity = dict(GPU) if start.kind == "gpu" else {"gpu": None}
        env = Environment(identity, self.machine.env_key, {"library_sha256": digest})
        self.hello = Hello(env, [Anchor("copy_bandwidth", "B/us", [3e6])])
        self.machine.running += 1

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.machine.running -= 1

    def ask(self, ask: Ask, timeout_s: float) -> Answer:
        if self.number in self.machine.dies_at_point:
            raise WorkerDied("worker ended with signal SIGSEGV")
        point = ask.counted or Point(
            ask.planned.case, ask.planned.contender, ask.planned.clock, ask.index, "ok", check=PASSED
        )
        if ask.planned.clock == "work":
            programs = round(10 * self.machine.level_us(self.number))
            point.work = Work(WorkCounts(1, programs, programs, 3, 1, 64, 64, 2, 2), compiled_reason="none")
            return Answer(point)
        rng = random.Random(f"{ask.planned.name} {self.process}")
        base = self.machine.level_us(self.number) * exp(self.machine.drift(self.process))
        point.rounds = [
            Round(self.process, layout, [base * exp(rng.gauss(0.0, self.machine.sd))] * 3) for layout in range(2)
        ]
        point.floor_us, point.nodes = [1.0], 60
        return Answer(point)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine()
    monkeypatch.setattr(FakeWorker, "machine", found, raising=False)
    monkeypatch.setattr(loop, "Worker", FakeWorker)
    monkeypatch.setattr(running, "Worker", FakeWorker)
    # A worker that is started early is one that is started late, as far as these can tell.
    monkeypatch.setattr(running, "EarlyWorker", FakeEarly)
    yield found
    assert found.running == 0, "a worker was left open"


class FakeEarly:
    """Becomes a FakeWorker when it is told what for."""

    def __init__(self, kind: str, environment: dict[str, str]) -> None:
        self.environment = environment
        self.worker: FakeWorker | None = None

    def begin(self, start: Start) -> None:
        self.worker = FakeWorker(start, self.environment)

    def __enter__(self) -> FakeWorker:
        assert self.worker is not None, "entered before it was told what for"
        return self.worker

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()

    @property
    def hello(self) -> Hello:
        assert self.worker is not None
        return self.worker.hello

    def ask(self, ask: Ask, timeout_s: float) -> Answer:
        assert self.worker is not None
        return self.worker.ask(ask, timeout_s)


def session(folder: Path, commits: Path, **changes: object) -> Session:
    """A session over all commits of an exported folder but the first, which is the anchor."""
    source = ExportedSource(commits)
    clock = changes.pop("clock", "graph")
    processes = changes.pop("processes", 1)
    points = tuple(planned(size, clock=str(clock)) for size in (32, 256))
    measure = msgspec.structs.replace(SETTINGS, processes=int(str(processes)), work_lanes=1)
    made = Session(
        source=source,
        commits=source.line(".."),
        anchor=source.commit(sha(0)) if clock != "work" else None,
        plan=Plan("p", measure, points, True, {}),
        references=(planned(32, PEER),) if clock != "work" else (),
        selection=Selection("p"),
        folder=folder,
        anchor_every=4,
        seed=1,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def measured(made: Session) -> list[HistoryEvent]:
    return list(running.run(made))


def entry(number: int, us: float | Sequence[float], **changes: object) -> Entry:
    """One commit with one point, a round a value, each of a process of its own."""
    values = [us] if isinstance(us, float) else list(us)
    point = Point(Case("decode", 32, 1, 64), OURS, "graph", 0, "ok", check=PASSED, nodes=60)
    first = int(str(changes.pop("process", 10 * number)))
    point.rounds = [Round(first + index, index, [value]) for index, value in enumerate(values)]
    item = commit(number)
    run = Run(RUN_ID, "sweep", Selection("p"), item.time or "", 0.0, [], 1, "", "0")
    code = Code(item.sha, item.short, None, item.time, False, None, "", str(changes.pop("version", "v1")))
    triton = str(changes.pop("triton", GPU["triton"]))
    identity = dict(GPU) | {"gpu": changes.pop("gpu", "Fake GPU"), "triton": triton}
    env = Environment(identity, str(changes.pop("env_key", "key")), {})  # type: ignore[arg-type]
    made = Entry(item, RUN_ID, Results(Schema(), run, code, env, [], [point]))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def noisy(levels: Sequence[float], sd: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [log(level) + rng.gauss(0.0, sd) for level in levels]
