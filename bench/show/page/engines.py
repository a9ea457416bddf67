"""Files of `bench serve` on the page: figures as plain values for the browser, the rest as tables and stacked bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.engine import trace
from bench.judge.answers import AnswerCheck, answer_checks, bound_of, planted
from bench.judge.crossing import crossed
from bench.judge.serving import KINDS, ServedFigure, Unit, failures, figures
from bench.judge.spent import compiled
from bench.judge.where import Where, where
from bench.model.served import SITES, ServeResults, Site
from bench.model.serving import PEFT
from bench.show import again
from bench.show.amounts import MARKS, amount
from bench.show.page.content import Content, head, origin
from bench.show.serving import COMPILED as COMPILED
from bench.show.serving import COMPILED_HEADS as COMPILED_HEADS
from bench.show.serving import compiled_rows, setup_words, shown, where_lines
from bench.show.sites import COLORS, NAMES

Served = tuple[str, ServeResults]
# What a figure is divided by where it is shown, and its unit there: by the largest value of its kind.
SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    "us": ((1e6, "s"), (1e3, "ms"), (1.0, "us")),
    "bytes": ((2.0**30, "GiB"),),
    "tokens/s": ((1.0, "tokens/s"),),
}
ANSWERS = {"ok": "alike", "wrong": "WRONG", "unknown": "unknown", "other": "no LoRA"}


def run(name: str, results: ServeResults) -> dict[str, Any]:
    """One file. A value is in the unit that its kind is shown in, and so are its values by repeat of the mode."""
    found = sorted(figures(results), key=lambda item: item.case.load.kind == "start")  # what is served comes first
    checks = _told_of_answers(results)
    scales = {figure.name: _scale(found, figure.name) for figure in found}
    return {
        **head(name, results),
        "setup": setup_words(results.setup),
        "reference": results.serving.reference,
        "points": [
            _point(figure, *scales[figure.name])
            | {"answers": checks.get(figure.mode), "again": again.serve(results, figure)}
            for figure in found
        ],
    }


def _scale(of: Iterable[ServedFigure], name: str) -> tuple[float, str]:
    largest = max((value for item in of if item.name == name for value in item.by_repeat.values()), default=0.0)
    scales = SCALES[KINDS[name].unit]
    return next((scale for scale in scales if largest >= scale[0]), scales[-1])


def _point(figure: ServedFigure, factor: float, unit: str) -> dict[str, Any]:
    load = figure.case.load
    values = {repeat: value / factor for repeat, value in sorted(figure.by_repeat.items())}
    sound = [*values.values()] if figure.status == "ok" else []
    fields = {
        "kind": f"{load.kind}|{figure.name}",
        "title": f"{load.kind}: {figure.name}",
        "label": load.label.removeprefix(f"{load.kind} "),
        "case": figure.case.key,
        "contender": figure.mode,
        "unit": unit,
        "status": figure.status,
        "reason": figure.reason,
        "value": figure.value / factor if figure.value is not None else None,
        "low": min(sound, default=None) if len(sound) > 1 else None,
        "high": max(sound, default=None) if len(sound) > 1 else None,
        "spread": figure.spread,
        "far": shown(figure) if figure.far_apart else None,
        "to_reference": figure.to_reference,
        "to_none": figure.to_none,
        "repeats": [[repeat, value] for repeat, value in values.items()],
    }
    return {key: value for key, value in fields.items() if value not in (None, [])}


def _told_of_answers(results: ServeResults) -> dict[str, str]:
    """Of each mode how it answers, beside each reference."""
    found: dict[str, list[str]] = {}
    for check in answer_checks(results):
        if check.mode != check.reference:
            found.setdefault(check.mode, []).append(f"{_verdict(check)} beside {check.reference}'s")
    return {mode: ", ".join(told) for mode, told in found.items()}


def _verdict(check: AnswerCheck) -> str:
    return "equal to the bit" if check.equal else ANSWERS[check.status]


@dataclass(frozen=True)
class Answers:
    """Of one file whether modes answer alike; below it what the bound would see of planted faults."""

    caption: str
    rows: list[list[str]]
    planted: list[list[str]]


def answers(results: ServeResults) -> list[Answers]:
    """A table for each mode that others' answers are held against."""
    found, checks = [], answer_checks(results)
    for reference in dict.fromkeys(check.reference for check in checks):
        bound = bound_of(results, reference)
        caption = f"log-probabilities beside {reference}'s, nats"
        if bound is not None:
            caption += f"; at most {bound.mean_nats:.3g} in the mean and {bound.max_nats:.3g} anywhere are allowed"
        rows = [
            [check.mode, _verdict(check), _nats(check.mean_nats), _nats(check.max_nats),
             f"{check.changed}/{check.prompts}", check.reason or ""]
            for check in checks if check.reference == reference
        ]  # fmt: skip
        lost = planted(results) if reference == PEFT else {}
        seen = [
            [NAMES[site], "seen" if each.status == "wrong" else "NOT SEEN", _nats(each.mean_nats), _nats(each.max_nats)]
            for site, each in lost.items()
        ]
        found.append(Answers(caption, rows, seen))
    return found


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


