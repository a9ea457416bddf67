"""The table of a simulation, as Markdown, for it goes into docs/method.md."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from bench.gate.simulate import Counts, Row
from bench.history.simulate import STEP_PCT, Tally


def show(rows: Sequence[Row]) -> None:
    """Print it."""
    slowdowns = [f"{percent:g} % found" for percent, _ in rows[0].planted]
    of_null = ("false alarms a run", "false `inconclusive`", "screened in", "processes each")
    heads = ("use", "process sd", *of_null, *slowdowns)
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        found = [f"{100 * counts.detection_rate:.2f} %" for _, counts in row.planted]
        use = f"{row.use}, {row.note}" if row.note else row.use
        of_null = (_alarms(row.null), _unsure(row.null), _flagged(row.null), _each(row.null))
        cells = (use, f"{row.process_sd_pct:g} %", *of_null, *found)
        lines.append("| " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


def _alarms(counts: Counts) -> str:
    return f"{counts.runs_with_false_slow} of {counts.runs}"


def _unsure(counts: Counts) -> str:
    return f"{counts.runs_with_false_inconclusive} of {counts.runs}"


def _flagged(counts: Counts) -> str:
    return f"{counts.flagged / counts.runs / 2:.1f} of {counts.points}"


def _each(counts: Counts) -> str:
    return f"{counts.confirming / counts.flagged:.1f}" if counts.flagged else "none"


def show_history(tallies: Iterable[Tally]) -> None:
    """Print the error rates of change points, a row as soon as it is there."""
    heads = ("noise", "commits", "simulated", "with a change found", "rate")
    sys.stdout.write("| " + " | ".join(heads) + " |\n| " + " | ".join("---" for _ in heads) + " |\n")
    for tally in tallies:
        sys.stdout.write(history_row(tally) + "\n")
        sys.stdout.flush()


def history_row(tally: Tally) -> str:
    """A row of docs/method.md's table of change points."""
    asked = "no step" if tally.after is None else f"{STEP_PCT:g} % step, {tally.after} commits ago"
    rate = f"{100 * tally.hits / tally.series:.2f} %"
    return f"| {tally.noise} | {tally.commits} | {asked} | {tally.hits} of {tally.series} | {rate} |"
