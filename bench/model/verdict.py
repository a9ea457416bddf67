"""Verdicts and the report of a gate run: what was decided, why, and the exit status. Formats nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from math import isfinite
from pathlib import Path
from typing import Literal

import msgspec

from bench.model import store
from bench.model.case import Case, ClockName
from bench.model.faults import case_faults
from bench.model.fields import Count, Duration, Positive, Ratio, Sha, Share
from bench.model.records import ResultsError, Scalar
from bench.model.rules import Rules

VerdictStatus = Literal["pass", "slow", "fast", "inconclusive", "skipped", "error"]
Use = Literal["baseline", "against", "self-check", "work", "against-sglang"]
REPORT_NAME = "csgmv-bench-gate"
# 1.1.0: rules, changed_rules, rules_allowed; 1.2.0: the use against-sglang; 1.3.0: rules have limits of cases
REPORT_VERSION = "1.3.0"


class Exit(IntEnum):
    """Exit statuses of the gate."""

    PASS = 0
    REGRESSION = 1
    USAGE = 2
    CANNOT_JUDGE = 3


class Change(msgspec.Struct, frozen=True):
    """A counted figure that differs. Of widths and resident warps less is worse; of everything else more is worse."""

    figure: str
    before: Count
    after: Count
    worse: bool


class Verdict(msgspec.Struct, frozen=True):
    """The verdict on one point.

    Ratios are B over A: 1.05 is 5 % slower. The interval is two-sided, 95 %. `confirmed`: decided on fresh rounds of an
    interleaved pair, or on exact counts. `detectable`: the smallest slowdown found with the configured power.
    """

    case: Case
    contender: str
    clock: ClockName
    status: VerdictStatus
    reason: str
    confirmed: bool = False
    before_us: Positive | None = None
    after_us: Positive | None = None
    ratio: Ratio | None = None
    low: Ratio | None = None
    high: Ratio | None = None
    p: Share | None = None
    rounds: Count = 0
    floor: Ratio | None = None
    detectable: Ratio | None = None
    changes: list[Change] = []
    extra_share: Duration = 0.0  # only in the gate's own test: extra work planted in B

    @property
    def blocks(self) -> bool:
        """Whether this point alone keeps the gate from passing. A ratio that is not finite always does."""
        finite = self.ratio is None or (isfinite(self.ratio) and self.ratio > 0)
        return not finite or self.status in ("slow", "inconclusive", "error")


class Subject(msgspec.Struct, frozen=True):
    """One side of the comparison."""

    label: str
    sha: Sha | None
    dirty: bool | None
    kernel_source_sha256: str


class Report(msgspec.Struct):
    """The result of a gate run. `refusals` are reasons why nothing in it can be trusted.

    `rules` are the rules that it judged by. `changed_rules` says how they are looser than the rules of what it was
    compared with, which `rules_allowed` accepts.
    """

    use: Use
    before: Subject
    after: Subject
    identity: dict[str, Scalar]
    verdicts: list[Verdict]
    refusals: list[str] = []
    notes: list[str] = []
    selection: list[str] = []  # options that choose the points again, for the reproducing command
    started_utc: str = ""
    duration_s: Duration = 0.0
    rules: Rules | None = None
    changed_rules: list[str] = []
    rules_allowed: bool = False
    name: str = REPORT_NAME
    version: str = REPORT_VERSION

    @property
    def exit_code(self) -> Exit:
        """1 if a regression is certain, else 3 if anything could not be judged, else 0. Without any verdict it is 3.

        A report with refusals, for example because of looser rules that nobody allowed, is 3 whatever was found.
        """
        if self.refusals:
            return Exit.CANNOT_JUDGE
        if any(verdict.status == "slow" and verdict.confirmed for verdict in self.verdicts):
            return Exit.REGRESSION
        if any(verdict.blocks for verdict in self.verdicts):
            return Exit.CANNOT_JUDGE
        judged = any(verdict.status in ("pass", "fast") for verdict in self.verdicts)
        return Exit.PASS if judged else Exit.CANNOT_JUDGE

    @property
    def counted(self) -> bool:
        """Whether it judged counts, of a baseline or of two versions of SGLang, instead of times."""
        return self.use == "work" or (bool(self.verdicts) and all(item.clock == "work" for item in self.verdicts))

    def counts(self) -> dict[str, int]:
        """Verdicts by status."""
        return dict(Counter(verdict.status for verdict in self.verdicts))


def read(path: Path) -> Report:
    """Read a report that `bench gate -f json=FILE` wrote. Raises ResultsError for any other file."""
    report = store.decode(path, store.read_bytes(path), Report, faults)
    if report.version.split(".")[0] != REPORT_VERSION.split(".")[0]:
        raise ResultsError(f"{path}: version is {report.version}; expected {REPORT_VERSION.split('.')[0]}.x.y")
    return report


def faults(report: Report) -> Iterator[str]:
    """Faults of a report."""
    for index, item in enumerate(report.verdicts):
        yield from case_faults(f"verdicts[{index}] ({item.contender}, {item.clock})", item.case)


class GateError(Exception):
    """The gate was asked for something impossible; exit status 2. The message says what was expected."""


class CannotJudge(Exception):
    """A verdict is not possible; exit status 3. The message says why."""
