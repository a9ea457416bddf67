"""A session: measures a profile at each commit, one process each, in an order that separates drift from change.

Yields events, prints nothing, decides nothing. Every pass over the commits is shuffled. The anchor, one fixed commit,
is measured before, between and after them. Every measurement is stored at once.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

import msgspec

from bench.execute import filed
from bench.execute import sweep as loop
from bench.execute.commits import Libraries, Source
from bench.execute.isolate import EarlyWorker, Start, Worker, WorkerDied
from bench.execute.sweep import new_results
from bench.execute.tasks import Around, GpuLost, Measured, WorkerStarted
from bench.execute.trees import Tree
from bench.model import history as records
from bench.model.case import Case
from bench.model.config import Plan, PlannedPoint
from bench.model.environment import collect_code, collect_environment
from bench.model.gpus import Gpu
from bench.model.history import Commit, Entry
from bench.model.records import Code, Environment, Point, Results, ResultsError, Selection
from bench.model.verdict import CannotJudge


class Visiting(msgspec.Struct, frozen=True):
    """The next commit. `place`: its process's number in the session. `last`: the expected number of the last one."""

    commit: Commit
    place: int
    last: int
    anchor: bool


class Stored(msgspec.Struct, frozen=True):
    """A commit's entry is in the store. `taken_over`: counts of another commit with the same library."""

    entry: Entry
    path: Path
    taken_over: bool = False


class NothingLeft(msgspec.Struct, frozen=True):
    """Every commit has what was asked for."""

    commits: int


HistoryEvent = Visiting | Stored | NothingLeft | WorkerStarted | Measured | GpuLost


@dataclass
class Session:
    """What to measure at which commits. `plan` has the contenders that are followed, `references` the others."""

    source: Source
    commits: Sequence[Commit]
    anchor: Commit | None  # None: the work clock, whose counts do not drift
    plan: Plan
    references: tuple[PlannedPoint, ...]
    selection: Selection
    folder: Path
    anchor_every: int
    again: bool = False
    gpus: tuple[Gpu, ...] = ()  # a point is measured on one of them at every commit
    one_at_a_time: bool = False
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1, 1_000_000))
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


def run(session: Session) -> Generator[HistoryEvent, None, None]:
    """Measure what the store lacks. Raises WorkerDied if the anchor's worker cannot start, ResultsError, GateError."""
    with ExitStack() as stack:
        libraries = stack.enter_context(Libraries(session.source))
        ahead = stack.enter_context(_Ahead())
        job = _Job(session, libraries, ahead)
        yield from job.counted() if session.anchor is None else job.timed(session.anchor)


def passes_left(commits: Sequence[Commit], plan: Plan, entries: Sequence[Entry], env: Environment) -> dict[str, int]:
    """Processes that each commit still lacks in this environment. A failed commit is not tried again."""
    version = collect_code().instrument
    left = {}
    for commit in commits:
        alike = [
            entry.results
            for entry in entries
            if entry.commit.sha == commit.sha
            and entry.results.code.instrument == version
            and entry.results.env is not None
            and entry.results.env.env_key == env.env_key
        ]
        have = [_processes(planned, alike, plan.measure.processes) for planned in plan.points]
        left[commit.sha] = plan.measure.processes - min(have)
    return left


def _processes(planned: PlannedPoint, results: Sequence[Results], enough: int) -> int:
    """How many processes have measured a point, `enough` if it is settled."""
    key = (planned.case, planned.contender, planned.clock)
    points = [point for item in results for point in item.points if point.key == key]
    if any(point.status != "ok" or point.work is not None for point in points):
        return enough
    return min(enough, sum(len({item.process for item in point.rounds}) for point in points))


def visits(
    left: dict[str, int], commits: Sequence[Commit], anchor: Commit, every: int, seed: int
) -> list[tuple[Commit, bool]]:
    """The order after the anchor's first process: (commit, whether it is measured as the anchor).

    A pass has each commit that lacks a process, in random order. The anchor follows after every `every` of them and
    ends the pass. An anchor that is itself one of the commits gets at least as many processes as it lacks.
    """
    rng = random.Random(seed)
    order: list[tuple[Commit, bool]] = []
    for turn in range(max(left.values(), default=0)):
        todo = [commit for commit in commits if left[commit.sha] > turn and commit.sha != anchor.sha]
        rng.shuffle(todo)
        for index, commit in enumerate(todo, 1):
            order.append((commit, False))
            if index % every == 0 or index == len(todo):
                order.append((anchor, True))
    lacking = left.get(anchor.sha, 0) - 1 - sum(is_anchor for _, is_anchor in order)
    return order + [(anchor, True)] * lacking


