"""A candidate does not set its own rules, and judges of a baseline what was asked for: through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.execute.trees import config_at
from bench.model import config, rules, store
from bench.model.case import Case
from bench.model.config import Config, ConfigError
from bench.model.records import Results
from bench.model.rules import ClockRules
from tests.support.gate import (
    AA,
    GATE,
    OURS,
    ROOT,
    FakeGpu,
    Outcome,
    aa,
    jittered,
    ours,
    saved,
    work_results,
)

Run = Callable[..., Outcome]
TOML = (ROOT / "bench.toml").read_text(encoding="utf-8")


def toml(folder: Path, *changes: tuple[str, str]) -> Path:
    """bench.toml with some of its text replaced."""
    text = TOML
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    path = folder / "changed.toml"
    path.write_text(text, encoding="utf-8")
    return path


FLOOR = ("floor_pct = 2.5\nunconfirmed_floor_pct = 5.0", "floor_pct = 2.5\nunconfirmed_floor_pct = 50.0")
LOOSE_WORK = ("[gate.work_tolerance_pct]", "[gate.work_tolerance_pct]\nload_bytes = 200.0\n#")
NARROW = ('contenders = ["csgmv_embed*"] # what it judges', 'contenders = ["sglang*"] #')


def test_the_rules_of_this_bench_toml_are_those_of_the_files_that_name_none() -> None:
    assert GATE.rules == rules.UNRECORDED


# A change of each rule, and what is said of it; the other way round nothing is.
LOOSER: list[tuple[dict[str, object], str]] = [
    ({"anchor_limit_pct": 4.0}, "anchor_limit_pct is 4, it was 3"),
    ({"screen_processes": 2}, "screen_processes is 2, it was 3"),
    ({"confirm_processes": 8}, "confirm_processes is 8, it was 16"),
    ({"confirm_layouts": 1}, "confirm_layouts is 1, it was 3"),
    ({"wave": 2}, "wave is 2, it was 4"),
    ({"visit_blocks": 1}, "visit_blocks is 1, it was 2"),
    ({"clear_confidence": 0.8}, "clear_confidence is 0.8, it was 0.85"),
    ({"alpha": 1e-9}, "alpha is 1e-09, it was 0.005"),
    ({"baseline_processes": 2}, "baseline_processes is 2, it was 3"),
    ({"baseline_rounds": 2}, "baseline_rounds is 2, it was 6"),
    ({"graph": ClockRules(3.0, 2.5, 5.0)}, "graph.screen_pct is 3, it was 2"),
    ({"graph": ClockRules(2.0, 5.0, 5.0)}, "graph.floor_pct is 5, it was 2.5"),
    ({"graph": ClockRules(2.0, 2.5, 9.0)}, "graph.unconfirmed_floor_pct is 9, it was 5"),
]


@pytest.mark.parametrize(("change", "said"), LOOSER, ids=[said.split()[0] for _, said in LOOSER])
def test_each_rule_has_a_looser_side(change: dict[str, object], said: str) -> None:
    changed = msgspec.structs.replace(rules.UNRECORDED, **change)
    assert rules.looser(changed, rules.UNRECORDED, ["graph"]) == [said]
    assert rules.looser(rules.UNRECORDED, changed, ["graph"]) == []
    assert rules.looser(changed, rules.UNRECORDED, ["work"]) == [], "counts do not use it"


def test_a_tolerance_is_looser_if_it_is_larger_and_only_for_counts() -> None:
    loose = msgspec.structs.replace(rules.UNRECORDED, work_tolerance_pct={"load_bytes": 1.0})
    assert rules.looser(loose, rules.UNRECORDED, ["work"]) == ["work_tolerance_pct.load_bytes is 1, it was 0"]
    assert rules.looser(rules.UNRECORDED, loose, ["work"]) == []
    assert rules.looser(loose, rules.UNRECORDED, ["graph", "eager"]) == []


@pytest.mark.parametrize("limit", ["eager", "graph"])
def test_limits_count_for_the_clocks_that_are_judged(limit: str) -> None:
    loose = msgspec.structs.replace(rules.UNRECORDED, **{limit: ClockRules(90.0, 90.0, 90.0)})
    assert bool(rules.looser(loose, rules.UNRECORDED, ["graph"])) == (limit == "graph")


def test_a_looser_rule_is_3_in_the_first_line_unless_it_is_allowed(run: Run, tmp_path: Path) -> None:
    loose, report = toml(tmp_path, FLOOR), tmp_path / "report.json"
    files = "--baseline", AA, saved(tmp_path / "b.json", jittered(aa()))
    done = run("gate", *files, "--config", loose, "-f", f"json={report}")
    said = "graph.unconfirmed_floor_pct is 50, it was 5"
    assert done.code == 3
    assert said in done.out.splitlines()[0] and "--allow-changed-rules" in done.out
    written = json.loads(report.read_bytes())
    assert written["changed_rules"] == [said] and written["rules_allowed"] is False
    assert written["rules"]["graph"]["unconfirmed_floor_pct"] == 50.0
    done = run("gate", *files, "--config", loose, "--allow-changed-rules")
    assert done.code == 0
    assert said in done.out.splitlines()[0] and "allowed by" in done.out.splitlines()[0]
    assert said in done.out.splitlines()[-1], "and in the line that sums up"


def test_tolerances_of_the_candidate_are_not_taken_for_granted(run: Run, tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{name}.json", made) for name, made in two_works(load_bytes=8192).items()]
    options = "--clock", "work", "--baseline", *files, "--config", toml(tmp_path, LOOSE_WORK)
    done = run("gate", *options)
    assert done.code == 3 and "work_tolerance_pct.load_bytes is 200, it was 0" in done.out.splitlines()[0]
    assert run("gate", *options, "--allow-changed-rules").code == 0


def two_works(**changes: int) -> dict[str, Results]:
    return {"a": work_results(), "b": work_results(**changes)}


@pytest.mark.parametrize("clock", ["work", "graph"])
def test_points_that_the_rules_no_longer_name_are_missed(run: Run, tmp_path: Path, clock: str) -> None:
    """The peers' points are in the baseline, too: what its rules do not judge is not missed."""
    made = two_works() if clock == "work" else {"a": aa(), "b": jittered(aa())}
    files = [saved(tmp_path / f"{name}.json", results) for name, results in made.items()]
    options = "--clock", clock, "--baseline", *files, "--config", toml(tmp_path, NARROW)
    done = run("gate", *options)
    count = len(ours(made["a"]))
    assert done.code == 3
    first = done.out.splitlines()[0]
    assert f"{count} points are not judged: contenders are sglang*, they were csgmv_embed*" in first


