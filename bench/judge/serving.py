"""The figures in a file of `bench serve`: each figure of each mode, spreads, ratios, and whether modes agree. Pure.

A figure of a process is a median, a quantile or a rate of its samples. A figure of a mode is the geometric mean of its
processes. A ratio is taken within a repeat, in which all modes ran one after another; of several repeats, it is the
geometric mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, isfinite, log
from statistics import geometric_mean, median
from typing import Any, Literal

from bench.judge.answers import NONE, AnswerCheck, answer_checks, wrong
from bench.judge.comparable import environment_refusals
from bench.judge.served_spread import Spread, interval
from bench.model.served import CLOCK, EngineProcess, ServedLoad, ServeResults
from bench.model.serving import Load, ServeCase, engines, prompt_lengths

Unit = Literal["us", "bytes", "tokens/s"]
FAR_APART = 1.0  # a spread of processes from which on no mean stands for them: say one compiled, one found a cache
LEAST_FOR_P99 = 100  # samples; of fewer, the 99th percentile is the largest and no quantile


@dataclass(frozen=True)
class Kind:
    """One kind of figure: its unit, and how it is computed from a load's samples (None: they do not have it)."""

    unit: Unit
    of: Callable[[ServedLoad], float | None]


def _median(name: str) -> Callable[[ServedLoad], float | None]:
    return lambda load: median(values) if (values := _samples(load, name)) else None


def _p99(name: str) -> Callable[[ServedLoad], float | None]:
    """The nearest-rank 99th percentile."""

    def of(load: ServedLoad) -> float | None:
        values = sorted(_samples(load, name))
        return values[ceil(0.99 * len(values)) - 1] if len(values) >= LEAST_FOR_P99 else None

    return of


def _samples(load: ServedLoad, name: str) -> list[float]:
    return load.samples.get(name, [])  # type: ignore[call-overload, no-any-return]  # a name of SampleName


def _prefill_rate(load: ServedLoad) -> float | None:
    taken = _median("prefill_us")(load)
    return sum(prompt_lengths(load.load)) / taken * 1e6 if taken else None


def _output_rate(load: ServedLoad) -> float | None:
    spans = _samples(load, "span_us")
    return sum(_samples(load, "tokens")) / sum(spans) * 1e6 if spans else None


KINDS: dict[str, Kind] = {
    "step": Kind("us", _median("step_us")),
    "prefill": Kind("us", _median("prefill_us")),
    "prefill rate": Kind("tokens/s", _prefill_rate),
    "first token": Kind("us", _median("ttft_us")),
    "first token p99": Kind("us", _p99("ttft_us")),
    "next token": Kind("us", _median("gap_us")),
    "next token p99": Kind("us", _p99("gap_us")),
    "output rate": Kind("tokens/s", _output_rate),
    "prepare": Kind("us", _median("prepare_us")),
    "start": Kind("us", _median("start_us")),
    "first request": Kind("us", _median("first_request_us")),
    "second request": Kind("us", _median("second_request_us")),
    "memory": Kind("bytes", _median("gpu_bytes")),
}
MAIN = (
    "step",
    "prefill",
    "first token",
    "next token",
    "output rate",
    "start",
)  # what a comparison of modes begins with


@dataclass(frozen=True)
class ServedFigure:
    """One figure of one mode under one load.

    by_repeat     its value in each sound process
    to_reference  it over the reference mode's, to_none it over the mode's without LoRA: of a time, below 1 is faster
    """

    case: ServeCase
    mode: str
    name: str
    unit: Unit
    status: str
    reason: str | None
    by_repeat: dict[int, float] = field(default_factory=dict)
    to_reference: float | None = None
    to_none: float | None = None

    @property
    def value(self) -> float | None:
        """None unless the status is ok."""
        return geometric_mean(self.by_repeat.values()) if self.by_repeat and self.status == "ok" else None

    @property
    def spread(self) -> float | None:
        """Largest over smallest process, minus 1; None for one process."""
        values = [*self.by_repeat.values()]
        return max(values) / min(values) - 1 if len(values) > 1 and self.status == "ok" else None

    @property
    def far_apart(self) -> bool:
        """Whether its processes differ so much that their mean says nothing of either."""
        return self.spread is not None and self.spread >= FAR_APART

    def as_fields(self, reference: str) -> dict[str, Any]:
        """The fields for JSON or CSV; None where there is no value."""
        return {
            "case": self.case.key,
            "contender": self.mode,
            "clock": CLOCK,
            "figure": self.name,
            "unit": self.unit,
            "status": self.status,
            "reason": self.reason,
            "value": self.value,
            "processes": len(self.by_repeat),
            "spread": self.spread,
            f"to_{reference}": self.to_reference,
            "to_none": self.to_none,
        }


def figures(results: ServeResults, wanted: Callable[[Load, str], bool] = lambda load, mode: True) -> list[ServedFigure]:
    """Every figure that some mode has, by load in the order of the plan, then by figure, then by mode."""
    checks, modes = wrong(answer_checks(results)), engines(results.run.modes)
    found = []
    for load in loads_of(results):
        for name, kind in KINDS.items():
            values = {mode: _by_repeat(results, load, mode, kind) for mode in modes}
            if not any(values.values()):
                continue
            reference, none = values.get(results.serving.reference, {}), values.get(NONE, {})
            for mode in modes:
                if not wanted(load, mode) or (name == "prepare" and mode == NONE):
                    continue
                status, reason = _status(results, load, mode, values[mode], checks.get(mode))
                sound = values[mode] if status == "ok" else {}
                found.append(
                    ServedFigure(
                        ServeCase(results.setup, load),
                        mode,
                        name,
                        kind.unit,
                        status,
                        reason,
                        values[mode],
                        _ratio(sound, reference),
                        _ratio(sound, none),
                    )
                )
    return found


