"""Files of `bench serve` for `show`, `compare` and `gate`: selects the figures and prints them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import typer

from bench.judge import served_gate, serving
from bench.model import served, store
from bench.model.config import ConfigError, Gate
from bench.model.records import ResultsError
from bench.model.served import CLOCK, SERVE_NAME, ServeResults
from bench.model.serving import Load
from bench.model.text import for_log
from bench.model.verdict import Exit
from bench.show.rows import FORMATS

Wanted = Callable[[Load, str], bool]
__all__ = ["CLOCK", "compare", "gate", "is_one", "says_so", "show"]


def is_one(file: Path) -> bool:
    """Whether this is a file of `bench serve`. Raises ResultsError if its format is not one of ours."""
    return file.is_file() and store.format_of(file, "a results file, or a file of bench serve") == SERVE_NAME


def says_so(file: Path) -> bool:
    """Like `is_one`, but false for an unknown format: the reader of results files reports what is wrong with it."""
    try:
        return is_one(file)
    except ResultsError:
        return False


def show(
    file: Path, cases: Sequence[str], contenders: Sequence[str], clocks: Sequence[str], format: str, *, wide: bool
) -> None:
    """Print the tables, or the rows, of a file. Raises ConfigError if nothing is selected."""
    from bench.show.serving import summary
    from bench.show.tables import console

    _refuse_clocks(file, clocks)
    results = served.read(file)
    found = serving.figures(results, _wanted([results], cases, contenders))
    if format != "table":
        rows = [figure.as_fields(results.serving.reference) for figure in found]
        sys.stdout.write(for_log(FORMATS[format](rows)))
        return
    console(wide=wide).print(summary(results, found, wide=wide))


def compare(
    before: Path, after: Path, cases: Sequence[str], contenders: Sequence[str], clocks: Sequence[str], format: str
) -> None:
    """Print two files side by side. Raises ResultsError if one of them is of another kind."""
    from bench.show.serving import compared
    from bench.show.tables import console

    old, new = _both(before, after, clocks)
    found = serving.compare(old, new, _wanted([old, new], cases, contenders))
    if format != "table":
        sys.stdout.write(for_log(FORMATS[format]([change.as_fields() for change in found.changes])))
        return
    console().print(compared(before.name, after.name, found))


def gate(
    baseline: Path,
    result: Path,
    cases: Sequence[str],
    contenders: Sequence[str],
    clocks: Sequence[str],
    formats: Sequence[str],
    rules: Gate,
) -> None:
    """Compare a file with a baseline and print verdicts. Exits with the gate's status if not 0. Raises ResultsError."""
    from bench.show.served_gate import verdicts
    from bench.show.tables import console

    format = _one_format(formats)
    old, new = _both(baseline, result, clocks)
    found = serving.compare(old, new)
    wanted = _wanted([old, new], cases, contenders)
    sides = [serving.figures(file) for file in (old, new)]  # all of them: the anchor is needed whatever is selected
    limits = served_gate.rules_of(rules)
    report = served_gate.judge(sides[0], sides[1], limits, old.serving.reference, found.warnings, wanted)
    if format == "table":
        console().print(verdicts(baseline.name, result.name, report))
    else:
        sys.stdout.write(for_log(FORMATS[format]([item.as_fields() for item in report.verdicts])))
        for reason in report.refusals:
            sys.stderr.write(for_log(f"cannot judge: {reason}\n"))
    if report.exit_code is not Exit.PASS:
        raise typer.Exit(int(report.exit_code))


def _both(before: Path, after: Path, clocks: Sequence[str]) -> tuple[ServeResults, ServeResults]:
    for file in (before, after):
        if not is_one(file):
            raise ResultsError(
                f"{file}: is not a file of bench serve, but the other one is; expected two files of the same kind"
            )
        _refuse_clocks(file, clocks)
    return served.read(before), served.read(after)


def _one_format(formats: Sequence[str]) -> str:
    if len(formats) > 1 or any(name not in FORMATS for name in formats):
        known = ", ".join(("table", *FORMATS))
        raise ConfigError(f"--format {' '.join(formats)}: for files of bench serve expected one of {known}")
    return formats[0] if formats else "table"


def _refuse_clocks(file: Path, clocks: Sequence[str]) -> None:
    for name in clocks:
        if name != CLOCK:
            raise ConfigError(f"--clock {name}: {file} is a file of bench serve; expected {CLOCK}")


def _wanted(files: Sequence[ServeResults], cases: Sequence[str], contenders: Sequence[str]) -> Wanted:
    """A predicate for the selected loads and modes. Raises ConfigError if --case or --contender selects nothing."""
    loads = [load for results in files for load in serving.loads_of(results)]
    modes = list(dict.fromkeys(mode for results in files for mode in results.run.modes))
    return chosen(loads, modes, cases, contenders)


def chosen(loads: Sequence[Load], modes: Sequence[str], cases: Sequence[str], contenders: Sequence[str]) -> Wanted:
    """A predicate for the selected loads and modes. Raises ConfigError if `cases` or `contenders` selects nothing."""
    for pattern in contenders:
        if not any(fnmatchcase(mode, pattern) for mode in modes):
            raise ConfigError(f"--contender {pattern}: no mode has this name; expected some of {', '.join(modes)}")
    terms = [_terms(text, loads) for text in cases]

    def wanted(load: Load, mode: str) -> bool:
        named = not contenders or any(fnmatchcase(mode, pattern) for pattern in contenders)
        return named and (not terms or any(_fits(load, term) for term in terms))

    return wanted


def _terms(text: str, loads: Sequence[Load]) -> dict[str, str]:
    known = Load.__struct_fields__
    found = {}
    for term in text.split(","):
        name, equals, value = (part.strip() for part in term.partition("="))
        if not equals or name not in known:
            raise ConfigError(f"--case {text}: {term!r} is not a term; expected NAME=VALUE with NAME one of {known}")
        found[name] = value
    if not any(_fits(load, found) for load in loads):
        raise ConfigError(f"--case {text}: no load has all of these values")
    return found


def _fits(load: Load, terms: dict[str, str]) -> bool:
    values = msgspec.structs.asdict(load)
    return all(
        f"{values[name]:g}" == value if isinstance(values[name], float) else str(values[name]) == value
        for name, value in terms.items()
    )
