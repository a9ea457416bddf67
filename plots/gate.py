"""The summary of a gate run: each point's ratio with its interval, the limit it is judged by, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.model.verdict import Exit, Report, Verdict
from bench.show.gate import MEANING, ORDER, change_text
from bench.show.tables import name_of
from plots.labels import case_name
from plots.style import FASTER, QUIET, REFERENCE, SLOWER, UNSURE, caption, heading, save, styled

NOTE_WIDTH = 70  # characters of a reason
LOOKS = {
    "slow": (SLOWER, "D"),
    "error": (SLOWER, "x"),
    "inconclusive": (UNSURE, "^"),
    "fast": (FASTER, "v"),
    "pass": (QUIET, "o"),
    "skipped": (QUIET, "x"),
}


@dataclass(frozen=True)
class Bar:
    """One verdict: ratio and interval in percent of change; None if it has none."""

    label: str
    status: str
    change_pct: float | None
    low_pct: float | None
    high_pct: float | None
    sees_pct: float | None
    floor_pct: float | None
    note: str = ""  # what is said in the place of a ratio


def data(report: Report) -> list[Bar]:
    """A bar for each verdict, the worst status first, then the largest slowdown."""
    cases = {item.case for item in report.verdicts}
    ordered = sorted(report.verdicts, key=lambda item: (ORDER.index(item.status), -(item.ratio or 0.0)))
    return [_bar(item, case_name(item.case, cases)) for item in ordered]


def _bar(item: Verdict, case: str) -> Bar:
    clock = f", {item.clock}" if item.clock != "graph" else ""
    planted = f" (planted {100 * item.extra_share:g} %)" if item.extra_share else ""
    return Bar(
        label=f"{name_of(item.contender)}; {case}{clock}{planted}",
        status=item.status,
        change_pct=_percent(item.ratio),
        low_pct=_percent(item.low),
        high_pct=_percent(item.high),
        sees_pct=_percent(item.detectable),
        floor_pct=_percent(item.floor),
        note=", ".join(map(change_text, item.changes)) or ("" if item.status == "pass" else item.reason),
    )


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * (ratio - 1)


def draw(report: Report, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    bars = data(report)
    with styled():
        figure = Figure(figsize=(8.2, 1.5 + 0.19 * max(4, len(bars))), layout="constrained")
        axes = figure.subplots()
        _draw_bars(axes, bars)
        counts = ", ".join(f"{count} {status}" for status, count in report.counts().items())
        meaning = MEANING[Exit(report.exit_code)].lower()
        sides = f"{report.before.label} (A) against {report.after.label} (B)"
        if report.before.label == report.after.label:
            planted = any(item.extra_share for item in report.verdicts)
            sides = f"{report.before.label} against itself{', with planted slowdowns' if planted else ''}"
        gpu, dtypes = report.identity.get("gpu") or "no GPU", sorted({item.case.dtype for item in report.verdicts})
        heading(
            figure,
            f"A run of the gate: {meaning} ({counts or 'no verdict'}), commit {sides}",
            "; ".join(filter(None, (str(gpu), ", ".join(dtypes), report.started_utc[:10]))),
        )
        refused = "".join(f"\nNot judged: {reason}" for reason in report.refusals)
        reading = "Each marker is the change of a point. The line through it is the interval of that change."
        caption(figure, f"{reading}\nThe run took {report.duration_s:.0f} s.{refused}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=6, fontsize=8, columnspacing=1.2)
        return save(figure, path)


def _draw_bars(axes: Axes, bars: list[Bar]) -> None:
    for status, (color, marker) in LOOKS.items():
        chosen = [(place, bar) for place, bar in enumerate(bars) if bar.status == status]
        timed = [(place, bar) for place, bar in chosen if bar.change_pct is not None]
        if timed:
            axes.plot(
                [bar.change_pct or 0.0 for _, bar in timed], [place for place, _ in timed],
                linestyle="", marker=marker, color=color, label=status,
            )  # fmt: skip
        for place, bar in timed:
            if bar.low_pct is not None and bar.high_pct is not None:
                axes.plot([bar.low_pct, bar.high_pct], [place, place], color=color, linewidth=1.2)
            if bar.sees_pct is not None:
                axes.plot([bar.sees_pct], [place], "|", color="#999999", markersize=6)
        for place, bar in chosen:
            if bar.change_pct is None:
                text = f"{bar.status}: {bar.note[:NOTE_WIDTH]}" if bar.note else bar.status
                axes.annotate(
                    text, (0.0, place), xytext=(4, 0), textcoords="offset points", color=color, fontsize=7, va="center"
                )
    axes.axvline(0.0, color="#333333", linewidth=0.8)
    if all(bar.change_pct is None for bar in bars):  # counts, or nothing that could be measured: words alone
        axes.set_xlim(0.0, 1.0)
        axes.set_xticks([])
    else:
        axes.set_xlabel("change of the time of a call, % (slower to the right)")
    for floor in sorted({bar.floor_pct for bar in bars if bar.floor_pct is not None}):
        axes.axvline(floor, label=f"limit {floor:g} %", **REFERENCE)
    if any(bar.sees_pct is not None for bar in bars):
        axes.plot(
            [], [], "|", color="#999999", markersize=6, linestyle="", label="smallest slowdown that the gate would see"
        )
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=7)
    axes.set_ylim(max(len(bars), 1) - 0.4, -0.6)
