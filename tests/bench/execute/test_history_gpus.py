"""A session on several GPUs: at every commit a point is measured where the anchor's was."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.execute import history as running
from bench.execute.history import Session
from bench.execute.isolate import Start, WorkerDied
from bench.model import history as records
from bench.model.gpus import Gpu
from bench.model.records import ResultsError
from tests.support.history import FakeWorker, Machine, exported, machine, session

__all__ = ["machine"]
GPUS = (Gpu(0, "GPU-a", "Fake GPU"), Gpu(1, "GPU-b", "Fake GPU"))
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def gone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """(GPU, library) that no worker starts for; workers say which GPU they see."""
    found: set[tuple[str, int]] = set()
    begin = FakeWorker.__init__

    def seeing(self: FakeWorker, start: Start, environment: dict[str, str]) -> None:
        begin(self, start, environment)
        gpu = environment["CUDA_VISIBLE_DEVICES"]
        self.hello.env.volatile["gpu_uuid"] = gpu
        if (gpu, self.number) in found:
            self.close()
            raise WorkerDied(f"no device {gpu}")

    monkeypatch.setattr(FakeWorker, "__init__", seeing)
    return found


def on_both(tmp_path: Path) -> Session:
    return session(tmp_path / "h", exported(tmp_path / "c", 5), processes=2, gpus=GPUS, references=())


def test_a_point_is_on_one_gpu_at_every_commit_and_in_every_process(gone: set[tuple[str, int]], tmp_path: Path) -> None:
    made = on_both(tmp_path)
    of_case: dict[object, set[str | None]] = {}
    for event in running.run(made):
        if isinstance(event, running.Stored):
            results = event.entry.results
            for point in results.points:
                assert point.gpu is not None
                of_case.setdefault(point.case, set()).add(results.gpus[point.gpu].uuid)
    assert len(of_case) == 2 and all(len(gpus) == 1 for gpus in of_case.values())
    entries = records.read_all(tmp_path / "h")
    assert len(entries) == 5
    for entry in entries:
        assert entry.results.gpus and all(used.uuid is None for used in entry.results.gpus), "not whose it was"
        processes = [{item.process for item in point.rounds} for point in entry.results.points]
        assert len(processes) == 2 and processes[0] == processes[1] and len(processes[0]) >= 2


def test_a_gpu_that_is_lost_ends_the_session_and_keeps_what_is_stored(
    gone: set[tuple[str, int]], tmp_path: Path
) -> None:
    events = running.run(on_both(tmp_path))
    stored = 0
    while stored < 2:
        stored += isinstance(next(events), running.Stored)
    gone |= {("GPU-b", number) for number in range(5)}
    with pytest.raises(ResultsError, match="GPU 1 is lost: no device GPU-b; the same command continues"):
        list(events)
    assert len(records.read_all(tmp_path / "h")) == 2


def test_a_commit_whose_library_starts_nowhere_is_that_commits_fault(
    gone: set[tuple[str, int]], tmp_path: Path
) -> None:
    gone |= {("GPU-a", 3), ("GPU-b", 3)}
    list(running.run(on_both(tmp_path)))
    by_commit = {entry.commit.sha[8]: entry for entry in records.read_all(tmp_path / "h")}
    assert len(by_commit) == 5
    assert {point.status for point in by_commit["3"].results.points} == {"error"}
    assert all(
        point.status == "ok" for number, entry in by_commit.items() if number != "3" for point in entry.results.points
    )
