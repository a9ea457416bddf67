"""What the reader refuses, and that nothing it lets through can turn a verdict of the gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.judge import comparable
from bench.judge import times as judge
from bench.judge.work import judge_work
from bench.model import store
from bench.model.records import Results, ResultsError, WorkCounts
from plots import inputs
from tests.support.gate import GATE, Outcome, aa, ours, run, saved, scaled, work_results
from tests.support.mutations import SPOILS, Place, general, places, spelled, spoiled

__all__ = ["run"]

Run = Callable[..., Outcome]
Change = Callable[[dict[str, Any]], object]

# What may say something else and stay legal: the verdict is then that of another record.
# Axes of a case and names make it another point; an instrument or a machine of another kind cannot be compared; without
# compiled figures a point is an error. A count of 0 is legal where it fits the others.
SAYS_SOMETHING_ELSE = ("case", "contender", "identity", "seed", "bench_version", "nodes", "cache", "minimum_bytes")
SAYS_SOMETHING_ELSE += ("anchors", "env", "points", "compiled", "counts", "throttle", "process", "rounds", "index_sets")


def timed() -> Results:
    results = aa()
    results.points = ours(results)[:1]
    return results


def slowed(results: Results) -> Results:
    """More of everything that the gate compares."""
    for point in scaled(results, 1.5).points:
        if point.work is not None:
            counts = msgspec.structs.asdict(point.work.counts)
            point.work.counts = msgspec.convert({name: 2 * value for name, value in counts.items()}, WorkCounts)
    return results


def counted() -> Results:
    results = work_results()
    results.points = results.points[:1]
    return results


Verdict = tuple[int, list[str]]


def verdict(before: Path, after: Path) -> tuple[int, list[str]]:
    """The gate's exit code and the status of each point."""
    old, new = store.read(before), store.read(after)
    clock = old.points[0].clock if old.points else "graph"
    match = comparable.match(old.points, new.points, judge.wanted([clock], GATE.contenders))
    if clock == "work":
        report = judge_work(old, new, GATE, match, counts_only=False, renew="again")
    else:
        report = judge.judge_baseline(old, new, GATE, match)
    return int(report.exit_code), sorted(item.status for item in report.verdicts)


MADE = {"timed": timed, "counted": counted}
DOCUMENTS = {
    (kind, slow): json.loads(store.encode(slowed(make()) if slow else make()))
    for kind, make in MADE.items()
    for slow in (False, True)
}


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, bool, Place, str]:
    kind, slow = draw(st.sampled_from(sorted(DOCUMENTS)))
    by_name: dict[str, list[Place]] = {}
    for place in places(DOCUMENTS[kind, slow]):
        by_name.setdefault(general(place), []).append(place)  # each field alike, however often it is there
    place = draw(st.sampled_from(by_name[draw(st.sampled_from(sorted(by_name)))]))
    return kind, slow, place, draw(st.sampled_from(sorted(SPOILS)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], tuple[Path, Verdict]]:
    """For each document, what it is judged against and its verdict."""
    folder, found = tmp_path_factory.mktemp("sound"), {}
    for kind, slow in DOCUMENTS:
        before, good = saved(folder / f"{kind}.json", MADE[kind]()), folder / "good.json"
        good.write_text(spelled(DOCUMENTS[kind, slow]), encoding="utf-8")
        found[kind, slow] = before, verdict(before, good)
        assert found[kind, slow][1][0] == ((1 if kind == "counted" else 3) if slow else 0)
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(("timed", True, ("points", 0, "rounds", 0, "blocks_us", 0), "negative"))
@example(("timed", True, ("points", 0, "check"), "gone"))
@example(("timed", False, ("run", "id"), "text"))
@example(("counted", True, ("points", 0, "work", "counts", "launches"), "zero"))
@example(("counted", True, ("points", 0), "twice"))
@given(mutations())
def test_a_spoiled_field_is_refused_or_changes_no_verdict(
    sound: dict[tuple[str, bool], tuple[Path, Verdict]], tmp_path: Path, mutation: tuple[str, bool, Place, str]
) -> None:
    """One field of a sound result is taken away or given a value it cannot have: of another type, negative, zero, not
    finite, out of any range, empty, doubled, with control characters, nested without end.

    Either the reader refuses the file, with a message that names it. Or the field does not matter, and the verdict is
    the same as before. Or the value is legal and says something else, which only the fields listed above can; then the
    gate may decline to judge, but a regression never becomes a pass. (A time that stays positive and finite is a legal
    time: no reader can know that it was another.)
    """
    kind, slow, place, spoil = mutation
    before, expected = sound[kind, slow]
    bad = tmp_path / "bad.json"
    bad.write_text(spelled(spoiled(DOCUMENTS[kind, slow], place, spoil)), encoding="utf-8")
    try:
        found = verdict(before, bad)
    except ResultsError as error:
        assert str(bad) in str(error)  # noqa: PT017 - not to raise is right, too
        return
    if found != expected:
        assert any(name in general(place) for name in SAYS_SOMETHING_ELSE), (general(place), spoil, expected, found)
        assert not slow or found[0] != 0, (general(place), spoil, expected, found)


