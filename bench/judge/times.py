"""Records of a timed comparison to verdicts. Pure: the same records always give the same report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, isfinite
from statistics import geometric_mean, median, stdev

import msgspec
import numpy as np

from bench.judge import comparable, statistics
from bench.judge.comparable import Match, Shift
from bench.judge.estimate import round_values
from bench.judge.statistics import Design, Tested, log_limit
from bench.model.case import Case, ClockName
from bench.model.config import Gate, Limits, PlannedPoint
from bench.model.pairs import PairPoint, PairRun, observations
from bench.model.records import Code, Point, Results
from bench.model.registry import fits
from bench.model.verdict import Report, Subject, Verdict, VerdictStatus

TIMED: tuple[ClockName, ...] = ("graph", "eager")
Wanted = Callable[[Point | PlannedPoint], bool]


def any_case(case: Case) -> bool:
    """Selects every case."""
    return True


def wanted(clocks: Sequence[str], patterns: Sequence[str], in_cases: Callable[[Case], bool] = any_case) -> Wanted:
    """A predicate for points with one of these clocks, a contender that matches these patterns, and a selected case."""

    def chosen(point: Point | PlannedPoint) -> bool:
        return (
            point.clock in clocks
            and any(fits(point.contender, pattern) for pattern in patterns)
            and in_cases(point.case)
        )

    return chosen


# --- interleaved pairs ---------------------------------------------------------------------------------------------


def judge_pairs(run: PairRun) -> Report:
    """The report of an interleaved run. Its points have the rounds of both stages; the confirm stage decides."""
    report = Report(
        use=run.use,
        before=run.a,
        after=run.b,
        identity=run.env.identity if run.env else {},
        verdicts=[],
        selection=run.selection,
        started_utc=run.started_utc,
        duration_s=run.duration_s,
        rules=run.gate.rules,
    )
    if not run.points:
        report.refusals.append("no point was measured")
    for clock in dict.fromkeys(point.clock for point in run.points):
        of_clock = [point for point in run.points if point.clock == clock]
        report.verdicts += _pairs_of_clock(of_clock, run.gate)
    return report


def flagged_pairs(points: Sequence[PairPoint], gate: Gate) -> list[PairPoint]:
    """The points whose screening rounds call for a confirmation."""
    return [point for point in points if point.status == "ok" and screen_flag(point, gate)]


def screen_flag(point: PairPoint, gate: Gate) -> bool:
    screened = point.of_stage("screen")
    if not screened:
        return False
    logs = np.array([[item.log_ratio for item in screened]])
    return bool(statistics.flagged(logs, gate.limits_at(point.case, point.clock).screen_pct)[0])


def is_cleared(point: PairPoint, gate: Gate) -> bool:
    """Whether the confirming rounds end a wave and show that the remaining ones cannot make a change of the point."""
    values = observations(point.of_stage("confirm"))
    if not statistics.is_look(len(values), gate.wave, gate.confirm_processes):
        return False
    floor_pct = gate.limits_at(point.case, point.clock).floor_pct
    return bool(statistics.within_floor(np.array([values]), floor_pct, gate.clear_confidence)[0])


def pair_design(gate: Gate, limits: Limits) -> Design:
    return Design(
        screen_observations=gate.screen_processes,  # cautious: layouts of one process may share its luck
        confirm_observations=gate.confirm_processes,
        screen_pct=limits.screen_pct,
        floor_pct=limits.floor_pct,
        alpha=gate.alpha,
        power=gate.power,
    )


def _pairs_of_clock(points: Sequence[PairPoint], gate: Gate) -> list[Verdict]:
    confirmed = [point for point in points if point.status == "ok" and point.of_stage("confirm")]
    fresh = [observations(point.of_stage("confirm")) for point in confirmed]
    usable = [index for index, values in enumerate(fresh) if len(values) == gate.confirm_processes]
    matrix = np.array([fresh[index] for index in usable])
    cleared = sum(is_cleared(point, gate) for point in confirmed)
    slow = statistics.confirm(matrix, alpha=gate.alpha, cleared=cleared)
    fast = statistics.confirm(matrix, alpha=gate.alpha, slower=False, cleared=cleared)
    tests = {id(confirmed[index]): (slow[row], fast[row]) for row, index in enumerate(usable)}
    return [_pair_verdict(point, gate, tests.get(id(point))) for point in points]


def _pair_verdict(point: PairPoint, gate: Gate, tests: tuple[Tested, Tested] | None) -> Verdict:
    base = Verdict(point.case, point.contender, point.clock, "error", "", extra_share=point.extra_share)
    if point.status != "ok":
        status: VerdictStatus = "skipped" if point.status == "skipped" else "error"
        return _but(base, status, f"{point.status} on side {point.side}: {point.reason}")
    if not point.rounds:
        return _but(base, "error", "no round was measured")
    stage = point.of_stage("confirm") or point.of_stage("screen")
    limits = gate.limits_at(point.case, point.clock)
    base = msgspec.structs.replace(
        base,
        before_us=geometric_mean(median(item.a_blocks_us) for item in stage),
        after_us=geometric_mean(median(item.b_blocks_us) for item in stage),
        rounds=len(stage),
        floor=1 + limits.floor_pct / 100,
        detectable=_detectable(observations(stage), pair_design(gate, limits)),
        **_interval(observations(stage)),
    )
    if base.ratio is None or not isfinite(base.ratio):
        return _but(msgspec.structs.replace(base, ratio=None), "error", "its ratio is not a finite number")
    if throttle := sorted({reason for item in point.rounds for reason in item.throttle}):
        return _but(base, "inconclusive", f"the GPU lowered its clock: {', '.join(throttle)}")
    if tests is None:
        return _but(base, *_untested(point, gate, base))
    return _decide(base, tests, limits.floor_pct)


def _untested(point: PairPoint, gate: Gate, base: Verdict) -> tuple[VerdictStatus, str]:
    """What is said of a point without all confirming rounds."""
    if is_cleared(point, gate):
        count = len(observations(point.of_stage("confirm")))
        return "pass", f"flagged by the screen, cleared after {count} of {gate.confirm_processes} processes"
    if point.of_stage("confirm") or screen_flag(point, gate):
        return "inconclusive", "flagged by the screen, but the confirming rounds are incomplete"
    return "pass", _quiet(base, gate)


def _decide(base: Verdict, tests: tuple[Tested, Tested], floor_pct: float) -> Verdict:
    slow, fast = tests
    status = statistics.outcome(slow, fast, floor_pct)
    p = fast.p_holm if status == "fast" else slow.p_holm
    reason = {
        "slow": f"slower by more than the limit of {floor_pct:g} %, p = {p:.2g} (Holm)",
        "fast": f"faster, p = {p:.2g} (Holm)",
        "inconclusive": f"past the limit of {floor_pct:g} %, but too noisy to tell: p = {p:.2g} (Holm)",
        "pass": "flagged by the screen, not confirmed",
    }[status]
    return msgspec.structs.replace(_but(base, status, reason), p=p, confirmed=status in ("slow", "fast"))


def _detectable(values: Sequence[float], design: Design) -> float | None:
    if len(values) < 2:
        return None
    return exp(float(statistics.detectable(np.array([stdev(values)]), design)[0]))


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    mean, low, high = statistics.interval(np.array(values))
    bounded = np.isfinite(low)
    return {"ratio": exp(mean), "low": exp(low) if bounded else None, "high": exp(high) if bounded else None}


def _quiet(verdict: Verdict, gate: Gate) -> str:
    if verdict.detectable is not None and verdict.detectable > 1 + gate.target_pct / 100:
        return f"no change seen, but too noisy to be sure of less than {100 * (verdict.detectable - 1):.1f} %"
    return "no change seen"


def _but(verdict: Verdict, status: VerdictStatus, reason: str) -> Verdict:
    return msgspec.structs.replace(verdict, status=status, reason=reason)


# --- a stored baseline ---------------------------------------------------------------------------------------------


def subject(code: Code, what: str) -> Subject:
    dirty = " + uncommitted changes" if code.dirty else ""
    return Subject(f"{what} {code.short or 'unknown commit'}{dirty}", code.sha, code.dirty, code.kernel_source_sha256)


def refusals(before: Results, after: Results, gate: Gate, match: Match) -> list[str]:
    """Every reason why nothing in the two files can be compared."""
    found = comparable.environment_refusals(before.env, after.env)
    found += comparable.instrument_refusals(before, after) + match.repeated
    if not match.both:
        found.append("no point of the baseline was measured")
    found += _anchors_moved(before, after, gate, match.both)
    for name, points in (("baseline", [old for old, _ in match.both]), ("result", [new for _, new in match.both])):
        if reasons := comparable.throttled(points):
            found.append(f"the GPU lowered its clock while the {name} was measured: {', '.join(reasons)}")
    return found


def _anchors_moved(before: Results, after: Results, gate: Gate, pairs: Sequence[tuple[Point, Point]]) -> list[str]:
    """Of each clock, on each GPU that its points ran on."""
    found = []
    for clock in dict.fromkeys(old.clock for old, _ in pairs):
        for gpus in comparable.gpu_pairs(pair for pair in pairs if pair[0].clock == clock):
            shift = comparable.anchor_shift(before.anchors, after.anchors, clock, gpus)
            found += comparable.anchor_refusals(shift, clock, gate.anchor_limit_pct)
    return list(dict.fromkeys(found))


def judge_baseline(before: Results, after: Results, gate: Gate, match: Match, fresh: Results | None = None) -> Report:
    """The report of a result against a stored baseline, from the files only.

    A slowdown is then `unconfirmed`. `fresh` holds new rounds of the flagged points. Without it, the test uses the
    rounds that the screen saw.
    """
    report = Report(
        use="baseline",
        before=subject(before.code, "baseline"),
        after=subject(after.code, "result"),
        identity=after.env.identity if after.env else {},
        verdicts=[],
        refusals=refusals(before, after, gate, match),
        notes=match.notes + comparable.environment_notes(before.env, after.env),
        selection=selection_options(before),
        started_utc=after.run.started_utc,
        duration_s=after.run.duration_s,
        rules=gate.rules,
    )
    if fresh is not None:
        old = {point.key: point for point in before.points}
        renewed = [(old[point.key], point) for point in fresh.points if point.key in old]
        report.refusals += _anchors_moved(before, fresh, gate, renewed)
        if reasons := comparable.throttled(fresh.points):
            report.refusals.append(f"the GPU lowered its clock during the fresh rounds: {', '.join(reasons)}")
    if before.code.kernel_source_sha256 == after.code.kernel_source_sha256:
        report.notes.append("both sides have the same kernel source")
    for point in match.missing:
        report.verdicts.append(_plain(point, "error", "in the baseline, but not measured"))
    for point in match.new:
        report.verdicts.append(_plain(point, "skipped", "not in the baseline"))
    for clock in TIMED:
        pairs = [pair for pair in match.both if pair[0].clock == clock]
        report.verdicts += _baseline_of_clock(pairs, before, after, gate, fresh)
        for gpus in comparable.gpu_pairs(pairs):
            shift = comparable.anchor_shift(before.anchors, after.anchors, clock, gpus)
            if shift is not None:
                report.notes.append(f"{clock} clock: corrected by {100 * shift.log_shift:+.2f} % from the anchors")
    report.notes = list(dict.fromkeys(report.notes))
    return report


def flagged_points(before: Results, after: Results, gate: Gate, match: Match) -> list[Point]:
    """The points of the result that the screen flags against the baseline."""
    found = []
    for old, new in match.both:
        shift = comparable.point_shift(before, after, old, new)
        if shift is not None and unusable(old, new, gate) is None and _screened(old, new, shift, gate):
            found.append(new)
    return found


def unusable(old: Point, new: Point, gate: Gate) -> tuple[VerdictStatus, str] | None:
    """Why a matched point cannot be judged."""
    if old.status != "ok":
        return "skipped", f"{old.status} in the baseline: {old.reason}"
    if new.status != "ok":
        return "error", f"{new.status}: {new.reason}"
    for name, point in (("baseline", old), ("result", new)):
        if reason := comparable.unsound(point):
            return "error", f"the {name}'s point cannot be used: {reason}"
    if reason := comparable.point_refusal(old, new):
        return "error", reason
    for name, point in (("baseline", old), ("result", new)):
        if not all(isfinite(value) and value > 0 for value in round_values(point.rounds)):
            return "error", f"a round of the {name} has a time that is not a positive number, so it has no ratio"
        if len(point.rounds) < 2:
            return "inconclusive", f"{len(point.rounds)} round in the {name}; a spread needs two"
    if len(old.rounds) < gate.baseline_rounds:
        return "inconclusive", f"{len(old.rounds)} rounds in the baseline; expected {gate.baseline_rounds} or more"
    return None


def _sound(point: Point) -> bool:
    return point.status == "ok" and comparable.unsound(point) is None


def _screened(old: Point, new: Point, shift: Shift, gate: Gate) -> bool:
    difference = float(np.mean(log_values(new)) - np.mean(log_values(old))) - shift.log_shift
    return not abs(difference) <= log_limit(gate.limits_at(old.case, old.clock).screen_pct)  # a NaN is no quiet point


def _baseline_of_clock(
    pairs: Sequence[tuple[Point, Point]], before: Results, after: Results, gate: Gate, fresh: Results | None
) -> list[Verdict]:
    renewed = {point.key: point for point in fresh.points if _sound(point)} if fresh else {}
    flagged = [
        pair
        for pair in pairs
        if (shift := comparable.point_shift(before, after, *pair)) is not None
        and unusable(*pair, gate) is None
        and _screened(*pair, shift, gate)
    ]

    def correction(old: Point, new: Point) -> float:
        """The log shift to subtract from the rounds that decide."""
        latest = renewed.get(new.key)
        again = comparable.point_shift(before, fresh, old, latest) if fresh and latest else None
        shift = again or comparable.point_shift(before, after, old, new)
        return shift.log_shift if shift else 0.0

    old = [log_values(pair[0]) for pair in flagged]
    new = [log_values(renewed.get(pair[1].key, pair[1])) - correction(*pair) for pair in flagged]
    slow = statistics.compare_unpaired(old, new, alpha=gate.alpha)
    fast = statistics.compare_unpaired(old, new, alpha=gate.alpha, slower=False)
    tests = {pair[0].key: both for pair, both in zip(flagged, zip(slow, fast, strict=True), strict=True)}
    return [
        _baseline_verdict(
            pair[0],
            pair[1],
            gate,
            tests.get(pair[0].key),
            renewed.get(pair[1].key, pair[1]),
            correction(*pair),
        )
        for pair in pairs
    ]


def _baseline_verdict(
    old: Point, new: Point, gate: Gate, tests: tuple[Tested, Tested] | None, latest: Point, shift: float
) -> Verdict:
    """`latest` is the point with the rounds that decide: fresh ones, where there are any."""
    base = _plain(old, "pass", "")
    if unfit := unusable(old, new, gate):
        return _but(base, *unfit)
    new = latest
    mean, low, high, _ = statistics.welch(log_values(old), log_values(new) - shift)
    floor_pct = gate.limits_at(old.case, old.clock).unconfirmed_floor_pct
    base = msgspec.structs.replace(
        base,
        before_us=exp(float(np.mean(log_values(old)))),
        after_us=exp(float(np.mean(log_values(new)))),
        rounds=len(log_values(new)),
        floor=1 + floor_pct / 100,
        ratio=exp(mean),
        low=exp(low) if np.isfinite(low) else None,
        high=exp(high) if np.isfinite(high) else None,
    )
    if tests is None:
        return _but(base, "pass", "no change seen")
    decided = _decide(base, tests, floor_pct)
    if decided.status not in ("slow", "fast"):
        return decided
    reason = f"unconfirmed: {decided.reason}; only an interleaved run of both commits can confirm it"
    return msgspec.structs.replace(decided, reason=reason, confirmed=False)


def log_values(point: Point) -> statistics.Array:
    """Independent log round values: one for each process if there are three or more, otherwise one for each round."""
    processes = sorted({item.process for item in point.rounds})
    if len(processes) < 3:
        return np.log(round_values(point.rounds))
    values = [round_values([item for item in point.rounds if item.process == process]) for process in processes]
    return np.array([float(np.mean(np.log(of_process))) for of_process in values])


def _plain(point: Point, status: VerdictStatus, reason: str) -> Verdict:
    return Verdict(point.case, point.contender, point.clock, status, reason)


def selection_options(results: Results) -> list[str]:
    """Options that plan the points of this file again."""
    chosen = results.run.selection
    return ["-p", chosen.profile, *(part for axis in chosen.axes for part in ("-a", axis))]


def merge_pairs(report: Report, pairs: Report) -> None:
    """Replace verdicts against the stored baseline by those of an interleaved run."""
    confirmed = {(item.case, item.contender, item.clock): item for item in pairs.verdicts}
    report.verdicts = [confirmed.get((item.case, item.contender, item.clock), item) for item in report.verdicts]
    report.refusals += pairs.refusals
    report.notes.append(f"{len(confirmed)} flagged points were measured again, interleaved with {pairs.before.label}")
    report.duration_s += pairs.duration_s
