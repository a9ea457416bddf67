"""A report as a comment: what is said first, what is folded away, and how long it may become."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
from markdown_it import MarkdownIt

from bench.judge.times import judge_pairs
from bench.model import pairs, store
from bench.model.verdict import Change, Report, Subject, Verdict
from bench.show.gate import table_text
from bench.show.gate_markdown import comment
from bench.show.page import gates
from tests.support.gate import AA, ROOT, Outcome

PLANTED = ROOT / "docs" / "experiments" / "h100-planted-1.json"
Run = Callable[..., Outcome]


def html(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@cache
def planted() -> Report:
    """Of a run in which 3, 5 and 10 % were planted. Not to be changed."""
    return judge_pairs(pairs.read(PLANTED))


def test_flagged_points_stand_in_a_table_the_worst_first_and_the_rest_is_folded() -> None:
    text = comment(planted(), "embedding", "https://example.org/gate.png")
    lines = text.splitlines()
    assert lines[:2] == ["<!-- bench comment: embedding -->", "### embedding: REGRESSION"]
    rendered = html(text)
    assert '<img src="https://example.org/gate.png"' in rendered
    flagged, folded = rendered.split("<details>", 1)
    assert flagged.count("<td>slow</td>") == 44 and "<td>pass</td>" not in flagged
    assert flagged.index("+10.2 %") < flagged.index("+5.3 %")
    assert folded.count("<td>pass</td>") == 4 and "NVIDIA H100 80GB HBM3" in folded


def test_page_table_and_comment_say_one_summary_and_tell_planted_points_apart() -> None:
    found = msgspec.structs.replace(planted(), verdicts=sorted(planted().verdicts, key=lambda item: item.ratio or 0.0))
    shown = gates.report("x.json", found, None)
    assert "worst +10.2 % (decode 256 r256, planted 10 %, ours-vocab)" in shown["summary"]
    assert shown["summary"] in table_text(found) and shown["summary"] in comment(found, "x")
    labels = [item["label"] for item in shown["verdicts"]]
    assert len(set(labels)) == len(labels) == 48
    assert {"decode 1 r16 warm, planted 10 %", "decode 1 r16 warm, planted 5 %"} <= {*labels}
    assert "<td>decode 1 r16 warm, planted 5 %</td>" in html(comment(found, "x"))
    assert "decode 1 r16 warm, planted 5 % " in table_text(found)


def test_a_comment_is_short_enough_for_github_whatever_the_report_holds() -> None:
    report = planted()
    text = comment(msgspec.structs.replace(report, verdicts=report.verdicts * 40), "many")
    assert 30_000 < len(text.encode()) < 65_536 and "more points are not shown" in text
    assert html(text).count("<table>") == 2


def test_a_title_cannot_end_the_mark_it_stands_in() -> None:
    assert comment(planted(), "a --> b\nc").splitlines()[0] == "<!-- bench comment: a -> b c -->"


def test_what_is_no_report_and_no_address_is_refused(run: Run, tmp_path: Path) -> None:
    done = run("comment", AA)
    assert (
        done.code == 2
        and "is a csgmv-bench-results" in done.err
        and "a record of pairs (bench gate -o FILE)" in done.err
    )
    done = run("comment", PLANTED, "--picture", "javascript:x")
    assert done.code == 2 and "--picture javascript:x: expected an address" in done.err
    store.write_bytes(tmp_path / "x.json", b"[]")
    assert run("comment", tmp_path / "x.json").code == 2


def test_counts_of_two_versions_of_sglang_have_the_layout_of_counts() -> None:
    item = planted().verdicts[0]
    change = Change("programs", 32, 256, worse=True)
    counted = Verdict(item.case, "sglang_triton", "work", "slow", "worse: programs", confirmed=True, changes=[change])
    sides = [Subject(f"SGLang {version}", None, None, "0") for version in ("0.5.20", "0.5.23")]
    report = Report("against-sglang", *sides, {}, [counted])
    table = table_text(report)
    assert "counted work of SGLang 0.5.23 against SGLang 0.5.20: not times" in table and "95 %" not in table
    assert "| slow | decode" in comment(report, "x") and r"programs 32 -\> 256" in comment(report, "x")
