"""The record types, their JSON file, and the store that writes it atomically.

History of the format (semver: a reader refuses another major and ignores keys a newer minor added, except in a case)
1.0.0  first version
1.1.0  a case has an op and a hidden size, lookup and 0 where it says nothing; the check is the worst of all rounds
1.2.0  code: bench_version is the instrument's number, where it was a hash of its sources; kernel_source_sha256 covers
       the tuned tables; suite_source_sha256 is new
       counted work lists its kernel launches; a baseline has the rules that it was made under

Units are in the names (`_us`, `_bytes`, `_mhz`). Raw block values are kept by round; whatever can be derived is not
stored. Floats are rounded to 6 significant digits when written; keys are sorted, so that two files diff well.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from bench.case import Case, ClockName
from bench.instrument import version_of
from bench.rules import Rules

SCHEMA_NAME = "csgmv-bench-results"
SCHEMA_VERSION = "1.2.0"

Status = Literal["ok", "skipped", "wrong", "crashed", "error"]
CacheAchieved = Literal["warm", "mixed", "cold"]
Scalar = str | int | float | bool | None
Document = TypeVar("Document")


class ResultsError(Exception):
    """A results file cannot be used; the message names the file, the place and what was expected."""


class Schema(msgspec.Struct):
    """Which format, which version of it."""

    name: str = SCHEMA_NAME
    version: str = SCHEMA_VERSION


class Round(msgspec.Struct):
    """Blocks taken in one memory layout of one process: the unit of replication."""

    process: int
    layout_seed: int
    blocks_us: list[float]  # time of one call, by block
    host_blocks_us: list[float] | None = None  # eager: host time to enqueue one call, by block
    sm_mhz: int | None = None
    throttle: list[str] = []


class Check(msgspec.Struct):
    """The comparison with the oracle. max_error is relative to the largest value of the oracle."""

    reference: str
    max_error: float | None
    tolerance: float
    passed: bool


def worse(one: Check | None, other: Check | None) -> Check | None:
    """The check with the larger error: of several rounds or processes."""
    if one is None or other is None:
        return one or other
    return other if (other.max_error or 0.0) > (one.max_error or 0.0) else one


class CacheState(msgspec.Struct):
    """What the cache saw: bytes touched between two uses of the same index set, and whether it was flushed before."""

    achieved: CacheAchieved
    index_sets: int
    touched_bytes: int
    l2_bytes: int
    flushed: bool


class WorkCounts(msgspec.Struct, frozen=True):
    """What the Triton kernels of one launch did; sums over its kernel launches unless said otherwise.

    launches         Triton kernels launched
    programs         programs launched
    active_programs  programs that executed at least one store with a live lane
    busiest_loads    load operations executed by the busiest program, the one with the most loads and stores together
    busiest_stores   store operations executed by the same program
    load_bytes       bytes of live load lanes, each lane counted every time
    store_bytes      bytes of live store lanes
    load_sectors     distinct 32-byte sectors that live load lanes touched, over the whole launch
    store_sectors    the same for stores
    """

    launches: int
    programs: int
    active_programs: int
    busiest_loads: int
    busiest_stores: int
    load_bytes: int
    store_bytes: int
    load_sectors: int
    store_sectors: int


class CompiledFigures(msgspec.Struct, frozen=True):
    """One compiled kernel.

    kernel             its name in the binary
    capability         compute capability it was compiled for, 90 for 9.0
    num_warps          warps a program
    registers          registers a thread
    spill_bytes        local memory a thread: stack frame and local, where ptxas puts spilled registers
    shared_bytes       dynamic shared memory a program
    widest_load_bits   widest global load of one thread (LDG, LDGSTS); 0 if there is none
    widest_store_bits  widest global store of one thread (STG); 0 if there is none
    instructions       SASS instructions of its binary, the NOPs that pad the end left out
    """

    kernel: str
    capability: int
    num_warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    widest_load_bits: int
    widest_store_bits: int
    instructions: int


class WorkLaunch(msgspec.Struct, frozen=True):
    """One launch of a Triton kernel.

    kernel           the kernel function's name
    programs         programs launched
    active_programs  programs that executed at least one store with a live lane
    compiled         position of the binary that a GPU would run in Work.compiled; None without compiled figures
    """

    kernel: str
    programs: int
    active_programs: int
    compiled: int | None = None


class Work(msgspec.Struct):
    """The work clock's record: counts, launches in order, and the compiled kernels or why there are none."""

    counts: WorkCounts
    compiled: list[CompiledFigures] = []
    compiled_reason: str | None = None
    launches: list[WorkLaunch] = []  # since 1.2.0


