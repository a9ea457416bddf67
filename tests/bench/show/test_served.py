"""Tables of engines: at any width a row says what it is about, no figure is cut, and what failed is not left out."""

from __future__ import annotations

from io import StringIO

import msgspec
import pytest
from rich.console import Console, RenderableType

from bench.engine.run import CacheReady, LoadDone, OutOfTime, Planned, ProcessDone, ProcessStarted
from bench.judge.serving import compare
from bench.model import config
from bench.model.served import ServedLoad, faults
from bench.model.serving import EngineRun, Load, make_serve_plan
from bench.show.serving import amount, compared, follow, planned, summary
from tests.support.served import answer, answers, decode, process, results, usual


def rendered(what: RenderableType, width: int = 200) -> str:
    buffer = StringIO()
    Console(file=buffer, width=width).print(what)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_fit_and_say_mode_figure_and_ratio(width: int) -> None:
    text = rendered(summary(usual()), width)
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines()]
    (plugin,) = [row for row in rows if row[:3] == ["32", "step", "plugin"]]
    assert plugin[3:6] == ["6.55", "ms", "0.501"]
    assert ("1.3" in " ".join(plugin)) == (width >= 60)
    if width >= 80:
        assert plugin[6:9] == ["1.303", "1.5", "%"]


def test_every_mode_stands_beside_the_others() -> None:
    (row,) = [line for line in rendered(summary(usual())).splitlines() if line.startswith("decode 32: step")]
    assert row.split()[3:] == ["5.03", "ms", "13.1", "ms", "6.55", "ms"]


def test_processes_that_are_far_apart_have_their_values_and_no_mean() -> None:
    def row(*times: float) -> str:
        text = rendered(summary(results(*(process(at, "csgmv", at, decode(us)) for at, us in enumerate(times)))))
        (found,) = [" ".join(line.split()) for line in text.splitlines() if line.startswith("32 ") and "csgmv" in line]
        return found

    assert row(100.0, 199.0).startswith("32 step csgmv 141 us") and "99.0 %" in row(100.0, 199.0)
    assert row(500.0, 100.0).startswith("32 step csgmv 500 us, 100 us") and "far apart" in row(500.0, 100.0)
    assert "100 us to 500 us" in row(500.0, 100.0, 120.0)


def test_answers_traces_and_the_setup_are_told() -> None:
    text = rendered(summary(usual()))
    assert "8 adapters of ranks 16+64 on all modules, 8 slots" in text and "6 of 6 engines" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "csgmv equal to the bit 0 0 0/2 -" in lines and "plugin alike 0.01 0.01 0/2 -" in lines
    assert "none no LoRA 4 4 0/2 -" in lines
    assert "csgmv: left out of the trace: 3 without an end" in lines
    assert "qkv 80.0 us" in lines and "between kernels 100 us" in lines and "passes 10" in lines


def test_what_failed_is_marked_in_its_row_and_told_below() -> None:
    void = msgspec.structs.replace(decode(1.0), status="void", reason="the GPU's clock was lowered: thermal")
    made = results(
        process(0, "csgmv", 0, answers(answer(), answer()), decode(10.0)),
        process(1, "none", 0, void),
        process(2, "plugin", 0, answers(answer(3.0), answer(3.0)), decode(5.0)),
        process(3, "plugin", 1, status="crashed", reason="signal SIGKILL: ...out of memory"),
    )
    text = rendered(summary(made))
    (row,) = [line for line in text.splitlines() if line.startswith("decode 32: step")]
    assert row.split()[3:] == ["VOID", "10.0", "us", "WRONG"]
    assert "void: none, repeat 0, decode 32: the GPU's clock was lowered: thermal" in text
    assert "crashed: plugin, repeat 1, the process: signal SIGKILL: ...out of memory" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_two_files_side_by_side_fit(width: int) -> None:
    text = rendered(compared("a.json", "b.json", compare(usual(), usual())), width)
    assert max(map(len, text.splitlines())) <= width
    (row,) = [line.split() for line in text.splitlines() if "step plugin" in " ".join(line.split())]
    assert "1.000" in row


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (None, "us", "-"),
        (4.321, "us", "4.32 us"),
        (999.6, "us", "1.00 ms"),
        (12345.0, "us", "12.3 ms"),
        (41e6, "us", "41.0 s"),
        (3 * 2**30, "bytes", "3.0 GiB"),
        (2483.4, "tokens/s", "2483 /s"),
        (5.678, "tokens/s", "5.68 /s"),
    ],
)
def test_amounts_have_their_units(value: float | None, unit: str, said: str) -> None:
    assert amount(value, unit) == said  # type: ignore[arg-type]


