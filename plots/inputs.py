"""Files given to a figure or a report: reads them and checks that they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.model import pairs, served, store
from bench.model.pairs import PairRun
from bench.model.records import SCHEMA_NAME, Anchor, Results, ResultsError
from bench.model.served import ServeResults
from bench.model.verdict import REPORT_NAME, Report
from bench.model.verdict import read as read_report

EXPECTED = (
    "a results file (bench sweep), a record of pairs (bench gate -o), a gate's report (bench gate -f json=FILE), "
    "a file of bench serve or a folder of a history"
)


@dataclass
class Inputs:
    """What was given, each with its path."""

    results: list[tuple[Path, Results]] = field(default_factory=list)
    pairs: list[tuple[Path, PairRun]] = field(default_factory=list)
    reports: list[tuple[Path, Report]] = field(default_factory=list)
    histories: list[Path] = field(default_factory=list)
    served: list[tuple[Path, ServeResults]] = field(default_factory=list)


def load(paths: Sequence[Path]) -> Inputs:
    """Read everything. Raises ResultsError for an empty list, and for a file of an unknown format."""
    if not paths:
        raise ResultsError(f"no file was given; expected {EXPECTED}")
    found = Inputs()
    for path in paths:
        if path.is_dir():
            found.histories.append(path)
            continue
        name = store.format_of(path, EXPECTED)
        if name == SCHEMA_NAME:
            found.results.append((path, store.read(path)))
        elif name == pairs.PAIRS_NAME:
            found.pairs.append((path, pairs.read(path)))
        elif name == REPORT_NAME:
            found.reports.append((path, read_report(path)))
        elif name == served.SERVE_NAME:
            found.served.append((path, served.read(path)))
        else:
            raise ResultsError(f"{path}: is a {name!r}; expected {EXPECTED}")
    _refuse_other_machines(found)
    return found


def together(results: Sequence[tuple[Path, Results]]) -> Results:
    """The points of all files as one. The heading is the first file's, with every commit.

    Raises ResultsError if a point occurs twice, or if there is none.
    """
    if not results:
        raise ResultsError("no results file was given; expected one made by bench sweep")
    (first_path, first), *others = results
    seen = {point.key: first_path for point in first.points}
    points, anchors = list(first.points), list(first.anchors)
    for path, other in others:
        for point in other.points:
            if point.key in seen:
                where = f"{point.contender}, {point.clock}, {point.case.label}"
                raise ResultsError(f"{path}: has {where}, which {seen[point.key]} has too; expected each point once")
            seen[point.key] = path
        points += other.points
        anchors += other.anchors
    if not points:
        raise ResultsError(f"{', '.join(str(path) for path, _ in results)}: holds no point; expected a finished sweep")
    joined: dict[str, Anchor] = {}
    for anchor in anchors:
        known = joined.get(anchor.name)
        joined[anchor.name] = Anchor(anchor.name, anchor.unit, [*(known.values if known else []), *anchor.values])
    shorts = dict.fromkeys(item.code.short or "unknown" for _, item in results)
    code = msgspec.structs.replace(first.code, short=" and ".join(shorts))
    return msgspec.structs.replace(first, points=points, anchors=list(joined.values()), code=code)


def _refuse_other_machines(found: Inputs) -> None:
    """Raises ResultsError for files of two GPU models: no figure may hold both."""
    gpus = [(path, item.env.identity.get("gpu") if item.env else None) for path, item in found.results]
    gpus += [(path, item.env.identity.get("gpu") if item.env else None) for path, item in found.served]
    gpus += [(path, run.env.identity.get("gpu") if run.env else None) for path, run in found.pairs]
    gpus += [(path, report.identity.get("gpu")) for path, report in found.reports]
    known = [(path, gpu) for path, gpu in gpus if gpu is not None]
    for path, gpu in known[1:]:
        if gpu != known[0][1]:
            raise ResultsError(f"{path}: was measured on {gpu}, {known[0][0]} on {known[0][1]}; expected one GPU model")