def point(**fields: object) -> Change:
    return lambda document: document["points"][0].update(fields)


def code(**fields: object) -> Change:
    return lambda document: document["code"].update(fields)


REFUSED: list[tuple[str, Change, str]] = [
    ("timed", point(rounds=[]), r"points\[0\].*rounds is empty; expected at least one"),
    ("timed", point(check=None), r"points\[0\].*check is missing; expected one that passed"),
    ("timed", lambda d: d["points"][0]["check"].update(passed=False), "check is not passed"),
    (
        "timed",
        lambda d: d["points"][0]["check"].update(max_error=0.5),
        "max_error is 0.5; expected at most its tolerance",
    ),
    ("timed", lambda d: d["points"][0]["rounds"][0].update(blocks_us=[]), r"length >= 1.*blocks_us"),
    (
        "timed",
        lambda d: d["points"][0]["rounds"][0].update(blocks_us=[0.0]),
        r">= 1e-09.*blocks_us.*found 0.0, of csgmv",
    ),
    (
        "timed",
        lambda d: d["points"][0]["rounds"].append(d["points"][0]["rounds"][0]),
        r"rounds\[\d+\] is the process and",
    ),
    ("timed", point(floor_us=[-1.0]), r">= 1e-09.*points\[0\].floor_us\[0\]"),
    ("timed", lambda d: d["anchors"][0].update(values=[0.0]), r">= 1e-09.*anchors\[0\].values\[0\]"),
    (
        "timed",
        lambda d: d["points"].append(d["points"][0]),
        r"points\[1\].*is the case, contender and clock of points\[0\]",
    ),
    ("timed", point(status="skipped"), r"reason is missing; expected why it is skipped"),
    ("timed", lambda d: d["points"][0]["case"].update(batch_size=-3), "case.batch_size is -3; expected 1 or more"),
    ("counted", point(work=None), r"points\[0\].*work is missing; expected counts"),
    ("counted", lambda d: d["points"][0]["work"]["counts"].update(launches=0), r">= 1.*work.counts.launches.*found 0"),
    ("counted", lambda d: d["points"][0]["work"]["counts"].update(load_bytes=-8), r">= 0.*load_bytes.*found -8"),
    ("counted", lambda d: d["points"][0]["work"]["counts"].update(load_sectors=0), "load_sectors is 0 for 4096 bytes"),
    ("counted", code(sha="../../../x"), r"code.sha.*found '../../../x'"),
    ("counted", code(short="0000000"), "code.short is 0000000, which does not begin code.sha"),
    ("counted", lambda d: d["run"].update(id="../x"), r"run.id.*found '../x'"),
    (
        "counted",
        lambda d: d["run"]["selection"].update(profile="x\n::error::y"),
        r"run.selection.profile has .* U\+000A",
    ),
    ("counted", point(contender="c\x1b[31m"), r"points\[0\].contender .* has the control character U\+001B"),
    (
        "counted",
        lambda d: d["env"]["identity"].update({"a\x07b": 1}),
        r"env.identity.* has the control character U\+0007",
    ),
]


@pytest.mark.parametrize(("kind", "change", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_no_sweep_can_have_written_is_refused_by_name(
    kind: str, change: Change, words: str, tmp_path: Path
) -> None:
    document = json.loads(store.encode(MADE[kind]()))
    change(document)
    (tmp_path / "r.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ResultsError, match=rf"r\.json: .*{words}"):
        store.read(tmp_path / "r.json")


def test_every_verb_that_reads_results_refuses_an_unsound_file_with_2(run: Run, tmp_path: Path) -> None:
    good = saved(tmp_path / "good.json", timed())
    document = json.loads(good.read_bytes())
    document["points"][0]["rounds"][0]["blocks_us"] = [-1.0]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(document), encoding="utf-8")
    verbs = [
        ("show", bad),
        ("report", bad, "-o", tmp_path / "page.html"),
        ("plot", "scaling", bad),
        ("gate", bad, "--baseline", good),
        ("gate", good, "--baseline", bad),
        ("gate", "--clock", "work", bad),
        ("compare", good, bad),
        ("history", "add", bad, "--store", tmp_path / "store"),
        ("sweep", "--resume", bad),
    ]
    for verb in verbs:
        done = run(*verb)
        assert (done.code, done.err.count("\n")) == (2, 1), verb
        assert "bad.json: not a valid results file" in done.err and "found -1.0" in done.err, verb
    assert {path.name for path in tmp_path.iterdir()} == {"good.json", "bad.json"}, "something was written"


def test_nesting_too_deep_for_the_parser_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000 + "]" * 100_000, encoding="utf-8")
    for read in (store.read, lambda path: inputs.load([path])):
        with pytest.raises(ResultsError, match="deep.json"):
            read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_ratio_that_is_no_number_is_never_a_pass(value: float) -> None:
    old, new = timed(), timed()
    for item in new.points[0].rounds:
        item.blocks_us = [value]
    match = comparable.match(old.points, new.points, judge.wanted(["graph"], GATE.contenders))
    report = judge.judge_baseline(old, new, GATE, match)
    assert int(report.exit_code) == 3
    assert [item.status for item in report.verdicts] == ["error"]
