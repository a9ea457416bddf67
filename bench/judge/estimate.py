"""Samples to estimates. Pure. A round's value is the median of its blocks, and rounds are the replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import geometric_mean, mean, median, stdev

from bench.model.records import Point, Results, Round

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its interval in the same unit; the interval is None below two rounds."""

    value: float
    low: float | None
    high: float | None
    rounds: int


def round_values(rounds: Sequence[Round], *, host: bool = False) -> list[float]:
    """The median of each round's blocks, in us."""
    blocks = [item.host_blocks_us if host else item.blocks_us for item in rounds]
    return [median(values) for values in blocks if values]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Geometric mean of the rounds, with Student's interval on the log scale. None without rounds."""
    if not values:
        return None
    logs = [log(value) for value in values]
    center = mean(logs)
    if len(logs) < 2:
        return Estimate(exp(center), None, None, 1)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1)) * stdev(logs) / sqrt(len(logs))
    return Estimate(exp(center), exp(center - half), exp(center + half), len(logs))


def point_estimate(point: Point, *, host: bool = False) -> Estimate | None:
    """Time of one call in us (host: time to enqueue it). None if the point was not sampled."""
    return estimate(round_values(point.rounds, host=host))


def anchor_value(results: Results, name: str, gpu: int | None = None) -> float | None:
    """Median of an anchor over processes, on one GPU of the run or on all. None if it was not measured."""
    anchors = [item for item in results.anchors if item.name == name and (gpu is None or item.gpu in (gpu, None))]
    values = [value for anchor in anchors for value in anchor.values]
    return median(values) if values else None


@dataclass(frozen=True)
class Floor:
    """The larger of two bounds, in us: the launch floor, and the least bytes over the measured copy bandwidth."""

    value_us: float
    kind: str  # "launch" or "bytes"


def floor(point: Point, copy_bytes_per_us: float | None) -> Floor | None:
    """The time that no implementation can beat at this point. None without a measured launch floor."""
    if not point.floor_us:
        return None
    launch = median(point.floor_us)
    if copy_bytes_per_us and point.minimum_bytes and point.minimum_bytes / copy_bytes_per_us > launch:
        return Floor(point.minimum_bytes / copy_bytes_per_us, "bytes")
    return Floor(launch, "launch")


def process_spread(point: Point) -> float | None:
    """Standard deviation of log time between processes. None for fewer than two."""
    processes = sorted({item.process for item in point.rounds})
    of_process = [round_values([item for item in point.rounds if item.process == process]) for process in processes]
    return log_sd([geometric_mean(values) for values in of_process])


def log_sd(values: Sequence[float]) -> float | None:
    """Standard deviation of log values, that is, a relative spread. None for fewer than two values."""
    return stdev([log(value) for value in values]) if len(values) > 1 else None
