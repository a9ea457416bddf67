"""Pairs on several GPUs: both sides and all rounds of a case on one, stages begun together, one record."""

from __future__ import annotations

import threading
from math import log
from pathlib import Path

import pytest

from bench.cli.selection import Choice
from bench.execute import interleaved as session
from bench.execute.interleaved import Machine
from bench.execute.pairs import PairMeasured, StageStarted
from bench.execute.protocol import Prepared
from bench.execute.stages import run_pairs
from bench.execute.tasks import Around
from bench.judge.times import judge_pairs
from bench.model import pairs as records
from bench.model.config import PlannedPoint
from bench.model.gpus import Gpu
from bench.model.pairs import PairPoint, PairRun
from bench.model.verdict import CannotJudge
from tests.support.gate import GATE, LOADED, FakeGpu, FakeSide, fake_trees

GPUS = (Gpu(0, "GPU-a", "Fake GPU"), Gpu(1, "GPU-b", "Fake GPU"))
pytestmark = pytest.mark.timeout(120)


class TwoGpus(FakeGpu):
    """Notes on which GPU a side prepared what, and how many GPUs measured at once."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.seen: set[tuple[str | None, str, str]] = set()  # (GPU, side, point)
        self.within: set[str | None] = set()
        self.most = 0

    def open_side(self, *asked: object, gpu: Gpu | None = None) -> FakeSide:  # type: ignore[override]
        tree, settings, contenders, *more = asked
        return _Side(super().open_side(tree, settings, contenders, more[0] if more else gpu), self)  # type: ignore[arg-type]


class _Side(FakeSide):
    def __init__(self, side: FakeSide, machine: TwoGpus) -> None:
        super().__init__(side.gpu, side.name, side.device)
        self.machine = machine

    def prepare(self, planned: PlannedPoint, layout_seed: int, extra_share: float) -> Prepared:
        self.machine.seen.add((self.device, self.name, planned.name))
        self.machine.within.add(self.device)
        self.machine.most = max(self.machine.most, len(self.machine.within))
        threading.Event().wait(0.001)
        found = super().prepare(planned, layout_seed, extra_share)
        self.machine.within.discard(self.device)
        return found


def planned() -> list[PairPoint]:
    choice = Choice(config=LOADED, machine=Machine())
    return session.pair_points(choice.plan("quick", ["graph"]).points)


def ended(gpu: TwoGpus, around: Around, tmp_path: Path) -> tuple[PairRun, list[object]]:
    with fake_trees(None, None) as sides:
        run = session.pair_run(LOADED, "self-check", sides, planned(), 7, [])
        events: list[object] = list(run_pairs(run, sides, gpu.open_side, around=around))
    records.write(tmp_path / "pairs.json", run)
    return records.read(tmp_path / "pairs.json"), events


def slow_at(name: str) -> FakeGpu:
    return TwoGpus(slowdown=lambda point: log(1.1) if point.name == name else 0.0)


def test_a_case_has_both_sides_and_all_rounds_on_one_gpu_and_the_verdict_is_as_ever(tmp_path: Path) -> None:
    worst = planned()[3].planned.name
    gpu = slow_at(worst)
    assert isinstance(gpu, TwoGpus)
    run, events = ended(gpu, Around(gpus=GPUS), tmp_path)
    of_case: dict[object, set[int | None]] = {}
    for point in run.points:
        of_case.setdefault(point.case, set()).add(point.gpu)
        device = GPUS[point.gpu or 0].uuid
        assert {seen[0] for seen in gpu.seen if seen[2] == point.planned.name} == {device}
        assert {seen[1] for seen in gpu.seen if seen[2] == point.planned.name} == {"A", "B"}
    assert all(len(gpus) == 1 for gpus in of_case.values())
    assert [used.uuid for used in run.gpus] == ["GPU-a", "GPU-b"]
    shares = [sum(point.gpu == place for point in run.points) for place in (0, 1)]
    assert abs(shares[0] - shares[1]) <= 4, shares
    assert run.env is not None and gpu.most == 2
    slow = [verdict for verdict in judge_pairs(run).verdicts if verdict.status == "slow"]
    assert [(verdict.case, verdict.contender) for verdict in slow] == [
        (point.case, point.contender) for point in run.points if point.planned.name == worst
    ]
    started = [event for event in events if isinstance(event, StageStarted)]
    assert [event.stage for event in started] == ["screen", "confirm"]
    assert started[0].points == len(run.points)
    screened = sum(isinstance(event, PairMeasured) and event.stage == "screen" for event in events)
    assert screened == len(run.points) * GATE.screen_processes


def test_one_at_a_time_only_one_gpu_measures(tmp_path: Path) -> None:
    gpu = TwoGpus()
    run, _ = ended(gpu, Around(gpus=GPUS, one_at_a_time=True), tmp_path)
    assert gpu.most == 1 and {point.gpu for point in run.points} == {0, 1}


def test_a_gpu_whose_processes_do_not_start_leaves_nothing_to_judge(tmp_path: Path) -> None:
    class Dies(TwoGpus):
        def open_side(self, *asked: object, gpu: Gpu | None = None) -> FakeSide:  # type: ignore[override]
            if asked[3] == GPUS[1]:
                raise CannotJudge("its library cannot be driven: no device")
            return super().open_side(*asked, gpu=gpu)

    gpu = Dies()
    with pytest.raises(CannotJudge, match="no device"):
        ended(gpu, Around(gpus=GPUS), tmp_path)
    opened, closed = (sum(item[0] == what for item in gpu.log) for what in ("open", "close"))
    assert opened == closed == 2, "the sides of the other GPU are closed"
