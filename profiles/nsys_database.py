"""nsys' SQLite export -> the GPU work of each NVTX range. Only this module knows its schema.

Two joins, for a range around a replay never encloses the capture:
which launch    kernel.correlationId and process -> the runtime call (for a graph, one call for all its kernels), which
                lies in a range of its thread
which capture   kernel.graphNodeId -> originalGraphNodeId of its instantiation -> the event that made the original node,
                which lies in a range of its thread, too
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.clocks.markers import DOMAIN
from profiles.capture import CaptureFailed
from profiles.nsys_tables import PROCESS_MASK, Range, Tables, Work, opened
from profiles.records import KernelTime, RangeTime

SERVERS = "csgmv_embed."  # what names of the plugin's ranges begin with
Nest = tuple[str, ...]  # a range and those around it, outermost first


@dataclass
class Attribution:
    """The rows of a report, how much GPU work is in no range, kernels by name, and what the file lacks."""

    ranges: list[RangeTime]
    unattributed: int
    kernels: list[KernelTime] = field(default_factory=list)
    lacking: dict[str, int] = field(default_factory=dict)


@dataclass
class _Share:
    """What one range path has enqueued."""

    entered: dict[tuple[int, int], list[Work]] = field(default_factory=lambda: defaultdict(list))  # by thread and start
    origins: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def count_ranges(database: Path, domain: str = DOMAIN) -> int:
    """Number of ranges of the domain in the capture."""
    with closing(opened(database)) as tables:
        return len(tables.ranges(domain))


def is_of_a_server(database: Path) -> bool:
    """Whether a hook of the plugin has a range in the capture."""
    with closing(opened(database)) as tables:
        return any(item.name.startswith(SERVERS) for item in tables.ranges(None))


def attribute(database: Path, domain: str | None = DOMAIN) -> Attribution:
    """The GPU work by range. domain None: by ranges without a domain, of which there may be none.

    Raises CaptureFailed, naming what is missing, if the file is not an export or holds neither ranges nor GPU work.
    """
    with closing(opened(database)) as tables:
        ranges, work = tables.ranges(domain), tables.work()
        if not work:
            raise CaptureFailed(
                f"{database}: the capture holds no GPU work; was the capture range opened?{_left_out(tables)}"
            )
        if not ranges and domain is not None:
            raise CaptureFailed(
                f"{database}: the capture holds no NVTX range of the domain {domain}; `python -m bench doctor` says "
                f"why{_left_out(tables)}"
            )
        calls = tables.calls()
        captures = _Captures(tables.nodes() if any(item.node is not None for item in work) else [])
        found = _attribute(_Lanes(ranges), work, calls, captures)
        found.kernels = _by_name(work, tables)
        found.lacking = {what: count for what, count in sorted(tables.lacking.items()) if count}
    return found


def _left_out(tables: Tables) -> str:
    said = ", ".join(f"{count} {what}" for what, count in sorted(tables.lacking.items()) if count)
    return f"; left out: {said}" if said else ""


def _by_name(work: Sequence[Work], tables: Tables) -> list[KernelTime]:
    """Calls and time of each kernel, the one that took longest first. Copies and fills have no name."""
    times: dict[str, list[int]] = defaultdict(list)
    for item in work:
        if item.name is not None:
            times[item.name].append(item.end - item.start)
        elif item.kernel:
            tables.lacking["kernels without a name, which are in no row by name"] += 1
    found = [KernelTime(name, len(taken), sum(taken) / 1000) for name, taken in times.items()]
    return sorted(found, key=lambda kernel: -kernel.total_us)


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
        share.entered[stack[-1].thread, stack[-1].start].append(item)
        if item.node is not None:
            made = captures.made(item.process, item.node)
            origin = lanes.stack(*made) if made else []
            share.origins[" / ".join(found.name for found in origin) or "unknown"] += 1
    return Attribution([_row(path, share) for path, share in shares.items()], unattributed)


def _row(path: Nest, share: _Share) -> RangeTime:
    work = [item for entry in share.entered.values() for item in entry]
    busy, _ = _busy_and_gap(work)
    gap = sum(_busy_and_gap(entry)[1] for entry in share.entered.values())  # between two entries others run
    whole = sum(item.whole_graph for item in work)
    nodes = sum(item.node is not None for item in work)
    return RangeTime(
        path=list(path),
        instances=len(share.entered),
        eager=len(work) - nodes - whole,
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
        """(thread, moment) at which the first original of the node was made. None if that was before the capture."""
        seen = set()
        while (process, node) in self._original and node not in seen:
            seen.add(node)
            node = self._original[(process, node)]
        return self._made.get((process, node))