def loads_of(results: ServeResults) -> list[Load]:
    """Every load that some process ran, except the one for answers."""
    asked = [item.load for process in results.processes for item in process.loads]
    return [load for load in dict.fromkeys(asked) if load.kind != "answers"]


def _by_repeat(results: ServeResults, load: Load, mode: str, kind: Kind) -> dict[int, float]:
    found = {}
    for process in results.processes:
        for item in process.loads:
            if process.mode == mode and item.load == load and item.status == "ok":
                value = kind.of(item)
                if value is not None:
                    found[process.repeat] = value
    return found


def _ratio(mine: dict[int, float], others: dict[int, float]) -> float | None:
    both = mine.keys() & others.keys()
    return geometric_mean([mine[repeat] / others[repeat] for repeat in both]) if both else None


def _status(
    results: ServeResults, load: Load, mode: str, values: dict[int, float], wrong: AnswerCheck | None
) -> tuple[str, str | None]:
    if wrong is not None:
        return "wrong", wrong.reason
    if values:
        return "ok", None
    for process in reversed(results.processes):
        if process.mode == mode:
            for item in process.loads:
                if item.load == load and item.status != "ok":
                    return item.status, item.reason
            if process.status != "ok":
                return process.status, process.reason
    return "skipped", "not measured yet"


@dataclass(frozen=True)
class ServedChange:
    """A figure in two files. ratio: the second over the first; spread: the larger of theirs.

    low, high   95 % of the ratio, by what processes of any mode differ by; None: nothing says
    """

    before: ServedFigure
    after: ServedFigure
    low: float | None = None
    high: float | None = None

    @property
    def ratio(self) -> float | None:
        old, new = self.before.value, self.after.value
        return new / old if old is not None and new is not None else None

    @property
    def spread(self) -> float | None:
        return max((item for item in (self.before.spread, self.after.spread) if item is not None), default=None)

    def as_fields(self) -> dict[str, Any]:
        """For a reader of JSON or CSV; None where there is nothing."""
        return {
            "case": self.before.case.key,
            "contender": self.before.mode,
            "clock": CLOCK,
            "figure": self.before.name,
            "unit": self.before.unit,
            "before": self.before.value,
            "after": self.after.value,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "spread": self.spread,
        }


@dataclass(frozen=True)
class ServedComparison:
    """Two files side by side. warnings: reasons why their figures are not comparable."""

    changes: list[ServedChange]
    warnings: list[str]
    missing: int
    new: int


def compare(
    before: ServeResults, after: ServeResults, wanted: Callable[[Load, str], bool] = lambda load, mode: True
) -> ServedComparison:
    """Every figure that both files have for a case and mode, in the first file's order."""
    warnings = environment_refusals(before.env, after.env)
    if before.serving != after.serving:
        warnings.append("[serving] of bench.toml differs, so samples were not taken in the same way")
    all_old, all_new = figures(before), figures(after)
    spreads = _spreads([*all_old, *all_new])  # of all modes, whatever is wanted
    old, new = (
        {(item.case, item.mode, item.name): item for item in side if wanted(item.case.load, item.mode)}
        for side in (all_old, all_new)
    )
    both = [_change(item, new[key], spreads[item.case, item.name]) for key, item in old.items() if key in new]
    return ServedComparison(both, warnings, len(old.keys() - new.keys()), len(new.keys() - old.keys()))


def _spreads(of: Sequence[ServedFigure]) -> dict[tuple[ServeCase, str], Spread]:
    found: dict[tuple[ServeCase, str], Spread] = {}
    for item in of:
        spread = found.setdefault((item.case, item.name), Spread())
        if item.value is not None:
            spread.add([log(value) for value in item.by_repeat.values()])
    return found


def _change(before: ServedFigure, after: ServedFigure, spread: Spread) -> ServedChange:
    if before.value is None or after.value is None:
        return ServedChange(before, after)
    error = spread.error(len(before.by_repeat), len(after.by_repeat))
    low, high = interval(log(after.value / before.value), error, spread.free)
    return ServedChange(before, after, *(exp(bound) if isfinite(bound) else None for bound in (low, high)))


@dataclass(frozen=True)
class Failure:
    """A load or a process without a figure, and the reason."""

    mode: str
    repeat: int
    what: str
    status: str
    reason: str


def failures(results: ServeResults) -> list[Failure]:
    """All failures, in the file's order."""
    found = []
    for process in results.processes:
        if process.status != "ok":
            found.append(_failure(process, "the process", process.status, process.reason))
        for item in process.loads:
            if item.status != "ok" and item.reason != process.reason:
                found.append(_failure(process, item.load.label, item.status, item.reason))
        found += [_failure(process, "trace", "error", note) for note in process.trace_notes]
    return found


def _failure(process: EngineProcess, what: str, status: str, reason: str | None) -> Failure:
    return Failure(process.mode, process.repeat, what, status, reason or "")