def test_a_plan_is_told_without_being_run() -> None:
    loaded = config.load()
    text = rendered(planned(make_serve_plan(loaded.serve, loaded.serving, "8b"), where=True))
    assert "8 engines, one after another: none triton csgmv plugin plugin csgmv triton none" in text
    assert "  decode 256\n" in text and "then traced: decode 32, prefill 8x512" in text


def test_progress_is_a_line_each() -> None:
    run = EngineRun(1, "csgmv", 0)
    failed = process(1, "csgmv", 0, status="error", reason="no answer within 3 s: killed")
    void = msgspec.structs.replace(decode(1.0), status="void", reason="thermal")
    events = [
        Planned(2, 1), CacheReady(3.0), ProcessStarted(run), LoadDone(run, void), ProcessDone(failed), OutOfTime(1),
    ]  # fmt: skip
    assert [*follow(events)] == [
        "2 engines, 1 of them in the file",
        "model and adapters are ready (3 s)",
        "csgmv, repeat 0: starting",
        "  decode 32: void: thermal",
        "csgmv, repeat 0: error: no answer within 3 s: killed (1 s)",
        "the time limit is reached: 1 engines are left; continue with --resume",
    ]


def test_the_time_of_each_process_is_told_with_the_parts_of_its_start() -> None:
    start = ServedLoad(
        Load("start", 8, 16),
        "ok",
        samples={
            "start_us": [60e6],
            "import_us": [12e6],
            "processes_us": [15e6],
            "graphs_us": [20e6],
            "first_request_us": [3.5e6],
            "second_request_us": [0.5e6],
        },
        duration_s=4.0,
    )
    asked = msgspec.structs.replace(decode(1.0), duration_s=30.0)
    made = results(process(0, "csgmv", 0, start, asked, duration_s=100.0, traced_s=5.0), process(1, "none", 0))
    lines = [" ".join(line.split()) for line in rendered(summary(made)).splitlines()]
    place = lines.index("mode repeat all start import processes graphs rest compile measured traced")
    assert lines[place + 2 : place + 4] == [
        "csgmv 0 100 s 60.0 s 12.0 s 15.0 s 20.0 s 13.0 s 3.00 s 30.0 s 5.00 s",
        "none 0 1.00 s - - - - - - - -",
    ]
    assert not any(line.startswith("compiled by Triton") for line in lines)


def test_what_was_compiled_is_told_by_the_load_that_needed_it() -> None:
    asked = decode(1.0)
    asked.samples["compile_us"], asked.compiled = [0.4e6, 1.5e6, 0.3e6], ["shrink", "attention", "shrink"]
    lines = [" ".join(line.split()) for line in rendered(summary(results(process(0, "plugin", 1, asked)))).splitlines()]
    place = lines.index("mode repeat load kernels took those that took longest")
    assert lines[place - 1].startswith("compiled by Triton")
    assert lines[place + 2] == "plugin 1 decode 32 3 2.20 s 1 attention, 2 shrink"


def test_names_are_one_a_time() -> None:
    asked = decode(1.0)
    asked.samples["compile_us"], asked.compiled = [0.4e6], ["shrink", "attention"]
    said = list(faults(results(process(0, "plugin", 0, asked))))
    assert len(said) == 1 and said[0].endswith("compiled has 2 names; expected 1, as samples.compile_us has times")
