"""The rules of a verdict: what it used of [gate] in bench.toml, as reports and baselines record it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from bench.model.case import Case, ClockName
from bench.model.case_terms import fits


class ClockRules(msgspec.Struct, frozen=True):
    """Effect limits of one clock, in percent of the time of a call. See config.Limits."""

    screen_pct: float
    floor_pct: float
    unconfirmed_floor_pct: float


class CaseRules(msgspec.Struct, frozen=True, kw_only=True):
    """Other effect limits for some cases. See config.CaseLimits."""

    case: str
    clock: ClockName
    screen_pct: float | None = None
    floor_pct: float | None = None
    unconfirmed_floor_pct: float | None = None


class Entry(Protocol):
    """An entry that selects cases and a clock, and sets some of their limits."""

    @property
    def case(self) -> str: ...

    @property
    def clock(self) -> str: ...


Limits = TypeVar("Limits", bound=msgspec.Struct)


def limits_of(limits: Limits, entries: Sequence[Entry], case: Case, clock: ClockName) -> Limits:
    """The clock's limits, replaced where the first entry that fits the point says otherwise."""
    entry = next((one for one in entries if one.clock == clock and fits(case, one.case)), None)
    if entry is None:
        return limits
    given = {name: getattr(entry, name) for name in limits.__struct_fields__}
    return msgspec.structs.replace(limits, **{name: value for name, value in given.items() if value is not None})


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What is judged (contenders, clocks), how much is measured for it, and what passes. Names as in bench.toml."""

    contenders: tuple[str, ...]
    clocks: tuple[str, ...]
    screen_processes: int
    screen_layouts: int
    confirm_processes: int
    confirm_layouts: int
    wave: int
    clear_confidence: float
    visit_blocks: int
    alpha: float
    anchor_limit_pct: float
    baseline_processes: int
    baseline_rounds: int
    graph: ClockRules
    eager: ClockRules
    work_tolerance_pct: dict[str, float]
    cases: tuple[CaseRules, ...] = ()

    def limits_at(self, case: Case, clock: ClockName) -> ClockRules:
        """The limits of a timed point."""
        return limits_of(self.eager if clock == "eager" else self.graph, self.cases, case, clock)


# The rules of every file that names none: those of bench.toml while files did not record them.
UNRECORDED = Rules(
    contenders=("csgmv_embed*",),
    clocks=("graph",),
    screen_processes=3,
    screen_layouts=1,
    confirm_processes=16,
    confirm_layouts=3,
    wave=4,
    clear_confidence=0.85,
    visit_blocks=2,
    alpha=0.005,
    anchor_limit_pct=3.0,
    baseline_processes=3,
    baseline_rounds=6,
    graph=ClockRules(2.0, 2.5, 5.0),
    eager=ClockRules(8.0, 10.0, 15.0),
    work_tolerance_pct={},
)

# Which way a rule is looser: lets pass, or leaves unconfirmed, what the other would not.
MORE_IS_LOOSER = ("anchor_limit_pct",)
LESS_IS_LOOSER = (
    "screen_processes",  # noisier screens and confirmations see less
    "screen_layouts",
    "confirm_processes",
    "confirm_layouts",
    "visit_blocks",
    "wave",  # more looks, each of which may clear a point
    "clear_confidence",
    "alpha",  # a regression must be more certain
    "baseline_processes",
    "baseline_rounds",
)
ROUNDING = 1e-5  # files keep 6 digits


def _is_looser(value: float, before: float, *, more_is_looser: bool) -> bool:
    step = value - before if more_is_looser else before - value
    return step > ROUNDING * abs(before)


def looser_at(now: Rules, then: Rules, case: Case, clock: ClockName) -> list[str]:
    """Each limit by which `now` is looser than `then` at a point, if one of the two has limits for cases."""
    if not (now.cases or then.cases) or clock not in ("graph", "eager"):
        return []
    mine, theirs = now.limits_at(case, clock), then.limits_at(case, clock)
    pairs = [(name, getattr(mine, name), getattr(theirs, name)) for name in ClockRules.__struct_fields__]
    return [
        f"{clock}.{name} is {value:g}, it was {before:g}"
        for name, value, before in pairs
        if _is_looser(value, before, more_is_looser=True)
    ]


def looser(now: Rules, then: Rules, clocks: Sequence[str]) -> list[str]:
    """Each rule by which `now` is looser than `then`, of those that a verdict on these clocks uses.

    Contenders and clocks are not compared here: what they leave out shows in the points (see bench.judge.keeping).
    """
    found: list[str] = []

    def compare(name: str, value: float, before: float, *, more_is_looser: bool) -> None:
        if _is_looser(value, before, more_is_looser=more_is_looser):
            found.append(f"{name} is {value:g}, it was {before:g}")

    if "work" in clocks:
        mine, theirs = now.work_tolerance_pct, then.work_tolerance_pct
        for figure in sorted({*mine, *theirs}):
            name = f"work_tolerance_pct.{figure}"
            compare(name, mine.get(figure, 0.0), theirs.get(figure, 0.0), more_is_looser=True)
    timed = [clock for clock in ("graph", "eager") if clock in clocks]
    for names, more in ((MORE_IS_LOOSER, True), (LESS_IS_LOOSER, False)):
        for name in names if timed else ():
            compare(name, getattr(now, name), getattr(then, name), more_is_looser=more)
    for clock in timed:
        for name in ClockRules.__struct_fields__:
            values = (getattr(getattr(rules, clock), name) for rules in (now, then))
            compare(f"{clock}.{name}", *values, more_is_looser=True)
    return found
