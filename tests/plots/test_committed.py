"""The committed records draw every figure, and show what the docs say they show."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.cli.history import view
from bench.judge.history import History
from bench.judge.times import judge_pairs
from bench.model import history as stored
from bench.model import pairs as records
from bench.model import store
from bench.show.tables import name_of
from plots import figures, gate, history, inputs, noise, scaling

DOCS = Path(__file__).parents[2] / "docs"
CHECK = DOCS / "experiments" / "h100-self-check-1.json"
PLANTED, BISECT = DOCS / "experiments" / "planted-slow", DOCS / "experiments" / "planted-slow-bisect"
# Commits by what they say of themselves; their hashes are the records'.
SLOW = "kernels: rows without LoRA do not load their id"  # the planted one
BEFORE, AFTER = "kernels: the token word first, as the docstring tells it", "tuning: a clearer docstring"


def short(*subjects: str) -> list[str]:
    """The short hashes of these commits, one each."""
    commits = [entry.commit for entry in stored.read_all(PLANTED)]
    found = [{commit.short for commit in commits if commit.subject.startswith(subject)} for subject in subjects]
    assert all(len(hashes) == 1 for hashes in found), "a subject of no commit, or of several"
    return [hashes.pop() for hashes in found]


def seen(clock: str) -> History:
    return view(PLANTED, None, [clock], [], [], None)


def test_every_figure_is_drawn_from_committed_records(tmp_path: Path) -> None:
    found = inputs.load([DOCS / "results" / "h100-eager.json", CHECK, PLANTED])
    written = figures.draw("all", found, lambda folder: seen("graph"), tmp_path / "x.png")
    names = {path.stem.removeprefix("x-") for path in written}
    engines = {name for name, kind in figures.FIGURES.items() if kind.source in ("served", "traced")}  # none committed
    assert names == set(figures.FIGURES) - engines, "a figure that nothing committed can draw, or one that is not known"
    assert all(path.stat().st_size > 5000 for path in written) and len(written) == 2 * len(names)


def assert_labels_stand_apart(axes: Axes) -> None:
    """Of the axis below a panel: "128", "256" and "512" had run together."""
    FigureCanvasAgg(axes.figure).draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) > 1 and all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(("name", "panels"), [("h100-full", 4), ("h100-layer", 3), ("h100-head", 1)])
def test_scaling_shows_the_op_of_its_file_whole(name: str, panels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(scaling, "save", lambda figure, path: drawn.append(figure))
    scaling.draw(store.read(DOCS / "results" / f"{name}.json"), Path("x.png"))
    used = [axes for axes in drawn[0].axes if axes.axison]
    assert len(used) == panels, "a panel for each axis that varies, none that is empty"
    for axes in used:
        assert_labels_stand_apart(axes)
        low, high = axes.get_ylim()
        times = [
            time for line in axes.get_lines() if not line.get_label().startswith("least") for time in line.get_ydata()
        ]
        assert times and all(low < time < high for time in times if time), "cut off"


def test_a_run_of_one_commit_says_that_slowdowns_were_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the word its title read "regression, commit X against itself"."""
    titles: list[str] = []
    monkeypatch.setattr(gate, "save", lambda figure, path: titles.append(figure.get_suptitle()))
    for record in (CHECK, DOCS / "experiments" / "h100-planted-1.json"):
        gate.draw(judge_pairs(records.read(record)), Path("x.png"))
    assert ["against itself, with planted slowdowns" in title for title in titles] == [False, True]


def test_the_self_check_is_drawn_as_it_was_measured() -> None:
    run = records.read(CHECK)
    cells = noise.data(run)
    axes = Figure().subplots()
    cases, names = list(dict.fromkeys(c.case for c in cells)), list(dict.fromkeys(c.contender for c in cells))
    noise._draw_map(axes, cells, cases, names)
    image = np.asarray(axes.get_images()[0].get_array(), dtype=float)
    assert np.isfinite(image).all() and image.size == len(run.points) == 32
    for cell in cells:
        assert image[cases.index(cell.case), names.index(cell.contender)] == pytest.approx(cell.spread_pct)
    bars = gate.data(gate_report())
    assert {bar.status for bar in bars} == {"pass"} and len(bars) == 32


def gate_report():  # type: ignore[no-untyped-def]
    from bench.judge.times import judge_pairs

    return judge_pairs(records.read(CHECK))


def test_the_planted_commit_is_in_the_timed_history_and_its_picture() -> None:
    found = seen("graph")
    slow, after, failing = short(SLOW, AFTER, "Programmatic dependent launch")
    assert [sha[:9] for sha in found.of_commit()] == [after]
    (change, *others) = found.changes
    assert len(others) == 7 and all(item.worse for item in found.changes)
    assert [item.short for item in change.suspects] == [slow, after], "the planted one was not measured itself"
    assert found.failures() == {
        failing: ["error: TypeError: embedding_lora_a() got an unexpected keyword argument 'pdl'"]
    }
    panel = history.data(found)[0]
    axes = Figure().subplots()
    letters = history._letters([panel])
    history._draw_panel(axes, panel, letters, labelled=True)
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["A  +11 %"]
    (told,) = history._told([panel])
    assert (
        told.startswith(f"A: {slow} ({SLOW}) or {after} ({AFTER}")
        and f". Measured before it: {short(BEFORE)[0]} ({BEFORE}" in told
    )
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    low, high = axes.get_ylim()
    for item in panel.lines:
        values = [mark.value for mark in item.marks if mark.value is not None]
        drawn = list(lines[name_of(item.contender)].get_ydata())
        assert drawn == pytest.approx([100 * value / values[0] for value in values]) and len(drawn) == 8
        assert max(drawn) - min(drawn) > (high - low) / 4, "the step fills a good part of the axis"


def test_the_planted_commit_is_named_by_its_counts() -> None:
    assert [sha[:9] for sha in seen("work").of_commit()] == short("Sizes and strides are constants", SLOW)


def test_a_counted_history_draws_the_count_that_moved() -> None:
    """Programs differ from contender to contender, and in no contender from commit to commit."""
    panels = history.data(seen("work"))
    assert {panel.figure for panel in panels} == {"instructions"}
    assert all(len({mark.value for mark in line.marks}) > 1 for panel in panels for line in panel.lines)


def test_versions_are_called_by_their_names() -> None:
    found = view(DOCS / "experiments" / "sglang-versions", None, ["work"], [], [], None)
    assert history._heading(found)[0] == "Counted work (not times) across versions of SGLang, oldest first"
    told = history._told(history.data(found))
    reading = " ".join(history._reading(found))
    assert "A cross is a version that failed" in reading and "orange is worse, blue is better" in reading
    assert "B: SGLang 0.5.14. Measured before it: SGLang 0.5.13. Measured after it: SGLang 0.5.15" in told


def test_the_pairs_of_the_bisection_have_the_planted_commit_on_the_new_level_and_its_parent_on_the_old() -> None:
    ratios = {}
    for path in sorted(BISECT.glob("bisect-*.json")):
        run = records.read(path)
        values = [item.log_ratio for item in run.points[0].of_stage("confirm")]
        ratios[run.a.label, run.b.label] = float(np.mean(values))
    good, before, slow = short("Merge: the SGLang plugin", BEFORE, SLOW)
    assert ratios[good, before] == pytest.approx(-0.005, abs=0.003)
    assert ratios[good, slow] == pytest.approx(0.093, abs=0.005)
    assert ratios[before, slow] == pytest.approx(0.090, abs=0.005)
