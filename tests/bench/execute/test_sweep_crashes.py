"""The sweep's loop when workers die, cannot start or give wrong answers: a result, and the rest is measured."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import pytest

from bench.execute.isolate import WorkerDied
from bench.model import store
from bench.model.records import Anchor
from tests.support.sweep import COUNTS, FakeWorker, plan_of, statuses, swept


@pytest.mark.parametrize(("fate", "reason"), [("die", "signal SIGSEGV"), ("lost", "GPU context lost")])
def test_a_crash_is_a_result_and_a_new_worker_measures_the_rest(
    fake: type[FakeWorker], tmp_path: Path, fate: str, reason: str
) -> None:
    fake.script = {(0, 2): fate}
    results = swept(plan_of([1, 2, 3, 4]), tmp_path)
    assert statuses(results) == {1: "ok", 2: "crashed", 3: "ok", 4: "ok"}
    assert reason in (results.points[1].reason or "")
    assert fake.lives == [("gpu", 0, [1, 2]), ("gpu", 0, [3, 4])]
    assert results.anchors == [Anchor("copy", "B/us", [1.0])]  # of the first worker alone


def test_a_crash_while_counting_is_a_result_and_a_new_lane_counts_the_rest(
    fake: type[FakeWorker], tmp_path: Path
) -> None:
    fake.script = {(0, 2): "die interpret"}
    results = swept(plan_of([1, 2, 3, 4], clock="work"), tmp_path)
    assert statuses(results) == {1: "ok", 2: "crashed", 3: "ok", 4: "ok"}
    lanes = [asked for kind, _, asked in fake.lives if kind == "interpret"]
    assert len(lanes) == 2 and sorted(functools.reduce(operator.iadd, lanes, [])) == [1, 2, 3, 4]
    assert [point.work and point.work.compiled_reason for point in results.points] == ["asked", None, "asked", "asked"]


@pytest.mark.timeout(20)
def test_the_last_lane_that_cannot_be_replaced_ends_the_sweep(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script, fake.stillborn = {(0, 2): "die interpret"}, {("interpret", 1)}
    with pytest.raises(WorkerDied, match="exit status 1"):
        swept(plan_of([1, 2, 3, 4], clock="work"), tmp_path)
    assert statuses(store.read(tmp_path / "r.json")) == {1: "ok", 2: "crashed"}


@pytest.mark.timeout(20)
def test_a_lane_that_cannot_be_replaced_leaves_the_rest_to_the_others(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script, fake.stillborn = {(0, 2): "die interpret"}, {("interpret", 2)}
    results = swept(plan_of([1, 2, 3, 4], clock="work", lanes=2), tmp_path)
    assert statuses(results) == {1: "ok", 2: "crashed", 3: "ok", 4: "ok"}


@pytest.mark.timeout(20)
def test_a_fault_of_the_suite_in_a_lane_ends_the_sweep(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script = {(0, 2): "fault in the suite"}
    with pytest.raises(ZeroDivisionError):
        swept(plan_of(list(range(1, 30)), clock="work"), tmp_path)


@pytest.mark.parametrize("stillborn", [("interpret", 0), ("interpret", 1), ("compile", 0)])
def test_workers_are_closed_when_another_cannot_start(
    fake: type[FakeWorker], tmp_path: Path, stillborn: tuple[str, int]
) -> None:
    fake.stillborn = {stillborn}
    with pytest.raises(WorkerDied, match="exit status 1"):
        swept(plan_of([1, 2], clock="work", lanes=2), tmp_path)


def test_counts_stand_when_the_compiling_worker_dies(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script = {(0, 1): "die compile"}
    results = swept(plan_of([1, 2, 3], clock="work"), tmp_path)
    assert statuses(results) == {1: "ok", 2: "ok", 3: "ok"}
    reasons = {point.case.batch_size: point.work.compiled_reason for point in results.points if point.work}
    assert "SIGSEGV" in (reasons[1] or "")
    assert [kind for kind, _, _ in fake.lives].count("compile") == 1
    assert all(point.work is not None and point.work.counts == COUNTS for point in results.points)


@pytest.mark.parametrize(
    ("fate", "status", "reason"), [("die", "crashed", "SIGSEGV"), ("differs by 3", "wrong", "differs by 3")]
)
def test_a_failure_in_a_later_process_is_the_points_status(
    fake: type[FakeWorker], tmp_path: Path, fate: str, status: str, reason: str
) -> None:
    fake.script = {(1, 2): fate}
    results = swept(plan_of([1, 2, 3], processes=2), tmp_path)
    assert statuses(results) == {1: "ok", 2: status, 3: "ok"}
    assert reason in (results.points[1].reason or "")
    assert [len(point.rounds) for point in results.points] == [2, 1, 2]


def test_a_failure_in_the_first_process_is_not_mended_by_a_later_one(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script = {(0, 2): "differs by 3"}
    results = swept(plan_of([1, 2], processes=2), tmp_path)
    assert statuses(results) == {1: "ok", 2: "wrong"}
    assert results.points[1].reason == "differs by 3"
