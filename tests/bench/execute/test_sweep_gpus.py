"""A sweep on several GPUs: what is dealt to which, what stays together, what becomes of the points of a lost GPU.

The GPUs are stand-ins: a worker sees the one that its environment names.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.execute import sweep as loop
from bench.execute.isolate import Answer, Ask, WorkerDied
from bench.execute.tasks import Around, GpuLost, Measured
from bench.model import store
from bench.model.config import Plan
from bench.model.gpus import Gpu
from bench.model.records import Results, ResultsError, UsedGpu
from tests.support import gpu_worker
from tests.support.sweep import SETTINGS, FakeWorker, empty, planned, statuses, swept

A, B = Gpu(0, "GPU-a", "Fake GPU"), Gpu(1, "GPU-b", "Fake GPU")
BOTH = Around(gpus=(A, B))
PEERS = ("csgmv_embed-vocab_major", "sglang_triton", "torch_gather")
CASES = range(1, 9)
pytestmark = pytest.mark.timeout(60)


def plan_of(processes: int = 1, cases: range = CASES, clocks: tuple[str, ...] = ("graph",)) -> Plan:
    """Every contender of every case; a case is a batch size."""
    points = tuple(planned(size, name, clock) for size in cases for name in PEERS for clock in clocks)
    return Plan("p", msgspec.structs.replace(SETTINGS, processes=processes), points, True, {})


def gpus_of_cases(results: Results) -> dict[int, set[str | None]]:
    """By batch size: the GPUs of the points that are ok."""
    found: dict[int, set[str | None]] = {}
    for point in results.points:
        if point.status == "ok":
            assert point.gpu is not None
            found.setdefault(point.case.batch_size, set()).add(results.gpus[point.gpu].uuid)
    return found


@pytest.fixture
def even(fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    """Workers of two GPUs that take their points in step, so that each gets its half."""
    meet = threading.Barrier(2)
    ask = FakeWorker.ask

    def in_step(self: FakeWorker, asked: Ask, timeout_s: float) -> Answer:
        try:
            meet.wait(0.1)
        except threading.BrokenBarrierError:
            meet.reset()
        return ask(self, asked, timeout_s)

    monkeypatch.setattr(FakeWorker, "ask", in_step)
    return fake


def test_a_case_stays_on_one_gpu_with_all_its_contenders_clocks_and_rounds(
    even: type[FakeWorker], tmp_path: Path
) -> None:
    results = swept(plan_of(processes=3, clocks=("graph", "eager")), tmp_path, around=BOTH)
    assert [gpu.uuid for gpu in results.gpus] in (["GPU-a", "GPU-b"], ["GPU-b", "GPU-a"])
    homes = gpus_of_cases(results)
    assert all(len(gpus) == 1 for gpus in homes.values()), homes
    assert {gpu for gpus in homes.values() for gpu in gpus} == {"GPU-a", "GPU-b"}
    assert len(results.points) == 8 * 3 * 2 and {len(point.rounds) for point in results.points} == {3}
    asked = sorted(size for _, _, sizes in even.lives for size in sizes)
    assert asked == sorted(list(CASES) * 3 * 2 * 3), "every measurement once"


def test_each_gpu_has_its_own_anchors_one_value_a_process(even: type[FakeWorker], tmp_path: Path) -> None:
    results = swept(plan_of(processes=2), tmp_path, around=BOTH)
    assert sorted((anchor.gpu, anchor.values) for anchor in results.anchors) == [(0, [1.0, 2.0]), (1, [1.0, 2.0])]


def test_the_record_says_which_gpu_it_was_where_there_is_one_too(fake: type[FakeWorker], tmp_path: Path) -> None:
    results = swept(plan_of(), tmp_path, around=Around(gpus=(B,)))
    assert results.gpus == [UsedGpu("GPU-b", "bus of GPU-b")]
    assert {point.gpu for point in results.points} == {0} and set(fake.gpus) == {"GPU-b"}
    assert len({tuple(sizes) for _, _, sizes in fake.lives}) == 1
    assert fake.lives[0][2] != sorted(fake.lives[0][2]), "in the plan's own order, not case by case"


def test_a_crash_is_a_result_and_its_gpu_goes_on(even: type[FakeWorker], tmp_path: Path) -> None:
    even.script = {(0, 3): "die"}
    results = swept(plan_of(), tmp_path, around=BOTH)
    assert statuses(results) == {size: "crashed" if size == 3 else "ok" for size in CASES}
    assert len(results.points) == 24 and set(even.gpus) == {"GPU-a", "GPU-b"}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_cases_of_a_lost_gpu_are_dealt_again_whole_and_nothing_is_there_twice(
    even: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    lock, seen, ask = threading.Lock(), list[Any](), FakeWorker.ask

    def loses_b(self: FakeWorker, asked: Ask, timeout_s: float) -> Answer:
        with lock:
            seen.append(self.gpu)
            mine = seen.count("GPU-b")
        if self.gpu == "GPU-b" and self.start.process == processes - 1 and mine >= 5:
            self.dead = True
            FakeWorker.gone.add("GPU-b")
            raise WorkerDied("worker ended with signal SIGBUS")
        return ask(self, asked, timeout_s)

    monkeypatch.setattr(FakeWorker, "ask", loses_b)
    lost = [
        event
        for event in loop.sweep(plan_of(processes), empty(), tmp_path / "r.json", None, BOTH)
        if isinstance(event, GpuLost)
    ]
    assert [event.gpu for event in lost] == ["GPU 1"] and "no device GPU-b" in lost[0].reason
    results = store.read(tmp_path / "r.json")
    assert len({point.key for point in results.points}) == len(results.points) == 24
    assert [point.status for point in results.points].count("crashed") == 1
    homes = gpus_of_cases(results)
    assert all(len(gpus) == 1 for gpus in homes.values()), homes
    for point in results.points:
        rounds = [item.process for item in point.rounds]
        assert point.status == "crashed" or sorted(rounds) == list(range(processes)), point


@pytest.mark.parametrize("gone", [False, True], ids=["starts again", "its GPU is gone"])
def test_a_process_that_is_killed_in_the_middle_loses_nothing_and_nothing_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """Real processes, which answer as workers of GPUs do."""
    monkeypatch.setenv(gpu_worker.GONE, str(tmp_path))
    around, process_ids = replace(BOTH, open_worker=gpu_worker.GpuWorker), dict[int, int]()
    killed = None
    for event in loop.sweep(plan_of(), results := empty(), tmp_path / "r.json", None, around):
        if isinstance(event, Measured) and event.point.rounds:
            process_ids[event.point.gpu or 0] = round(1e6 * (event.point.rounds[0].blocks_us[0] - 1))
        if killed is None and len(results.points) >= 4 and len(process_ids) == 2:
            (tmp_path / str(results.gpus[1].uuid)).touch() if gone else None
            os.kill(killed := process_ids[1], signal.SIGKILL)
    assert killed is not None
    results = store.read(tmp_path / "r.json")
    assert len({point.key for point in results.points}) == len(results.points) == 24
    crashed = [point for point in results.points if point.status != "ok"]
    assert [point.status for point in crashed] == ["crashed"] and "SIGKILL" in (crashed[0].reason or "")
    assert all(len(gpus) == 1 for gpus in gpus_of_cases(results).values())


def test_when_the_last_gpu_is_lost_the_sweep_ends_and_keeps_what_it_has(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.gone = {"GPU-a", "GPU-b"}
    with pytest.raises(WorkerDied, match="no device"):
        swept(plan_of(), tmp_path, around=BOTH)
    assert store.read(tmp_path / "r.json").points == []
    fake.gone = {"GPU-a"}
    results = swept(plan_of(), tmp_path, store.read(tmp_path / "r.json"), BOTH)
    assert len(results.points) == 24 and set(map(str, gpus_of_cases(results)[1])) == {"GPU-b"}


def interrupted(tmp_path: Path, plan: Plan, after: int) -> Results:
    events = loop.sweep(plan, empty(), tmp_path / "r.json", None, BOTH)
    for _ in range(after):
        next(events)
    events.close()
    return store.read(tmp_path / "r.json")


def test_a_resumed_sweep_measures_nothing_twice_and_leaves_cases_where_they_were(
    even: type[FakeWorker], tmp_path: Path
) -> None:
    plan = plan_of(processes=2)
    before = interrupted(tmp_path, plan, 12)
    assert 5 <= len(before.points) < 24
    homes = gpus_of_cases(before)
    kept = [point.key for point in before.points]
    even.lives.clear()
    results = swept(plan, tmp_path, store.read(tmp_path / "r.json"), BOTH)
    assert [point.key for point in results.points[: len(kept)]] == kept
    assert all(gpus_of_cases(results)[case] == gpus for case, gpus in homes.items())
    assert {len(point.rounds) for point in results.points} == {2}
    assert sum(len(sizes) for _, _, sizes in even.lives) == 48 - len(kept)


def test_without_the_gpu_that_began_them_cases_are_measured_again_whole(even: type[FakeWorker], tmp_path: Path) -> None:
    plan = plan_of()
    before = interrupted(tmp_path, plan, 12)
    began = {point.case.batch_size for point in before.points if before.gpus[point.gpu or 0].uuid == "GPU-b"}
    whole = {size for size in began if [p.case.batch_size for p in before.points].count(size) == len(PEERS)}
    events = list(loop.sweep(plan, before, tmp_path / "r.json", None, Around(gpus=(A,))))
    results = store.read(tmp_path / "r.json")
    assert len(results.points) == 24
    assert {case: gpus for case, gpus in gpus_of_cases(results).items() if case in began} == {
        size: {"GPU-b"} if size in whole else {"GPU-a"} for size in began
    }
    assert any(isinstance(event, GpuLost) for event in events) == (began > whole)


def test_gpus_that_differ_are_refused_in_one_file(even: type[FakeWorker], tmp_path: Path) -> None:
    even.env_key = "key"
    results = swept(plan_of(), tmp_path, around=Around(gpus=(A,)))
    even.env_key = "other"
    with pytest.raises(ResultsError, match="this machine differs from the one that the file was begun on"):
        swept(plan_of(cases=range(1, 12)), tmp_path, results, BOTH)


def test_one_at_a_time_no_two_gpus_measure_at_once(
    fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, most, ask = threading.Semaphore(8), list[int](), FakeWorker.ask
    within = set[str]()

    def watched(self: FakeWorker, asked: Ask, timeout_s: float) -> Answer:
        with busy:
            within.add(self.gpu)
            most.append(len(within))
            threading.Event().wait(0.005)
            found = ask(self, asked, timeout_s)
            within.discard(self.gpu)
            return found

    monkeypatch.setattr(FakeWorker, "ask", watched)
    swept(plan_of(), tmp_path, around=BOTH)
    assert max(most) == 2, "without it they do"
    most.clear()
    (tmp_path / "r.json").unlink()
    swept(plan_of(), tmp_path, around=Around(gpus=(A, B), one_at_a_time=True))
    assert max(most) == 1
    assert set(fake.gpus) == {"GPU-a", "GPU-b"}
