"""The sweep's loop: what is left to measure, in which order, by which process, and what is in the file when."""

from __future__ import annotations

import errno
import functools
import operator
from pathlib import Path

import pytest

from bench.execute import filed
from bench.execute import sweep as loop
from bench.execute.tasks import Measured
from bench.model import store
from bench.model.config import Plan
from bench.model.records import Anchor, OtherSglang, Point, ResultsError, Round, Work
from tests.support.sweep import COUNTS, SETTINGS, FakeWorker, empty, plan_of, planned, statuses, swept


def test_the_rounds_of_two_processes_are_merged(fake: type[FakeWorker], tmp_path: Path) -> None:
    results = swept(plan_of([1, 2], processes=2), tmp_path)
    assert [process for _, process, _ in fake.lives] == [0, 1]
    assert len(results.points) == 2
    for point in results.points:
        assert point.rounds == [Round(0, 10, [5.0]), Round(1, 11, [6.0])]
        assert (point.floor_us, point.wall_s) == ([1.0, 1.0], 4.0)
    assert results.anchors == [Anchor("copy", "B/us", [1.0, 2.0])]


def test_what_is_left_are_points_without_a_record_or_without_rounds_of_the_process() -> None:
    plan, results = plan_of([1, 2, 3], processes=2), empty()
    case = [point.case for point in plan.points]
    results.points = [
        Point(case[0], "torch_gather", "graph", 0, "ok", rounds=[Round(0, 1, [1.0])]),
        Point(case[1], "torch_gather", "graph", 1, "crashed", "signal"),
        Point(case[2], "torch_gather", "eager", 2, "ok", rounds=[Round(0, 1, [1.0])]),
    ]
    assert [index for index, _ in filed.left_of(plan, results, 0)] == [2]
    assert [index for index, _ in filed.left_of(plan, results, 1)] == [0, 2]


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_what_a_process_settled_is_not_asked_again_and_the_plan_still_comes_to_its_end(
    fake: type[FakeWorker], tmp_path: Path, clock: str
) -> None:
    fake.script = {(0, 2): "die interpret" if clock == "work" else "differs by 3"}
    plan, done = plan_of([1, 2, 3], processes=3, clock=clock), 0
    for event in loop.sweep(plan, empty(), tmp_path / "r.json"):
        if isinstance(event, loop.Planned):
            assert event.total == 9 and event.done >= done
            done = event.done
        done += isinstance(event, Measured)
    assert done == 9
    asked = [(process, sizes) for kind, process, sizes in fake.lives if kind == "gpu"]
    assert asked == ([(0, [1, 2, 3]), (1, [1, 3]), (2, [1, 3])] if clock == "graph" else [])
    assert {process for kind, process, _ in fake.lives if kind == "interpret"} <= {0}


def test_there_is_a_file_to_go_on_with_before_the_first_worker_starts(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan, file = plan_of([1, 2]), tmp_path / "new folder" / "r.json"
    events = loop.sweep(plan, empty(), file)
    assert next(events) == loop.Planned(2, 0)
    events.close()
    assert fake.lives == [] and store.read(file) == empty()
    assert statuses(swept(plan, file.parent, store.read(file))) == {1: "ok", 2: "ok"}


def test_counted_points_need_no_rounds() -> None:
    plan, results = plan_of([1, 2], clock="work"), empty()
    results.points = [Point(plan.points[0].case, "torch_gather", "work", 0, "ok", work=Work(COUNTS))]
    assert [index for index, _ in filed.left_of(plan, results, 0)] == [1]


def test_each_process_has_its_own_order_and_the_same_one_every_time() -> None:
    plan, results = plan_of(list(range(1, 30)), processes=2, shuffle=True), empty()
    first, again, second = (filed.left_of(plan, results, process) for process in (0, 0, 1))
    assert first == again != second
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(29))
    assert filed.left_of(plan_of([1, 2, 3]), results, 0) == list(enumerate(plan.points[:3]))


