"""The formats of the gate's report: which there are, and writing a report in several of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.model.store import write_bytes
from bench.model.text import for_log
from bench.model.verdict import GateError, Report
from bench.show import exports
from bench.show.gate import one_lined, reproduce, summary, table_text, worst_first
from bench.show.gate_markdown import markdown

FORMATS: dict[str, Callable[[Report], str]] = {
    "table": table_text,
    "markdown": markdown,
    "json": exports.plain_json,
    "junit": lambda report: exports.junit(report, lambda item: reproduce(report, item)),
    "bencher": exports.bencher,
    "github": lambda report: exports.github(report, summary(report), lambda item: reproduce(report, item)),
}


@dataclass(frozen=True)
class Format:
    """An output format and the file that it goes to. None is standard output."""

    name: str
    path: Path | None


def parse_formats(texts: Sequence[str]) -> list[Format]:
    """Parse `markdown`, `junit=report.xml`. No formats mean the table. Raises GateError."""
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        if name not in FORMATS or (equals and not path):
            raise GateError(f"--format {text}: expected NAME or NAME=FILE with NAME one of {', '.join(FORMATS)}")
        found.append(Format(name, Path(path) if path else None))
    if sum(item.path is None for item in found) > 1:
        raise GateError("--format: only one format can go to standard output; expected NAME=FILE for the others")
    if all(item.path is not None for item in found):
        found.append(Format("table", None))
    return found


def emit(report: Report, formats: Sequence[Format]) -> None:
    """Write the report in each of the formats. A file is written whole or not at all."""
    report.verdicts = worst_first(report.verdicts)
    for item in formats:
        text = FORMATS[item.name](one_lined(report))
        if item.path is not None:
            write_bytes(item.path, text.encode())
        else:
            sys.stdout.write(text if item.name == "github" else for_log(text))
