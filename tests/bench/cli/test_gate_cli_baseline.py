"""The verbs beside the gate: compare, and making a baseline of a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.model import store
from bench.model.records import Results
from tests.support.gate import (
    AA,
    Outcome,
    aa,
    failed,
    first,
    foreign,
    identity,
    jittered,
    no_points,
    one_round,
    saved,
    scaled,
    throttled,
)

Run = Callable[..., Outcome]


def test_compare_shows_the_analysis_and_no_verdict(run: Run, tmp_path: Path) -> None:
    after = saved(tmp_path / "b.json", scaled(jittered(aa()), 1.10, first(aa())))
    done = run("compare", AA, after)
    assert done.code == 0
    assert "corrected by" in done.out and "48 points in both" in done.out
    assert "+10." in next(line for line in done.out.splitlines() if line.startswith("decode")), "the worst comes first"
    assert "slow" not in done.out and "REGRESSION" not in done.out


def test_compare_warns_of_what_the_gate_would_refuse(run: Run, tmp_path: Path) -> None:
    after = aa()
    identity(gpu="NVIDIA A100")(after)
    done = run("compare", AA, saved(tmp_path / "b.json", after))
    assert done.code == 0
    assert "not comparable: gpu is NVIDIA A100" in done.out


def test_compare_of_a_broken_file_is_2(run: Run, tmp_path: Path) -> None:
    foreign(tmp_path / "b.json")
    assert run("compare", AA, tmp_path / "b.json").code == 2


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Results:
    """A checkout without changes, in whose history the commit that h200-aa.json measured is as it was measured."""
    from bench.cli import guards
    from bench.execute import trees

    results = aa()
    code = results.code
    code.dirty = False
    monkeypatch.setattr(guards, "collect_code", lambda: code)
    known = {(code.sha, "1.0.0"): (code.kernel_source_sha256, code.bench_version)}
    monkeypatch.setattr(trees, "hashes_at", lambda sha, version: known.get((sha, version)))
    return results


def test_a_baseline_keeps_one_value_a_round_and_no_host(run: Run, clean: Results, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    done = run("baseline", AA, "-o", path)
    assert done.code == 0, done.err
    kept = store.read(path)
    assert kept.env is not None and kept.env.volatile == {}
    assert kept.code.dirty is False, "proven by its hashes"
    assert {len(item.blocks_us) for point in kept.points for item in point.rounds} == {1}
    assert run("gate", "--baseline", path, saved(tmp_path / "b.json", jittered(aa()))).code == 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (one_round, "1 rounds of 1 processes; expected 6 of 3 or more"),
        (failed, "is wrong: error 0.5"),
        (throttled, "lowered its clock"),
        (no_points, "it has no point"),
    ],
)
def test_a_baseline_refuses_what_is_not_fit(
    run: Run, clean: Results, tmp_path: Path, spoil: Callable[[Results], None], said: str
) -> None:
    bad = aa()
    spoil(bad)
    if spoil is no_points:
        bad.points = []
    done = run("baseline", saved(tmp_path / "bad.json", bad), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "baseline.json").exists()


def test_a_baseline_refuses_unstable_points(run: Run, clean: Results, tmp_path: Path) -> None:
    bad = jittered(aa(), sd=0.05)
    done = run("baseline", saved(tmp_path / "bad.json", bad), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert "is unstable" in done.err and "at most 1.5 % allowed" in done.err


def test_a_baseline_leaves_unstable_points_out_where_asked_and_names_them(
    run: Run, clean: Results, tmp_path: Path
) -> None:
    shaky, path = aa(), tmp_path / "baseline.json"
    unstable = shaky.points[1]
    for item in unstable.rounds:
        item.blocks_us = [value * (1 + 0.05 * item.process) for value in item.blocks_us]
    done = run("baseline", saved(tmp_path / "shaky.json", shaky), "-o", path, "--leave-out-unstable")
    assert done.code == 0, done.err
    assert f"left out: {unstable.contender}" in done.err and "at most 1.5 % allowed" in done.err
    assert {point.key for point in store.read(path).points} == {p.key for p in shaky.points} - {unstable.key}
    only_shaky = saved(tmp_path / "only.json", jittered(aa(), sd=0.05))
    assert run("baseline", only_shaky, "-o", tmp_path / "none.json", "--leave-out-unstable").code == 2


def test_a_baseline_keeps_of_a_file_what_is_chosen(run: Run, clean: Results, tmp_path: Path) -> None:
    path, wanted = tmp_path / "baseline.json", {p.key for p in aa().points if p.contender == "csgmv_embed-vocab_major"}
    assert run("baseline", AA, "-o", path, "-c", "csgmv_embed-vocab_major").code == 0
    assert wanted and {point.key for point in store.read(path).points} == wanted
    refused = run("baseline", AA, "-o", path, "-p", "full")
    assert refused.code == 2 and "--profile" in refused.err


def test_a_baseline_refuses_a_dirty_tree_and_results_of_one(
    run: Run, clean: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dirty = aa()
    dirty.code.dirty = True
    done = run("baseline", saved(tmp_path / "dirty.json", dirty), "-o", tmp_path / "b.json")
    assert done.code == 2 and "measured on a tree with uncommitted changes" in done.err
    clean.code.dirty = True
    done = run("baseline", AA, "-o", tmp_path / "b.json")
    assert done.code == 2 and "the tree has uncommitted changes" in done.err
    clean.code.dirty = None
    assert run("baseline", AA, "-o", tmp_path / "b.json").code == 2


@pytest.mark.parametrize("part", ["kernel_source_sha256", "bench_version", "sha"])
def test_a_baseline_from_a_machine_without_git_must_be_of_its_commits_sources(
    run: Run, clean: Results, tmp_path: Path, part: str
) -> None:
    other = aa()
    assert other.code.dirty is None
    setattr(other.code, part, "0" * 64)
    other.code.short = other.code.sha[:9] if other.code.sha else None
    done = run("baseline", saved(tmp_path / "other.json", other), "-o", tmp_path / "b.json")
    assert done.code == 2
    assert "its sources differ from those of the commit" in done.err


def test_thresholds_are_in_bench_toml_and_shown(run: Run) -> None:
    shown = json.loads(run("config").out)["gate"]
    assert shown["graph"] == {"screen_pct": 2.0, "floor_pct": 2.5, "unconfirmed_floor_pct": 5.0}
    assert shown["alpha"] == 0.005 and shown["work_tolerance_pct"] == {}
