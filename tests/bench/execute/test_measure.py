"""A point is verified before it counts: wrong, unwritten and failing contenders are rows with a reason."""

from __future__ import annotations

import math

import pytest
import torch

from bench import contenders
from bench.execute import measure, worker
from bench.execute.isolate import Ask
from bench.model import config
from bench.model.case import Case
from bench.model.config import PlannedPoint
from bench.model.records import Point, Round
from bench.workload import oracle
from bench.workload.tensors import make_workload

CASE = Case("decode", 4, 1, 8, vocab=50, adapters=2)


def fake(outputs):
    class Fake:
        name, in_place, allowed = "fake", False, 0.0

        def tolerance(self, case):
            return self.allowed

        def unavailable(self):
            return None

        def oracle(self, workload, index_set):
            return oracle.exact(workload, index_set)

        def result(self, workload, output):
            return output

        def kernels(self):
            return []

    made = Fake()
    made.outputs = outputs
    return made


def compare(change, tolerance=0.0):
    workload = make_workload(CASE, seed=1, index_sets=2, device=torch.device("cpu"))
    contender = fake(None)
    contender.allowed = tolerance
    outputs = [oracle.exact(workload, index) for index in range(2)]
    outputs[1] = change(outputs[1].clone())
    return measure._compare(contender, workload, outputs)


def one_value_off(output):
    output[2, 3] += 1
    return output


def one_value_missing(output):
    output[2, 3] = float("nan")
    return output


def test_an_exact_output_passes():
    check = compare(lambda output: output)
    assert check.passed
    assert check.max_error == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_value_off, "error 0[.]"),
        (one_value_missing, "NaN: elements not written"),
        (lambda output: output[:-1], "output is"),
        (lambda output: output.float(), "torch.float32"),
    ],
)
def test_any_difference_is_wrong(change, words):
    with pytest.raises(measure.NotMeasured, match=words) as caught:
        compare(change)
    assert caught.value.status == "wrong"


def test_a_tolerance_is_relative_to_the_oracles_largest_value():
    assert compare(one_value_off, tolerance=0.9).passed


def bench_here() -> measure.Bench:
    return measure.Bench(torch.device("cpu"), config.load().measure, 0)


def test_a_missing_peer_is_skipped_with_its_reason(monkeypatch):
    absent = fake(None)
    absent.unavailable = lambda: "not installed: pip install it"
    monkeypatch.setattr(contenders, "build", lambda name, op, site: absent)
    point = measure.measure(bench_here(), PlannedPoint(CASE, "fake", "work"), 3)
    assert (point.status, point.reason, point.index) == ("skipped", "not installed: pip install it", 3)


def test_a_contender_without_triton_kernels_has_no_work_to_count(monkeypatch):
    monkeypatch.setattr(contenders, "build", lambda name, op, site: fake(None))
    point = measure.measure(bench_here(), PlannedPoint(CASE, "fake", "work"), 0)
    assert point.status == "skipped"


def test_an_exception_of_a_contender_is_its_result(monkeypatch):
    broken = fake(None)
    broken.unavailable = lambda: 1 / 0
    monkeypatch.setattr(contenders, "build", lambda name, op, site: broken)
    answer = worker._answer(bench_here(), Ask(PlannedPoint(CASE, "fake", "work"), 0))
    assert (answer.point.status, answer.lost) == ("error", False)
    assert answer.point.reason == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("impossible", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("where", ["blocks", "host blocks", "floor"])
def test_a_time_that_is_none_is_an_error_with_its_reason(monkeypatch, impossible, where):
    times = {"blocks": 1.0, "host blocks": 1.0, "floor": 1.0}
    good = Point(CASE, "fake", "eager", 7, "ok", rounds=[Round(0, 1, [1.0, 1.0], [1.0])], floor_us=[1.0])
    monkeypatch.setattr(measure, "measure", lambda *_: good)
    ask = Ask(PlannedPoint(CASE, "fake", "eager"), 7)
    assert worker._answer(bench_here(), ask).point is good
    times[where] = impossible
    rounds = [Round(0, 1, [1.0, times["blocks"]], [times["host blocks"]])]
    bad = Point(CASE, "fake", "eager", 7, "ok", rounds=rounds, floor_us=[times["floor"]])
    monkeypatch.setattr(measure, "measure", lambda *_: bad)
    point = worker._answer(bench_here(), ask).point
    reason = f"ValueError: measured a time of {impossible} us; expected a finite one above 0"
    assert (point.status, point.reason, point.rounds, point.floor_us) == ("error", reason, [], [])


def test_memory_that_a_launch_leaves_unwritten_is_not_a_number():
    output = measure._poisoned(lambda _: torch.empty(3, 4), 0)
    assert output.isnan().all()
    assert torch.get_deterministic_debug_mode() == 0


@pytest.mark.parametrize(
    ("required", "sets", "flushed", "achieved"),
    [(100, 5, False, "warm"), (100, 11, False, "mixed"), (100, 30, False, "cold"), (1, 1, True, "cold")],
)
def test_the_cache_state_is_what_was_achieved(required, sets, flushed, achieved):
    point = Point(CASE, "c", "graph", 0, "ok", required_bytes=required)
    assert measure._cache_state(point, sets, 1000, flushed=flushed).achieved == achieved