def test_a_resumed_sweep_takes_what_is_left_of_each_process(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan, results = plan_of([1, 2, 3], processes=2), empty()
    events = loop.sweep(plan, results, tmp_path / "r.json")
    for _ in range(8):  # the plan, process 0 with three points; the plan, process 1 with one
        last = next(events)
    events.close()
    assert isinstance(last, Measured)
    fake.lives.clear()
    resumed = store.read(tmp_path / "r.json")
    assert next(iter(loop.sweep(plan, resumed, tmp_path / "x.json"))) == loop.Planned(6, 4)
    results = swept(plan, tmp_path, resumed)
    assert fake.lives == [("gpu", 1, [2, 3])]
    assert [[item.process for item in point.rounds] for point in results.points] == [[0, 1]] * 3
    assert results.anchors == [Anchor("copy", "B/us", [1.0, 2.0])]


def test_a_finished_file_starts_no_worker(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan = plan_of([1, 2])
    results = swept(plan, tmp_path)
    fake.lives.clear()
    assert swept(plan, tmp_path, results).points == results.points
    assert fake.lives == []


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_another_machine_is_refused_before_it_measures(fake: type[FakeWorker], tmp_path: Path, clock: str) -> None:
    results = swept(plan_of([1], clock=clock), tmp_path)
    before = (tmp_path / "r.json").read_bytes()
    fake.env_key = "other"
    fake.lives.clear()
    with pytest.raises(ResultsError, match="torch 1 -> 2"):
        swept(plan_of([1, 2], clock=clock), tmp_path, results)
    assert functools.reduce(operator.iadd, (asked for _, _, asked in fake.lives), []) == []
    assert (tmp_path / "r.json").read_bytes() == before


def test_every_measurement_is_in_the_file_when_its_event_comes(fake: type[FakeWorker], tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    counted = [
        len(store.read(file).points)
        for event in loop.sweep(plan_of([1, 2, 3]), empty(), file)
        if isinstance(event, Measured)
    ]
    assert counted == [1, 2, 3]


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_a_disk_that_fills_up_ends_the_sweep_and_keeps_what_is_written(
    fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    def fills_up(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    synced: list[int] = []
    monkeypatch.setattr(store.os, "fsync", fills_up)
    with pytest.raises(ResultsError, match=r"r\.json: cannot be written: No space left on device"):
        swept(plan_of([1, 2, 3, 4], clock=clock), tmp_path)
    assert statuses(store.read(tmp_path / "r.json")) == {1: "ok", 2: "ok"}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_the_digest_is_of_what_is_measured_and_how() -> None:
    assert loop.plan_digest(plan_of([1, 2])) == loop.plan_digest(plan_of([1, 2]))
    others = [plan_of([1, 3]), plan_of([1, 2], processes=2), plan_of([1, 2], clock="eager"), plan_of([2, 1])]
    digests = {loop.plan_digest(plan) for plan in (plan_of([1, 2]), *others)}
    assert len(digests) == 5


def of_versions(contenders: list[str], clock: str = "graph") -> Plan:
    points = tuple(planned(size, name, clock) for size, name in enumerate(contenders, 1))
    return Plan("p", SETTINGS, points, False, {"PYTHONPATH": "behind"})


def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint of this process is the fakes' but for its SGLang."""
    monkeypatch.setattr(filed, "with_installed_sglang", lambda env: env)


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_each_version_of_sglang_has_a_worker_that_imports_it_and_a_line_in_the_file(
    fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    both(monkeypatch)
    plan = of_versions(["sglang_triton", "sglang_triton@0.5.23", "torch_gather", "sglang_tokens@0.5.23"], clock)
    results, here = empty(), tmp_path / "here"
    here.mkdir()
    list(loop.sweep(plan, results, tmp_path / "r.json", {"0.5.23": here}))
    kind = "gpu" if clock == "graph" else "interpret"
    asked = {path: sizes for path, (of, _, sizes) in zip(fake.paths, fake.lives, strict=True) if of == kind}
    assert asked == {"behind": [1, 3], f"{here}:behind": [2, 4]}
    assert store.read(tmp_path / "r.json").other_sglang == [OtherSglang("0.5.23", "1" * 64)]


def test_a_version_whose_files_are_others_than_those_of_the_file_is_refused(
    fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(monkeypatch)
    results = empty()
    results.other_sglang = [OtherSglang("0.5.23", "2" * 64)]
    with pytest.raises(ResultsError, match="SGLang 0.5.23 has other LoRA files .* 222222222222 -> 111111111111"):
        list(loop.sweep(of_versions(["sglang_triton@0.5.23"]), results, tmp_path / "r.json", {"0.5.23": tmp_path}))


def test_a_version_that_is_nowhere_is_left_to_the_ordinary_worker(fake: type[FakeWorker], tmp_path: Path) -> None:
    list(loop.sweep(of_versions(["sglang_triton@0.5.23"]), empty(), tmp_path / "r.json"))
    assert fake.paths == ["behind"]