class _Job:
    """One session while it runs: its entries by commit, and the number of the next process."""

    def __init__(self, session: Session, libraries: Libraries, ahead: _Ahead) -> None:
        self._session = session
        self._libraries = libraries
        self._ahead = ahead
        self._entries: dict[str, Entry] = {}
        self._env: Environment | None = None
        self._homes: dict[Case, str] = {}
        self._place = 0

    def timed(self, anchor: Commit) -> Iterator[HistoryEvent]:
        session = self._session
        tree = self._libraries.tree(anchor)  # an anchor that has no library is an error
        first = msgspec.structs.replace(session.plan, points=(*session.plan.points, *session.references))
        yield Visiting(anchor, 0, 0, True)
        entry = self._entry(anchor, tree)
        yield from self._measure(entry, first, tree)
        assert self._env is not None
        left = passes_left(session.commits, session.plan, self._stored(), self._env)
        order = visits(left, session.commits, anchor, session.anchor_every, session.seed)
        if not order and left.get(anchor.sha, 0) <= 0:
            yield NothingLeft(len(session.commits))
            return
        yield self._store(entry)
        for index, (commit, is_anchor) in enumerate(order):
            yield Visiting(commit, self._place, len(order), is_anchor)
            following = order[index + 1][0] if index + 1 < len(order) else None
            yield from self._visit(commit, following)

    def counted(self) -> Iterator[HistoryEvent]:
        """The work clock: commits with equal libraries have equal counts, so they are counted once."""
        session = self._session
        self._env = env = collect_environment("cpu", sglang_varies=session.source.varies_sglang)
        stored = self._stored()

        def lacks(commit: Commit, entries: Sequence[Entry]) -> bool:
            return passes_left([commit], session.plan, entries, env)[commit.sha] > 0

        left = [commit for commit in session.commits if lacks(commit, stored)]
        known = {entry.commit.library: entry for entry in stored if not lacks(entry.commit, [entry])}
        if not left:
            yield NothingLeft(len(session.commits))
        for commit in left:
            if commit.library is not None and commit.library in known:
                yield self._taken_over(commit, known[commit.library])
                continue
            yield Visiting(commit, self._place, len(left) - 1, False)
            yield from self._visit(commit, None)
            known[commit.library] = self._entries[commit.sha]

    def _stored(self) -> list[Entry]:
        return [] if self._session.again else records.read_all(self._session.folder)

    def _taken_over(self, commit: Commit, known: Entry) -> Stored:
        results = msgspec.convert(msgspec.to_builtins(known.results), Results)
        results.code = _code(commit, known.results.code.kernel_source_sha256)
        entry = Entry(commit, self._session.id, results, None, known.counted_at or known.commit.sha)
        return self._store(entry, taken_over=True)

    def _visit(self, commit: Commit, following: Commit | None) -> Iterator[HistoryEvent]:
        """One process of a commit that may fail in any way."""
        try:
            tree = self._libraries.tree(commit)
        except CannotJudge as reason:
            entry = self._entries.setdefault(commit.sha, self._empty(commit, ""))
            self._fail(entry, str(reason))
        else:
            entry = self._entries.setdefault(commit.sha, self._entry(commit, tree))
            if following is not None:
                self._ahead.start(self._libraries, following, self._session)
            try:
                yield from self._measure(entry, self._session.plan, tree)
            except WorkerDied as death:
                if self._session.anchor is not None and commit.sha == self._session.anchor.sha:
                    raise
                words = self._libraries.without_paths(str(death))
                self._fail(entry, f"its library cannot be driven: {words}")
        yield self._store(entry)

    def _measure(self, entry: Entry, plan: Plan, tree: Tree) -> Iterator[HistoryEvent]:
        """One process's points, into the entry."""
        place, self._place = self._place, self._place + 1
        plan = msgspec.structs.replace(plan, worker_env=plan.worker_env | tree.environment())
        tasks = filed.left_of(plan, entry.results, place)
        if not tasks:
            return
        session = self._session
        around = Around({}, session.gpus, self._ahead, session.one_at_a_time, self._homes)
        lost: GpuLost | None = None
        for event in loop.one_process(plan, entry.results, place, tasks, around):
            if isinstance(event, WorkerStarted):
                self._check_library(entry, tree)
            elif isinstance(event, Measured) and event.point.reason:
                event.point.reason = self._libraries.without_paths(event.point.reason)
            elif isinstance(event, GpuLost):
                lost = event
            yield event
        if lost is not None:  # what it measured at other commits cannot go on on another GPU
            reason = self._libraries.without_paths(lost.reason)
            raise ResultsError(f"{lost.gpu} is lost: {reason}; the same command continues with the rest")
        self._homes = filed.homes(entry.results) | self._homes

    def _check_library(self, entry: Entry, tree: Tree) -> None:
        env = entry.results.env
        if not tree.is_in(env):
            name = "SGLang" if tree.sglang else "library"
            package = "sglang" if tree.sglang else "csgmv_embed"
            raise ResultsError(
                f"{entry.commit.short}: the worker imported another {name} than this commit's; expected no "
                f"{package} to come before it on the path"
            )
        self._env = self._env or env

    def _entry(self, commit: Commit, tree: Tree) -> Entry:
        return self._empty(commit, tree.subject.kernel_source_sha256)

    def _empty(self, commit: Commit, source_hash: str) -> Entry:
        session = self._session
        results = new_results(session.plan, session.selection)
        results.run.argv = ["bench", "history", "run"]
        results.code = _code(commit, source_hash)
        anchor = session.anchor.sha if session.anchor else None
        return self._entries.setdefault(commit.sha, Entry(commit, session.id, results, anchor))

    def _fail(self, entry: Entry, reason: str) -> None:
        """Every point that the commit lacks has the reason; the machine is that of the session."""
        entry.results.env = entry.results.env or self._env
        known = {point.key for point in entry.results.points}
        for index, planned in enumerate(self._session.plan.points):
            if (planned.case, planned.contender, planned.clock) not in known:
                entry.results.points.append(
                    Point(planned.case, planned.contender, planned.clock, index, "error", reason)
                )

    def _store(self, entry: Entry, *, taken_over: bool = False) -> Stored:
        begun = datetime.fromisoformat(entry.results.run.started_utc)
        if not taken_over:
            entry.results.run.duration_s = (datetime.now(UTC) - begun).total_seconds()
        return Stored(entry, records.write(self._session.folder, entry), taken_over)


