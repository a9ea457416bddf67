"""Words and small tables of the page: ratios of contenders, points without figures, and the origin of everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from statistics import geometric_mean, median

from bench.judge.figures import BASE, OURS, OWN, Figure, figures, with_lora
from bench.judge.serving import figures as served_figures
from bench.model import registry
from bench.model.case import OPS, Op
from bench.model.instrument import described
from bench.model.records import Point, Results
from bench.show.history import change_lines, failure_lines
from bench.show.history import heading as history_heading
from bench.show.page import engines, runs
from bench.show.page.content import Content, origin
from bench.show.tables import name_of

FIRST = 6  # cases that are named
ORDER = {name: place for place, name in enumerate(registry.names())}
# Recorded, and of use to a reader; a machine's name and serial numbers are not.
VOLATILE = (
    "driver_full",
    "power_limit_w",
    "max_sm_mhz",
    "max_mem_mhz",
    "ecc",
    "persistence",
    "cpu",
    "os",
    "python_full",
)


def title(content: Content) -> str:
    """What was measured, and on what."""
    if content.counted_only or not content.gpus:
        return "LoRA kernels: counted work of a launch, no times"
    kernels = content.results or content.pairs or content.reports or content.histories
    what = ["LoRA kernels"] * bool(kernels) + ["SGLang engines with LoRA"] * bool(content.served)
    return f"{' and '.join(what)} on {' and '.join(content.gpus)}"


def subtitle(content: Content) -> str:
    """Which commits, from when, of how many files."""
    found = [(results.code, results.run.started_utc) for _, results in content.results]
    found += [(served.code, served.run.started_utc) for _, served in content.served]
    commits = dict.fromkeys(code.short or "unknown" for code, _ in found)
    days = sorted({started[:10] for _, started in found})
    parts = [f"commit {', '.join(commits)}"] if commits else []
    parts += [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    for history in [history for _, history in content.histories][:1]:
        parts.append(f"commits {history.line[0].short} to {history.line[-1].short}")
    files, stores = len(content.files), len(dict(content.histories))
    parts += [f"{files} file{'s' * (files > 1)}"] if files else []
    parts += [f"{stores} histor{'ies' if stores > 1 else 'y'}"] if stores else []
    return "; ".join(parts)


@dataclass(frozen=True)
class Standings:
    """Each contender's ratio to ours: a column for each GPU, a row for each op, clock and contender."""

    gpus: list[str]
    rows: list[list[str]]


def standings(content: Content) -> Standings:
    """Ratios over the cases that both have. Peers come first, each with its default before its other settings."""
    found: dict[tuple[Op, str, str], dict[str, dict[str, list[Figure]]]] = {}
    gpus: dict[str, list[str]] = {}
    for name, results in content.results:
        gpu = str((results.env.identity.get("gpu") if results.env else None) or name)
        commit = results.code.short or "unknown commit"
        for item in figures(results):
            if item.to_ours is not None and item.contender != OURS:
                gpus.setdefault(gpu, [])
                gpus[gpu] += [commit] if commit not in gpus[gpu] else []
                row = found.setdefault((item.case.op, item.point.clock, item.contender), {})
                row.setdefault(gpu, {}).setdefault(commit, []).append(item)
    rows = []
    for op, clock, contender in sorted(found, key=_place):
        cells = [_cell(found[op, clock, contender].get(gpu, {}), len(commits) > 1) for gpu, commits in gpus.items()]
        rows.append([name_of(contender), runs.op_words(op), runs.CLOCKS[clock], *cells])
    return Standings([*gpus], rows)


def _place(key: tuple[Op, str, str]) -> tuple[int, int, bool, int]:
    op, clock, contender = key
    known = ORDER.get(registry.without_version(contender), len(ORDER))
    return OPS.index(op), [*runs.CLOCKS].index(clock), contender.startswith(OWN), known


def _cell(of: dict[str, list[Figure]], several: bool) -> str:
    """Of each commit the figures, with its name where there are several."""
    return "; ".join(_standing(items) + (f" at {commit}" if several else "") for commit, items in of.items())


def _standing(of: list[Figure]) -> str:
    """The geometric mean with the least and the most; of the product without LoRA, what LoRA adds to it."""
    values = [item.to_ours for item in of if item.to_ours is not None]
    is_base = of[0].contender == BASE
    say = _cost if is_base else _times
    values = [with_lora(of[0].case.op, 1 / ratio) for ratio in values] if is_base else values
    spread = f" ({say(min(values))} to {say(max(values))}, {len(values)} cases)" if len(values) > 1 else " (1 case)"
    return say(geometric_mean(values)) + spread


def _times(times: float) -> str:
    return f"{times:.2f}"


def _cost(times: float) -> str:
    return f"LoRA costs {100 * (times - 1):+.0f} %"


