"""What the running of pairs records: raw blocks of both sides by round, in a JSON file of its own.

History of the format (semver, as in bench/model/store.py)
1.3.0  `gpus` lists the GPUs that points ran on; a point has the place of its own; gate.cases: limits of single cases
1.2.0  the use against-sglang, whose sides are two versions of SGLang
1.1.0  gate.wave, gate.clear_confidence: flagged points may be cleared before all confirming rounds are taken; open_s
1.0.0  first version
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from bench.model import store
from bench.model.case import Case, ClockName
from bench.model.config import Gate, Measure, PlannedPoint
from bench.model.faults import case_faults, name_of, twice
from bench.model.fields import AtLeastOne, Count, Duration, Positive, Some
from bench.model.records import Environment, Status, UsedGpu
from bench.model.verdict import Subject, Use

PAIRS_NAME, PAIRS_VERSION = "csgmv-bench-pairs", "1.3.0"
Stage = Literal["screen", "confirm"]
SideName = Literal["A", "B"]


class PairSchema(msgspec.Struct):
    """Name and version of the format."""

    name: str = PAIRS_NAME
    version: str = PAIRS_VERSION


class PairRound(msgspec.Struct):
    """One layout of each side in one pair of processes, sampled in turns; `first` took the first and the last turn."""

    stage: Stage
    process: Count
    first: SideName
    a_layout_seed: int
    b_layout_seed: int
    a_blocks_us: Some[Positive]
    b_blocks_us: Some[Positive]
    a_sm_mhz: list[Count | None] = []
    b_sm_mhz: list[Count | None] = []
    throttle: list[str] = []

    @property
    def log_ratio(self) -> float:
        """log(median of B's blocks / median of A's)."""
        return log(median(self.b_blocks_us) / median(self.a_blocks_us))


class PairPoint(msgspec.Struct):
    """A point on both sides. `side` says on which one it failed, if it did."""

    case: Case
    contender: str
    clock: ClockName
    extra_share: Duration = 0.0  # work planted in B: only the gate's own test does that
    status: Status = "ok"
    side: SideName | None = None
    reason: str | None = None
    nodes: AtLeastOne | None = None
    rounds: list[PairRound] = []
    wall_s: Duration = 0.0
    gpu: Count | None = None  # place in PairRun.gpus, of both sides and all rounds

    @property
    def planned(self) -> PlannedPoint:
        return PlannedPoint(self.case, self.contender, self.clock)

    def of_stage(self, stage: Stage) -> list[PairRound]:
        return [item for item in self.rounds if item.stage == stage]


class PairRun(msgspec.Struct):
    """One interleaved run of two sides."""

    use: Use
    a: Subject
    b: Subject
    gate: Gate
    measure: Measure
    seed: int
    started_utc: str
    argv: list[str]
    env: Environment | None = None
    points: list[PairPoint] = []
    duration_s: Duration = 0.0
    start_s: Duration = 0.0  # of the duration: until both workers had their imports
    open_s: Duration = 0.0  # of the duration: opening and ending measuring processes
    selection: list[str] = []
    gpus: list[UsedGpu] = []
    schema: PairSchema = msgspec.field(default_factory=PairSchema)


def observations(rounds: list[PairRound]) -> list[float]:
    """Independent log ratios of one stage: one for each pair of processes if there are three or more, else each round.

    Rounds of one pair of processes share a part of their noise, so their mean is one observation.
    """
    by_process: dict[int, list[float]] = {}
    for item in rounds:
        by_process.setdefault(item.process, []).append(item.log_ratio)
    if len(by_process) >= 3:
        return [sum(values) / len(values) for values in by_process.values()]
    return [item.log_ratio for item in rounds]


def write(path: Path, run: PairRun) -> None:
    """Write the file in one step."""
    store.write(path, run)


def read(path: Path) -> PairRun:
    """Read a file of pairs. Raises ResultsError for a missing, corrupt, foreign, newer-major or unsound file."""
    return store.read_document(path, PairRun, PAIRS_NAME, PAIRS_VERSION, faults)


def faults(run: PairRun) -> Iterator[str]:
    """Faults of a record of pairs, as bench/model/faults.py has them for results."""
    keys = []
    for index, point in enumerate(run.points):
        where = f"points[{index}] ({name_of(point.case, point.contender, point.clock)})"
        keys.append((where, (point.planned, point.extra_share)))
        yield from _point_faults(where, point)
        if point.gpu is not None and point.gpu >= len(run.gpus):
            yield f"{where}.gpu is {point.gpu}; expected one of the {len(run.gpus)} that are listed"
    yield from twice("the case, contender and clock", keys)


def _point_faults(place: str, point: PairPoint) -> Iterator[str]:
    yield from case_faults(place, point.case)
    if point.status != "ok" and not point.reason:
        yield f"{place}.reason is missing; expected why it is {point.status}"
    if point.clock not in ("graph", "eager"):
        yield f"{place}.clock is {point.clock}; expected graph or eager, which pairs are timed by"
    rounds = [
        (f"{place}.rounds[{index}]", (item.stage, item.process, item.a_layout_seed, item.b_layout_seed))
        for index, item in enumerate(point.rounds)
    ]
    yield from twice("the stage, process and layouts", rounds)
