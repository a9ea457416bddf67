"""The profiled program: its ranges, its capture range, and that it launches what it is told."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from bench.clocks import graph, markers
from bench.execute import measure
from bench.model import config
from bench.workload import oracle
from profiles import runner
from profiles.target import Target, make_target

SMALL = "phase=mixed,batch_size=8,seq_len=24,rank=16,vocab=1000"


def small_session(**chosen) -> Target:
    settings = {"contenders": ["csgmv_embed-vocab_major"], "clocks": ["eager"], "launches": 2, "replays": 3}
    return make_target(config.load(), cases=[SMALL], **(settings | chosen))


@pytest.fixture
def seen(monkeypatch):
    """The ranges and the edges of the capture range, in order."""
    found: list[object] = []

    @contextmanager
    def span(name, payload=None):
        found.append(name if payload is None else (name, payload))
        yield
        found.append("end")

    monkeypatch.setattr(markers, "span", span)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: found.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: found.append("stop"))
    return found


def test_ranges_lie_in_the_capture_range_and_every_replay_has_its_own(seen):
    target = small_session()
    runner.run(target, torch.device("cpu"))
    phases = ["setup", "end", "warmup", "end", "verify", "end", *["sample", "end"] * 3]
    assert seen == ["start", (target.points[0].name, 0), *phases, "end", "stop"]


def test_a_cold_case_is_flushed_outside_the_sample(seen, monkeypatch):
    monkeypatch.setattr(graph, "flush_buffer", lambda l2_bytes, device: torch.zeros(1))
    target = make_target(
        config.load(), cases=[f"{SMALL},cache=cold"], contenders=["csgmv_embed-vocab_major"], clocks=["eager"]
    )
    runner.run(target, torch.device("cpu"))
    after = seen[seen.index("verify") + 2 :]
    assert after[:4] == ["flush", "end", "sample", "end"]


def test_a_wrong_kernel_is_not_profiled(seen, monkeypatch):
    from bench.contenders.ours.lookup import CsgmvEmbed

    monkeypatch.setattr(CsgmvEmbed, "oracle", lambda self, workload, k: oracle.exact(workload, k) + 1)
    with pytest.raises(measure.NotMeasured, match="of the oracle's largest value"):
        runner.run(small_session(), torch.device("cpu"))
    assert seen[-1] == "stop", "the capture range is closed whatever happens"


def test_a_contender_that_cannot_run_is_named_before_anything_is_captured(seen, monkeypatch):
    from bench.contenders.ours.lookup import CsgmvEmbed

    monkeypatch.setattr(CsgmvEmbed, "unavailable", lambda self: "not here")
    with pytest.raises(measure.NotMeasured, match="csgmv_embed-vocab_major: not here"):
        runner.run(small_session(), torch.device("cpu"))
    assert seen == []


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        runner.main(["csgmv_embed-vocab_major|graph|phase=decode|batch_size=1|seq_len=1|rank=16"])


def test_a_wrong_point_is_a_usage_error(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as end:
        runner.main(["csgmv_embed|graph|rank=16"])
    assert end.value.code == 2
    assert "not a point" in capsys.readouterr().err
