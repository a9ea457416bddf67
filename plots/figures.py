"""The figures by name: what each needs, and drawing one or all that the given files allow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.judge.history import History
from bench.judge.times import judge_pairs
from bench.model.pairs import PairRun
from bench.model.records import Results, ResultsError
from bench.model.served import ServeResults
from plots.inputs import Inputs, together

View = Callable[[Path], History]  # a folder of a history -> what it shows


@dataclass(frozen=True)
class Kind:
    """One figure: its module, its input, and what it shows."""

    module: str
    source: str  # results, pairs, report, history, served, or traced (served, with traces)
    shows: str


FIGURES: dict[str, Kind] = {
    "history": Kind("history", "history", "Across commits: where a point changed, at which commit and by how much"),
    "heatmap": Kind("heatmap", "results", "How many times faster than each peer, by batch or tokens and rank"),
    "scaling": Kind("scaling", "results", "Time against tokens, rank, adapters and the longest sequence"),
    "bandwidth": Kind("bandwidth", "results", "Bytes a second achieved, beside a copy and an empty kernel"),
    "rounds": Kind(
        "rounds", "results", "Every round of every point: how well it repeats, and whether it has two modes"
    ),
    "noise": Kind("noise", "pairs", "The same code against itself: the noise of the machine, and what a gate can see"),
    "serve": Kind("serving", "served", "A real engine in every mode: time of a decode step, a prefill, the next token"),
    "where": Kind("where", "traced", "Where a pass of a real engine goes, by site of the model and mode"),
    "gate": Kind("gate", "report", "The verdicts of a gate run, with their intervals and the limit"),
}
NEEDS = {
    "results": "a results file (bench sweep)",
    "pairs": "a record of pairs (bench gate --self-check -o FILE)",
    "report": "a report of the gate (bench gate -f json=FILE) or a record of pairs (bench gate -o FILE)",
    "history": "a folder of a history (bench history run)",
    "served": "a file of bench serve",
    "traced": "a file of bench serve --where",
}


def drawable(inputs: Inputs, view: View) -> list[tuple[str, str, Any]]:
    """(figure, suffix for its file, argument of its `draw`) for each figure that the files allow."""
    found: list[tuple[str, str, Any]] = []
    given: dict[str, list[tuple[str, Any]]] = {
        "results": [("", together(inputs.results))] if inputs.results else [],
        "pairs": _named([(path.stem, run) for path, run in inputs.pairs if _same_code(run)]),
        "report": _named(
            [(path.stem, report) for path, report in inputs.reports]
            + [(path.stem, judge_pairs(run)) for path, run in inputs.pairs]
        ),
        "served": _named([(path.stem, item) for path, item in inputs.served if _served_times(item)]),
        "traced": _named([(path.stem, item) for path, item in inputs.served if _traced(item)]),
        "history": _named([(path.name, view(path)) for path in inputs.histories]),
    }
    for name, kind in FIGURES.items():
        for suffix, content in given[kind.source]:
            if name not in ("scaling", "bandwidth", "heatmap") or _has_times(content):
                found.append((name, suffix, content))
    return found


def _served_times(results: ServeResults) -> bool:
    from plots.serving import data

    return bool(data(results))


def _traced(results: ServeResults) -> bool:
    return any(process.traces for process in results.processes)


def _has_times(results: Results) -> bool:
    return any(point.clock in ("graph", "eager") for point in results.points)


def _same_code(run: PairRun) -> bool:
    """Whether what differs between the sides is noise alone."""
    return run.use == "self-check" and not any(point.extra_share for point in run.points)


def _named(items: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """One needs no name of its own, several take that of their file."""
    return [(f"-{stem}" if len(items) > 1 else "", content) for stem, content in items]


def draw(figure: str, inputs: Inputs, view: View, path: Path) -> list[Path]:
    """Write one figure to `path`, or all, with `path` as the prefix of their names.

    Raises ResultsError if there is none.
    """
    chosen = [item for item in drawable(inputs, view) if figure in ("all", item[0])]
    if not chosen:
        needed = "a file of the suite" if figure == "all" else NEEDS[FIGURES[figure].source]
        raise ResultsError(f"figure {figure}: the given files have nothing to draw it from; expected {needed}")
    written = []
    for name, suffix, content in chosen:
        alone = figure != "all" and not suffix
        target = path if alone else path.with_name(f"{path.stem}-{name}{suffix}.png")
        written += draw_one(name, content, target)
    return written


def draw_one(figure: str, content: Any, path: Path) -> list[Path]:
    """Write one figure as PNG and SVG. `content` comes from `drawable`."""
    drawn: list[Path] = importlib.import_module(f"plots.{FIGURES[figure].module}").draw(content, path)
    return drawn
