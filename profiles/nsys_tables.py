"""The usable rows of nsys' SQLite export. What a file lacks is counted by name and left out.

nsys does not write empty tables, so a table counts as missing only if something else in the file needs it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiles.capture import CaptureFailed

# ENUM_NSYS_EVENT_TYPE has had these numbers in every schema seen (2022.4 on); the table is asked where it is there.
EVENT_TYPES = {"NvtxPushPopRange": 59, "NvtxStartEndRange": 60, "NvtxDomainCreate": 75}
PROCESS_MASK = 0xFFFFFFFFFF000000  # of a globalTid: what is left names the process, as globalPid does
KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
GPU_TABLES = {
    KERNELS: "kernels",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "copies",
    "CUPTI_ACTIVITY_KIND_MEMSET": "fills",
}
RUNTIME, NODES, GRAPHS = "CUPTI_ACTIVITY_KIND_RUNTIME", "CUDA_GRAPH_NODE_EVENTS", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
NVTX, STRINGS = "NVTX_EVENTS", "StringIds"
DEFAULT_DOMAIN = 0  # of ranges that name none, in every process
# What each column says, for the name of a lack.
WORDS = {
    "start": "a start",
    "end": "an end",
    "globalPid": "a process",
    "globalTid": "a thread",
    "correlationId": "the number of their launch",
    "graphNodeId": "the number of their node",
    "domainId": "a domain",
    "eventType": "a type",
}


@dataclass(frozen=True)
class Range:
    """One NVTX range of a thread, in ns."""

    thread: int
    start: int
    end: int
    name: str


@dataclass(frozen=True)
class Work:
    """A kernel, copy or fill on the GPU, in ns. `graph`: a whole graph in one row."""

    start: int
    end: int
    process: int
    correlation: int
    node: int | None = None
    whole_graph: bool = False
    name: str | None = None
    kernel: bool = False


@dataclass
class Tables:
    """An open file. `lacking`: what was left out of what was read, by name, and how often."""

    connection: sqlite3.Connection
    lacking: Counter[str] = field(default_factory=Counter)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @property
    def names(self) -> set[str]:
        return {name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def missed(self, table: str) -> bool:
        """Whether a needed table is missing. If so, that is counted."""
        gone = table not in self.names
        self.lacking[f"tables {table}"] += gone
        return gone

    def rows(self, table: str, needed: Sequence[str], optional: Sequence[str], what: str) -> Iterator[tuple[Any, ...]]:
        """The needed columns, all whole numbers, then the optional ones.

        An optional column is None where a row or the table lacks it.
        """
        columns = {row[1] for row in self.connection.execute(f'PRAGMA table_info("{table}")')}
        chosen = ", ".join(f'"{name}"' if name in columns else "NULL" for name in (*needed, *optional))
        for row in self.connection.execute(f'SELECT {chosen} FROM "{table}"'):
            missing = [name for name, value in zip(needed, row, strict=False) if not isinstance(value, int)]
            if missing:
                self.lacking[f"{what} without {' and '.join(WORDS[name] for name in missing)}"] += 1
            else:
                yield row

    def strings(self) -> dict[int, str]:
        """The texts that rows refer to by number."""
        return {key: text for key, text in self.connection.execute(f"SELECT id, value FROM {STRINGS}") if text}

    def event_types(self) -> dict[str, int]:
        """The number of each type of event."""
        if "ENUM_NSYS_EVENT_TYPE" not in self.names:
            return EVENT_TYPES
        told = dict(self.connection.execute("SELECT name, id FROM ENUM_NSYS_EVENT_TYPE"))
        return EVENT_TYPES | {name: told[name] for name in EVENT_TYPES if isinstance(told.get(name), int)}

    def ranges(self, domain: str | None) -> list[Range]:
        """Push/pop and start/end ranges of a domain; None means the default domain."""
        if NVTX not in self.names:
            return []
        types, strings = self.event_types(), self.strings()
        wanted = (types["NvtxPushPopRange"], types["NvtxStartEndRange"])
        domains: set[tuple[int, int]] = set()
        events: list[tuple[int, int, int, int | None, str | None]] = []
        for row in self.rows(
            NVTX, ("eventType",), ("globalTid", "domainId", "start", "end", "text", "textId"), "events"
        ):
            kind, thread, number, start, end, plain, text = row
            name = plain if plain is not None else strings.get(text)
            if kind not in (*wanted, types["NvtxDomainCreate"]):
                continue
            what = "ranges" if kind in wanted else "domains"
            missing = [
                WORDS[column] for column, value in (("globalTid", thread), ("domainId", number)) if value is None
            ]
            missing += ["a start"] if start is None and kind in wanted else []
            missing += ["a name"] if name is None else []
            if missing:
                self.lacking[f"{what} without {' and '.join(missing)}"] += 1
            elif kind in wanted:
                events.append((thread, number, start, end, name))
            elif name == domain:
                domains.add((thread & PROCESS_MASK, number))
        return list(self._whole(events, domain, domains))

    def _whole(
        self,
        events: Sequence[tuple[int, int, int, int | None, str | None]],
        domain: str | None,
        domains: set[tuple[int, int]],
    ) -> Iterator[Range]:
        for thread, number, start, end, name in events:
            ours = number == DEFAULT_DOMAIN if domain is None else (thread & PROCESS_MASK, number) in domains
            if not ours:
                continue
            if end is None:
                self.lacking["ranges without an end"] += 1
            elif end < start:
                self.lacking["ranges that end before they start"] += 1
            else:
                yield Range(thread, start, end, str(name))

    def work(self) -> list[Work]:
        """Kernels, copies, fills and whole graphs."""
        tables = self.names
        if GRAPHS not in tables:
            self.missed(KERNELS)
        strings = self.strings()
        found: list[Work] = []
        needed = ("start", "end", "globalPid", "correlationId")
        for table, what in GPU_TABLES.items():
            if table not in tables:
                continue
            if not self._has(table, "graphNodeId"):  # an older nsys, or one that traced no nodes
                self.lacking[f"columns {table}.graphNodeId: what is in a graph is told as launched by itself"] += 1
            for start, end, process, launch, node, name in self.rows(table, needed, ("graphNodeId", "shortName"), what):
                found += self._one(
                    what, Work(start, end, process, launch, node, name=strings.get(name), kernel=table == KERNELS)
                )
        if GRAPHS in tables:
            for start, end, process, launch in self.rows(GRAPHS, needed, (), "graphs"):
                found += self._one("graphs", Work(start, end, process, launch, whole_graph=True))
        return found

    def _one(self, what: str, item: Work) -> list[Work]:
        if item.end < item.start:
            self.lacking[f"{what} that end before they start"] += 1
            return []
        return [item]

    def _has(self, table: str, column: str) -> bool:
        return any(row[1] == column for row in self.connection.execute(f'PRAGMA table_info("{table}")'))

    def calls(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(process, correlation) -> (thread, start) of the runtime call."""
        if self.missed(RUNTIME):
            return {}
        rows = self.rows(RUNTIME, ("globalTid", "correlationId", "start"), (), "calls")
        return {(thread & PROCESS_MASK, correlation): (thread, start) for thread, correlation, start in rows}

    def nodes(self) -> list[tuple[int, int, int, int | None]]:
        """Thread, start, number and original of each event that made a node of a graph."""
        if self.missed(NODES):
            return []
        rows = self.rows(NODES, ("globalTid", "start", "graphNodeId"), ("originalGraphNodeId",), "nodes of graphs")
        return [(thread, start, node, original) for thread, start, node, original in rows]


def opened(database: Path) -> Tables:
    """An open database. Raises CaptureFailed for a file that is not an export."""
    if not database.exists():
        raise CaptureFailed(f"{database}: does not exist; expected an SQLite export of nsys")
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        tables = Tables(connection)
        known = tables.names
    except sqlite3.DatabaseError as error:
        connection.close()
        raise CaptureFailed(f"{database}: not an SQLite file: {error}; expected an export of nsys") from error
    if STRINGS not in known:
        connection.close()
        raise CaptureFailed(f"{database}: has no table {STRINGS}; expected an SQLite export of nsys")
    return tables
