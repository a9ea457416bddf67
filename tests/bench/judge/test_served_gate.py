"""The gate of engines on a record of an H200: what is slower by 5 % is found, what is the same passes."""

from __future__ import annotations

import msgspec
import pytest

from bench.judge.served_gate import Rules, ServedReport, judge
from bench.judge.serving import figures
from bench.model import served
from bench.model.paths import ROOT
from bench.model.served import ServedLoad, ServeResults
from bench.model.verdict import Exit
from tests.support.served import DECODE, decode, process, results

RECORD = ROOT / "docs" / "results" / "h200-engine.json"
RULES = Rules(alpha=0.005, floor_pct=2.5, target_pct=5.0, anchor_limit_pct=3.0)


@pytest.fixture(scope="module")
def record() -> ServeResults:
    return served.read(RECORD)


def changed(record: ServeResults, mode: str, name: str, factor: float) -> ServeResults:
    copy = msgspec.convert(msgspec.to_builtins(record), ServeResults)
    for item in (load for engine in copy.processes if engine.mode == mode for load in engine.loads):
        if name in item.samples:
            item.samples[name] = [factor * value for value in item.samples[name]]  # type: ignore[index]
    return copy


def gate(before: ServeResults, after: ServeResults, mode: str = "") -> ServedReport:
    wanted = (lambda load, found: found == mode) if mode else (lambda load, found: True)
    return judge(figures(before), figures(after), RULES, "csgmv", wanted=wanted)


def test_the_same_record_passes_and_what_is_too_noisy_is_not_judged(record: ServeResults) -> None:
    report = gate(record, record)
    assert report.exit_code is Exit.PASS and report.anchor == "none"
    assert {item.status for item in report.verdicts} == {"pass", "skipped"}
    assert {item.ratio for item in report.verdicts} == {1.0}
    skipped = {(item.load.kind, item.figure) for item in report.verdicts if item.status == "skipped"}
    assert skipped == {("stream", "first token"), ("arrivals", "first token")}
    assert all("processes differ too much" in item.reason for item in report.verdicts if item.status == "skipped")


@pytest.mark.parametrize("mode", ["plugin", "csgmv", "triton"])
def test_steps_of_one_mode_that_take_5_percent_longer_fail(record: ServeResults, mode: str) -> None:
    report = gate(record, changed(record, mode, "step_us", 1.05))
    assert report.exit_code is Exit.REGRESSION
    slow = [item for item in report.verdicts if item.status == "slow"]
    assert {item.mode for item in slow} == {mode} and {item.figure for item in slow} == {"step"}
    # Of two loads two processes differ by more than 1 %, which leaves room for doubt, but for no pass.
    assert {(item.load.requests, item.load.base_fraction) for item in slow} == {(1, 0), (128, 0), (32, 1)}
    unsure = [item for item in report.verdicts if item.status == "inconclusive"]
    assert {(item.mode, item.figure) for item in unsure} == {(mode, "step")}
    assert {(item.load.requests, item.load.base_fraction) for item in unsure} == {(32, 0), (256, 0)}
    assert all(item.low is not None and 1.025 < item.low < 1.05 for item in slow)
    assert gate(record, changed(record, mode, "step_us", 1.02)).exit_code is Exit.PASS


def test_a_rate_is_worse_when_it_falls(record: ServeResults) -> None:
    report = gate(record, changed(record, "plugin", "span_us", 1.10))
    slow = {(item.load.kind, item.figure) for item in report.verdicts if item.status == "slow"}
    assert ("arrivals", "output rate") in slow
    fast = gate(record, changed(record, "plugin", "step_us", 0.9))
    assert fast.exit_code is Exit.PASS and "fast" in {item.status for item in fast.verdicts}


def test_a_machine_that_moved_is_no_verdict_and_a_drift_of_all_is_no_change(record: ServeResults) -> None:
    moved = gate(record, changed(record, "none", "step_us", 1.05))
    assert moved.exit_code is Exit.CANNOT_JUDGE and "the machine is not what it was: none" in moved.refusals[0]
    drifted = record
    for mode in record.run.modes:
        drifted = changed(drifted, mode, "step_us", 1.02)
    assert all(item.ratio == pytest.approx(1.0) for item in gate(record, drifted).verdicts)


def test_the_choice_of_modes_changes_no_spread(record: ServeResults) -> None:
    slowed = changed(record, "plugin", "step_us", 1.05)
    every = {(item.load, item.figure): item for item in gate(record, slowed).verdicts if item.mode == "plugin"}
    alone = gate(record, slowed, "plugin").verdicts
    assert {item.mode for item in alone} == {"plugin"}
    assert all(item.low == every[item.load, item.figure].low for item in alone)


def test_what_the_record_lacks_or_answers_wrong_cannot_be_judged(record: ServeResults) -> None:
    fewer = msgspec.convert(msgspec.to_builtins(record), ServeResults)
    for item in fewer.processes:
        if item.mode == "plugin":
            item.loads = [load for load in item.loads if load.load.requests != 128]
    report = gate(record, fewer)
    assert report.exit_code is Exit.CANNOT_JUDGE
    lost = [item for item in report.verdicts if item.status == "error"]
    assert lost and {item.load.requests for item in lost} == {128}
    wrong = msgspec.convert(msgspec.to_builtins(record), ServeResults)
    for item in wrong.processes:
        for load in item.loads if item.mode == "plugin" else []:
            for answer in load.answers:
                answer.logprobs = [value - 3 for value in answer.logprobs]
                answer.prompt_logprobs = [value - 3 for value in answer.prompt_logprobs]
    errors = {item.mode: item for item in gate(record, wrong).verdicts if item.status == "error"}
    assert {*errors} == {"plugin"} and "wrong" in errors["plugin"].reason


def made(*steps: tuple[str, int, ServedLoad]) -> ServeResults:
    return results(*(process(place, mode, repeat, load) for place, (mode, repeat, load) in enumerate(steps)))


def test_one_process_a_mode_is_never_certain_and_without_an_anchor_nothing_is() -> None:
    one = made(("none", 0, decode(5000.0)), ("plugin", 0, decode(6000.0)))
    slower = made(("none", 0, decode(5000.0)), ("plugin", 0, decode(9000.0)))
    report = gate(one, slower)
    assert [item.status for item in report.verdicts] == ["inconclusive"] and report.exit_code is Exit.CANNOT_JUDGE
    assert report.verdicts[0].load == DECODE
    bare = made(("plugin", 0, decode(6000.0)), ("plugin", 1, decode(6000.0)))
    assert "figures are judged relative to it" in gate(bare, bare).refusals[0]


def test_processes_without_any_spread_are_what_they_are() -> None:
    def both(step: float) -> ServeResults:
        modes = [("none", 5000.0), ("plugin", step)]
        return made(*((mode, repeat, decode(value)) for repeat in (0, 1) for mode, value in modes))

    assert gate(both(6000.0), both(6000.0)).exit_code is Exit.PASS
    assert gate(both(6000.0), both(6300.0)).exit_code is Exit.REGRESSION
