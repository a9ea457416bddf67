"""Pictures of engines draw what the file holds: a bar a mode and load, a mark a process, a stack a mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bench.model.served import ServeResults
from bench.model.serving import Load
from bench.show.looks import mode_color
from plots import serving, where
from plots.labels import load_name
from tests.support.served import DECODE, process, results, trace, usual


def drawn(module, of: ServeResults, monkeypatch: pytest.MonkeyPatch) -> Figure:  # type: ignore[no-untyped-def]
    found: list[Figure] = []
    monkeypatch.setattr(module, "save", lambda figure, path: found.append(figure))
    module.draw(of, Path("x.png"))
    return found[0]


def test_a_bar_is_a_modes_figure_and_a_mark_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = drawn(serving, usual(), monkeypatch).axes
    heights = {str(bars.get_label()): [bar.get_height() for bar in bars] for bars in axes.containers}
    (panel,) = serving.data(usual())
    assert heights == {mode: [panel.by[DECODE, mode].value / 1000] for mode in panel.modes}  # type: ignore[operator]
    marks = [list(line.get_ydata()) for line in axes.get_lines()]
    assert marks == [[5.005, 5.05], [13.0, 13.13], [6.5, 6.6]]
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (Load(kind="decode", requests=32, prompt_tokens=16, base_fraction=1.0), "decode 32,\n100 % without LoRA"),
        (Load(kind="prefill", requests=8, prompt_tokens=512, skew=1.0), "prefill 8 x 512,\nskew 1"),
        (
            Load(kind="arrivals", requests=64, prompt_tokens=128, rate_rps=8.0, mix="one"),
            "arrivals 8/s x 128,\nadapters one",
        ),
    ],
)
def test_a_load_is_named_in_words_what_is_unusual_below(load: Load, name: str) -> None:
    assert load_name(load) == name


def test_a_mode_without_a_figure_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = usual()
    made.processes = [
        process(2, "plugin", 0, status="crashed", reason="SIGKILL") if item.mode == "plugin" else item
        for item in made.processes[:3]
    ]
    (axes,) = drawn(serving, made, monkeypatch).axes
    assert [text.get_text() for text in axes.texts] == ["crashed"]


def test_a_stack_is_a_modes_kernel_time_by_site(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(where, usual(), monkeypatch).axes[0]
    heights = {str(bars.get_label()): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert heights == {
        "LoRA of qkv": [pytest.approx(0.08)],
        "base products": [pytest.approx(0.2)],
        "attention": [pytest.approx(0.02)],
    }
    tops = [bar.get_y() + bar.get_height() for bars in axes.containers for bar in bars]
    assert max(tops) == pytest.approx(0.3), "each begins where the one below ends"


def test_each_traced_load_has_a_panel() -> None:
    made = results(process(0, "none", 0), process(1, "csgmv", 0))
    for item in made.processes:
        item.traces = [trace()]
    assert [[item.mode for item in panel] for panel in where.data(made)] == [["none", "csgmv"]]


def test_usual_modes_have_colours_of_their_own() -> None:
    assert len({mode_color(mode) for mode in ("none", "triton", "csgmv", "plugin")}) == 4
    assert mode_color("plugin-lookup") == mode_color("plugin-lookup")
