"""Which points the user selected, from a profile or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from bench.execute.interleaved import Machine
from bench.execute.tasks import HERE, Around
from bench.judge import keeping, times
from bench.judge.times import TIMED, Wanted
from bench.model import choice
from bench.model import config as configuration
from bench.model.case import Case, ClockName
from bench.model.config import Config, ConfigError, Plan, PlannedPoint
from bench.model.records import Point, Results, Selection
from bench.model.rules import Rules
from bench.model.verdict import GateError

GATED: tuple[ClockName, ...] = (*TIMED, "work")
DEFAULT_PROFILE = "quick"


def planned(config: Config, selection: Selection, clocks: Sequence[ClockName] = ()) -> Plan:
    """The plan of a selection, with its rounds and processes. `clocks` overrides its clocks. Raises ConfigError."""
    plan = configuration.make_plan(
        config,
        selection.profile,
        overrides=configuration.parse_axis_overrides(selection.axes),
        clocks=clocks or list(selection.clocks),  # type: ignore[arg-type]
        contenders=selection.contenders,
        cases=selection.cases,
    )
    if all(point.clock == "work" for point in plan.points):
        return replicated(plan, 1, 1)  # counts are exact
    return replicated(plan, selection.rounds, selection.processes)


def replicated(plan: Plan, rounds: int | None, processes: int | None) -> Plan:
    """The plan with other numbers of rounds and processes; None keeps the configured number."""
    measure = msgspec.structs.replace(
        plan.measure,
        rounds=rounds or plan.measure.rounds,
        processes=processes or plan.measure.processes,
    )
    return msgspec.structs.replace(plan, measure=measure)


def of_files(points: Sequence[Point], clocks: Sequence[str], contenders: Sequence[str], cases: Sequence[str]) -> Wanted:
    """A predicate for the selected points of some files. Raises ConfigError for a case that no point has."""
    in_cases = choice.case_filter([point.case for point in points], cases)
    return times.wanted(clocks, contenders or ["*"], in_cases)


def judging(config: Config, subjects: Sequence[str]) -> Config:
    """The configuration, changed to judge and follow these contenders instead of its own."""
    if not subjects:
        return config
    named = tuple(subjects)
    return msgspec.structs.replace(
        config,
        gate=msgspec.structs.replace(config.gate, contenders=named),
        history=msgspec.structs.replace(config.history, contenders=named),
    )


def confirming(config: Config, processes: int | None) -> Config:
    """The configuration with `processes` fresh processes for a confirming pair; unchanged if None."""
    if processes is None:
        return config
    return msgspec.structs.replace(config, gate=msgspec.structs.replace(config.gate, confirm_processes=processes))


@dataclass(kw_only=True)
class Choice:
    """The options that were given, and the configuration for the rest."""

    config: Config
    machine: Machine
    profile: str | None = None
    axes: list[str] = field(default_factory=list)
    clocks: list[str] = field(default_factory=list)
    contenders: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    record: Path | None = None
    counts_only: bool = False
    seed: int | None = None
    allow_changed_rules: bool = False
    subjects: list[str] = field(default_factory=list)  # judged whatever bench.toml says, then or now
    partial: bool = False  # a baseline may lack points
    around: Around = HERE

    @property
    def rules(self) -> Rules:
        return self.config.gate.rules

    @property
    def gated_clocks(self) -> list[ClockName]:
        chosen = [clock for clock in TIMED if clock in self.clocks]
        return chosen or list(self.config.gate.clocks)

    @property
    def patterns(self) -> Sequence[str]:
        return self.subjects or self.contenders or self.config.gate.contenders

    def under(self, config: Config) -> Choice:
        """The same choice with another configuration."""
        return replace(self, config=config)

    def plan(self, profile: str, clocks: Sequence[ClockName]) -> Plan:
        """The points to measure: those of the profile whose contender is judged."""
        plan = self._plan(profile, clocks)
        chosen = times.wanted(clocks, self.patterns)
        points = tuple(point for point in plan.points if chosen(point))
        if not points:
            raise ConfigError(f"profile {plan.profile}: none of its contenders is {' or '.join(self.patterns)}")
        return msgspec.structs.replace(plan, points=points)

    def _plan(self, profile: str, clocks: Sequence[ClockName]) -> Plan:
        return planned(self.config, self.selection(profile), clocks)

    def selection(self, profile: str) -> Selection:
        """What was stated, as results record it; `profile` where none was."""
        return Selection(self.profile or profile, self.axes, self.clocks, self.contenders, self.cases)

    def of_baseline(self, before: Results, profile: str, *, work: bool) -> tuple[Wanted, Wanted]:
        """Which points are judged: by the present rules, and by those that the baseline was made under.

        What was stated is the same for both: a profile's points, contenders, cases and clocks. Raises ConfigError or
        GateError if the baseline has none of these.
        """
        stated = [clock for clock in TIMED if clock in self.clocks]
        chosen = self._stated(before, profile, ["work"] if work else list(TIMED))

        def wanted(rules: Rules) -> Wanted:
            clocks: Sequence[str] = ["work"] if work else stated or rules.clocks
            judged = times.wanted(clocks, self.subjects or self.contenders or rules.contenders)
            return lambda point: judged(point) and chosen(point)

        return wanted(self.rules), wanted(keeping.rules_of(before))

    def _stated(self, before: Results, profile: str, clocks: list[ClockName]) -> Wanted:
        points = [point for point in before.points if point.clock in clocks]
        if not points:
            return lambda point: True
        stated = [*self.subjects, *self.contenders]
        names = choice.select_contenders(list(dict.fromkeys(p.contender for p in points)), stated)
        in_cases = choice.case_filter([point.case for point in points], self.cases)
        of_profile: set[tuple[Case, str]] | None = None
        if self.profile or self.axes:
            of_profile = {(point.case, point.contender) for point in self._plan(profile, clocks).points}

        def chosen(point: Point | PlannedPoint) -> bool:
            return in_cases(point.case) and (of_profile is None or (point.case, point.contender) in of_profile)

        if not any(point.contender in names and chosen(point) for point in points):
            raise GateError(f"the baseline has no point of profile {self.profile or profile} with this choice")
        return chosen

    def options(self, profile: str) -> list[str]:
        return ["-p", self.profile or profile, *(part for axis in self.axes for part in ("-a", axis))]
