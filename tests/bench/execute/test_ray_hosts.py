"""The work clock on a Ray cluster of this host: two nodes' worth of cores, one of which is lost in the middle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.execute import sweep as loop
from bench.execute.sweep import new_results
from bench.execute.tasks import Measured
from bench.model import config, store
from bench.model.records import Selection

ray: Any = pytest.importorskip("ray", reason="the extra ray")
CASES = {"batch_size": ("4", "5"), "phase": ("decode", "mixed"), "seq_len": ("4",), "op": ("lookup",)}


@pytest.mark.timeout(300)
def test_a_lost_node_loses_nothing_and_nothing_is_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.execute.ray_hosts import hosts

    monkeypatch.setattr(ray, "init", partial(ray.init, num_cpus=2, include_dashboard=False))
    overrides = config.parse_axis_overrides([f"{name}={','.join(values)}" for name, values in CASES.items()])
    plan = config.make_plan(
        config.load(), "smoke", overrides=overrides, clocks=["work"], contenders=["csgmv_embed-*"], cases=[]
    )
    results, file, counted = new_results(plan, Selection("smoke")), tmp_path / "r.json", 0
    with hosts("local", counted=True) as around:
        assert around.lanes == 2 and around.open_worker is not None
        for event in loop.sweep(plan, results, file, None, around):
            counted += isinstance(event, Measured)
            if counted == 2:
                ray.kill(around.open_worker.__self__.actors[0])
    found = store.read(file)
    assert counted == len(found.points) == len(plan.points) == 8
    assert len({point.key for point in found.points}) == 8
    assert {point.status for point in found.points} == {"ok"}
    assert all(point.work and point.work.compiled for point in found.points)
