"""A worker under a profiler: it opens the capture range, verifies, and hands over no time."""

from __future__ import annotations

import os
import threading
from multiprocessing.connection import Connection

import msgspec
import pytest
import torch

from bench.cli import guards
from bench.cli import main as cli
from bench.execute import isolate, worker
from bench.execute.interleaved import Machine
from bench.execute.isolate import Answer, Ask, Hello, Start
from bench.model import config
from bench.model.case import Case
from bench.model.config import PlannedPoint
from bench.model.records import Anchor, Check, Environment, Point, Round
from bench.model.verdict import CannotJudge

PLANNED = PlannedPoint(Case("decode", 1, 1, 16), "torch_gather", "graph")


def measured(bench, planned, index):  # type: ignore[no-untyped-def]
    check = Check("oracle", 0.0, 0.0, True)
    point = Point(planned.case, planned.contender, planned.clock, index, "ok", check=check, floor_us=[1.0])
    point.rounds.append(Round(0, 1, [1.0, 2.0]))
    return point


@pytest.fixture
def exchanged(monkeypatch):
    """Serves one point in a thread, as on a GPU; returns (hello, answer, edges of the capture range)."""

    def exchange(profiler: str | None) -> tuple[Hello, Answer, list[str]]:
        edges: list[str] = []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda.profiler, "start", lambda: edges.append("start"))
        monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: edges.append("stop"))
        monkeypatch.setattr(worker, "attached_profiler", lambda: profiler)
        monkeypatch.setattr(worker, "collect_environment", lambda kind: Environment({}, "key", {}))
        monkeypatch.setattr(worker, "_anchors", lambda bench: [Anchor("copy", "B/us", [1.0])])
        monkeypatch.setattr(worker.measure, "measure", measured)
        ours, theirs = isolate._pipes()
        receiver, sender = Connection(ours[0], writable=False), Connection(ours[1], readable=False)
        ends = Connection(theirs[0], writable=False), Connection(theirs[1], readable=False)
        serving = threading.Thread(target=worker.serve, args=ends)
        serving.start()
        sender.send_bytes(msgspec.json.encode(Start("gpu", config.load().measure, 0, ())))
        hello = msgspec.json.decode(receiver.recv_bytes(), type=Hello)
        sender.send_bytes(msgspec.json.encode(Ask(PLANNED, 0)))
        answer = msgspec.json.decode(receiver.recv_bytes(), type=Answer)
        sender.close()
        serving.join(10)
        return hello, answer, edges

    return exchange


def test_under_a_profiler_a_point_is_verified_and_has_no_times(exchanged):
    hello, answer, edges = exchanged("nsys")
    point = answer.point
    assert (point.status, point.reason) == ("skipped", "ran under nsys: verified, and not timed")
    assert point.check is not None and point.check.passed
    assert (point.rounds, point.floor_us, hello.anchors) == ([], [], [])
    assert edges == ["start", "stop"]


def test_otherwise_times_stay_and_no_capture_range_is_opened(exchanged):
    hello, answer, edges = exchanged(None)
    assert (answer.point.status, answer.point.rounds[0].blocks_us) == ("ok", [1.0, 2.0])
    assert [anchor.name for anchor in hello.anchors] == ["copy"] and edges == []


def test_verbs_that_are_all_about_times_refuse(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "NSYS_PROFILING_SESSION_ID", "1")
    monkeypatch.setattr(guards, "has_gpu", lambda: True)
    for verb in ("tune", "layer"):
        with pytest.raises(SystemExit) as end:
            cli.main([verb])
        assert end.value.code == 2
        assert f"{verb}: runs under nsys; a profiled run yields no timing" in capsys.readouterr().err
    with pytest.raises(CannotJudge, match="runs under nsys"):
        Machine(has_gpu=lambda: True).require_gpu()
