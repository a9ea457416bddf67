"""The record of a profiled run, in a format of its own: what a tool saw is never a timing of the suite.

History of the format (semver, as in bench/model/store.py)
1.0.0  first version
1.1.0  nsys: kernels by name; what the tool's file lacks
1.2.0  nsys: gaps are those within each entry of a range; before, all from its first work to its last
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.model import store
from bench.model.case import Case
from bench.model.faults import case_faults, counts_faults
from bench.model.fields import Count, Duration, Positive
from bench.model.records import Code, Environment, WorkCounts

PROFILE_NAME, PROFILE_VERSION = "csgmv-bench-profile", "1.2.0"
CacheControl = Literal["cold", "warm"]


class ProfileSchema(msgspec.Struct):
    """Name and version of the format."""

    name: str = PROFILE_NAME
    version: str = PROFILE_VERSION


class RangeTime(msgspec.Struct):
    """The GPU work that was enqueued while an NVTX range was the innermost one of its thread.

    path          the range and those around it, outermost first
    instances     how often the range was entered and enqueued anything
    eager, graph  kernels launched by themselves, and as nodes of a CUDA graph
    busy_us       time in which at least one kernel ran
    gap_us        time between the first start and the last end of an entry in which none did, of all entries
    origins       graph kernels by the path of the range in which their node was captured
    whole_graphs  graphs recorded as one row each, whose kernels cannot be told
    """

    path: list[str]
    instances: Count
    eager: Count
    graph: Count
    busy_us: Duration
    gap_us: Duration
    origins: dict[str, Count] = {}
    whole_graphs: Count = 0


class KernelTime(msgspec.Struct):
    """A kernel in a capture: calls, and the sum of their times."""

    kernel: str
    calls: Count
    total_us: Duration


class NsysBody(msgspec.Struct, tag="nsys"):
    """What nsys recorded. Without its importer the ranges are None, and the raw file is all there is.

    lacking   rows of the file that were left out, by what they lack, and tables that are not there
    """

    ranges: list[RangeTime] | None
    unattributed: Count = 0  # kernels whose launch no range of ours encloses
    remark: str | None = None
    kernels: list[KernelTime] = []
    lacking: dict[str, Count] = {}


class KernelCounters(msgspec.Struct):
    """The counters of one profiled kernel of a launch. `metrics` have ncu's own names and base units."""

    case: Case
    contender: str
    clock: str
    cache: CacheControl
    kernel: str
    metrics: dict[str, float]


class UsefulBytes(msgspec.Struct):
    """Bytes that a launch on index set 0 has to move: ids and distinct rows in, rows out."""

    case: Case
    read_bytes: Count
    written_bytes: Count


class CountedWork(msgspec.Struct):
    """The work clock's counts of one launch of a contender."""

    case: Case
    contender: str
    counts: WorkCounts


class NcuBody(msgspec.Struct, tag="ncu"):
    """Counters of one launch of each point. `missing`: metrics that this chip or version of ncu does not have.

    Without kernels, the reports were kept unread because the reader was missing. They are read when they are shown.
    """

    kernels: list[KernelCounters]
    useful: list[UsefulBytes]
    counted: list[CountedWork] = []
    missing: list[str] = []


class TracedKernel(msgspec.Struct):
    """One kernel of a traced call: its name, how many in a call, and its median time on the device."""

    kernel: str
    per_call: Positive
    device_us: Duration


class TracedPoint(msgspec.Struct):
    """A point timed without the trace and then traced.

    untraced_us   time of a call by the suite's own clock, before the trace was switched on, median of blocks
    traced_us     the same calls under the trace
    """

    case: Case
    contender: str
    clock: str
    untraced_us: Positive
    traced_us: Positive
    kernels: list[TracedKernel]


class TraceBody(msgspec.Struct, tag="trace"):
    """What torch's profiler recorded. floor_us: an empty kernel, by clock; floor_device_us: its time on the device.

    lacking   events that were left out, by what they lack
    """

    points: list[TracedPoint]
    floor_us: dict[str, Positive]
    floor_device_us: Duration | None = None
    lacking: dict[str, Count] = {}


class ProfileRecord(msgspec.Struct):
    """A whole profile file. `files` are the tool's own, which lie beside it."""

    schema: ProfileSchema
    tool_version: str
    commands: list[list[str]]
    started_utc: str
    code: Code
    seed: int
    launches: Count
    replays: Count
    files: list[str]
    body: NsysBody | NcuBody | TraceBody
    dropped_flags: list[str] = []  # that this version of the tool lacks
    env: Environment | None = None


def write(path: Path, profile: ProfileRecord) -> None:
    """Replace the file in one step. Raises ResultsError."""
    store.write(path, profile)


def read(path: Path) -> ProfileRecord:
    """Raises ResultsError for a missing, corrupt, foreign, newer-major or unsound file."""
    return store.read_document(path, ProfileRecord, PROFILE_NAME, PROFILE_VERSION, faults)


def faults(profile: ProfileRecord) -> Iterator[str]:
    """Faults of a profile: its tool's files must lie beside it, whatever it says."""
    for index, name in enumerate(profile.files):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            yield f"files[{index}] is {name!r}; expected the name of a file beside the record"
    body: Any = profile.body
    for part in ("points", "kernels", "useful", "counted"):
        for index, item in enumerate(getattr(body, part, ())):
            if not isinstance(item, KernelTime):
                yield from case_faults(f"body.{part}[{index}]", item.case)
    for index, item in enumerate(getattr(body, "counted", ())):
        yield from counts_faults(f"body.counted[{index}].counts", item.counts)