class Point(msgspec.Struct):
    """One (case, contender, clock): verified, then sampled; or not, and why."""

    case: Case
    contender: str
    clock: ClockName
    index: int  # position in the run's plan, payload of its NVTX range
    status: Status
    reason: str | None = None
    check: Check | None = None
    rounds: list[Round] = []
    floor_us: list[float] = []  # empty kernel, same clock and node count, one value a process
    nodes: int | None = None  # launches in one graph
    minimum_bytes: int | None = None  # least traffic of any implementation
    required_bytes: int | None = None  # least traffic with this contender's storage
    cache: CacheState | None = None
    work: Work | None = None
    wall_s: float = 0.0

    @property
    def key(self) -> tuple[Case, str, ClockName]:
        return (self.case, self.contender, self.clock)


class Anchor(msgspec.Struct):
    """Something this repository's code cannot change, measured in every process of a run."""

    name: str
    unit: str
    values: list[float]  # one a process


class Code(msgspec.Struct):
    """What was measured."""

    sha: str | None
    short: str | None
    branch: str | None
    commit_time: str | None
    dirty: bool | None
    diff_sha256: str | None
    kernel_source_sha256: str
    bench_version: str  # the instrument's number, or the hash of its code: see `instrument`
    suite_source_sha256: str | None = None

    @property
    def instrument(self) -> str:
        """The version of what made the inputs and took the times: figures of another one cannot be compared."""
        return version_of(self.bench_version)


class Environment(msgspec.Struct):
    """identity is compared and hashed into env_key; volatile is only recorded."""

    identity: dict[str, Scalar]
    env_key: str
    volatile: dict[str, Scalar]


class Selection(msgspec.Struct):
    """What the command line chose; enough to make the plan again."""

    profile: str
    axes: list[str] = []
    clocks: list[str] = []
    contenders: list[str] = []
    cases: list[str] = []
    rounds: int | None = None
    processes: int | None = None


class Run(msgspec.Struct):
    """One invocation of the sweep; a resumed run keeps its id."""

    id: str
    kind: Literal["sweep"]
    selection: Selection
    started_utc: str
    duration_s: float
    argv: list[str]
    seed: int
    plan_sha256: str
    tool_version: str
    resumed: int = 0


class Results(msgspec.Struct):
    """A whole results file."""

    schema: Schema
    run: Run
    code: Code
    env: Environment | None = None  # filled in by the first worker
    anchors: list[Anchor] = []
    points: list[Point] = []
    rules: Rules | None = None  # of a baseline; without: bench.rules.UNRECORDED


def encode(results: msgspec.Struct) -> bytes:
    """The file's bytes: sorted keys, 6 significant digits. Raises ResultsError for a NaN or an infinity."""
    plain = _round_floats(msgspec.to_builtins(results), "")
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=1) + b"\n"


def _round_floats(value: Any, place: str) -> Any:
    if isinstance(value, float):
        if not isfinite(value):  # JSON would say null, which is another thing
            raise ResultsError(f"{place.removeprefix('.')} is {value}; expected a finite number")
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _round_floats(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_round_floats(item, f"{place}[{index}]") for index, item in enumerate(value)]
    return value


def write(path: Path, results: msgspec.Struct) -> None:
    """Replace the file in one step: a reader, or a kill, sees the old or the new one, never a part.

    Raises ResultsError, and leaves the old file alone, if the results or the disk do not allow it.
    """
    try:
        data = encode(results)
    except ResultsError as error:
        raise ResultsError(f"{path}: cannot be written: {error}") from error
    write_bytes(path, data)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace any file in one step. Raises ResultsError, the old file untouched, if the disk does not allow it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> Results:
    """Read a results file. Raises ResultsError for a missing, corrupt, foreign or newer-major file."""
    return read_document(path, Results, SCHEMA_NAME, SCHEMA_VERSION)


def read_document(path: Path, kind: type[Document], name: str, version: str) -> Document:
    """Read a file of this or another format of the suite; each has a `schema` with a name and a version."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    found = _check_schema(path, data, name, version)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        axis = re.search(r"unknown field `(.*)` - at `\$\.(points\[\d+\]\.case)`", str(error))
        if axis and found != version:  # ignored, it would make one case of several
            raise ResultsError(
                f"{path}: {axis[2]} has the axis {axis[1]!r}, which format {version} does not know; "
                f"format {found} needs a newer version of this suite"
            ) from error
        raise ResultsError(f"{path}: not a valid results file: {error}") from error


def _check_schema(path: Path, data: bytes, name: str, version: str) -> str:
    """The format's version."""

    class Head(msgspec.Struct):
        schema: Schema

    try:
        schema = msgspec.json.decode(data, type=Head).schema
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not a results file of this suite: {error}") from error
    if schema.name != name:
        raise ResultsError(f"{path}: schema.name is {schema.name!r}; expected {name!r}")
    if schema.version.split(".")[0] != version.split(".")[0]:
        raise ResultsError(f"{path}: schema.version is {schema.version}; expected {version.split('.')[0]}.x.y")
    return schema.version


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, as checked in beside this module."""
    return msgspec.json.schema(Results)
