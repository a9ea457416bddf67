"""A small database in the schema of nsys' SQLite export (as 2022.4 writes it, columns that nobody reads left out).

    thread 1                                                thread 2
    A                                0 .. 1000              B               0 .. 1000
      warmup (captures nodes)       10 .. 100                 sample      500 .. 700 (registered, launches eagerly)
      sample (replays, and an       200 .. 400
              eager kernel)
    launches outside any range at 1500

Names of A, warmup and B are plain strings, sample is a registered one. Another domain's range encloses everything.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

PROCESS = 5 << 24 | 7 << 48
THREADS = (PROCESS | 1, PROCESS | 2)
OURS, OTHERS = 1, 2
SAMPLE = 10  # the registered string's id

TABLES = """
CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE ENUM_NSYS_EVENT_TYPE (id INTEGER PRIMARY KEY, name TEXT, label TEXT);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, text TEXT,
    globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, end INTEGER, globalTid INTEGER, correlationId INTEGER,
    nameId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER,
    correlationId INTEGER, globalPid INTEGER, shortName INTEGER, graphNodeId INTEGER);
CREATE TABLE CUDA_GRAPH_NODE_EVENTS (start INTEGER, end INTEGER, globalTid INTEGER, graphNodeId INTEGER,
    originalGraphNodeId INTEGER, nameId INTEGER);
"""


def build(path: Path, *, domain: str = "csgmv_bench") -> Path:
    connection = sqlite3.connect(path)
    with connection:
        connection.executescript(TABLES)
        connection.execute("INSERT INTO StringIds VALUES (?, 'sample')", (SAMPLE,))
        types = ((59, "NvtxPushPopRange"), (60, "NvtxStartEndRange"), (75, "NvtxDomainCreate"))
        connection.executemany(
            "INSERT INTO ENUM_NSYS_EVENT_TYPE VALUES (?, ?, ?)", [(*kind, kind[1]) for kind in types]
        )
        connection.executemany("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _nvtx(domain))
        connection.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?, 0)", _calls())
        connection.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 7, ?, ?, 0, ?)", _kernels())
        connection.executemany("INSERT INTO CUDA_GRAPH_NODE_EVENTS VALUES (?, ?, ?, ?, ?, 0)", _nodes())
    connection.close()
    return path


def _nvtx(domain: str) -> list[tuple[object, ...]]:
    one, two = THREADS

    def pushed(start: int, end: int, text: str | None, thread: int, name: int | None = None, owner: int = OURS):  # type: ignore[no-untyped-def]
        return (start, end, 59, None, text, thread, None, name, owner)

    return [
        (0, None, 75, None, domain, one, None, None, OURS),
        (0, None, 75, None, "someone else's", one, None, None, OTHERS),
        pushed(0, 2000, "everything", one, owner=OTHERS),
        pushed(0, 2000, "another process's domain 1", 99 << 24, owner=OURS),
        pushed(0, 1000, "A", one),
        pushed(10, 100, "warmup", one),
        pushed(200, 400, None, one, SAMPLE),
        pushed(0, 1000, "B", two),
        (500, 700, 60, 3, None, two, two, SAMPLE, OURS),
        pushed(900, None, "never closed", one),  # type: ignore[arg-type]
    ]


def _calls() -> list[tuple[int, int, int, int]]:
    one, two = THREADS
    return [
        (210, 220, one, 100),  # a replay: one call for its two kernels
        (230, 240, one, 101),  # the same graph again
        (250, 260, one, 102),  # an eager launch in the same range
        (510, 520, two, 103),
        (1500, 1510, one, 104),  # outside
    ]


def _kernels() -> list[tuple[int, int, int, int, int | None]]:
    return [
        (3000, 3400, 100, PROCESS, 21),
        (3500, 4000, 100, PROCESS, 22),
        (5000, 5400, 101, PROCESS, 21),
        (5300, 6000, 101, PROCESS, 22),  # overlaps the one before
        (7000, 7100, 102, PROCESS, None),
        (3100, 3200, 103, PROCESS, None),
        (9000, 9100, 104, PROCESS, None),
        (9200, 9300, 100, 99 << 24, None),  # another process's correlation 100
    ]


def _nodes() -> list[tuple[int, int, int, int, int | None]]:
    one, _ = THREADS
    return [
        (20, 21, one, 1, None),  # captured
        (30, 31, one, 2, None),
        (110, 111, one, 11, 1),  # copied by the instantiation
        (112, 113, one, 12, 2),
        (114, 115, one, 21, 11),  # and copied once more by the upload
        (116, 117, one, 22, 12),
    ]
