"""Whether a file of `bench serve` is slower than another: a verdict for each load, mode and figure. Pure.

Two files are two runs, and a machine is not the same twice. So a figure is taken relative to the anchor's in the same
repeat of the same run. The anchor is the mode without LoRA, or else the reference mode, because nothing of this
repository is in it. An observation is the log of that ratio for one process. A mode has so few of them that its spread
is estimated from all modes of the load. The tests are one-sided t tests with Holm's correction over all of them; a
change must also exceed the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log
from statistics import mean
from typing import Any

import msgspec
import numpy as np

from bench.judge import statistics
from bench.judge.answers import NONE
from bench.judge.served_spread import Spread, interval
from bench.judge.serving import ServedFigure
from bench.judge.statistics import EQUAL
from bench.model.config import Gate
from bench.model.serving import Load
from bench.model.verdict import Exit, VerdictStatus

# What a server feels, and how it gets worse: a time that grows, a rate that falls. The others are in `bench compare`.
GATED = {"step": 1, "prefill": 1, "first token": 1, "next token": 1, "output rate": -1}
STEADY = ("step", "prefill")  # of the anchor: if one of these has moved, so has the machine
Logs = dict[int, float]  # by repeat
Group = tuple[Load, str]  # a load and a figure


class Rules(msgspec.Struct, frozen=True):
    """What decides: family-wise error rate, the least change that counts, and how far the anchor may move.

    target_pct   a figure whose interval is wider than this on one side is not judged, because a change of that size
    could not be seen
    """

    alpha: float
    floor_pct: float
    target_pct: float
    anchor_limit_pct: float


def rules_of(gate: Gate) -> Rules:
    """The rules of bench.toml for timed points, which also apply to engines."""
    return Rules(gate.alpha, gate.graph.floor_pct, gate.target_pct, gate.anchor_limit_pct)


class ServedVerdict(msgspec.Struct, frozen=True):
    """The verdict on a figure.

    Ratios are after over before, relative to the anchor; above 1 is worse. 95 % intervals.
    """

    load: Load
    mode: str
    figure: str
    status: VerdictStatus
    reason: str
    before: float | None = None
    after: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    processes: int = 0

    def as_fields(self) -> dict[str, Any]:
        """The fields for JSON or CSV; None where there is no value."""
        return msgspec.structs.asdict(self) | {"load": self.load.label}


class ServedReport(msgspec.Struct):
    """All verdicts. `refusals`: reasons why none of them can be trusted."""

    rules: Rules
    anchor: str
    verdicts: list[ServedVerdict]
    refusals: list[str] = []

    @property
    def exit_code(self) -> Exit:
        """1 if something is slower, else 3 if something could not be judged, else 0."""
        found = {item.status for item in self.verdicts}
        if self.refusals:
            return Exit.CANNOT_JUDGE
        if "slow" in found:
            return Exit.REGRESSION
        judged = bool(found & {"pass", "fast"}) and not found & {"inconclusive", "error"}
        return Exit.PASS if judged else Exit.CANNOT_JUDGE


@dataclass
class _Row:
    """A figure that both files have."""

    group: Group
    mode: str
    before: ServedFigure
    after: ServedFigure
    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)

    @property
    def change(self) -> float:
        return mean(self.new) - mean(self.old)


def judge(
    before: Sequence[ServedFigure],
    after: Sequence[ServedFigure],
    rules: Rules,
    reference: str,
    refusals: Sequence[str] = (),
    wanted: Callable[[Load, str], bool] = lambda load, mode: True,
) -> ServedReport:
    """A verdict for every wanted figure of the first file, in its order."""
    old, new = _by_key(before), _by_key(after)
    modes = {*_with_value(old)} & {*_with_value(new)}
    anchor = next((mode for mode in (NONE, reference) if mode in modes), "")
    report = ServedReport(rules, anchor, [], [*refusals])
    if not anchor:
        report.refusals.append(
            f"both files need the mode {NONE} or {reference}, because figures are judged relative to it"
        )
        return report
    report.refusals += _moved(old, new, anchor, rules)
    rows = []
    for (group, mode), figure in old.items():
        if mode == anchor or figure.value is None:
            continue
        row, reason = _row(group, mode, old, new, anchor)
        if row is not None:
            rows.append(row)
        elif wanted(group[0], mode):
            report.verdicts.append(_without(group, mode, figure, reason))
    known = _spreads(rows)  # of all modes, whatever is wanted
    report.verdicts = _judged([row for row in rows if wanted(row.group[0], row.mode)], known, rules) + report.verdicts
    return report


def _spreads(rows: Sequence[_Row]) -> dict[Group, Spread]:
    """Of each load and figure, over every mode and file of it."""
    found: dict[Group, Spread] = {}
    for row in rows:
        for values in (row.old, row.new):
            found.setdefault(row.group, Spread()).add(values)
    return found


def _by_key(figures: Sequence[ServedFigure]) -> dict[tuple[Group, str], ServedFigure]:
    return {((item.case.load, item.name), item.mode): item for item in figures if item.name in GATED}


def _with_value(figures: Mapping[tuple[Group, str], ServedFigure]) -> Iterator[str]:
    return (mode for (_, mode), figure in figures.items() if figure.value is not None)


def _moved(
    old: Mapping[tuple[Group, str], ServedFigure],
    new: Mapping[tuple[Group, str], ServedFigure],
    anchor: str,
    rules: Rules,
) -> list[str]:
    found = []
    for (group, mode), figure in old.items():
        mine = new.get((group, mode))
        if mode != anchor or group[1] not in STEADY or mine is None or not mine.value or not figure.value:
            continue
        if abs(log(mine.value / figure.value)) > statistics.log_limit(rules.anchor_limit_pct):
            moved = 100 * (mine.value / figure.value - 1)
            found.append(f"the machine is not what it was: {anchor}, {group[0].label}: {group[1]} {moved:+.1f} %")
    return found


def _row(
    group: Group,
    mode: str,
    old: Mapping[tuple[Group, str], ServedFigure],
    new: Mapping[tuple[Group, str], ServedFigure],
    anchor: str,
) -> tuple[_Row | None, str]:
    """Both sides of a figure relative to the anchor; else why not."""
    mine = new.get((group, mode))
    if mine is None:
        return None, "the baseline has it, the record does not"
    if mine.value is None:
        return None, f"{mine.status}: {mine.reason}"
    row = _Row(group, mode, old[group, mode], mine)
    for values, side in ((row.old, old), (row.new, new)):
        base = side.get((group, anchor))
        values += relative(side[group, mode], base) if base is not None else []
    if not row.old or not row.new:
        return None, f"{anchor} has no figure in a repeat of it"
    return row, ""


def relative(figure: ServedFigure, anchor: ServedFigure) -> list[float]:
    """Log of each process's figure over the anchor's in the same repeat; above 0 is worse."""
    if figure.value is None or anchor.value is None:
        return []
    both = sorted(figure.by_repeat.keys() & anchor.by_repeat.keys())
    return [GATED[figure.name] * log(figure.by_repeat[repeat] / anchor.by_repeat[repeat]) for repeat in both]


def _judged(rows: Sequence[_Row], known: Mapping[Group, Spread], rules: Rules) -> list[ServedVerdict]:
    errors = [known[row.group].error(len(row.old), len(row.new)) for row in rows]
    free = [known[row.group].free for row in rows]
    changes = [row.change for row in rows]
    sides = [_tested(changes, errors, free, rules.alpha, sign) for sign in (1, -1)]
    found = []
    for place, row in enumerate(rows):
        slow, fast = (side[place] for side in sides)
        low, high = interval(row.change, errors[place], free[place])
        status, reason = _status(slow, fast, errors[place], high - row.change, rules)
        found.append(
            ServedVerdict(
                row.group[0],
                row.mode,
                row.group[1],
                status,
                reason,
                row.before.value,
                row.after.value,
                exp(row.change),
                exp(low) if low > -inf else None,
                exp(high) if high < inf else None,
                slow.p_holm,
                len(row.new),
            )
        )
    return found


def _status(
    slow: statistics.Tested, fast: statistics.Tested, error: float | None, width: float, rules: Rules
) -> tuple[VerdictStatus, str]:
    """What is decided, and why nothing is."""
    if error is None:
        return "inconclusive", "one process for each mode, so the spread between processes is unknown"
    found = statistics.outcome(slow, fast, rules.floor_pct)
    if found in ("pass", "inconclusive") and width > statistics.log_limit(rules.target_pct):
        wide = 100 * (exp(width) - 1)
        return (
            "skipped",
            f"processes differ too much: the interval is {wide:.0f} % to a side, above {rules.target_pct:g}",
        )
    return found, f"beyond {rules.floor_pct:g} %, and not certain" if found == "inconclusive" else ""


def _tested(
    changes: Sequence[float], errors: Sequence[float | None], free: Sequence[int], alpha: float, sign: int
) -> list[statistics.Tested]:
    """One-sided t tests of all rows, Holm over them."""
    if not changes:
        return []
    from scipy import stats

    p = []
    for change, error, degrees in zip(changes, errors, free, strict=True):
        if error is None:
            p.append(1.0)
        elif error < EQUAL:
            p.append(0.0 if sign * change > EQUAL else 1.0)
        else:
            p.append(float(stats.t.sf(sign * change / error, degrees)))
    return statistics.with_holm(np.array(changes), np.array(p), alpha)


def _without(group: Group, mode: str, figure: ServedFigure, reason: str) -> ServedVerdict:
    return ServedVerdict(group[0], mode, group[1], "error", reason, before=figure.value)