@dataclass(frozen=True)
class Failure:
    """Points without a figure that are alike except for the case."""

    status: str
    what: str
    cases: list[str]
    reason: str

    @property
    def told(self) -> str:
        """How many cases, and the first of them."""
        some = ", ".join(self.cases[:FIRST]) + (", ..." if len(self.cases) > FIRST else "")
        return f"{len(self.cases)}: {some}"


def statuses(content: Content) -> str:
    """How many points of each status."""
    counts = Counter(point.status for _, results in content.results for point in results.points)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def engine_statuses(content: Content) -> str:
    """How many figures of how many engines there are, and of each status."""
    counts = Counter(figure.status for _, served in content.served for figure in served_figures(served))
    started = sum(len(served.processes) for _, served in content.served)
    of = f"{counts.total()} figures of {started} engine{'s' * (started != 1)}"
    if counts.keys() <= {"ok"}:
        return f"{of} are ok" if counts else of
    return f"{of}: {', '.join(f'{count} {status}' for status, count in counts.items())}"


def failed(content: Content) -> list[Failure]:
    """Every point without a figure, by reason. Those that were not merely left out come first."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, results in content.results:
        for point in results.points:
            if point.status != "ok":
                what = f"{name_of(point.contender)}, {point.clock}, {name}"
                groups.setdefault((point.status, what, point.reason or "no reason was given"), []).append(
                    point.case.label
                )
    found = [Failure(status, what, cases, reason) for (status, what, reason), cases in groups.items()]
    return sorted(found, key=lambda item: item.status == "skipped")


@dataclass(frozen=True)
class Told:
    """A history in words."""

    name: str
    heading: str
    lines: list[str]


def histories(content: Content) -> list[Told]:
    """For each history, what changed where, and what could not be measured."""
    told = []
    for name, history in content.histories:
        lines = "\n".join([*change_lines(history), *failure_lines(history)])
        items = lines.replace("\n    ", "; ").split("\n")  # what goes on in an indented line is one item
        told.append(Told(f"{name}, {runs.CLOCKS[history.clock]}", history_heading(history).strip(), items))
    return told


Facts = list[tuple[str, dict[str, str]]]


def environments(content: Content) -> Facts:
    """The machine and software of each file, and of each era of a history."""
    found = [(name, results.env) for name, results in content.results]
    found += [(name, served.env) for name, served in content.served]
    found += [(name, run.env) for name, run in content.pairs]
    found += [
        (f"{name}, {history.clock}", era.environment) for name, history in content.histories for era in history.eras
    ]
    told = []
    for name, env in found:
        if env is not None:
            facts = env.identity | {key: env.volatile[key] for key in VOLATILE if env.volatile.get(key) is not None}
            told.append((name, {key: str(value) for key, value in facts.items()}))
    return told


def runs_of(content: Content) -> Facts:
    """How each results file was made."""
    found = [(name, {key: value for key, value in _run(results) if value}) for name, results in content.results]
    return found + [(name, engines.origins(served)) for name, served in content.served]


def _run(results: Results) -> Iterator[tuple[str, str]]:
    timed = [point for point in results.points if point.rounds]
    yield from origin(results).items()
    yield "seed", str(results.run.seed)
    yield "measuring code", described(results.code.bench_version)
    if timed:
        yield from _sampling(timed)
    several = len({item.gpu for item in results.anchors}) > 1
    for item in results.anchors:
        of = f" of GPU {item.gpu}" if several and item.gpu is not None else ""
        yield f"{item.name}{of}", f"{median(item.values):.4g} {item.unit}" if item.values else ""


def _sampling(timed: list[Point]) -> Iterator[tuple[str, str]]:
    rounds = [item for point in timed for item in point.rounds]
    yield "rounds of a point", _range(len(point.rounds) for point in timed)
    yield "processes", _range(len({item.process for item in point.rounds}) for point in timed)
    yield "launches in a graph", _range(point.nodes for point in timed if point.nodes is not None)
    yield "SM clock seen", _range((item.sm_mhz for item in rounds if item.sm_mhz is not None), " MHz")
    yield "clock lowered in", f"{sum(bool(item.throttle) for item in rounds)} rounds"


def hashes(content: Content) -> dict[str, str]:
    """The files that were read, with their hashes."""
    return {name: f"sha256 {sha256(data).hexdigest()}" for name, data in content.files}


def clocks(content: Content) -> list[str]:
    """The clocks that the page has figures of."""
    found = {point.clock for _, results in content.results for point in results.points}
    found |= {verdict.clock for _, report in content.reports for verdict in report.verdicts}
    found |= {history.clock for _, history in content.histories}
    return [clock for clock in runs.CLOCKS if clock in found]


def _range(values: Iterable[int], unit: str = "") -> str:
    found = sorted(set(values))
    if not found:
        return ""
    return f"{found[0]}{unit}" if len(found) == 1 else f"{found[0]} to {found[-1]}{unit}"
