"""The one style: colours for colour-blind readers, for print and for dark pages; PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.model.records import Results
from bench.model.served import ServeResults
from bench.model.store import write_bytes
from bench.show import looks

SLOWER, FASTER, UNSURE, QUIET = "#D55E00", "#0072B2", "#E69F00", "#777777"  # of verdicts and changes
REFERENCE: dict[str, Any] = {"color": "#777777", "linewidth": 1.0, "linestyle": "--"}
CAPTION = {"fontsize": 7.5, "color": "#555555"}
SETTINGS: dict[Any, Any] = {
    "figure.facecolor": "white",  # opaque: readable on a dark page too
    "savefig.facecolor": "white",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "csgmv-embed",  # the same data gives the same file
}


def look(contender: str) -> dict[str, Any]:
    """Line colour and marker of a contender."""
    own = looks.look(contender)
    return {"color": own.color, "marker": own.marker}


@contextmanager
def styled() -> Iterator[None]:
    with mpl.rc_context(SETTINGS):
        yield


def plain(axis: Axis, ticks: Iterable[float] | None = None) -> None:
    """Whole and decimal numbers on a logarithmic axis instead of powers, at these ticks if given."""
    if ticks is not None:
        axis.set_ticks(sorted(set(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def spread_out(values: Iterable[float], share: float = 0.11) -> list[float]:
    """Ticks of a logarithmic axis whose labels do not run together, from the largest value down.

    share: of the axis between two of them at least; a label of four digits takes a tenth of a panel.
    """
    found = sorted(set(values), reverse=True)
    factor = (found[0] / found[-1]) ** share if found else 1.0
    kept: list[float] = []
    for value in found:
        if not kept or kept[-1] >= factor * value:
            kept.append(value)
    return kept


def marked(axes: Axes, places: Sequence[tuple[float, str]], style: dict[str, Any], height: float = 0.97) -> None:
    """Draw a cross, by default at the top, for each (place, status) without a value, so that it is not left out."""
    if not places:
        return
    top = [height] * len(places)
    cross = {**style, "marker": "x", "linestyle": "", "markersize": 6}
    axes.plot([x for x, _ in places], top, transform=axes.get_xaxis_transform(), clip_on=False, **cross)
    for x, status in places:
        axes.annotate(
            status, (x, height), xycoords=("data", "axes fraction"), xytext=(4, -2), textcoords="offset points",
            fontsize=7, color=style.get("color"), va="center",
        )  # fmt: skip


def heading(figure: Figure, what: str, where: str) -> None:
    """The title: what is shown, and below it the GPU, the dtype, the commit and the date."""
    figure.suptitle(f"{what}\n{where}", x=0.01, ha="left", fontsize=10)


def legend(figure: Figure) -> None:
    """One legend for all panels, below them: what each colour and marker means."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8)


def caption(figure: Figure, text: str) -> None:
    """How to read the figure, in small print below everything."""
    figure.supxlabel(text, x=0.01, ha="left", **CAPTION)


def provenance(results: Results | ServeResults, dtypes: Iterable[str] | None = None) -> str:
    """GPU, dtype, commit and date of a results file in a line. All of its dtypes, unless the figure shows others."""
    identity = results.env.identity if results.env else {}
    dirty = " + uncommitted changes" if results.code.dirty else ""
    if dtypes is None:
        dtypes = {point.case.dtype for point in results.points} if isinstance(results, Results) else ()
    parts = (
        str(identity.get("gpu") or "no GPU"),
        ", ".join(sorted(set(dtypes))),
        f"commit {results.code.short or 'unknown'}{dirty}",
        results.run.started_utc[:10],
    )
    return "; ".join(part for part in parts if part)


def versions(results: Results | ServeResults) -> str:
    """Versions of the software that was used, in a line. Empty if they are not known."""
    identity = results.env.identity if results.env else {}
    return ", ".join(f"{name} {identity[name]}" for name in ("torch", "triton", "sglang") if identity.get(name))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path` as PNG, and as SVG beside it, each whole or not at all. Returns both paths. Raises ResultsError."""
    drawn = {}
    for name in ("png", "svg"):
        metadata = {"Date": None} if name == "svg" else None
        content = BytesIO()
        figure.savefig(content, format=name, dpi=160, bbox_inches="tight", metadata=metadata)
        drawn[path.with_suffix(f".{name}")] = content.getvalue()
    for file, data in drawn.items():
        write_bytes(file, data)
    return list(drawn)
