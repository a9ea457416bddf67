"""Compares bench_serving's figures of each mode with those of an engine in the same run. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.judge.serving import KINDS, ServedFigure, Unit, figures
from bench.model.served import CrossName, ServeResults
from bench.model.serving import Load

# The figure of ours that each of its is held against, by the kind of load. It has no steps: all requests of a decode
# are in flight at once, so what a request takes for a token is a step.
STREAMED: dict[str, CrossName] = {
    "first token": "ttft_us",
    "first token p99": "ttft_p99_us",
    "next token": "itl_us",
    "next token p99": "itl_p99_us",
    "output rate": "output_rate_per_s",
}
HELD: dict[str, dict[str, CrossName]] = {"decode": {"step": "tpot_us"}, "stream": STREAMED, "arrivals": STREAMED}


@dataclass(frozen=True)
class Crossed:
    """A figure of a mode under a load: ours, and bench_serving's. status and reason are those of bench_serving's."""

    load: Load
    mode: str
    name: str
    unit: Unit
    ours: float | None
    theirs: float | None
    status: str
    reason: str | None

    @property
    def ratio(self) -> float | None:
        """bench_serving's figure over ours."""
        return self.theirs / self.ours if self.ours and self.theirs else None


def crossed(results: ServeResults, wanted: Callable[[Load, str], bool] = lambda load, mode: True) -> list[Crossed]:
    """Every figure that bench_serving should report, by load, then by figure, then by mode."""
    ours: dict[tuple[Load, str, str], ServedFigure] = {
        (item.case.load, item.mode, item.name): item for item in figures(results, wanted)
    }
    found = []
    loads = dict.fromkeys(item.load for process in results.cross_checks for item in process.loads)
    for load in loads:
        for name, theirs in HELD[load.kind].items():
            for process in results.cross_checks:
                item = next((one for one in process.loads if one.load == load), None)
                if item is None or not wanted(load, process.mode):
                    continue
                mine = ours.get((load, process.mode, name))
                said = item.said.get(theirs) if item.status == "ok" else None
                unit = KINDS[name].unit
                value = mine.value if mine else None
                found.append(Crossed(load, process.mode, name, unit, value, said, item.status, item.reason))
    return found