def test_a_contender_asked_for_is_a_choice_and_no_changed_rule(run: Run, tmp_path: Path) -> None:
    files = AA, saved(tmp_path / "b.json", jittered(aa()))
    done = run("gate", "--baseline", *files, "-c", OURS, "--case", "phase=decode")
    assert done.code == 0 and "looser" not in done.out


def test_a_baseline_is_held_to_the_rules_that_it_carries(run: Run, tmp_path: Path) -> None:
    before = aa()
    before.rules = msgspec.structs.replace(rules.UNRECORDED, graph=ClockRules(1.0, 2.5, 5.0))
    done = run("gate", "--baseline", saved(tmp_path / "a.json", before), saved(tmp_path / "b.json", jittered(aa())))
    assert done.code == 3 and "graph.screen_pct is 2, it was 1" in done.out.splitlines()[0]


def test_a_commit_whose_rules_were_stricter_is_not_measured_against(run: Run) -> None:
    def at(sha: str, now: Config) -> Config:
        return msgspec.structs.replace(now, gate=msgspec.structs.replace(now.gate, confirm_processes=32))

    gpu = FakeGpu()
    done = run("gate", "--against", "old", instrument=gpu.instrument(config_at=at))
    assert done.code == 3 and "confirm_processes is 16, it was 32" in done.out.splitlines()[0]
    assert not gpu.log, "nothing was measured in vain"
    done = run("gate", "--against", "old", "--allow-changed-rules", instrument=gpu.instrument(config_at=at))
    assert done.code == 0 and "allowed by" in done.out.splitlines()[0]


