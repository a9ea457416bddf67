"""How long each part of each process in a file of `bench serve` took. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from bench.model.served import START_PARTS, SampleName, ServeResults, StartPart
from bench.model.serving import Load


@dataclass(frozen=True)
class Spent:
    """Where the time of one process went, us; None: its record does not say.

    parts     of its start, by the sample's name
    rest      of its start, which no part tells
    waited    what its first request took longer than the same request again
    measured  loads, the first request's aside; traced: under the profiler
    """

    mode: str
    repeat: int
    start: float | None
    parts: dict[StartPart, float]
    rest: float | None
    waited: float | None
    measured: float
    traced: float
    whole: float


def spent(results: ServeResults) -> list[Spent]:
    """Every process, in the file's order."""
    found = []
    for process in results.processes:
        samples = next((item.samples for item in process.loads if item.load.kind == "start"), {})
        start, first, second = (_only(samples, name) for name in ("start_us", "first_request_us", "second_request_us"))
        parts = {name: value for name in START_PARTS if (value := _only(samples, name)) is not None}
        found.append(
            Spent(
                process.mode,
                process.repeat,
                start,
                parts,
                max(0.0, start - sum(parts.values())) if start is not None and parts else None,
                max(0.0, first - second) if first is not None and second is not None else None,
                1e6 * sum(item.duration_s for item in process.loads if item.load.kind != "start"),
                1e6 * process.traced_s,
                1e6 * process.duration_s,
            )
        )
    return found


@dataclass(frozen=True)
class CompiledUnder:
    """Kernels that Triton compiled in one process under one load (`start`: until its first requests were answered)."""

    mode: str
    repeat: int
    load: Load
    kernels: int
    took: float  # us, of all of them; several schedulers compile side by side
    by_name: dict[str, int]  # how many of each name, what took longest first; empty where the record has no names


def compiled(results: ServeResults) -> list[CompiledUnder]:
    """Every load under which something was compiled, in the file's order."""
    return [
        CompiledUnder(process.mode, process.repeat, item.load, len(times), sum(times), _by_name(item.compiled, times))
        for process in results.processes
        for item in process.loads
        if (times := item.samples.get("compile_us"))
    ]


def _by_name(names: list[str], times: list[float]) -> dict[str, int]:
    took = dict.fromkeys(names, 0.0)
    for name, time in zip(names, times, strict=False):
        took[name] += time
    return {name: names.count(name) for name in sorted(took, key=lambda name: -took[name])}


def _only(samples: dict[SampleName, list[float]], name: SampleName) -> float | None:
    values = samples.get(name)
    return values[0] if values else None
