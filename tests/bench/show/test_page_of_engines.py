"""Files of `bench serve` on the page: every figure, its processes, answers, sites, bench_serving's figures."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec
import pytest

from bench.judge.serving import figures
from bench.model import served
from bench.model.paths import ROOT
from bench.model.served import CrossLoad, CrossProcess
from bench.show.page import engines
from bench.show.page.content import Content
from bench.show.page.facts import engine_statuses, title
from bench.show.page.render import data, page
from tests.bench.show.test_page import Seen, written
from tests.support.served import DECODE, MODES, answer, answers, decode, process, results, trace

ENGINE, SMALL = (ROOT / "docs" / "results" / f"h200-engine{name}.json" for name in ("", "-1b"))


def test_every_figure_of_every_mode_is_there_with_its_processes(tmp_path: Path) -> None:
    text, found = written(tmp_path / "r.html", ENGINE)
    (run,) = found["engines"]
    expected = figures(served.read(ENGINE))
    assert len(run["points"]) == len(expected) > 40
    step = next(
        item
        for item in run["points"]
        if (item["title"], item["contender"]) == ("decode: step", "plugin") and item["label"] == "128"
    )
    of = next(
        item for item in expected if (item.case.load.label, item.name, item.mode) == ("decode 128", "step", "plugin")
    )
    assert of.value is not None and step["unit"] == "ms" and step["value"] == pytest.approx(of.value / 1000)
    assert [repeat for repeat, _ in step["repeats"]] == [0, 1] and step["low"] < step["value"] < step["high"]
    assert step["spread"] == of.spread and step["to_reference"] == of.to_reference < 1
    assert "beside csgmv's" in step["answers"]
    assert step["again"] == "python -m bench serve -p 8b -m csgmv -m plugin -l decode"
    assert shlex.split(run["points"][-1]["again"])[-2:] == ["-m", "plugin"], "every engine starts: no kind of load"
    assert run["points"][0]["kind"] == "decode|step" and run["points"][-1]["kind"].startswith("start|")
    assert set(found["contenders"]) == {"none", "triton", "csgmv", "plugin"}
    assert "SGLang engines with LoRA on NVIDIA H200" in text and "LoRA kernels" not in text
    seen = Seen(text)
    assert {"LoRA of gate_up", "all kernels", "equal to the bit"} <= {*seen.cells} and "engines" in seen.ids


def test_processes_that_are_far_apart_are_shown_themselves() -> None:
    read = served.read(ENGINE)
    content = Content([], served=[(ENGINE.name, read)])
    assert "109 figures of 8 engines are ok." in page(content)
    (first, *_), (last, *_) = (
        [item for item in engines.run("x", read)["points"] if item["title"] == "start: first request"][at:]
        for at in (0, -1)
    )
    assert (first["contender"], first["far"]) == ("none", "10.1 s, 214 ms"), "the first one compiled"
    assert last["contender"] == "plugin" and "far" not in last and 0.2 < last["spread"] < 0.3


def test_bars_are_the_table_and_the_floor_is_one() -> None:
    decode_of, prefill = engines.stacks(served.read(ENGINE))
    assert [bar.name for bar in decode_of.bars] == ["none", "triton", "csgmv", "plugin", "floor"] == decode_of.heads[1:]
    widths = {bar.name: sum(share for _, _, share in bar.parts) for bar in decode_of.bars}
    assert max(widths.values()) == pytest.approx(100) == widths["csgmv"] and widths["none"] < widths["plugin"] < 60
    assert "prefill 8x512" in prefill.title and ("#D55E00", "LoRA of qkv") in prefill.sites
    lacking = engines.stacks(results(process(0, "csgmv", 0, decode(1.0), traces=[trace()])))[0]
    assert "csgmv: left out of the trace: 3 without an end" in lacking.lines


def test_planted_faults_stand_below_the_answers() -> None:
    (beside_csgmv, beside_peft) = engines.answers(served.read(SMALL))
    assert "beside csgmv's" in beside_csgmv.caption and not beside_csgmv.planted
    assert beside_peft.planted[-1][:2] == ["LoRA of lm_head", "seen"] and len(beside_peft.planted) == 6


def test_a_mode_that_answers_wrong_has_no_value_and_what_failed_its_reason() -> None:
    right = [decode(100.0), answers(answer(), answer())]
    right[0].samples["compile_us"] = [1.5e6, 0.7e6]
    wrong = [decode(50.0), answers(answer(5.0), answer(5.0))]
    made = results(
        process(0, "none", 0, decode(80.0)),
        process(1, "csgmv", 0, *right),
        process(2, "plugin", 0, *wrong),
        process(3, "csgmv", 1, status="crashed", reason="out of <memory>"),
    )
    crossed = CrossLoad(DECODE, "ok", said={"tpot_us": 110.0})
    made.cross_checks = [CrossProcess("csgmv", "ok", made.run.started_utc, loads=[crossed])]
    content = Content([], served=[("x.json", made)])
    by_mode = {item["contender"]: item for item in data(content)["engines"][0]["points"]}
    assert by_mode["plugin"]["status"] == "wrong" and "value" not in by_mode["plugin"]
    assert (
        by_mode["csgmv"]["value"] == pytest.approx(100)
        and by_mode["csgmv"]["unit"] == "us"
        and "spread" not in by_mode["csgmv"]
    )
    assert engine_statuses(content) == "3 figures of 4 engines: 2 ok, 1 wrong" and title(content).startswith(
        "SGLang engines"
    )
    cells = Seen(text := page(content)).cells
    assert cells[(place := cells.index("2.20 s")) - 4 : place] == ["csgmv", "0", "decode 32", "2"]
    assert "WRONG" in cells and "+10.0 %" in cells and "out of <memory>" in cells and "out of <memory>" not in text
    assert list(by_mode) == MODES


def test_engines_stand_beside_kernels(tmp_path: Path) -> None:
    kernels = ROOT / "docs" / "results" / "h200-faults.json"
    text, found = written(tmp_path / "r.html", kernels, ENGINE)
    assert "LoRA kernels and SGLang engines with LoRA on NVIDIA H200" in text
    assert found["runs"] and found["engines"] and {"plugin", "csgmv_embed-vocab_major"} <= set(found["contenders"])
    assert len([item for item in Seen(text).cells if item.startswith("sha256 ")]) == 2
    assert msgspec.json.encode(found["engines"])
