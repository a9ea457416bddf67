"""Results as one page of HTML: no network, no other file; it opens on a phone as well as on a desk. Pure."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from pathlib import Path
from statistics import geometric_mean, median

from bench.judge.estimate import anchor_value, floor, point_estimate
from bench.judge.history import History
from bench.model import registry
from bench.model.case import OPS, Case
from bench.model.instrument import described
from bench.model.pairs import PairRun
from bench.model.records import Point, Results
from bench.model.verdict import Exit, Report
from bench.show.gate import MEANING, interval, percent, worst_first
from bench.show.history import change_lines, failure_lines
from bench.show.history import heading as history_heading
from bench.show.methods import METHODS
from bench.show.tables import MARKS, case_label, kind_of, kinds, microseconds, name_of, short_name

HERE = Path(__file__).parent
OURS = "csgmv_embed-vocab_major"
ORDER = {name: place for place, name in enumerate(registry.names())}
CLOCKS = {
    "graph": "CUDA graph: us a call",
    "eager": "eager: us a call",
    "prepare": "planning a batch on the host: us a batch",
}
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


@dataclass(frozen=True)
class Picture:
    """One figure: an anchor name, what it shows, its bytes as PNG or SVG."""

    name: str
    shows: str
    data: bytes
    kind: str  # png or svg+xml


@dataclass
class Content:
    """Everything that goes on the page; `files` are the (name, bytes) it was made of."""

    files: list[tuple[str, bytes]]
    results: list[tuple[str, Results]] = field(default_factory=list)
    pairs: list[tuple[str, PairRun]] = field(default_factory=list)
    reports: list[tuple[str, Report]] = field(default_factory=list)
    histories: list[tuple[str, History]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def page(content: Content) -> str:
    """The whole document."""
    sections = [
        ("summary", "Summary", _summary(content)),
        ("figures", "Figures", _figures(content.pictures)),
        ("tables", "Tables", _tables(content)),
        ("environment", "Environment", _environment(content)),
        ("how", "How each figure was obtained", _how(content)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{text}</section>' for name, title, text in sections)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{_title(content)}</title><style>{style}</style></head>"
        f'<body><h1>{_title(content)}</h1><p class="soft">{_subtitle(content)}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>{body}<script>{script}</script></body></html>\n'
    )


def _title(content: Content) -> str:
    gpus = {str(results.env.identity.get("gpu")) for _, results in content.results if results.env}
    gpus |= {str(run.env.identity.get("gpu")) for _, run in content.pairs if run.env}
    known = sorted(gpus - {"None"})
    return escape(f"LoRA embedding lookup on {known[0]}" if known else "LoRA embedding lookup: counted work")


def _subtitle(content: Content) -> str:
    commits = dict.fromkeys(results.code.short or "unknown" for _, results in content.results)
    days = sorted({results.run.started_utc[:10] for _, results in content.results})
    parts = []
    if commits:
        parts.append(f"commit {', '.join(commits)}")
    if days:
        parts.append(" to ".join(dict.fromkeys((days[0], days[-1]))))
    parts.append(f"{len(content.files)} file{'s' * (len(content.files) > 1)}")
    return escape("; ".join(parts))


# --- summary -------------------------------------------------------------------------------------------------------


def _summary(content: Content) -> str:
    parts = [_ratios([point for _, results in content.results for point in results.points])]
    for name, report in content.reports:
        counts = ", ".join(f"{count} {status}" for status, count in report.counts().items())
        sides = f"{report.before.label} against {report.after.label}"
        parts.append(
            _paragraph(f"Gate ({name}): {MEANING[Exit(report.exit_code)]}. {sides}: {counts or 'no verdict'}.")
        )
        parts += [_paragraph(f"Not judged: {reason}", bad=True) for reason in report.refusals]
    for name, history in content.histories:
        parts.append(f"<h3>{escape(f'History ({name})')}</h3>" + _paragraph(history_heading(history).strip()))
        lines = [*change_lines(history), *failure_lines(history)]
        items = "\n".join(lines).replace("\n    ", "; ").split("\n")  # what goes on in an indented line is one item
        parts.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")
    parts.append(_failed([point for _, results in content.results for point in results.points]))
    return "".join(parts)


def _paragraph(text: str, *, bad: bool = False) -> str:
    kind = ' class="bad"' if bad else ""
    return f"<p{kind}>{escape(text)}</p>"


def _ratios(points: Sequence[Point]) -> str:
    """How many times faster, a row for each op, clock and contender."""
    rows = []
    for op, clock in itertools.product(OPS, CLOCKS):
        chosen = [p for p in points if p.case.op == op and p.clock == clock and p.status == "ok"]
        by_case, what = _by_case(chosen), clock if op == "lookup" else f"{op}, {clock}"
        found = dict.fromkeys(name for row in by_case.values() for name in row if name != OURS)
        # Peers first, each at its own default before its other settings: the registry's order.
        names = sorted(found, key=lambda name: (name.startswith("csgmv_embed"), ORDER.get(name, len(ORDER))))
        for name in names:
            values = [_us(row[name]) / _us(row[OURS]) for row in by_case.values() if name in row and OURS in row]
            if values:
                mean = geometric_mean(values)
                rows.append(
                    [
                        (f"{name_of(name)}; {what}", None),
                        (f"{mean:.2f}", mean),
                        (f"{min(values):.2f}", min(values)),
                        (f"{max(values):.2f}", max(values)),
                        (str(len(values)), len(values)),
                    ]
                )
    if not rows:
        return ""
    heads = ["ours, vocab-major, against", "times faster (geometric mean)", "least", "most", "cases"]
    return _table(heads, rows, '<a href="#how-ratio">How a ratio is made</a>')


def _failed(points: Sequence[Point]) -> str:
    """Every point without a figure, by reason."""
    counts = Counter(point.status for point in points)
    stated = ", ".join(f"{count} {status}" for status, count in counts.items())
    parts = [_paragraph(f"Points: {stated}.")] if points else []
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for point in points:
        if point.status != "ok":
            key = (point.status, point.contender, point.clock, point.reason or "no reason was given")
            groups.setdefault(key, []).append(point.case.label)
    if groups:
        rows = [
            [(status, None), (f"{contender}, {clock}", None), (", ".join(labels), None), (reason, None)]
            for (status, contender, clock, reason), labels in groups.items()
        ]
        parts.append(_table(["status", "contender", "cases", "reason"], rows, "Points without a figure", words=True))
    return "".join(parts)


# --- figures and tables --------------------------------------------------------------------------------------------


def _figures(pictures: Sequence[Picture]) -> str:
    return "".join(
        f'<figure id="figure-{escape(item.name)}"><figcaption>{escape(item.shows)}. '
        f'<a href="#how">How it was obtained</a></figcaption><div class="scroll" tabindex="0">'
        f'<img alt="{escape(item.shows)}" src="data:image/{item.kind};base64,{base64.b64encode(item.data).decode()}">'
        "</div></figure>"
        for item in pictures
    )


def _tables(content: Content) -> str:
    parts = []
    for name, results in content.results:
        for clock, title in CLOCKS.items():
            for kind in kinds(results.points):
                points = [p for p in results.points if p.clock == clock and kind_of(p.case) == kind]
                if points:
                    parts.append(f"<h3>{kind}, {escape(title)}</h3>{_timed(results, points, name)}")
        if any(point.clock == "work" for point in results.points):
            parts.append(f"<h3>counted work of a launch</h3>{_counted(results.points, name)}")
    for name, report in content.reports:
        parts.append(f"<h3>{escape(f'Gate ({name})')}</h3>{_verdicts(report)}")
    return "".join(parts)


def _timed(results: Results, points: Sequence[Point], name: str) -> str:
    """A row a case: the floor, our time, every other contender's time and its ratio to ours."""
    by_case = _by_case(points)
    shown = [point for point in sorted(points, key=lambda item: item.index) if point.status != "skipped"]
    names = sorted(dict.fromkeys(point.contender for point in shown), key=lambda item: item != OURS)
    bandwidth = anchor_value(results, "copy_bandwidth")
    heads = ["case", "floor", *(h for n in names for h in ([short_name(n)] if n == OURS else [short_name(n), "ratio"]))]
    rows = []
    for case, row in by_case.items():
        least = next((found for point in row.values() if (found := floor(point, bandwidth))), None)
        label = f"{case_label(case, by_case)}{' cold' * (case.cache == 'cold')}"
        cells: list[tuple[str, float | None]] = [(label, None), _cell(least.value_us if least else None)]
        base = point_estimate(row[OURS]) if OURS in row and row[OURS].status == "ok" else None
        for contender in names:
            point = row.get(contender)
            taken = point_estimate(point) if point is not None and point.status == "ok" else None
            mark = MARKS.get(point.status, "-") if point is not None else ""
            cells.append(_cell(taken.value) if taken else (mark, None))
            if contender != OURS:
                ratio = taken.value / base.value if taken and base else None
                cells.append((f"{ratio:.2f}", ratio) if ratio is not None else ("", None))
        rows.append(cells)
    caption = (
        f'{escape(name)}: <a href="#how-time">times</a>, <a href="#how-floor">floor</a>, <a href="#how-ratio">ratio</a>'
    )
    return _table(heads, rows, caption)


