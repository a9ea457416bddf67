"""Tables say what the records hold: our time, ratios, the floor, and every point without a figure."""

from __future__ import annotations

from io import StringIO

import msgspec
import pytest
from rich.console import Console, RenderableType

from bench.judge.figures import figures, standings
from bench.model import store
from bench.model.case import Case
from bench.model.paths import ROOT
from bench.model.records import Anchor, Code, Environment, Point, Results, Round, Run, Schema, Selection
from bench.show.tables import microseconds, pivot_table, ranked, short_name, summary

CASES = [Case("decode", 32, 1, 16), Case("prefill", 8, 512, 64)]


def point(case: Case, contender: str, time_us: float | None, index: int, **fields) -> Point:
    rounds = [Round(0, 1, [time_us]), Round(1, 2, [time_us])] if time_us else []
    return Point(case, contender, "graph", index, fields.pop("status", "ok"), rounds=rounds, floor_us=[0.5], **fields)


def made(points: list[Point]) -> Results:
    run = Run(
        "00000000-0000-4000-8000-000000000000",
        "sweep",
        Selection("quick"),
        "2026-01-01T00:00:00+00:00",
        5.0,
        [],
        1,
        "0",
        "0",
    )
    environment = Environment({"gpu": "GPU X", "torch": "2"}, "k", {})
    anchors = [Anchor("copy_bandwidth", "bytes/us", [4e6]), Anchor("empty_kernel_graph", "us", [0.5])]
    code = Code("a" * 40, "a" * 9, "main", None, True, None, "0", "0")
    return Results(Schema(), run, code, environment, anchors, points)


def text(points: list[Point], width: int = 200) -> str:
    return rendered(summary(made(points)), width)


def rendered(what: RenderableType, width: int) -> str:
    buffer = StringIO()
    Console(file=buffer, width=width).print(what)
    return buffer.getvalue()


def row(output: str, label: str) -> list[str]:
    """The cells of the case's line."""
    line = next(line for line in output.splitlines() if line.startswith(label))
    return line.removeprefix(label).split()


ODD = {"cache": "cold", "adapters": 64}
OURS, CSGMV = "csgmv_embed-vocab_major", "sglang_csgmv-chunk16"


def test_a_row_has_our_time_the_best_peers_the_ratio_and_the_multiple_of_the_bound():
    output = text([point(CASES[0], OURS, 1.25, 0), point(CASES[0], CSGMV, 5.0, 1), point(CASES[0], "peer", 6.0, 2)])
    assert row(output, "decode 32 r16")[:8] == [
        "1.25",
        "5.00",
        "4.00",
        "2.50",
        "csgmv-chunk16",
        "0.50",
        "empty",
        "node",
    ]
    assert row(output, "decode 32 r16")[8:] == ["5.00", "6.00"]
    assert "csgmv-chunk16 takes 4.00 times ours (4.00 to 4.00, 1 case)" in output
    assert "between processes the log time varies by 0.00 %" in output


def test_bytes_are_the_bound_when_they_take_longer():
    output = text([point(CASES[1], OURS, 2.0, 0, minimum_bytes=4_000_000)])
    assert row(output, "prefill 8x512 r64") == ["2.00", "-", "-", "2.00", "-", "1.00", "bytes"]


def test_a_time_below_its_bound_is_marked_and_explained():
    output = text([point(CASES[0], OURS, 0.4, 0)])
    assert "0.80*" in row(output, "decode 32 r16") and "* below the bound: an overlapped launch" in output
    assert "*" not in text([point(CASES[0], OURS, 0.6, 0)])


def test_a_contender_below_its_bound_is_marked_too_and_explained_where_it_is_shown():
    points = [point(CASES[0], OURS, 0.6, 0), point(CASES[0], "csgmv_embed_pdl-vocab_major", 0.4, 1)]
    output = text(points)
    assert row(output, "decode 32 r16")[-1] == "0.40*" and "* below the bound: an overlapped launch" in output
    assert "*" not in text(points, 60), "its column has no room"


def test_the_worst_cases_are_told_apart_from_those_of_the_file_that_are_not_shown():
    cases = [CASES[0], *(msgspec.structs.replace(CASES[0], **{name: value}) for name, value in ODD.items())]
    results = made([point(case, OURS, 1.0 + index, index) for index, case in enumerate(cases)])
    rows = standings(figures(results), sort="time", top=1)
    for shown in (ranked(results, rows, "time"), summary(results, [rows[0].ours])):
        output = rendered(shown, 200)
        assert "decode 32 r16 adapters=64 warm" in output
        assert "quick on GPU X" in output and "commit aaaaaaaaa" in output and "2026-01-01" in output


