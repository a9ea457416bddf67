"""Fills the templates. Styles, scripts, the chart library and the data are all in the page itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.judge.figures import BASE, OURS
from bench.model.case import OPS
from bench.show.crossing import cross_lines
from bench.show.looks import DASHES, LOOKS, MARKERS, looks, mode_looks
from bench.show.methods import METHODS
from bench.show.page import engines, facts, gates, lines, runs
from bench.show.page.content import Content
from bench.show.sites import COLORS, SHARES
from bench.show.tables import BELOW, MARKS, name_of, short_name

HERE = Path(__file__).parent
SCRIPTS = ("common.js", "chart.js", "engines.js", "details.js", "points.js", "verdicts.js", "history.js")


def page(content: Content) -> str:
    """The whole document."""
    values = {
        "content": content,
        "facts": facts,
        "engines": engines,
        "cross_lines": cross_lines,
        "colors": COLORS,
        "shares": SHARES.replace("\n", " "),
        "methods": {name: text for name, text in METHODS.items() if name in _methods(content)},
        "data": _embedded(data(content)),
        "styles": [_text("uplot", "uPlot.min.css"), _text("templates", "page.css")],
        "library": _text("uplot", "uPlot.iife.min.js"),
        "licence": _text("uplot", "LICENSE"),
        "scripts": [_text("templates", name) for name in SCRIPTS],
    }
    return _templates().get_template("page.html").render(values)


def data(content: Content) -> dict[str, Any]:
    """The data that the scripts draw and list."""
    pairs = dict(content.pairs)
    made: dict[str, Any] = {
        "runs": [runs.run(name, results) for name, results in content.results],
        "engines": [engines.run(name, served) for name, served in content.served],
        "reports": [gates.report(name, found, pairs.get(name)) for name, found in content.reports],
        "lines": [line for name, history in content.histories for line in lines.line(name, history)],
        "clocks": [*runs.CLOCKS],
        "ops": OPS,
        "figures": runs.TIMED,
        "marks": MARKS,
        "below": BELOW,
        "ours": OURS,
        "markers": MARKERS,
        "dashes": DASHES,
        "ink": LOOKS[BASE][0],
    }
    named = {part: [item["contender"] for group in made[part] for item in group[key]] for part, key in PARTS}
    kernels = [name for part, of in named.items() if part != "engines" for name in of]
    drawn = looks(kernels) | mode_looks(named["engines"])
    made["contenders"] = {name: [name_of(name), short_name(name), look] for name, look in drawn.items()}
    return made


PARTS = (("runs", "points"), ("engines", "points"), ("reports", "verdicts"), ("lines", "points"))


def _methods(content: Content) -> list[str]:
    clocks = facts.clocks(content)
    timed = ["time", "ratio", "floor"] if any(clock != "work" for clock in clocks) else []
    return [*clocks, *timed, *(["engine"] if content.served else [])]


def _embedded(value: object) -> Markup:
    """JSON inside a script element: no character of it can end the element."""
    return Markup(msgspec.json.encode(value).decode().replace("<", "\\u003c"))


def _text(folder: str, name: str) -> Markup:
    return Markup((HERE / folder / name).read_text(encoding="utf-8"))


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