def _counted(points: Sequence[Point], name: str) -> str:
    rows = []
    for point in sorted(points, key=lambda item: (item.case, item.contender)):
        if point.work is not None:
            counts = point.work.counts
            values = [
                counts.programs,
                counts.busiest_loads,
                counts.load_bytes,
                counts.load_sectors,
                counts.store_sectors,
            ]
            compiled = [sum(kernel.instructions for kernel in point.work.compiled)] if point.work.compiled else []
            cells: list[tuple[str, float | None]] = [(f"{point.case.label}, {short_name(point.contender)}", None)]
            cells += [(str(value), float(value)) for value in (*values, *compiled)]
            rows.append(cells + [("-", None)] * (1 - len(compiled)))
    heads = [
        "case, contender",
        "programs",
        "busiest loads",
        "loaded B",
        "sectors read",
        "sectors written",
        "instructions",
    ]
    return _table(heads, rows, f'{escape(name)}: <a href="#how-work">counts</a>')


def _verdicts(report: Report) -> str:
    rows = [
        [
            (f"{item.case.label}, {short_name(item.contender)}, {item.clock}", None),
            (item.status, None),
            (percent(item.ratio), item.ratio),
            (interval(item), item.low),
            (percent(item.detectable), item.detectable),
            (item.reason, None),
        ]
        for item in worst_first(report.verdicts)
    ]
    heads = ["point", "verdict", "change", "95 %", "sees", "reason"]
    return _table(heads, rows, escape(f"{report.before.label} against {report.after.label}"))


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[tuple[str, float | None]]], caption: str, *, words: bool = False
) -> str:
    """A sortable table of (text, value to sort by; None: the text itself). `caption` is HTML."""
    ours = short_name(OURS)
    top = "".join(f'<th scope="col"{_class(head == ours)}>{escape(head)}</th>' for head in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_class(head == ours)}{_value(*cell)}>{escape(cell[0])}</td>"
            for head, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    kind = "sortable words" if words else "sortable"
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _class(ours: bool) -> str:
    return ' class="ours"' if ours else ""


