"""nsys' SQLite export -> the GPU work of each NVTX range. Only this module knows its schema.

Two joins, for a range around a replay never encloses the capture:
which launch    kernel.correlationId and process -> the runtime call (for a graph, one call for all its kernels), which
                lies in a range of its thread
which capture   kernel.graphNodeId -> originalGraphNodeId of its instantiation -> the event that made the original node,
                which lies in a range of its thread, too
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.clocks.markers import DOMAIN
from profiles.capture import CaptureFailed
from profiles.records import RangeTime

# ENUM_NSYS_EVENT_TYPE has had these numbers in every schema seen (2022.4 on); the table is asked where it is there.
EVENT_TYPES = {"NvtxPushPopRange": 59, "NvtxStartEndRange": 60, "NvtxDomainCreate": 75}
PROCESS_MASK = 0xFFFFFFFFFF000000  # of a globalTid: what is left names the process, as globalPid does
GPU_TABLES = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")
RUNTIME, NODES, GRAPHS = "CUPTI_ACTIVITY_KIND_RUNTIME", "CUDA_GRAPH_NODE_EVENTS", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
Nest = tuple[str, ...]  # a range and those around it, outermost first


@dataclass(frozen=True)
class Range:
    """One NVTX range of a thread, ns."""

    thread: int
    start: int
    end: int
    name: str


@dataclass(frozen=True)
class Work:
    """A kernel, copy or fill on the GPU, ns; `graph` is a whole graph in one row."""

    start: int
    end: int
    process: int
    correlation: int
    node: int | None = None
    whole_graph: bool = False


@dataclass
class Attribution:
    """The rows of a report, and how much GPU work no range encloses."""

    ranges: list[RangeTime]
    unattributed: int


@dataclass
class _Share:
    """What one range path has enqueued."""

    instances: set[int] = field(default_factory=set)
    work: list[Work] = field(default_factory=list)
    origins: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def count_ranges(database: Path, domain: str = DOMAIN) -> int:
    """How many ranges of the domain the capture holds."""
    with closing(_open(database)) as connection:
        return len(_ranges(connection, domain))


def attribute(database: Path, domain: str = DOMAIN) -> Attribution:
    """The GPU work by range. Raises CaptureFailed if the file is no export, or holds neither ranges nor GPU work."""
    with closing(_open(database)) as connection:
        ranges, work = _ranges(connection, domain), _gpu_work(connection)
        if not work:
            raise CaptureFailed(f"{database}: the capture holds no GPU work; was the capture range opened?")
        if not ranges:
            raise CaptureFailed(
                f"{database}: the capture holds no NVTX range of the domain {domain}; `python -m bench doctor` says why"
            )
        calls, captures = _calls(connection), _captures(connection)
    return _attribute(_Lanes(ranges), work, calls, captures)


def _attribute(
    lanes: _Lanes, work: Sequence[Work], calls: dict[tuple[int, int], tuple[int, int]], captures: _Captures
) -> Attribution:
    shares: dict[Nest, _Share] = defaultdict(_Share)
    unattributed = 0
    for item in work:
        call = calls.get((item.process, item.correlation))
        stack = lanes.stack(*call) if call else []
        if not stack:
            unattributed += 1
            continue
        share = shares[tuple(found.name for found in stack)]
        share.instances.add(stack[-1].start)
        share.work.append(item)
        if item.node is not None:
            made = captures.made(item.process, item.node)
            origin = lanes.stack(*made) if made else []
            share.origins[" / ".join(found.name for found in origin) or "unknown"] += 1
    return Attribution([_row(path, share) for path, share in shares.items()], unattributed)


def _row(path: Nest, share: _Share) -> RangeTime:
    busy, gap = _busy_and_gap(share.work)
    whole = sum(item.whole_graph for item in share.work)
    nodes = sum(item.node is not None for item in share.work)
    return RangeTime(
        path=list(path),
        instances=len(share.instances),
        eager=len(share.work) - nodes - whole,
        graph=nodes,
        busy_us=busy / 1000,
        gap_us=gap / 1000,
        origins=dict(share.origins),
        whole_graphs=whole,
    )


def _busy_and_gap(work: Sequence[Work]) -> tuple[int, int]:
    """Length of the union of the intervals, and of the holes in it, ns."""
    ordered = sorted((item.start, item.end) for item in work)
    busy, reached = 0, ordered[0][0]
    for start, end in ordered:
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    return busy, reached - ordered[0][0] - busy


class _Lanes:
    """The ranges of each thread, to ask which of them enclose a moment."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._changes: dict[int, tuple[list[int], list[list[Range]]]] = {}
        by_thread: dict[int, list[Range]] = defaultdict(list)
        for item in ranges:
            by_thread[item.thread].append(item)
        for thread, own in by_thread.items():
            self._changes[thread] = _stacks(own)

    def stack(self, thread: int, moment: int) -> list[Range]:
        """The ranges open at the moment, outermost first."""
        times, stacks = self._changes.get(thread, ([], []))
        place = bisect_right(times, moment) - 1
        return stacks[place] if place >= 0 else []


