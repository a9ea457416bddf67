"""Draws times or counts across commits: a panel for each case, marked and named changes, floor and peers as lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from bench.judge.changes import Change
from bench.judge.estimate import point_estimate
from bench.judge.history import History
from bench.judge.series import TIME, Era, Series
from bench.model.case import Case
from bench.model.history import Commit
from bench.show.tables import name_of
from plots.labels import case_name
from plots.style import FASTER, SLOWER, caption, heading, legend, look, marked, save, styled

COLUMNS = 2
# Of the counts the first of these that ever differs is drawn; `history show` has all.
COUNTED = ("programs", "instructions", "registers", "load_sectors", "busiest_loads", "widest_load_bits")
TITLE_WIDTH = 72  # characters of a line above a panel
SUBJECT = 60  # characters of a commit's
GAP = 1.0  # between two eras: their values cannot be compared


@dataclass(frozen=True)
class Mark:
    """One commit of a line: its place on the axis, and its figure with interval, or None and the status."""

    x: float
    short: str
    value: float | None
    low: float | None
    high: float | None
    status: str


@dataclass(frozen=True)
class Line:
    """One series of a panel, and the places of its changes."""

    contender: str
    marks: tuple[Mark, ...]
    changes: tuple[tuple[float, Change], ...]


@dataclass(frozen=True)
class Panel:
    """A group of cases: one of a time, those that are alike of a count.

    references: (contender, us); eras: (first place, what began there); names: (place, commit) along the axis.
    """

    cases: tuple[str, ...]
    figure: str
    lines: tuple[Line, ...]
    references: tuple[tuple[str, float], ...]
    floor_us: float | None
    eras: tuple[tuple[float, str], ...]
    names: tuple[tuple[float, str], ...]


def data(history: History) -> list[Panel]:
    """The numbers of the figure: every observation of every series."""
    places, starts = _places(history)
    shorts = {commit.sha: commit.short for commit in history.line}
    names = tuple((x, shorts[sha]) for (_, sha), x in places.items())
    panels: list[Panel] = []
    cases = sorted({series.case for era in history.eras for series in era.series})
    for case in cases:
        for figure in _figures(history, case):
            panel = Panel(
                (case_name(case, cases),),
                figure,
                tuple(_lines(history, case, figure, places)),
                _references(history.eras[-1], case) if figure == TIME else (),
                _floor(history.eras, case) if figure == TIME else None,
                tuple(starts),
                names,
            )
            _add(panels, panel)
    return panels


def _add(panels: list[Panel], new: Panel) -> None:
    """Cases with equal counts at every commit are one group, and one panel."""
    for index, panel in enumerate(panels):
        alike = [(line.contender, line.marks) for line in panel.lines] == [
            (line.contender, line.marks) for line in new.lines
        ]
        if new.figure != TIME and panel.figure == new.figure and alike:
            panels[index] = replace(panel, cases=(*panel.cases, *new.cases))
            return
    panels.append(new)


def _places(history: History) -> tuple[dict[tuple[int, str], float], list[tuple[float, str]]]:
    """Where each commit of each era lies, eras one after another; and where the later ones begin, and why."""
    places: dict[tuple[int, str], float] = {}
    starts: list[tuple[float, str]] = []
    x = 0.0
    for number, era in enumerate(history.eras):
        if number:
            starts.append((x + GAP / 2 - 0.5, era.begins or ""))
            x += GAP
        shas = dict.fromkeys(item.commit.sha for series in era.series for item in series.observations)
        order = [commit.sha for commit in history.line if commit.sha in shas]
        for sha in order:
            places[number, sha] = x
            x += 1
    return places, starts


def _figures(history: History, case: Case) -> list[str]:
    """Time; of counts the first figure that ever differs between commits, or the first of all if none does."""
    found = [series for era in history.eras for series in era.series if series.case == case]
    if all(series.figure == TIME for series in found):
        return [TIME]
    contenders = {series.contender for series in found}
    varied = [name for name in COUNTED if any(_varies([s for s in found if s.figure == name], of) for of in contenders)]
    return varied[:1] or [name for name in COUNTED if any(series.figure == name for series in found)][:1]


def _varies(found: Sequence[Series], contender: str) -> bool:
    """Whether the figure of a contender differs between commits. That two contenders differ is no change."""
    items = [item for series in found if series.contender == contender for item in series.observations]
    return len({item.value.value for item in items if item.value}) > 1


def _lines(history: History, case: Case, figure: str, places: dict[tuple[int, str], float]) -> list[Line]:
    lines = []
    for number, era in enumerate(history.eras):
        for series in era.series:
            if series.case == case and series.figure == figure:
                marks = tuple(
                    _mark(series, index, places[number, item.commit.sha])
                    for index, item in enumerate(series.observations)
                )
                found = tuple((places[number, c.commit.sha], c) for c in history.changes if c.series == series)
                lines.append(Line(series.contender, marks, found))
    return lines


def _mark(series: Series, index: int, x: float) -> Mark:
    item = series.observations[index]
    if item.value is None:
        return Mark(x, item.commit.short, None, None, None, item.status)
    return Mark(x, item.commit.short, item.value.value, item.value.low, item.value.high, "ok")


def _references(era: Era, case: Case) -> tuple[tuple[str, float], ...]:
    found = [(point.contender, point_estimate(point)) for point in era.references if point.case == case]
    return tuple(sorted((name, taken.value) for name, taken in found if taken is not None))


def _floor(eras: Sequence[Era], case: Case) -> float | None:
    """The empty kernel's time in the processes that measured this case."""
    values = [
        value
        for era in eras
        for entry in era.entries
        for point in entry.results.points
        if point.case == case
        for value in point.floor_us
    ]
    return median(values) if values else None