def _value(text: str, value: float | None) -> str:
    if value is not None:
        return f' data-value="{value:.6g}"'
    return ' data-value=""' if text in ("", "-") else ""


def _cell(value: float | None) -> tuple[str, float | None]:
    return microseconds(value), value


# --- where it comes from -------------------------------------------------------------------------------------------


def _environment(content: Content) -> str:
    parts = []
    for name, env in [(name, results.env) for name, results in content.results] + [
        (n, r.env) for n, r in content.pairs
    ]:
        if env is not None:
            facts = env.identity | {key: env.volatile[key] for key in VOLATILE if env.volatile.get(key) is not None}
            parts.append(f"<h3>{escape(name)}</h3>{_facts({key: str(value) for key, value in facts.items()})}")
    return "".join(parts)


def _how(content: Content) -> str:
    parts = []
    for name, results in content.results:
        run, code = results.run, results.code
        timed = [point for point in results.points if point.rounds]
        facts = {
            "command": " ".join(run.argv),
            "commit": (code.sha or "unknown") + (" + uncommitted changes" if code.dirty else ""),
            "started": run.started_utc,
            "duration": f"{run.duration_s:.0f} s",
            "seed": str(run.seed),
            "measuring code": described(code.bench_version),
            "rounds of a point": _range(len(point.rounds) for point in timed),
            "processes": _range(len({item.process for item in point.rounds}) for point in timed),
            "launches in a graph": _range(point.nodes for point in timed if point.nodes is not None),
            "SM clock seen": _range((r.sm_mhz for p in timed for r in p.rounds if r.sm_mhz is not None), " MHz"),
            "clock lowered in": f"{sum(bool(r.throttle) for p in timed for r in p.rounds)} rounds",
        }
        facts |= {item.name: f"{median(item.values):.4g} {item.unit}" for item in results.anchors if item.values}
        parts.append(f"<h3>{escape(name)}</h3>{_facts({key: value for key, value in facts.items() if value})}")
    parts.append("<h3>Methods</h3><dl>")
    parts += [
        f'<dt id="how-{name}"><strong>{name}</strong></dt><dd>{escape(text)}</dd>' for name, text in METHODS.items()
    ]
    parts.append("</dl><h3>Files</h3>")
    parts.append(_facts({name: f"sha256 {sha256(data).hexdigest()}" for name, data in content.files}))
    return "".join(parts)


def _range(values: Iterable[int], unit: str = "") -> str:
    found = sorted(set(values))
    if not found:
        return ""
    return f"{found[0]}{unit}" if len(found) == 1 else f"{found[0]} to {found[-1]}{unit}"


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td><code>{escape(v)}</code></td></tr>' for k, v in facts.items()
    )
    return f'<div class="scroll"><table class="words">{rows}</table></div>'


def _by_case(points: Iterable[Point]) -> dict[Case, dict[str, Point]]:
    rows: dict[Case, dict[str, Point]] = {}
    for point in sorted(points, key=lambda item: item.case):
        rows.setdefault(point.case, {})[point.contender] = point
    return rows


def _us(point: Point) -> float:
    found = point_estimate(point)
    assert found is not None
    return found.value
