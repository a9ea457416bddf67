"""What a results file holds: its types.

History of the format (semver: a reader refuses another major and ignores keys a newer minor added, except in a case)
1.0.0  first version
1.1.0  a case has an op and a hidden size, lookup and 0 where it says nothing; the check is the worst of all rounds
1.2.0  code: bench_version is the instrument's number, where it was a hash of its sources; kernel_source_sha256 covers
       the tuned tables; suite_source_sha256 is new
       counted work lists its kernel launches; a baseline has the rules that it was made under
1.3.0  a case has a site and a model, none where it says nothing; ops shrink and linear; ranks in pairs
1.4.0  contenders of another SGLang have its version behind their name, and `other_sglang` says which files those are
1.5.0  contenders of files have the hash of their file behind their name, and `outside` says which files those are
1.6.0  `gpus` lists the GPUs that points ran on; a point and an anchor have the place of theirs; rules may have
       limits of single cases

Units are in the names (`_us`, `_bytes`, `_mhz`). Raw block values are kept by round; whatever can be derived is not
stored. Floats are rounded to 6 significant digits when written; keys are sorted, so that two files diff well.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from bench.model.case import Case, ClockName
from bench.model.fields import AtLeastOne, Count, Duration, Measured, Positive, Sha, Some, Uuid
from bench.model.instrument import version_of
from bench.model.outside import OutsideFile
from bench.model.rules import Rules

SCHEMA_NAME = "csgmv-bench-results"
SCHEMA_VERSION = "1.6.0"

Status = Literal["ok", "skipped", "wrong", "crashed", "error"]
CacheAchieved = Literal["warm", "mixed", "cold"]
Scalar = str | int | float | bool | None


class ResultsError(Exception):
    """A results file cannot be used. The message names the file, the place and what was expected."""


class Schema(msgspec.Struct):
    """Name and version of the format."""

    name: str = SCHEMA_NAME
    version: str = SCHEMA_VERSION


class Round(msgspec.Struct):
    """Blocks taken in one memory layout of one process: the unit of replication."""

    process: Count
    layout_seed: int
    blocks_us: Some[Positive]  # time of one call, by block
    host_blocks_us: Some[Positive] | None = None  # eager: host time to enqueue one call, by block
    sm_mhz: Count | None = None
    throttle: list[str] = []


class Check(msgspec.Struct):
    """The comparison with the oracle. max_error is relative to the largest value of the oracle."""

    reference: str
    max_error: Measured | None
    tolerance: Measured
    passed: bool


def worse(one: Check | None, other: Check | None) -> Check | None:
    """The check with the larger error, over several rounds or processes."""
    if one is None or other is None:
        return one or other
    return other if (other.max_error or 0.0) > (one.max_error or 0.0) else one


class CacheState(msgspec.Struct):
    """What the cache saw: bytes touched between two uses of the same index set, and whether it was flushed before."""

    achieved: CacheAchieved
    index_sets: AtLeastOne
    touched_bytes: Count
    l2_bytes: Count
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

    launches: AtLeastOne
    programs: AtLeastOne
    active_programs: Count
    busiest_loads: Count
    busiest_stores: Count
    load_bytes: Count
    store_bytes: Count
    load_sectors: Count
    store_sectors: Count


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
    capability: AtLeastOne
    num_warps: AtLeastOne
    registers: AtLeastOne
    spill_bytes: Count
    shared_bytes: Count
    widest_load_bits: Count
    widest_store_bits: Count
    instructions: AtLeastOne


class WorkLaunch(msgspec.Struct, frozen=True):
    """One launch of a Triton kernel.

    kernel           the kernel function's name
    programs         programs launched
    active_programs  programs that executed at least one store with a live lane
    compiled         position of the binary that a GPU would run in Work.compiled; None without compiled figures
    """

    kernel: str
    programs: AtLeastOne
    active_programs: Count
    compiled: Count | None = None


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
    index: Count  # position in the run's plan, payload of its NVTX range
    status: Status
    reason: str | None = None
    check: Check | None = None
    rounds: list[Round] = []
    floor_us: list[Positive] = []  # empty kernel, same clock and node count, one value a process
    nodes: AtLeastOne | None = None  # launches in one graph
    minimum_bytes: Count | None = None  # least traffic of any implementation
    required_bytes: Count | None = None  # least traffic with this contender's storage
    cache: CacheState | None = None
    work: Work | None = None
    wall_s: Duration = 0.0
    gpu: Count | None = None  # place in Results.gpus, of all of its rounds; None where no GPU was timed

    @property
    def key(self) -> tuple[Case, str, ClockName]:
        return (self.case, self.contender, self.clock)


class Anchor(msgspec.Struct):
    """Something that this repository's code cannot change, measured in every process of a run."""

    name: str
    unit: str
    values: Some[Positive]  # one a process
    gpu: Count | None = None  # place in Results.gpus


class UsedGpu(msgspec.Struct):
    """A GPU of the run's one model. A baseline and a history do not say which GPU of that model it was."""

    uuid: str | None = None
    pci_bus: str | None = None


class Code(msgspec.Struct):
    """The code that was measured."""

    sha: Sha | None
    short: Sha | None
    branch: str | None
    commit_time: str | None
    dirty: bool | None
    diff_sha256: str | None
    kernel_source_sha256: str
    bench_version: str  # the instrument's number, or the hash of its code: see `instrument`
    suite_source_sha256: str | None = None

    @property
    def instrument(self) -> str:
        """The version of the code that made the inputs and took the times.

        Figures of two versions cannot be compared.
        """
        return version_of(self.bench_version)


class Environment(msgspec.Struct):
    """`identity` is compared and hashed into env_key; `volatile` is only recorded."""

    identity: dict[str, Scalar]
    env_key: str
    volatile: dict[str, Scalar]


class OtherSglang(msgspec.Struct):
    """A version of SGLang, other than the installed one, that contenders of a run name."""

    version: str
    lora_sha256: str  # of its LoRA code and tables


class Selection(msgspec.Struct):
    """The selection on the command line. The plan can be made again from it."""

    profile: str
    axes: list[str] = []
    clocks: list[str] = []
    contenders: list[str] = []
    cases: list[str] = []
    rounds: AtLeastOne | None = None
    processes: AtLeastOne | None = None


class Run(msgspec.Struct):
    """One invocation of the sweep. A resumed run keeps its id."""

    id: Uuid
    kind: Literal["sweep"]
    selection: Selection
    started_utc: str
    duration_s: Duration
    argv: list[str]
    seed: int
    plan_sha256: str
    tool_version: str
    resumed: Count = 0


class Results(msgspec.Struct):
    """A whole results file."""

    schema: Schema
    run: Run
    code: Code
    env: Environment | None = None  # filled in by the first worker
    anchors: list[Anchor] = []
    points: list[Point] = []
    rules: Rules | None = None  # of a baseline; without: bench.model.rules.UNRECORDED
    other_sglang: list[OtherSglang] = []  # since 1.4.0
    outside: list[OutsideFile] = []  # since 1.5.0
    gpus: list[UsedGpu] = []  # since 1.6.0