@dataclass(frozen=True)
class Stack:
    """One bar: parts are (site, words that a touch shows, share of the widest bar in %)."""

    name: str
    total: str
    parts: list[tuple[Site, str, float]]


@dataclass(frozen=True)
class Stacks:
    """Where a pass of one load goes: a bar a mode and one of floors, the same as a table, and what is in neither."""

    title: str
    bars: list[Stack]
    heads: list[str]
    rows: list[list[str]]
    lines: list[str]

    @property
    def sites(self) -> list[tuple[str, str]]:
        """(Colour, words) of each site of a bar."""
        shown = {site for bar in self.bars for site, _, _ in bar.parts}
        return [(COLORS[site], NAMES[site]) for site in SITES if site in shown]


def stacks(results: ServeResults) -> list[Stacks]:
    """One of each traced load."""
    found = where(trace.anew(results))
    return [
        _stacks([item for item in found if item.load == load]) for load in dict.fromkeys(item.load for item in found)
    ]


def _stacks(of: Sequence[Where]) -> Stacks:
    columns: dict[str, dict[Site, float]] = {item.mode: item.by_site for item in of}
    if floors := {site: least for item in of for site, least in item.floors.items()}:
        columns["floor"] = floors
    widest = max(sum(column.values()) for column in columns.values()) or 1.0
    bars = [_stack(name, column, widest) for name, column in columns.items()]
    sites = [site for site in SITES if any(column.get(site) for column in columns.values())]
    rows = [[NAMES[site], *(_time(column.get(site)) for column in columns.values())] for site in sites]
    rows.append(["all kernels", *(_time(sum(column.values())) for column in columns.values())])
    lines = [line for item in of for line in where_lines(item)]
    per = of[0].per if len({item.per for item in of}) == 1 else "pass or trace"
    return Stacks(f"{of[0].load.label}: kernel time of a {per}", bars, ["site", *columns], rows, lines)


def _stack(name: str, column: dict[Site, float], widest: float) -> Stack:
    total = sum(column.values())
    parts = [
        (site, f"{NAMES[site]}: {_time(value)}, {100 * value / total:.1f} %", 100 * value / widest)
        for site in SITES
        if (value := column.get(site))
    ]
    return Stack(name, _time(total), parts)


def _time(value: float | None) -> str:
    return amount(value, "us") if value else "-"


def cross_checks(results: ServeResults) -> list[list[str]]:
    """bench_serving's figures beside ours: load, figure, mode, ours, theirs, difference."""
    return [
        [item.load.label, item.name, item.mode, amount(item.ours, item.unit),
         amount(item.theirs, item.unit) if item.theirs else MARKS.get(item.status, "-"),
         "-" if item.ratio is None else f"{100 * (item.ratio - 1):+.1f} %"]
        for item in crossed(results)
    ]  # fmt: skip


def compilations(results: ServeResults) -> list[list[str]]:
    """What Triton compiled, below COMPILED_HEADS."""
    return compiled_rows(compiled(results))


def failed(content: Content) -> list[list[str]]:
    """Every load or process without a figure, of every file: status, mode, what, file, reason."""
    return [
        [item.status, f"{item.mode}, process {item.repeat}", item.what, name, item.reason]
        for name, results in content.served
        for item in failures(results)
    ]


def origins(results: ServeResults) -> dict[str, str]:
    """How a file was made."""
    return {
        **origin(results),
        "seed": str(results.serving.seed),
        "engines": f"{len(results.processes)} of {results.run.planned}",
        "each engine": f"{setup_words(results.setup)}; attention by Triton, no prefill graphs, no prefix cache",
    }
