"""Entries to series: one point's time from commit to commit, taken by one instrument on one machine. Pure.

A series never crosses a change of the instrument or of the environment. Such a change begins a new series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import mean, median
from typing import Literal

from bench.judge.estimate import Estimate, estimate, round_values
from bench.judge.work import figures
from bench.model.case import Case, ClockName
from bench.model.history import Commit, Entry
from bench.model.records import Environment, Point, Round

TIME = "time"  # the figure of the timed clocks, us a call; the work clock has the gate's figures
Key = tuple[Case, str, ClockName]
CauseKind = Literal["code", "measuring method", "toolchain", "hardware"]
# What of an environment is the machine; the rest are versions of what compiles and runs.
HARDWARE = ("gpu", "capability", "sm_count", "l2_bytes", "mem_bytes", "mig")


@dataclass(frozen=True)
class Cause:
    """Why a level may move: the kind of cause, and what changed."""

    kind: CauseKind
    what: str


@dataclass(frozen=True)
class Conditions:
    """What measured, and where. Another value begins another series."""

    version: str
    env_key: str
    seed: int


@dataclass(frozen=True)
class Observation:
    """One commit of a series: its figure, or the status and reason why it has none."""

    commit: Commit
    value: Estimate | None
    status: str
    reason: str | None = None
    counted_at: str | None = None


@dataclass(frozen=True)
class Series:
    """Observations in the order of the line. `anchored`: drift was removed with the anchor commit."""

    case: Case
    contender: str
    clock: ClockName
    figure: str
    instrument: Conditions
    observations: tuple[Observation, ...]
    anchored: bool = False

    @property
    def measured(self) -> list[Observation]:
        return [item for item in self.observations if item.value is not None]


@dataclass(frozen=True)
class Era:
    """All series of one instrument. `causes`: its differences from the era before; empty for the first."""

    instrument: Conditions
    environment: Environment
    series: tuple[Series, ...]
    references: tuple[Point, ...]  # points of contenders that were measured at the anchor alone
    entries: tuple[Entry, ...]
    causes: tuple[Cause, ...] = ()

    @property
    def begins(self) -> str | None:
        """What changed from the era before, in words."""
        return ", ".join(f"{cause.kind}: {cause.what}" for cause in self.causes) or None


@dataclass
class _Group:
    entries: list[Entry] = field(default_factory=list)


def order_of(entries: Iterable[Entry], line: Sequence[Commit] | None) -> list[Commit]:
    """The commits of the entries, in the order of `line`. Commits that are not in `line` are left out.

    Without a line, they are ordered by time and depth.
    """
    known = {entry.commit.sha: entry.commit for entry in entries}
    if line is not None:
        return [known[commit.sha] for commit in line if commit.sha in known]
    return sorted(known.values(), key=lambda commit: (commit.time or "", commit.depth, commit.sha))


def eras(
    entries: Sequence[Entry], commits: Sequence[Commit], wanted: Callable[[Point], bool], clocks: Sequence[ClockName]
) -> list[Era]:
    """The series of each instrument, in the order in which the instruments first measured."""
    groups: dict[Conditions, list[Entry]] = {}
    for entry in sorted(entries, key=lambda item: item.results.run.started_utc):
        if entry.results.env is not None and any(point.clock in clocks for point in entry.results.points):
            code, run = entry.results.code, entry.results.run
            key = Conditions(code.instrument, entry.results.env.env_key, run.seed)
            groups.setdefault(key, []).append(entry)
    found: list[Era] = []
    for instrument, group in groups.items():
        made = _era(instrument, group, commits, wanted, clocks, found[-1] if found else None)
        if made.series:
            found.append(made)
    return found


def _era(
    instrument: Conditions,
    entries: Sequence[Entry],
    commits: Sequence[Commit],
    wanted: Callable[[Point], bool],
    clocks: Sequence[ClockName],
    before: Era | None,
) -> Era:
    env = entries[0].results.env
    assert env is not None
    chosen = {point.key for item in entries for point in item.results.points if point.clock in clocks and wanted(point)}
    followed = [key for key in chosen if _followed(key, entries)]
    drift = Drift(entries)
    series = [one for key in sorted(followed) for one in _series(key, instrument, entries, commits, drift)]
    references = [point for item in entries for point in item.results.points if point.clock in clocks]
    return Era(
        instrument,
        env,
        tuple(series),
        tuple(point for point in references if point.key not in set(followed) and point.status == "ok"),
        tuple(entries),
        _causes(before, instrument, env) if before else (),
    )


def _followed(key: Key, entries: Sequence[Entry]) -> bool:
    """Whether a point was meant to be measured at every commit: one that only the anchor has is a reference."""
    having = {item.commit.sha for item in entries if any(point.key == key for point in item.results.points)}
    anchors = {item.anchor for item in entries if item.anchor}
    return bool(having - anchors) or not anchors or having == {item.commit.sha for item in entries}


def _causes(before: Era, instrument: Conditions, env: Environment) -> tuple[Cause, ...]:
    """What differs from the era before, by kind: a level that moves there has one of these causes."""
    old, new = before.instrument, instrument
    method = [f"measuring code {old.version[:7]} -> {new.version[:7]}"] if old.version != new.version else []
    method += [f"seed {old.seed} -> {new.seed}"] if old.seed != new.seed else []
    found: dict[CauseKind, list[str]] = {"measuring method": method, "toolchain": [], "hardware": []}
    then, now = before.environment.identity, env.identity
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            kind: CauseKind = "hardware" if name in HARDWARE else "toolchain"
            found[kind].append(f"{name} {then.get(name)} -> {now.get(name)}")
    return tuple(Cause(kind, ", ".join(parts)) for kind, parts in found.items() if parts)


def _series(
    key: Key, instrument: Conditions, entries: Sequence[Entry], commits: Sequence[Commit], drift: Drift
) -> list[Series]:
    case, contender, clock = key
    by_commit: dict[str, list[tuple[Entry, Point]]] = {}
    for entry in entries:
        for point in entry.results.points:
            if point.key == key:
                by_commit.setdefault(entry.commit.sha, []).append((entry, point))
    names = _figures(by_commit) if clock == "work" else [TIME]
    anchored = all(entry.anchor is not None for found in by_commit.values() for entry, _ in found)
    made = []
    for name in names:
        seen = [
            _observation(commit, by_commit[commit.sha], name, drift) for commit in commits if commit.sha in by_commit
        ]
        if seen:
            made.append(Series(case, contender, clock, name, instrument, tuple(seen), anchored and clock != "work"))
    return made


def _figures(by_commit: dict[str, list[tuple[Entry, Point]]]) -> list[str]:
    """The figures that every counted commit has: without a compiler there are counts alone."""
    counted = [point.work for found in by_commit.values() for _, point in found if point.work is not None]
    if not counted:
        return ["load_sectors"]  # a row for the reasons
    sets = [figures(work, not work.compiled) for work in counted]
    return [name for name in sets[0] if all(name in other for other in sets)]


def _observation(commit: Commit, found: Sequence[tuple[Entry, Point]], figure: str, drift: Drift) -> Observation:
    failed = next((point for _, point in found if point.status != "ok"), None)
    if failed is not None:
        return Observation(commit, None, failed.status, failed.reason)
    if figure != TIME:
        entry, point = found[-1]
        assert point.work is not None
        count = float(figures(point.work, not point.work.compiled)[figure])
        return Observation(commit, Estimate(count, None, None, 1), "ok", counted_at=entry.counted_at)
    values = [exp(value) for entry, point in found for value in drift.corrected(entry, point)]
    taken = estimate(values)
    return Observation(commit, taken, "ok" if taken else "error", None if taken else "no round was measured")


class Drift:
    """The machine's drift during a session, from the anchor commit.

    Between sessions, each point is corrected by its own mean at the anchor. Within a session, all points of a clock are
    corrected by the anchor's median over points, interpolated between its processes: that is the machine's drift, with
    little noise. The anchor's own points are corrected by the median of the other points; otherwise their spread would
    be removed with the drift.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._anchors = {item.session: item for item in entries if item.anchor == item.commit.sha}
        self._reference: dict[tuple[str, Key], float] = {}  # (anchor, point) -> mean of its log times in all sessions
        self._means: dict[tuple[str, Key], float] = {}  # (session, point) -> the same in one session
        # (session, clock) -> process -> point -> shift of the anchor's log time from its mean
        self._moves: dict[tuple[str, ClockName], dict[int, dict[Key, float]]] = {}
        for session, entry in self._anchors.items():
            self._learn(session, entry)
        for (session, key), _ in self._means.items():
            anchor = self._anchors[session].commit.sha
            of_anchor = [
                value
                for (other, point), value in self._means.items()
                if point == key and self._anchors[other].commit.sha == anchor
            ]
            self._reference[anchor, key] = mean(of_anchor)

    def corrected(self, entry: Entry, point: Point) -> list[float]:
        """Log time of each round in us, as it would have been on one machine without drift."""
        between = 0.0
        if entry.session in self._anchors and (entry.session, point.key) in self._means:
            anchor = self._anchors[entry.session].commit.sha
            between = self._means[entry.session, point.key] - self._reference[anchor, point.key]
        without = point.key if self._anchors.get(entry.session) is entry else None
        return [
            log(value) - between - self._within(entry.session, point.clock, item.process, without)
            for item, value in zip(_sampled(point.rounds), round_values(point.rounds), strict=True)
        ]

    def _learn(self, session: str, entry: Entry) -> None:
        for point in entry.results.points:
            if point.status != "ok" or not point.rounds:
                continue
            by_process = _by_process(point)
            self._means[session, point.key] = middle = mean(by_process.values())
            if len(by_process) > 1:
                moves = self._moves.setdefault((session, point.clock), {})
                for process, value in by_process.items():
                    moves.setdefault(process, {})[point.key] = value - middle

    def _within(self, session: str, clock: ClockName, process: int, without: Key | None) -> float:
        shifts = {
            other: median(values)
            for other, moves in self._moves.get((session, clock), {}).items()
            if (values := [value for key, value in moves.items() if key != without])
        }
        if not shifts:
            return 0.0
        before = max((other for other in shifts if other <= process), default=min(shifts))
        after = min((other for other in shifts if other >= process), default=max(shifts))
        share = (process - before) / (after - before) if after > before else 0.0
        return shifts[before] + share * (shifts[after] - shifts[before])


def _sampled(rounds: Sequence[Round]) -> list[Round]:
    return [item for item in rounds if item.blocks_us]


def _by_process(point: Point) -> dict[int, float]:
    """Mean log time of a point's rounds, by process."""
    found: dict[int, list[float]] = {}
    for item, value in zip(_sampled(point.rounds), round_values(point.rounds), strict=True):
        found.setdefault(item.process, []).append(log(value))
    return {process: mean(values) for process, values in found.items()}