def _stacks(ranges: Sequence[Range]) -> tuple[list[int], list[list[Range]]]:
    """The times at which the set of open ranges changes, and the set from then on."""
    edges = sorted([(item.start, 1, item) for item in ranges] + [(item.end, 0, item) for item in ranges], key=_edge)
    times: list[int] = []
    stacks: list[list[Range]] = []
    opened: list[Range] = []
    for moment, opens, item in edges:
        opened = [*opened, item] if opens else [other for other in opened if other is not item]
        times.append(moment)
        stacks.append(opened)
    return times, stacks


def _edge(edge: tuple[int, int, Range]) -> tuple[int, int, int]:
    """At one moment ends come before starts, and the longer of two starts first."""
    moment, opens, item = edge
    return moment, opens, -item.end if opens else 0


def _open(database: Path) -> sqlite3.Connection:
    if not database.exists():
        raise CaptureFailed(f"{database}: does not exist; expected an SQLite export of nsys")
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        known = _tables(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise CaptureFailed(f"{database}: no SQLite file: {error}; expected an export of nsys") from error
    if "StringIds" not in known:
        connection.close()
        raise CaptureFailed(f"{database}: has no table StringIds; expected an SQLite export of nsys")
    return connection


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def _event_types(connection: sqlite3.Connection) -> dict[str, int]:
    if "ENUM_NSYS_EVENT_TYPE" not in _tables(connection):
        return EVENT_TYPES
    told = dict(connection.execute("SELECT name, id FROM ENUM_NSYS_EVENT_TYPE"))
    return EVENT_TYPES | {name: told[name] for name in EVENT_TYPES if name in told}


def _ranges(connection: sqlite3.Connection, domain: str) -> list[Range]:
    """Push/pop and start/end ranges of the domain; a registered string is in StringIds, a plain one in the row."""
    if "NVTX_EVENTS" not in _tables(connection):
        return []
    types = _event_types(connection)
    domains = {  # numbered anew in each process
        (thread & PROCESS_MASK, number)
        for thread, number in connection.execute(
            "SELECT globalTid, domainId FROM NVTX_EVENTS LEFT JOIN StringIds ON textId = StringIds.id "
            "WHERE eventType = ? AND COALESCE(text, value) = ?",
            (types["NvtxDomainCreate"], domain),
        )
    }
    rows = connection.execute(
        'SELECT globalTid, start, "end", COALESCE(text, value), domainId FROM NVTX_EVENTS '
        'LEFT JOIN StringIds ON textId = StringIds.id WHERE eventType IN (?, ?) AND "end" IS NOT NULL',
        (types["NvtxPushPopRange"], types["NvtxStartEndRange"]),
    )
    return [Range(*row[:4]) for row in rows if (row[0] & PROCESS_MASK, row[4]) in domains and row[3] is not None]


def _gpu_work(connection: sqlite3.Connection) -> list[Work]:
    tables = _tables(connection)
    found: list[Work] = []
    for table in GPU_TABLES:
        if table in tables:
            node = "graphNodeId" if "graphNodeId" in _columns(connection, table) else "NULL"
            rows = connection.execute(f'SELECT start, "end", globalPid, correlationId, {node} FROM {table}')
            found += [Work(*row) for row in rows]
    if GRAPHS in tables:
        rows = connection.execute(f'SELECT start, "end", globalPid, correlationId, NULL, 1 FROM {GRAPHS}')
        found += [Work(*row) for row in rows]
    return found


def _calls(connection: sqlite3.Connection) -> dict[tuple[int, int], tuple[int, int]]:
    """(process, correlation) -> (thread, start) of the runtime call."""
    if RUNTIME not in _tables(connection):
        return {}
    rows: Iterator[tuple[int, int, int]] = connection.execute(f"SELECT globalTid, correlationId, start FROM {RUNTIME}")
    return {(thread & PROCESS_MASK, correlation): (thread, start) for thread, correlation, start in rows}


class _Captures:
    """Where graph nodes were made: instantiation copies a node under a new id, and a copy may be copied."""

    def __init__(self, rows: Sequence[tuple[int, int, int, int | None]]) -> None:
        self._made: dict[tuple[int, int], tuple[int, int]] = {}
        self._original: dict[tuple[int, int], int] = {}
        for thread, start, node, original in rows:
            key = (thread & PROCESS_MASK, node)
            if original is None or original == node:
                self._made[key] = (thread, start)
            else:
                self._original[key] = original

    def made(self, process: int, node: int) -> tuple[int, int] | None:
        """(thread, moment) at which the first original of the node was made; None if that was before the capture."""
        seen = set()
        while (process, node) in self._original and node not in seen:
            seen.add(node)
            node = self._original[(process, node)]
        return self._made.get((process, node))


def _captures(connection: sqlite3.Connection) -> _Captures:
    if NODES not in _tables(connection):
        return _Captures([])
    rows = connection.execute(f"SELECT globalTid, start, graphNodeId, originalGraphNodeId FROM {NODES}").fetchall()
    return _Captures(rows)
