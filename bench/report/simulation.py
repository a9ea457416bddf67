"""The table of a simulation, as Markdown, for it goes into docs/method.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.gate.simulate import Counts, Row


def show(rows: Sequence[Row]) -> None:
    """Print it."""
    slowdowns = [f"{percent:g} % found" for percent, _ in rows[0].planted]
    heads = ("use", "process sd", "false alarms a run", "false `inconclusive`", "screened in", *slowdowns)
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        found = [f"{100 * counts.detection_rate:.2f} %" for _, counts in row.planted]
        use = f"{row.use}, {row.note}" if row.note else row.use
        cells = (use, f"{row.process_sd_pct:g} %", _alarms(row.null), _unsure(row.null), _flagged(row.null), *found)
        lines.append("| " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


def _alarms(counts: Counts) -> str:
    return f"{counts.runs_with_false_slow} of {counts.runs}"


def _unsure(counts: Counts) -> str:
    return f"{counts.runs_with_false_inconclusive} of {counts.runs}"


def _flagged(counts: Counts) -> str:
    return f"{counts.flagged / counts.runs / 2:.1f} of {counts.points}"
