"""Accepted slowdowns, limits of single cases, and baselines that have only some of the points."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import msgspec
import pytest

from bench.model import accepted, config, store
from bench.model.config import CaseLimits, ConfigError
from bench.model.environment import collect_code
from bench.model.rules import CaseRules
from tests.support.gate import GATE, LOADED, FakeGpu, Outcome, aa, jittered, ours, saved, work_results

Run = Callable[..., Outcome]
QUICK = ("-a", "phase=decode", "-a", "batch_size=32", "-a", "rank=16,64", "-a", "cache=warm")
TOMORROW, YESTERDAY = date.today() + timedelta(days=1), date.today() - timedelta(days=1)
SLOWER = 0.04  # of the log time, at rank 64


def entry(**changes: object) -> str:
    """An entry that accepts what `judged` makes slower."""
    fields = {"case": "rank=64", "contender": "csgmv_embed-*", "clock": "graph", "up_to_pct": 5.0}
    fields |= {"who": "Ada", "why": "ids are checked now", "until": TOMORROW} | changes
    lines = (
        f"{name} = {f'{value!s}' if isinstance(value, float | date) else repr(value)}" for name, value in fields.items()
    )
    return "\n".join(["[[accepted]]", *lines, ""])


def judged(run: Run, folder: Path, *entries: str, options: tuple[str, ...] = QUICK) -> Outcome:
    (folder / "accepted.toml").write_text("\n".join(entries), encoding="utf-8")
    gpu = FakeGpu(slowdown=lambda planned: SLOWER if planned.case.rank == 64 else 0.0)
    arguments = ("gate", "--against", "HEAD~1", *options, "--accepted", folder / "accepted.toml", "-f", "markdown")
    return run(*arguments, "-o", folder / "r.json", instrument=gpu.instrument())


def test_an_accepted_slowdown_passes_and_says_who_why_and_until_when(run: Run, tmp_path: Path) -> None:
    assert judged(run, tmp_path).code == 1
    done = judged(run, tmp_path, entry())
    assert done.code == 0, done.out
    assert f"accepted by Ada up to 5 % until {TOMORROW}: ids are checked now (slow: slower by" in done.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"until": YESTERDAY}, f"its last day was {YESTERDAY}; expected a later `until`, or the entry taken out"),
        ({"until": YESTERDAY}, f"was accepted until {YESTERDAY}"),
        ({"up_to_pct": 3.0}, "up to 3 % is accepted"),
        ({"contender": "nobody"}, "names no point that was judged; expected a contender of csgmv\\_embed-"),
        ({"clock": "eager"}, "names no point that was judged; expected a clock of graph"),
        ({"case": "rank=8"}, "names no point that was judged; expected a case such as adapters=8,"),
    ],
)
def test_an_entry_that_does_not_hold_is_told_with_what_would_be_right(
    run: Run, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    options = QUICK[:0] if "names no point" in said else QUICK  # a selection leaves points out on purpose
    done = judged(run, tmp_path, entry(**changes), options=options)
    assert done.code == 1
    assert said in done.out.replace("\\`", "`")


def test_an_entry_that_nothing_needs_is_told(run: Run, tmp_path: Path) -> None:
    done = judged(run, tmp_path, entry(), entry(case="rank=16", who="Bob"))
    assert done.code == 0 and "(Bob: csgmv\\_embed-\\*, rank=16): none of its points is slower" in done.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"who": ""}, "accepted[0].who: Expected `str` matching regex '\\\\S'; allowed: some words"),
        ({"case": "colour=red"}, "accepted[0].case: 'colour=red' is not a term of a case; expected NAME=VALUE"),
        ({"case": "rank=many"}, "accepted[0].case: 'rank=many': no case has this rank"),
        ({"clock": "work"}, "accepted[0].clock: Invalid enum value 'work'; allowed: graph, eager"),
        ({"until": "soon"}, "accepted[0].until: "),
    ],
)
def test_a_broken_file_is_2_with_the_place(run: Run, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    done = judged(run, tmp_path, entry(**changes))
    assert done.code == 2 and said in done.err


def test_counts_are_not_accepted_so(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--clock", "work", "--accepted", tmp_path / "x.toml")
    assert done.code == 2 and "expected a renewed baseline for counts that are meant to change" in done.err


def test_the_repositorys_own_file_is_sound_if_there_is_one() -> None:
    assert isinstance(accepted.load(None), tuple)


# --- limits of single cases ------------------------------------------------------------------------------------------


def at_rank_64(**limits: float) -> config.Gate:
    return msgspec.structs.replace(GATE, cases=(CaseLimits(case="rank=64", clock="graph", **limits),))


def test_a_case_has_its_own_limits_and_what_it_leaves_out_is_its_clocks() -> None:
    gate = at_rank_64(floor_pct=6.0)
    small, large = (next(p.case for p in aa().points if p.case.rank == rank) for rank in (16, 64))
    assert gate.limits_at(large, "graph") == msgspec.structs.replace(GATE.graph, floor_pct=6.0)
    assert gate.limits_at(small, "graph") == GATE.graph and gate.limits_at(large, "eager") == GATE.eager
    assert gate.rules.limits_at(large, "graph").floor_pct == 6.0


def test_a_case_is_judged_by_its_own_floor_and_looser_ones_must_be_allowed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = msgspec.structs.replace(LOADED, gate=at_rank_64(floor_pct=6.0, screen_pct=5.0))
    monkeypatch.setattr(config, "load", lambda path: own)
    gpu = FakeGpu(slowdown=lambda planned: SLOWER if planned.case.rank == 64 else 0.0)

    def against(then: config.Config, *options: str) -> Outcome:
        machine = gpu.instrument(config_at=lambda sha, now: then)
        return run("gate", "--against", "HEAD~1", *QUICK, *options, "-o", tmp_path / "r.json", instrument=machine)

    refused = against(LOADED)
    assert refused.code == 3
    assert "graph.floor_pct is 6, it was 2.5 at decode 32 r64" in " ".join(refused.out.split())
    assert against(LOADED, "--allow-changed-rules").code == 0
    assert against(own).code == 0, "the rules are those of the commit before"


def test_a_wrong_case_in_bench_toml_is_named(tmp_path: Path) -> None:
    text = config.DEFAULT_PATH.read_text(encoding="utf-8")
    (tmp_path / "bench.toml").write_text(
        text + '\n[[gate.cases]]\ncase = "rang=64"\nclock = "graph"\n', encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"gate\.cases\[0\]\.case: 'rang=64' is not a term"):
        config.load(tmp_path / "bench.toml")


def test_a_baseline_remembers_the_limits_of_its_cases(tmp_path: Path) -> None:
    results = aa()
    results.rules = at_rank_64(floor_pct=6.0).rules
    kept = store.read(saved(tmp_path / "b.json", results)).rules
    assert kept is not None and kept.cases == (CaseRules(case="rank=64", clock="graph", floor_pct=6.0),)


# --- partial baselines -----------------------------------------------------------------------------------------------


def test_a_partial_baseline_judges_what_it_knows_and_says_how_much_it_does_not(run: Run, tmp_path: Path) -> None:
    known = aa()
    known.points = ours(known)[:3]
    baseline = saved(tmp_path / "some.json", known)
    result = saved(tmp_path / "b.json", jittered(aa()))
    done = run("gate", result, "--baseline", baseline, "--partial")
    assert done.code == 0 and "(3 pass;" in done.out, done.out
    assert "the baseline does not know 13 of 16 points: those are not judged" in done.out
    assert "13 skipped" in run("gate", result, "--baseline", baseline).out, "without the option each is a row"
    known.code.bench_version = collect_code().bench_version
    saved(baseline, known)
    measured = run("gate", "--baseline", baseline, "-o", tmp_path / "r.json", instrument=FakeGpu().instrument())
    assert "(3 pass;" in measured.out and "the baseline does not know " in measured.out, measured.out


def test_a_baseline_that_knows_none_of_the_points_never_passes(run: Run, tmp_path: Path) -> None:
    unknown = aa()
    for point in ours(unknown):
        point.case = msgspec.structs.replace(point.case, vocab=1000)
    baseline = saved(tmp_path / "other.json", unknown)
    done = run("gate", saved(tmp_path / "b.json", jittered(aa())), "--baseline", baseline, "--partial")
    assert done.code == 3
    done = run("gate", "--baseline", baseline, "-o", tmp_path / "r.json", instrument=FakeGpu().instrument())
    assert done.code == 3 and "the baseline has none of the" in done.out, done.out


def test_a_partial_baseline_of_counts(run: Run, tmp_path: Path) -> None:
    known = work_results()
    del known.points[1:]
    baseline, result = saved(tmp_path / "some.json", known), saved(tmp_path / "b.json", work_results())
    assert run("gate", result, "--clock", "work", "--baseline", baseline).code == 3
    done = run("gate", result, "--clock", "work", "--baseline", baseline, "--partial")
    assert done.code == 0 and "the baseline does not know 2 of 3 points" in done.out
