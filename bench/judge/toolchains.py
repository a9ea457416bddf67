"""Compares the same commits under two toolchains. Pure.

A toolchain compiles a kernel's source and launches it. A series never crosses a change of toolchain, so a step that
came with a new Triton is not attributed to a commit. Its effect on the figures is shown here, commit by commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from bench.judge.estimate import Estimate
from bench.judge.series import Era, Observation, Series
from bench.model.case import Case
from bench.model.history import Commit
from bench.model.records import ResultsError

TOOLCHAIN = ("triton", "torch", "cuda", "python", "sglang")  # of an environment's identity; by these it is ordered


@dataclass(frozen=True)
class Beside:
    """One figure of one commit, with the older toolchain and with the newer."""

    case: Case
    contender: str
    figure: str
    commit: Commit
    old: Estimate
    new: Estimate

    @property
    def ratio(self) -> float | None:
        """The newer's figure over the older's; None if the older's count is 0."""
        return self.new.value / self.old.value if self.old.value else None


@dataclass(frozen=True)
class Crossing:
    """Two eras that differ only in their toolchain, and what both measured, in the order of the line."""

    before: Era
    after: Era
    rows: tuple[Beside, ...]

    @property
    def differs(self) -> str:
        """How the toolchains differ, in words."""
        old, new = self.before.environment.identity, self.after.environment.identity
        return ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in _other(self.before, self.after))

    @property
    def commits(self) -> list[Commit]:
        return list(dict.fromkeys(row.commit for row in self.rows))


def crossings(eras: Sequence[Era]) -> list[Crossing]:
    """Each pair of toolchains that measured a common commit, by the same code on the same machine and layouts.

    Raises ResultsError if there are none.
    """
    found = []
    for pair in combinations(eras, 2):
        before, after = sorted(pair, key=_age)
        if _other(before, after) and _alike(before, after) and (rows := tuple(_rows(before, after))):
            found.append(Crossing(before, after, rows))
    if not found:
        raise ResultsError(
            "--toolchains: no commit was measured with two toolchains by the same code on the same machine; expected "
            "a `history run` of the same commits in an environment with another Triton"
        )
    return found


def _other(before: Era, after: Era) -> list[str]:
    old, new = before.environment.identity, after.environment.identity
    return [name for name in TOOLCHAIN if old.get(name) != new.get(name)]


def _alike(before: Era, after: Era) -> bool:
    """Whether all but the toolchain is the same."""

    def rest(era: Era) -> dict[str, object]:
        return {name: value for name, value in era.environment.identity.items() if name not in TOOLCHAIN}

    old, new = before.instrument, after.instrument
    return (old.version, old.seed, rest(before)) == (new.version, new.seed, rest(after))


def _age(era: Era) -> list[list[int]]:
    versions = (str(era.environment.identity.get(name) or "") for name in TOOLCHAIN)
    return [[int(part) for part in re.findall(r"\d+", version)] for version in versions]


def _rows(before: Era, after: Era) -> Iterator[Beside]:
    newer = {_name(series): _by_commit(series) for series in after.series}
    for series in before.series:
        others = newer.get(_name(series), {})
        for item in series.measured:
            other = others.get(item.commit.sha)
            if item.value is not None and other is not None and other.value is not None:
                yield Beside(series.case, series.contender, series.figure, item.commit, item.value, other.value)


def _name(series: Series) -> tuple[Case, str, str]:
    return series.case, series.contender, series.figure


def _by_commit(series: Series) -> dict[str, Observation]:
    return {item.commit.sha: item for item in series.measured}
