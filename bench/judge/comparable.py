"""Whether two files may be compared, which points match, and how much the machine itself changed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, log
from statistics import median

import msgspec

from bench.judge.statistics import log_limit
from bench.model.case import Case, ClockName
from bench.model.config import PlannedPoint
from bench.model.instrument import described
from bench.model.outside import is_outside, without_hash
from bench.model.records import Anchor, Code, Environment, Point, Results, Scalar

# What must be equal. Of a version only the parts that change what is measured count: see `_part`.
IDENTITY = ("gpu", "capability", "sm_count", "l2_bytes", "mem_bytes", "mig", "driver", "triton")
TOOLCHAIN = ("gpu", "driver", "cuda", "torch", "triton")
NOTED = ("torch", "cuda", "python", "sglang")
VERSION_PARTS = {"driver": 1, "triton": 2}  # a Triton minor brings another code generator

# Anchors of each clock, and whether more of it is less time.
ANCHORS: dict[ClockName, dict[str, bool]] = {
    "graph": {"empty_kernel_graph": False, "copy_bandwidth": True, "gather": False},
    "eager": {"empty_kernel_eager": False},
    "work": {},
}

Key = tuple[Case, str, ClockName]
GpuPair = tuple[int | None, int | None]  # places in the lists of GPUs of two files


def environment_refusals(before: Environment | None, after: Environment | None) -> list[str]:
    """Reasons why figures of these machines cannot be compared."""
    if before is None or after is None:
        return [f"the {'baseline' if before is None else 'result'} does not say on which machine it was made"]
    found = []
    for name in IDENTITY:
        old, new = _part(name, before.identity.get(name)), _part(name, after.identity.get(name))
        if old is None or new is None:
            found += [f"{name} is unknown in the {'baseline' if old is None else 'result'}"] * (name != "mig")
        elif old != new:
            found.append(f"{name} is {new}, the baseline's is {old}")
    return found


def environment_notes(before: Environment | None, after: Environment | None) -> list[str]:
    """Differences that are worth knowing but forbid nothing."""
    if before is None or after is None:
        return []
    pairs = {name: (before.identity.get(name), after.identity.get(name)) for name in NOTED}
    return [f"{name} is {new}, the baseline's is {old}" for name, (old, new) in pairs.items() if old != new]


def apart(before: Environment | None, after: Environment | None) -> str | None:
    """What besides the code differs and changes all times: the GPU, or what compiles and drives it."""
    if before is None or after is None:
        return None
    pairs = {name: (before.identity.get(name), after.identity.get(name)) for name in TOOLCHAIN}
    found = [
        f"{name} is {old} in A, {new} in B"
        for name, (old, new) in pairs.items()
        if _part(name, old) != _part(name, new)
    ]
    return "; ".join(found) or None


def _part(name: str, value: Scalar) -> Scalar:
    if name in VERSION_PARTS and isinstance(value, str):
        return ".".join(value.split(".")[: VERSION_PARTS[name]])
    return value


def counting_refusals(
    before: Environment | None, after: Environment | None, pairs: Sequence[tuple[Point, Point]], *, counts_only: bool
) -> list[str]:
    """Reasons why counted work cannot be compared.

    Counts are the same on every machine; binaries belong to one Triton and GPU.
    """
    if before is None or after is None:
        return environment_refusals(before, after)
    if counts_only:
        return []
    found = []
    old, new = (side.identity.get("triton") for side in (before, after))
    if old is None or new is None:
        found.append(f"triton is unknown in the {'baseline' if old is None else 'result'}")
    elif old != new:
        found.append(f"Triton is {new}, the baseline's is {old}: no compiled figure can be compared, --counts-only can")
    return found + [
        f"compiled for capability {theirs}, the baseline for {mine}: no compiled figure can be compared"
        for mine, theirs in dict.fromkeys((_capabilities(old), _capabilities(new)) for old, new in pairs)
        if mine and theirs and mine != theirs
    ]


def _capabilities(point: Point) -> str:
    return " and ".join(sorted({str(kernel.capability) for kernel in point.work.compiled})) if point.work else ""


def instrument_refusals(before: Results, after: Results) -> list[str]:
    """Reasons why figures taken by these versions of the suite cannot be compared."""
    found = []
    if before.code.instrument != after.code.instrument:
        found.append(version_refusal(before.code, after.code))
    if before.run.seed != after.run.seed:
        found.append(f"the seed is {after.run.seed}, the baseline's is {before.run.seed}: the workloads differ")
    return found


def version_refusal(before: Code, after: Code) -> str:
    return (
        f"the suite's measuring code has changed: {described(after.bench_version)}, "
        f"the baseline was made with {described(before.bench_version)}"
    )


@dataclass(frozen=True)
class Match:
    """Points of both files by key, and those that only one file has, in the order of that file."""

    both: list[tuple[Point, Point]]
    missing: list[Point]  # in the baseline alone
    new: list[Point]  # in the result alone
    repeated: list[str] = field(default_factory=list)  # which points a file has more than once
    notes: list[str] = field(default_factory=list)  # which contenders are of another content of their file


def match(before: Iterable[Point], after: Iterable[Point], wanted: Callable[[Point], bool]) -> Match:
    """Pair the wanted points of two files. A contender of a file is compared with earlier contents of that file."""
    old, twice = _by_key(before, "baseline", wanted)
    new, again = _by_key(after, "result", wanted)
    changed = _changed_files(old, new)
    new = {(case, changed.get(name, name), clock): point for (case, name, clock), point in new.items()}
    return Match(
        both=[(point, new[key]) for key, point in old.items() if key in new],
        missing=[point for key, point in old.items() if key not in new],
        new=[point for key, point in new.items() if key not in old],
        repeated=twice + again,
        notes=[f"{then} is {now} now: its file has changed" for now, then in changed.items()],
    )


def without_new(match: Match) -> Match:
    """The match without the points that the baseline does not know. A note says how many those are."""
    notes = [unknown(len(match.new), len(match.new) + len(match.both))] if match.new else []
    return replace(match, new=[], notes=match.notes + notes)


def unknown(count: int, total: int) -> str:
    """The note on points that a baseline does not know."""
    return f"the baseline does not know {count} of {total} points: those are not judged"


def _changed_files(old: Iterable[Key], new: Iterable[Key]) -> dict[str, str]:
    """Name now -> name then of contenders whose file has another content, where either side has one content alone."""
    then, now = ({name for _, name, _ in keys if is_outside(name)} for keys in (old, new))
    found = {}
    for name in sorted(now - then):
        of_old, of_new = ([one for one in names if without_hash(one) == without_hash(name)] for names in (then, now))
        if len(of_old) == len(of_new) == 1:
            found[name] = of_old[0]
    return found


def _by_key(points: Iterable[Point], name: str, wanted: Callable[[Point], bool]) -> tuple[dict[Key, Point], list[str]]:
    """The wanted points of a file, and which of them it has more than once."""
    found: dict[Key, Point] = {}
    repeated = []
    for point in filter(wanted, points):
        if point.key in found:
            repeated.append(f"{point.contender}, {point.case.label} is more than once in the {name}")
        found[point.key] = point
    return found, repeated


def planned(point: Point) -> PlannedPoint:
    return PlannedPoint(point.case, point.contender, point.clock)


def point_refusal(before: Point, after: Point) -> str | None:
    """Why this one point was not measured in the same way on both sides."""
    for name, old, new in (
        ("nodes", before.nodes, after.nodes),
        ("least bytes", before.minimum_bytes, after.minimum_bytes),
        ("index sets", before.cache and before.cache.index_sets, after.cache and after.cache.index_sets),
        ("cache flush", before.cache and before.cache.flushed, after.cache and after.cache.flushed),
    ):
        if old != new:
            return f"measured differently: {name} {new}, baseline {old}"
    return None


def unsound(point: Point) -> str | None:
    """Why a point with the status `ok` has no usable figures: its output is unverified, or a figure is invalid."""
    if point.check is None:
        return "its output was not checked against the oracle"
    if not point.check.passed:
        return "its output failed the check against the oracle"
    if point.clock == "work":
        if point.work is None:
            return "it has no counts"
        counts = msgspec.structs.asdict(point.work.counts)
        if negative := [name for name, value in counts.items() if value < 0]:
            return f"{negative[0]} is {counts[negative[0]]}; expected a count"
        return None if counts["launches"] else "it launched nothing"
    for value in (block for item in point.rounds for block in item.blocks_us):
        if not (isfinite(value) and value > 0):
            return f"{value} us is not a valid time; expected one above 0"
    return "a round has no block" if any(not item.blocks_us for item in point.rounds) else None


def throttled(points: Sequence[Point]) -> list[str]:
    """Reasons for a lowered clock seen in any round."""
    return sorted({reason for point in points for item in point.rounds for reason in item.throttle})


@dataclass(frozen=True)
class Shift:
    """How much the machine changed, by the anchors: log time of the result over the baseline, each and the median."""

    by_anchor: dict[str, float]
    log_shift: float


def point_shift(before: Results, after: Results, old: Point, new: Point) -> Shift | None:
    """The machine's change from the GPU of a point in one file to that of the same point in the other."""
    return anchor_shift(before.anchors, after.anchors, old.clock, (old.gpu, new.gpu))