class _Ahead:
    """Makes workers, and starts the next commit's while this one is measured: its imports are most of its start.

    Only the graph clock allows that: what passes on the host is nothing to a captured graph.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[dict[str, str], EarlyWorker]] = []  # one a GPU
        self._lock = Lock()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def __call__(self, start: Start, environment: dict[str, str]) -> Worker:
        with self._lock:
            found = next((item for item in self._waiting if item[0] == environment), None)
            if found is not None:
                self._waiting.remove(found)
        if found is not None:
            found[1].begin(start)
            return found[1]
        return Worker(start, environment)

    def start(self, libraries: Libraries, commit: Commit, session: Session) -> None:
        """Begin the imports of a commit's workers."""
        self._drop()
        if any(point.clock != "graph" for point in session.plan.points):
            return
        try:
            environment = session.plan.worker_env | libraries.tree(commit).environment()
        except CannotJudge:  # it is told when it is its turn
            return
        for own in [gpu.environment for gpu in session.gpus] or [{}]:
            self._waiting.append((environment | own, EarlyWorker("gpu", environment | own)))

    def _drop(self) -> None:
        while self._waiting:
            self._waiting.pop()[1].close()


def _code(commit: Commit, source_hash: str) -> Code:
    """What was measured: the commit's library, by this checkout's suite."""
    here = collect_code()
    return Code(commit.sha, commit.sha[:9], None, commit.time, False, None, source_hash, here.bench_version)