def draw(history: History, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    panels = data(history)
    with styled():
        rows = -(-len(panels) // COLUMNS)
        columns = min(COLUMNS, max(1, len(panels)))
        commits = len(panels[0].names) if panels else 1
        figure = Figure(
            figsize=(max(5.6, 1.4 + 0.27 * commits) * columns + 2.6, 3.6 * rows + 2.2), layout="constrained"
        )
        letters = _letters(panels)
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            _draw_panel(axes, panel, letters, labelled=number >= len(panels) - columns)
        legend(figure)
        heading(figure, *_heading(history))
        caption(figure, "\n".join([*_reading(history), *_told(panels)]))
        return save(figure, path)


def _heading(history: History) -> tuple[str, str]:
    """What it is; on which machine, in which dtypes, from which commit to which, measured when."""
    era = history.eras[-1]
    identity = era.environment.identity
    what = "Counted work (not times)" if history.clock == "work" else f"Time of a call ({history.clock} clock)"
    runs = sorted(entry.results.run.started_utc[:10] for each in history.eras for entry in each.entries)
    dtypes = sorted({series.case.dtype for each in history.eras for series in each.series})
    line = [commit.short for commit in history.line]
    kind = "versions" if _of_versions(history) else "commits"
    parts = [str(identity.get("gpu") or "no GPU"), ", ".join(dtypes), f"{kind} {line[0]} to {line[-1]}", *runs[-1:]]
    return f"{what} across {'versions of SGLang' if _of_versions(history) else kind}, oldest first", "; ".join(parts)


def _of_versions(history: History) -> bool:
    return all(commit.label for commit in history.line)


def _reading(history: History) -> list[str]:
    identity = history.eras[-1].environment.identity
    versions = ", ".join(f"{name} {identity[name]}" for name in ("torch", "triton") if identity.get(name))
    if history.clock == "work":
        how = "The counts are exact. They come from Triton's interpreter and from compiled code (sm_90)."
    else:
        how = "Markers are medians of rounds with their 95 % interval. An anchor commit takes out the machine's drift."
    what = "version" if _of_versions(history) else "commit"
    changes = "A dashed line is a change, with the panel's largest change: orange is worse, blue is better. "
    return [
        f"{how} Lower is better. A cross is a {what} that failed; a line passes over one that was skipped.",
        f"{changes if history.changes else ''}{versions}",
    ]


def _told(panels: Sequence[Panel]) -> list[str]:
    """Each change by its letter: the commits it is put down to, and the measured ones beside them, with subjects."""
    changes = {x: change for panel in panels for line in panel.lines for x, change in line.changes}
    told = []
    for x, letter in _letters(panels).items():
        change = changes[x]
        suspects = " or ".join(map(_named, change.suspects))
        told.append(f"{letter}: {suspects}. Measured before it: {_named(change.before)}")
        if change.after is not None:
            told[-1] += f". Measured after it: {_named(change.after)}"
    return told


def _named(commit: Commit) -> str:
    subject = commit.subject if len(commit.subject) <= SUBJECT else f"{commit.subject[: SUBJECT - 3]}..."
    if commit.label and commit.label in subject:
        return subject
    return f"{commit.short} ({subject})" if subject and subject != commit.short else commit.short


def _letters(panels: Sequence[Panel]) -> dict[float, str]:
    """A letter for each place with a change in any panel, in the order of the line."""
    places = sorted({x for panel in panels for line in panel.lines for x, _ in line.changes})
    return {x: chr(ord("A") + number) if number < 26 else str(number + 1) for number, x in enumerate(places)}


def _draw_panel(axes: Axes, panel: Panel, letters: dict[float, str], *, labelled: bool) -> None:
    for line in panel.lines:
        style, level = look(line.contender), _level(panel, line)
        kept = [(mark.x, mark.value) for mark in line.marks if mark.value is not None]
        shown = [_shown(panel, value, level) for _, value in kept]
        axes.plot([x for x, _ in kept], shown, label=name_of(line.contender), **style)
        for mark in line.marks:
            if mark.low is not None and mark.high is not None:
                low, high = _shown(panel, mark.low, level), _shown(panel, mark.high, level)
                axes.vlines(mark.x, low, high, color=style["color"], linewidth=1.2)
        marked(
            axes, [(mark.x, "") for mark in line.marks if mark.value is None and mark.status != "skipped"], style, 0.04
        )
    axes.margins(y=0.3)
    _draw_changes(axes, panel, letters)
    for start, reason in panel.eras:
        axes.axvline(start, color="#333333", linewidth=1.0)
        axes.annotate(
            f"new series: {reason}", (start, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
            xytext=(2, 0), textcoords="offset points", va="bottom",
        )  # fmt: skip
    axes.set_title("\n".join([_title(panel), *_levels(panel)]), loc="left", fontsize=8)
    timed = panel.figure == TIME
    axes.set_ylabel("time, % of the first commit's" if timed else f"{panel.figure.replace('_', ' ')} a launch")
    if panel.names:
        axes.set_xlim(panel.names[0][0] - 0.7, panel.names[-1][0] + 0.7)
    names = [name if labelled else "" for _, name in panel.names]
    axes.set_xticks([x for x, _ in panel.names], names, rotation=90, fontsize=7, family="monospace")
    if panel.figure != TIME:
        axes.set_ylim(bottom=0)


def _level(panel: Panel, line: Line) -> float:
    """The first figure of a line, of which the others are so many percent; in a panel of counts of no use."""
    return next((mark.value for mark in line.marks if mark.value is not None), 1.0)


def _shown(panel: Panel, value: float, level: float) -> float:
    """A time in percent of the first: a step of 5 % is seen whatever the peers take. A count as it is."""
    return 100 * value / level if panel.figure == TIME else value


def _levels(panel: Panel) -> list[str]:
    """What 100 % is, and the peers beside it: on the axis they would flatten every step."""
    if panel.figure != TIME:
        return []
    lines = [f"100 % is {_level(panel, line):.3g} us of {name_of(line.contender)}" for line in panel.lines]
    others = [f"{name_of(name)} {value:.3g}" for name, value in panel.references]
    if panel.floor_us:
        others.append(f"an empty kernel {panel.floor_us:.3g}")
    return lines + textwrap.wrap(f"for comparison: {', '.join(others)} us" if others else "", TITLE_WIDTH)


def _title(panel: Panel) -> str:
    first, *others = panel.cases
    return first + (f"; the same in {len(others)} other case{'s' * (len(others) > 1)}" if others else "")


def _draw_changes(axes: Axes, panel: Panel, letters: dict[float, str]) -> None:
    """One line and one letter a commit, with the size of the panel's largest change there."""
    by_place: dict[float, list[Change]] = {}
    for line in panel.lines:
        for x, change in line.changes:
            by_place.setdefault(x, []).append(change)
    for number, (x, found) in enumerate(sorted(by_place.items())):
        largest = max(found, key=lambda change: (change.worse, abs(change.ratio - 1)))
        color = SLOWER if largest.worse else FASTER
        axes.axvline(x - 0.5, color=color, linewidth=1.2, linestyle=(0, (5, 2)), alpha=0.8)
        late = panel.names and x > (panel.names[0][0] + panel.names[-1][0]) / 2  # there its name stands before the line
        axes.text(
            x - (0.6 if late else 0.4), (0.98, 0.9)[number % 2], f"{letters[x]}  {_size(largest)}",
            color=color, fontsize=7.5, va="top", ha="right" if late else "left",
            transform=blended_transform_factory(axes.transData, axes.transAxes),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip


def _size(change: Change) -> str:
    if change.low is None:
        return f"{change.old:.0f} to {change.new:.0f}"
    return f"{100 * (change.ratio - 1):+.0f} %"