def anchor_shift(
    before: Sequence[Anchor], after: Sequence[Anchor], clock: ClockName, gpus: GpuPair = (None, None)
) -> Shift | None:
    """The machine's own change between two runs, from code that this repository cannot change; None without anchors.

    gpus: the indices of the GPUs whose anchors count; None means all of a run.
    """
    found = {}
    for name, inverse in ANCHORS[clock].items():
        old, new = _anchor(before, name, gpus[0]), _anchor(after, name, gpus[1])
        if old and new:
            found[name] = log(old / new) if inverse else log(new / old)
    return Shift(found, median(found.values())) if found else None


def anchor_refusals(shift: Shift | None, clock: ClockName, limit_pct: float) -> list[str]:
    """Why the anchors forbid a comparison: there are too few of them, or they moved too far."""
    if shift is None or set(shift.by_anchor) != set(ANCHORS[clock]):
        missing = sorted(set(ANCHORS[clock]) - set(shift.by_anchor if shift else ()))
        return [f"{clock} clock: no anchor {', '.join(missing)} in both files"]
    limit = log_limit(limit_pct)
    return [
        f"{clock} clock: anchor {name} moved by {100 * value:+.1f} %, at most {limit_pct:g} % allowed: "
        "the machine is not in the state of the baseline"
        for name, value in shift.by_anchor.items()
        if not abs(value) <= limit  # a NaN is no quiet anchor
    ]


def gpu_pairs(pairs: Iterable[tuple[Point, Point]]) -> list[GpuPair]:
    """Each pair of GPUs that points of the two files ran on, once."""
    return list(dict.fromkeys((old.gpu, new.gpu) for old, new in pairs))


def _anchor(anchors: Sequence[Anchor], name: str, gpu: int | None) -> float | None:
    values = [
        value
        for anchor in anchors
        if anchor.name == name and (gpu is None or anchor.gpu in (gpu, None))
        for value in anchor.values
    ]
    return median(values) if values else None
