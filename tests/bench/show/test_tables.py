"""Tables say what the records hold: our time, ratios, the floor, and every point without a figure."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from bench.model.case import Case
from bench.model.records import Anchor, Code, Environment, Point, Results, Round, Run, Schema, Selection
from bench.show.tables import microseconds, short_name, summary

CASES = [Case("decode", 32, 1, 16), Case("prefill", 8, 512, 64)]


def point(case: Case, contender: str, time_us: float | None, index: int, **fields) -> Point:
    rounds = [Round(0, 1, [time_us]), Round(1, 2, [time_us])] if time_us else []
    return Point(case, contender, "graph", index, fields.pop("status", "ok"), rounds=rounds, floor_us=[0.5], **fields)


def text(points: list[Point]) -> str:
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
    results = Results(Schema(), run, code, environment, anchors, points)
    buffer = StringIO()
    Console(file=buffer, width=200).print(summary(results))
    return buffer.getvalue()


def row(output: str, label: str) -> list[str]:
    line = next(line for line in output.splitlines() if label in line and "│" in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_row_has_our_time_its_multiple_of_the_floor_and_ratios():
    output = text(
        [point(CASES[0], "csgmv_embed-vocab_major", 1.25, 0), point(CASES[0], "sglang_csgmv-chunk16", 5.0, 1)]
    )
    assert row(output, "decode 32 r16") == ["decode 32 r16", "warm", "0.50 l", "1.25", "2.50", "5.00", "4.00"]
    assert "csgmv-chunk16 takes 4.00 times ours (4.00 to 4.00, 1 cases)" in output
    assert "between processes the log time varies by 0.00 %" in output


def test_bytes_are_the_floor_when_they_take_longer():
    output = text([point(CASES[1], "csgmv_embed-vocab_major", 2.0, 0, minimum_bytes=4_000_000)])
    assert row(output, "prefill 8x512 r64")[2:5] == ["1.00 b", "2.00", "2.00"]


def test_points_without_a_figure_are_marked_and_explained():
    points = [point(CASES[0], "csgmv_embed-vocab_major", 1.0, 0)]
    for index, status in enumerate(("wrong", "crashed", "error")):
        points.append(point(CASES[0], f"peer{index}", None, index + 1, status=status, reason=f"because {index}"))
    points.append(point(CASES[0], "sglang_tokens", None, 9, status="skipped", reason="absent: pip install"))
    output = text(points)
    assert row(output, "decode 32 r16")[5::2] == ["WRONG", "CRASH", "ERROR"]
    assert "crashed: peer1, graph clock, 1 cases (decode 32 r16): because 1" in output
    assert "skipped: sglang_tokens, graph clock, 1 cases (decode 32 r16): absent: pip install" in output


def test_the_heading_names_gpu_commit_and_floors():
    output = text([point(CASES[0], "csgmv_embed-vocab_major", 1.0, 0)])
    assert "quick on GPU X, torch 2" in output
    assert "aaaaaaaaa + uncommitted changes" in output
    assert "copy 4.00 TB/s" in output


def test_numbers_and_names_are_short():
    assert [microseconds(value) for value in (1.234, 12.34, 123.4, None)] == ["1.23", "12.3", "123", "-"]
    assert short_name("csgmv_embed-vocab_major") == "ours-vocab"
    assert short_name("sglang_csgmv-chunk128") == "csgmv-chunk128"