def test_a_profile_that_has_lost_points_since_the_commit_is_a_changed_rule(run: Run) -> None:
    def at(sha: str, now: Config) -> Config:
        quick = now.profiles[now.gate.profile]
        wider = msgspec.structs.replace(quick, grids=(*quick.grids, config.Axes(batch_size=(77,))))
        return msgspec.structs.replace(now, profiles=now.profiles | {now.gate.profile: wider})

    done = run("gate", "--against", "old", instrument=FakeGpu().instrument(config_at=at))
    assert done.code == 3 and "2 points are not judged: the profile has lost them" in done.out.splitlines()[0]


def test_the_rules_of_an_older_bench_toml_are_read_over_the_present_ones() -> None:
    loaded = config.load()
    old = TOML.replace("wave = 4 ", "# ").replace("alpha = 0.005 ", "alpha = 0.05\nforgotten = 1 #", 1)
    read = config.as_before(loaded, old, "old")
    assert read.gate.wave == 4 and read.gate.alpha == 0.05
    with pytest.raises(ConfigError, match=r"old: .*contenders"):
        config.as_before(loaded, TOML.replace('"torch_gather"', '"gone"', 1), "old")
    assert config_at("0" * 40, loaded) is None, "a commit without one"


# --- subsets of a baseline -----------------------------------------------------------------------------------------


def subset(results: Results, chosen: Callable[[Case], bool]) -> Results:
    results.points = [point for point in results.points if chosen(point.case)]
    return results


def test_a_profile_chooses_the_points_of_a_baseline(run: Run, tmp_path: Path) -> None:
    """The result has just these; all others of the baseline are not asked for."""
    results = aa()
    grids = '[[profiles.part.grids]]\nphase = ["decode"]\nbatch_size = [1, 32]\nrank = [16]\n\n[gate]\n'
    part = toml(tmp_path, ("[gate]\n", f'[profiles.part]\nclocks = ["graph"]\ncontenders = ["csgmv_embed"]\n\n{grids}'))
    points = {point.case for point in config.make_plan(config.load(part), "part").points}
    after = saved(tmp_path / "b.json", subset(jittered(aa()), lambda case: case in points))
    expected = sum(point.case in points for point in ours(results))
    assert 0 < expected < 16
    done = run("gate", "--baseline", AA, after, "--config", part, "-p", "part", "-c", "csgmv_embed-*")
    assert done.code == 0, done.out
    assert f"({expected} pass" in done.out
    done = run("gate", "--baseline", AA, after, "--config", part)
    assert done.code == 3 and f"error x {16 - expected}" in done.out


def test_a_case_is_asked_for_by_value_and_not_by_spelling(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", jittered(aa())), "--case", "skew=0, op=lookup")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-c", "nope*"), "--contender nope*: matches none of"),
        (("--case", "rank=17"), "--case rank=17: no case has rank=17; expected one of"),
        (("-p", "head"), "the baseline has no point of profile head with this choice"),
    ],
)
def test_a_choice_that_the_baseline_has_nothing_of_is_2(run: Run, options: tuple[str, ...], said: str) -> None:
    done = run("gate", "--baseline", AA, AA, *options)
    assert done.code == 2 and said in done.err


def test_repeats_of_a_message_are_one_line_with_a_count(run: Run, tmp_path: Path) -> None:
    after = subset(jittered(aa()), lambda case: case == ours(aa())[0].case)
    files = "--baseline", AA, saved(tmp_path / "b.json", after)
    for name, mark in (("table", "error x 15"), ("markdown", "| error x 15 |")):
        done = run("gate", *files, "-f", name)
        assert done.code == 3
        assert mark in done.out and done.out.count("but not measured") == 1
        assert done.out.count("python -m bench gate --against") == 1


def test_a_baseline_names_a_failure_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.cli import guards

    bad = aa()
    bad.code.dirty = False
    for point in ours(bad):
        point.status, point.reason = "error", "no memory"
    monkeypatch.setattr(guards, "refuse_dirty", lambda: None)
    done = run("baseline", saved(tmp_path / "bad.json", bad), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert done.err.count("is error: no memory") == 1 and "and 15 more" in done.err


def test_a_baseline_carries_the_rules_it_was_made_under(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.cli import guards

    made, path = aa(), tmp_path / "baseline.json"
    made.code.dirty = False
    monkeypatch.setattr(guards, "refuse_dirty", lambda: None)
    assert run("baseline", saved(tmp_path / "made.json", made), "-o", path).code == 0
    assert store.read(path).rules == GATE.rules