@pytest.mark.parametrize(("op", "cost"), [("layer", "+50 %"), ("head", "+150 %")])
def test_the_product_without_lora_competes_with_nobody(op, cost):
    """A layer's time has the product in it; what adds to given logits comes on top of it."""
    case = msgspec.structs.replace(CASES[0], op=op, hidden=64)
    output = text([point(case, OURS, 3.0, 0), point(case, "base", 2.0, 1), point(case, CSGMV, 6.0, 2)])
    assert "csgmv-chunk16 takes 2.00 times ours" in output
    assert cost in output and f"LoRA costs {cost} ({cost} to {cost}, 1 case)" in output
    assert "base takes" not in output and "without LoRA takes" not in output


def test_points_without_a_figure_are_marked_and_explained():
    points = [point(CASES[0], OURS, 1.0, 0)]
    for index, status in enumerate(("wrong", "crashed", "error")):
        points.append(point(CASES[0], f"peer{index}", None, index + 1, status=status, reason=f"because {index}"))
    points.append(point(CASES[0], "sglang_tokens", None, 9, status="skipped", reason="absent: pip install"))
    output = text(points)
    assert row(output, "decode 32 r16")[-3:] == ["WRONG", "CRASH", "ERROR"]
    assert "crashed: peer1, graph clock, 1 case (decode 32 r16): because 1" in output
    assert "skipped: sglang_tokens, graph clock, 1 case (decode 32 r16): absent: pip install" in output


def test_the_heading_names_gpu_commit_and_bounds():
    output = text([point(CASES[0], OURS, 1.0, 0)])
    assert "quick on GPU X, torch 2" in output
    assert "aaaaaaaaa + uncommitted changes" in output
    assert "an empty node 0.50 us" in output and "4.00 TB/s of a copy" in output


def test_an_axis_is_named_where_it_is_not_as_usual_and_caches_where_both_are_there():
    cases = [Case("decode", 32, 1, 16), Case("decode", 32, 1, 64), Case("decode", 32, 1, 64, adapters=64, cache="cold")]
    output = text([point(case, OURS, 1.0, index) for index, case in enumerate(cases)])
    assert "adapters=8 where no other is named" in output
    labels = [line.split("  ")[0] for line in output.splitlines() if line.startswith("decode 32")]
    assert labels == ["decode 32 r16 warm", "decode 32 r64 warm", "decode 32 r64 adapters=64 cold"]


@pytest.mark.parametrize("width", [60, 80, 120, 200, 10_000])
def test_every_figure_that_a_row_is_about_is_there_at_any_width(width: int):
    """Of a published file: our time, the best peer's, the ratio and the multiple of the bound, of every case."""
    results = store.read(ROOT / "docs" / "results" / "h200-quick.json")
    output = rendered(summary(results), width)
    assert max(map(len, output.splitlines())) <= width
    joined = " ".join(output.split())
    for standing in standings(figures(results)):
        if standing.clock != "work" and standing.ours and standing.best_peer:
            said = (standing.ours.time_us, standing.best_peer.time_us)
            times = [microseconds(value) for value in said]
            times[1] += "*" * (standing.best_peer.to_floor < 1)
            assert standing.case.label in joined
            shown = [
                f"ours {times[0]}, peer {times[1]}, ratio {standing.ratio:.2f}, /floor {standing.ours.to_floor:.2f}"
            ]
            shown.append(f"{times[0]} {times[1]} {standing.ratio:.2f} {standing.ours.to_floor:.2f}")
            assert any(one in joined for one in shown), (standing.case.label, shown)
    assert "…" not in output, "something was cut"


def test_a_pivot_has_the_ratio_of_each_pair_of_values():
    cases = [Case("decode", batch, 1, rank) for batch in (1, 32) for rank in (16, 64)]
    points = [point(case, OURS, 1.0, index) for index, case in enumerate(cases)]
    points += [point(case, CSGMV, float(case.rank * case.batch_size), 9) for case in cases[:-1]]
    output = rendered(pivot_table(standings(figures(made(points))), ("rank", "batch_size")), 60)
    assert row(output, "16") == ["16.00", "512.00"] and row(output, "64") == ["64.00", "-"]


def test_numbers_and_names_are_short():
    assert [microseconds(value) for value in (1.234, 12.34, 123.4, None)] == ["1.23", "12.3", "123", "-"]
    assert short_name("csgmv_embed-vocab_major") == "ours-vocab"
    assert short_name("sglang_csgmv-chunk128") == "csgmv-chunk128"
