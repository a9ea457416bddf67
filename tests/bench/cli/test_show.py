"""`show` and `compare` answer questions about files, in the format that was asked for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean

import pytest

from bench.model.paths import BASELINES, ROOT
from bench.show.tables import microseconds
from tests.support.gate import Outcome

Run = Callable[..., Outcome]
FULL = ROOT / "docs" / "results" / "h100-full.json"
COUNTS, OTHER_COUNTS = (BASELINES / f"work-triton-{version}.json" for version in ("3.6", "3.8"))
EXPERIMENTS = ROOT / "docs" / "experiments"
FIELDS = {"case", "contender", "clock", "status", "median_us", "low_us", "high_us", "floor_us"}


def objects(run: Run, *arguments: object) -> list[dict[str, object]]:
    done = run("show", FULL, "-f", "json", *arguments)
    assert done.code == 0, done.err
    found: list[dict[str, object]] = json.loads(done.out)
    return found


def test_json_is_a_list_of_objects_of_the_chosen_points(run: Run) -> None:
    found = objects(run, "--case", "phase=decode,batch_size=1,rank=64,cache=warm", "-c", "sglang_*", "-k", "graph")
    assert {item["contender"] for item in found} == {"sglang_csgmv-chunk16", "sglang_csgmv-chunk128", "sglang_triton"}
    for item in found:
        assert item.keys() >= FIELDS and "batch_size=1," in str(item["case"]) and item["clock"] == "graph"
        assert float(str(item["low_us"])) <= float(str(item["median_us"])) <= float(str(item["high_us"]))
        assert float(str(item["to_ours"])) > 1, "ours is known although it was not chosen"


def test_a_bound_has_the_tables_word_beside_its_kind(run: Run) -> None:
    chosen = ("--case", "phase=decode,batch_size=1,rank=64,op=lookup", "-c", "csgmv_embed-vocab_major", "-k", "graph")
    found, *_ = objects(run, *chosen)
    assert (found["floor"], found["floor_words"]) == ("launch", "empty node")
    assert " empty node" in run("show", FULL, *chosen).out


@pytest.mark.parametrize("option", [("--pivot", "rank,batch_size"), ("--sort", "ratio"), ("--top", "1")])
@pytest.mark.parametrize("format", ["table", "csv"])
def test_counts_have_no_times_to_order_by(run: Run, option: tuple[str, str], format: str) -> None:
    done = run("show", COUNTS, *option, "-f", format)
    assert done.code == 2 and not done.out
    assert "counts have no times" in done.err and "-k work" in done.err and "`compare`" in done.err


def test_a_pivot_without_a_peer_is_2(run: Run) -> None:
    done = run("show", FULL, "--pivot", "rank,batch_size", "-c", "csgmv_embed-vocab_major")
    assert done.code == 2 and "no chosen case has a time of a peer and of ours" in done.err


def test_compare_says_first_that_two_gpus_are_not_the_code(run: Run) -> None:
    chosen = ("--case", "phase=prefill,rank=256,cache=warm", "-c", "csgmv_embed_segments-rank_major")
    lines = run("compare", FULL, ROOT / "docs" / "results" / "h200-full.json", *chosen).out.splitlines()
    assert lines[0].startswith("the changes below are not the code's alone: gpu is NVIDIA H100 80GB HBM3 in A, ")
    rows = json.loads(run("compare", FULL, ROOT / "docs" / "results" / "h200-full.json", *chosen, "-f", "json").out)
    assert {row["caveats"].split(",")[0] for row in rows} == {"not the code's alone: gpu is NVIDIA H100 80GB HBM3 in A"}
    head = next(place for place, line in enumerate(lines) if line.startswith("case"))
    assert max(place for place, line in enumerate(lines) if line.startswith("not comparable")) < head
    assert lines[head].split()[-1] == "note" and "changed figures" not in lines[head]


def test_compare_of_one_gpu_has_nothing_to_say_first(run: Run) -> None:
    aa = ROOT / "docs" / "results" / "h200-aa.json"
    assert "alone" not in run("compare", aa, aa).out and "alone" not in run("compare", COUNTS, OTHER_COUNTS).out


def test_csv_and_markdown_hold_the_same(run: Run) -> None:
    chosen = ("--case", "phase=decode,batch_size=1,rank=64", "-k", "graph")
    found = objects(run, *chosen)
    rows = list(csv.DictReader(io.StringIO(run("show", FULL, *chosen, "-f", "csv").out)))
    assert [float(row["median_us"]) for row in rows] == [item["median_us"] for item in found]
    lines = run("show", FULL, *chosen, "-f", "markdown").out.splitlines()
    assert len(lines) == len(found) + 2 and lines[1].startswith("| ---")
    assert f"{found[0]['median_us']:.4g}" in lines[2]


@pytest.mark.parametrize(("sort", "field", "best_first"), [("floor", "to_floor", False), ("time", "median_us", False)])
def test_the_worst_come_first(run: Run, sort: str, field: str, best_first: bool) -> None:
    ours = "csgmv_embed-vocab_major"
    found = [item[field] for item in objects(run, "--sort", sort, "--top", "5") if item["contender"] == ours]
    everything = sorted((item[field] for item in objects(run, "-c", ours)), reverse=not best_first)  # type: ignore[type-var]
    assert found == everything[:5]


def test_the_smallest_ratio_to_the_best_peer_comes_first(run: Run) -> None:
    (worst,) = {str(item["case"]) for item in objects(run, "--sort", "ratio", "--top", "1")}
    best: dict[str, float] = {}
    for item in objects(run):
        if not str(item["contender"]).startswith("csgmv_embed"):
            case, ratio = str(item["case"]), float(str(item["to_ours"]))
            best[case] = min(best.get(case, ratio), ratio)
    assert best[worst] == min(best.values())
    assert "1 case, the worst ratio first" in run("show", FULL, "--top", "1").out


def test_a_pivot_is_of_two_axes(run: Run) -> None:
    found = objects(run, "--pivot", "rank,batch_size", "--case", "phase=decode")
    assert [item["rank"] for item in found] == [8, 16, 32, 64, 128, 256]
    assert found[0].keys() == {"rank", "1", "8", "32", "128", "256", "512"}
    assert "rank by batch_size" in run("show", FULL, "--pivot", "rank,batch_size").out


def test_a_pivot_of_contenders_has_each_competitor_in_its_own_column(run: Run) -> None:
    found = objects(
        run, "--pivot", "op+phase,contender", "-c", "csgmv_embed-vocab_major", "-c", "sglang_*", "-k", "graph"
    )
    assert [item["op+phase"] for item in found][:3] == ["lookup decode", "lookup prefill", "lookup mixed"]
    assert list(found[0]) == ["op+phase", "sglang_csgmv-chunk16", "sglang_csgmv-chunk128", "sglang_triton"]
    of_points = [
        float(str(item["to_ours"]))
        for item in objects(run, "-c", "sglang_triton", "-k", "graph", "--case", "phase=decode,op=lookup")
    ]
    assert found[0]["sglang_triton"] == pytest.approx(geometric_mean(of_points))
    page = run(
        "show", FULL, "--pivot", "op+phase,contender", "-c", "sglang_triton", "-k", "graph", "-f", "markdown"
    ).out
    assert page.startswith("| op, phase | SGLang triton fallback |\n| --- | --- |\n| lookup decode | ")
    assert f"({microseconds(min(of_points))} to {microseconds(max(of_points))}) |" in page


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (EXPERIMENTS / "h100-self-check-1.json", "gate self-check: pass"),
        (EXPERIMENTS / "h100-ncu.json", "a profile, not a t"),
        (EXPERIMENTS / "planted-slow", "9 commits of"),
    ],
    ids=["pairs", "profile", "history"],
)
def test_a_file_of_another_kind_is_shown_by_what_shows_it(run: Run, file: object, said: str) -> None:
    done = run("show", file)
    assert done.code == 0 and said in done.out
    refused = run("show", file, "--top", "3")
    assert refused.code == 2 and "is not a results file; expected no option but --wide" in refused.err


def test_a_report_of_ncu_is_told_who_shows_it_and_other_json_what_is_expected(run: Run, tmp_path: Path) -> None:
    report = ROOT / "docs" / "experiments" / "h200-linear-cold.ncu-rep"
    assert f"is a report of ncu; expected python -m bench profile show {report}" in run("show", report).err
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    assert "x.json: is a JSON file that names no format of this suite; expected" in run("show", tmp_path / "x.json").err


def test_the_product_without_lora_does_not_compete_in_errors(run: Run) -> None:
    lines = run("show", ROOT / "docs" / "results" / "h100-head.json").out.splitlines()
    (base,) = [line for line in lines if "head: base errs by" in line]
    assert "ours" not in base and base.endswith("it is the product without LoRA, rounded once")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sort", "size"), "--sort size: expected one of ratio, time, floor"),
        (("-f", "xml"), "--format xml: expected one of table, markdown, csv, json"),
        (("--pivot", "rank"), "--pivot rank: expected two of phase, batch_size"),
        (("--pivot", "rank,colour"), "--pivot rank,colour: expected two of phase, batch_size"),
        (("--pivot", "rank,op+rank"), "--pivot rank,op+rank: expected two of phase, batch_size"),
        (("--pivot", "rank,op+contender"), "contender cannot be joined"),
        (("-k", "sundial"), "--clock sundial: expected one of"),
        (("-c", "nobody"), "no point fits --case, -c and -k together; the file has the contenders csgmv_embed-"),
    ],
)
def test_a_question_that_cannot_be_answered_is_2(run: Run, options: tuple[str, ...], said: str) -> None:
    done = run("show", FULL, *options)
    assert done.code == 2 and said in done.err


def test_wide_shows_every_contender(run: Run) -> None:
    narrow, wide = run("show", FULL).out, run("show", FULL, "--wide").out
    assert max(map(len, narrow.splitlines())) <= 200 < max(map(len, wide.splitlines()))
    heads = [next(line for line in output.splitlines() if line.startswith("case")) for output in (narrow, wide)]
    assert set(heads[0].split()) < set(heads[1].split())


def test_compare_has_the_formats(run: Run) -> None:
    aa = ROOT / "docs" / "results" / "h200-aa.json"
    found = json.loads(run("compare", aa, aa, "-f", "json").out)
    assert {row["caveats"] for row in found} == {None}
    assert len(found) == 48 and all(item["ratio"] == 1.0 and item["low"] < 1 < item["high"] for item in found)
    assert run("compare", aa, aa, "-f", "csv").out.startswith("case,contender,clock,ratio,low,high,p,notes")
    assert run("compare", aa, aa, "-f", "xml").code == 2
