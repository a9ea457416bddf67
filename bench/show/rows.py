"""Rows of plain values as Markdown, CSV and JSON, for programs and pages. People get tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

Rows = Sequence[dict[str, Any]]


def markdown(rows: Rows) -> str:
    """A table. A bar in a text stays in its cell."""
    names = _names(rows)
    lines = [names, ["---"] * len(names), *([_text(row.get(name)) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def comma_separated(rows: Rows) -> str:
    """CSV with a header, numbers in full, and empty fields where there is no value."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _names(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def json_list(rows: Rows) -> str:
    """A list of objects, one on each line."""
    return "[\n" + ",\n".join(msgspec.json.encode(row).decode() for row in rows) + "\n]\n"


FORMATS: dict[str, Callable[[Rows], str]] = {"markdown": markdown, "csv": comma_separated, "json": json_list}


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
