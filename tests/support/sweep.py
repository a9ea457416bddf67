"""What the tests of the sweep's loop share: workers that follow a script, plans of few points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.execute import sweep as loop
from bench.execute.isolate import Answer, Ask, Hello, Start, WorkerDied
from bench.execute.tasks import HERE, Around
from bench.model import config, store
from bench.model.case import Case
from bench.model.config import Plan, PlannedPoint
from bench.model.records import (
    Anchor,
    Check,
    Code,
    Environment,
    Point,
    Results,
    Round,
    Run,
    Scalar,
    Schema,
    Selection,
    Work,
    WorkCounts,
)

SETTINGS = msgspec.structs.replace(config.load().measure, point_timeout_s=1.0, work_lanes=1)
COUNTS = WorkCounts(1, 1, 1, 1, 1, 8, 8, 1, 1)
RUN_ID = "00000000-0000-4000-8000-000000000000"
PASSED = Check("oracle", 0.0, 0.0, passed=True)


def planned(batch_size: int = 8, contender: str = "torch_gather", clock: Any = "graph") -> PlannedPoint:
    return PlannedPoint(Case("decode", batch_size, 1, 16, vocab=100), contender, clock)


class FakeWorker:
    """Answers ok, but for what `script` says of (process, batch size)."""

    script: dict[tuple[int, int], str] = {}
    stillborn: set[tuple[str, int]] = set()  # (kind, how many of the kind came before it)
    lives: list[tuple[str, int, list[int]]] = []  # kind, process, batch sizes it was asked for
    paths: list[str] = []  # of each life: its PYTHONPATH
    gpus: list[str] = []  # of each life: the GPU that it sees
    gone: set[str] = set()  # GPUs on which no worker starts any more; a point that kills its GPU adds it
    files = "1" * 64  # the hash of the SGLang that it imports
    running: list[FakeWorker] = []
    env_key = "key"

    def __init__(self, start: Start, environment: dict[str, str]) -> None:
        self.start, self.asked, self.dead = start, list[int](), False
        before = [kind for kind, _, _ in FakeWorker.lives].count(start.kind)
        FakeWorker.lives.append((start.kind, start.process, self.asked))
        FakeWorker.paths.append(environment.get("PYTHONPATH", ""))
        self.gpu = environment.get("CUDA_VISIBLE_DEVICES", "")
        FakeWorker.gpus.append(self.gpu)
        if self.gpu in self.gone:
            raise WorkerDied(f"worker ended with exit status 1: no device {self.gpu}")
        if (start.kind, before) in self.stillborn:
            raise WorkerDied("worker ended with exit status 1")
        identity = {"gpu": None, "torch": "1" if self.env_key == "key" else "2"}
        volatile: dict[str, Scalar] = {"sglang_lora_sha256": self.files}
        if self.gpu:
            volatile |= {"gpu_uuid": self.gpu, "pci_bus": f"bus of {self.gpu}"}
        self.hello = Hello(
            Environment(identity, self.env_key, volatile), [Anchor("copy", "B/us", [1.0 + start.process])]
        )
        FakeWorker.running.append(self)

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        FakeWorker.running.remove(self)

    def ask(self, ask: Ask, timeout_s: float) -> Answer:
        assert not self.dead, "a dead worker was asked"
        assert timeout_s == SETTINGS.point_timeout_s
        case, process = ask.planned.case, self.start.process
        self.asked.append(case.batch_size)
        fate = self.script.get((process, case.batch_size), "ok")
        if fate == f"die {self.start.kind}" or fate == "die":
            self.dead = True
            raise WorkerDied("worker ended with signal SIGSEGV")
        if fate == f"takes {self.gpu} with it":
            self.dead = True
            self.gone.add(self.gpu)
            raise WorkerDied("worker ended with signal SIGSEGV")
        if fate == "fault in the suite":
            raise ZeroDivisionError(fate)
        point = ask.counted or Point(case, ask.planned.contender, ask.planned.clock, ask.index, "ok", check=PASSED)
        if ask.planned.clock == "work":
            point.work = Work(COUNTS, compiled_reason="asked" if ask.counted else None)
        elif fate == "ok":
            point.rounds, point.floor_us, point.wall_s = [Round(process, 10 + process, [5.0 + process])], [1.0], 2.0
        elif fate == "lost":
            point.status, point.reason, self.dead = "crashed", "GPU context lost", True
            return Answer(point, lost=True)
        else:
            point.status, point.reason = "wrong", fate
        return Answer(point)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeWorker]]:
    monkeypatch.setattr(loop, "Worker", FakeWorker)
    for name, value in (
        ("script", {}),
        ("stillborn", set()),
        ("lives", []),
        ("paths", []),
        ("gpus", []),
        ("gone", set()),
        ("running", []),
        ("env_key", "key"),
    ):
        monkeypatch.setattr(FakeWorker, name, value)
    yield FakeWorker
    assert FakeWorker.running == [], "a worker was left open"


def plan_of(
    batch_sizes: list[int], *, processes: int = 1, clock: str = "graph", shuffle: bool = False, lanes: int = 1
) -> Plan:
    measure = msgspec.structs.replace(SETTINGS, processes=processes, work_lanes=lanes)
    return Plan("p", measure, tuple(planned(size, clock=clock) for size in batch_sizes), shuffle, {})


def empty() -> Results:
    run = Run(
        "00000000-0000-4000-8000-000000000000",
        "sweep",
        Selection("p"),
        "2025-01-01T00:00:00+00:00",
        0.0,
        [],
        1,
        "",
        "0",
    )
    return Results(Schema(), run, Code(None, None, None, None, None, None, "", ""))


def swept(plan: Plan, folder: Path, results: Results | None = None, around: Around = HERE) -> Results:
    """The file of a whole sweep."""
    for _ in loop.sweep(plan, results or empty(), folder / "r.json", None, around):
        pass
    return store.read(folder / "r.json")


def statuses(results: Results) -> dict[int, str]:
    return {point.case.batch_size: point.status for point in results.points}
