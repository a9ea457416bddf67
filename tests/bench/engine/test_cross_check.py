"""A server and SGLang's bench_serving beside the engines: what is asked, what is believed of what it says."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bench.engine import cross_check
from bench.engine.cross_check import CrossError, arguments_of_client, prompts_of, said_of
from bench.engine.drive import WAVES
from bench.engine.run import Surroundings, new_results, serve
from bench.engine.watch import Seen
from bench.judge.crossing import crossed
from bench.model import config, served
from bench.model.paths import ROOT
from bench.model.served import ServeResults
from bench.model.serving import Load, LoadAxes, Mode, ServePlan, ServeProfile, make_serve_plan, not_crossed
from bench.show.serving import follow, summary
from tests.bench.engine.test_run import QUIET, Quick, looks_quiet, tiny
from tests.support import fake_client, fake_engine
from tests.support.fake_client import RECORD

__all__ = ["tiny"]
SERVING = config.load().serving


@pytest.fixture
def plan(tiny: Path) -> ServePlan:
    loads = (LoadAxes(("decode",), (2,)), LoadAxes(("prefill",), (2,), (8,)), LoadAxes(("stream",), (3,)))
    return make_serve_plan({"p": ServeProfile(("none", "csgmv"), loads)}, QUIET, "p", model=str(tiny))


@pytest.fixture
def saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "saw"
    monkeypatch.setenv("FAKE_HTTP_SAW", str(path))
    return path


def around(tmp_path: Path, **changed: object) -> Surroundings:
    usual = Surroundings(tmp_path / "cache", opener=fake_engine.OPENER, child=Quick, look=looks_quiet)
    fakes = {"server": "tests.support.fake_http", "client": "tests.support.fake_client"}
    return msgspec.structs.replace(usual, **fakes | changed)


def ran(plan: ServePlan, tmp_path: Path, **changed: object) -> tuple[ServeResults, str]:
    """The file as it is read again, and what was told meanwhile."""
    begun = new_results(plan, kinds=[], modes=[], model=plan.setup.model, where=False, cross_check=True)
    said = "\n".join(follow(serve(plan, begun, tmp_path / "out.json", around(tmp_path, **changed))))
    return served.read(tmp_path / "out.json"), said


def test_each_mode_has_a_server_that_is_started_as_its_engine(plan: ServePlan, tmp_path: Path, saw: Path) -> None:
    results, said = ran(plan, tmp_path)
    assert [(item.mode, item.status) for item in results.cross_checks] == [("none", "ok"), ("csgmv", "ok")]
    rows = {(item.load.kind, item.mode, item.name): item for item in crossed(results)}
    assert {kind for kind, _, _ in rows} == {"decode", "stream"}
    record = json.loads(RECORD.read_text())
    step = rows["decode", "csgmv", "step"]
    assert step.theirs == pytest.approx(1000 * record["median_tpot_ms"], rel=1e-5)
    assert step.ours is not None and step.ratio == pytest.approx(step.theirs / step.ours)
    assert rows["stream", "none", "output rate"].theirs == pytest.approx(record["output_throughput"], rel=1e-5)
    assert "bench_serving, decode 2:" in said and "csgmv, the server: done" in said
    out = Console(width=120, record=True, file=io.StringIO())
    out.print(summary(results))
    assert "prefill 2x8: not asked by bench_serving: it has no prefill" in out.export_text()
    given, *warmed = map(json.loads, saw.read_text().splitlines())
    assert given["skip_tokenizer_init"] is False and Path(given["tokenizer_path"], "tokenizer.json").is_file()
    assert given["lora_backend"] == "csgmv" and given["cuda_graph_bs_decode"][:2] == [1, 2]
    # Every adapter is asked once before anything is measured.
    assert [body["lora_path"] for body in warmed] == [[f"a{index}" for index in range(8)]] * 2
    results.cross_checks.pop(0)
    said = "\n".join(follow(serve(plan, results, tmp_path / "out.json", around(tmp_path))))
    assert [item.mode for item in results.cross_checks] == ["csgmv", "none"] and "csgmv: starting" not in said


def test_a_load_that_fails_is_a_row_with_its_reason(
    plan: ServePlan, tmp_path: Path, saw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_client.FAULTS, "fail,raise,silent,die")
    loads = (*plan.loads, Load("stream", 1, 16), Load("stream", 2, 16))
    results, _ = ran(msgspec.structs.replace(plan, loads=loads, runs=plan.runs[:1]), tmp_path)
    reasons = [(item.status, item.reason or "") for item in results.cross_checks[0].loads]
    assert reasons[0] == ("void", "a request failed: bench_serving got answers to 1 of 2 prompts")
    assert reasons[1] == ("error", "ValueError: Warmup failed")
    assert reasons[2][0] == "error" and reasons[2][1].startswith("bench_serving wrote no file")
    assert reasons[3] == ("error", "bench_serving's process has ended")
    assert {item.theirs for item in crossed(results)} == {None}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("die", "before it answered: ...no kernel image"),
        ("die-asked", "while it was asked: ...CUDA error: an illegal memory access"),
        ("die-later", "while it was asked"),  # bench_serving has failed requests then
    ],
)
def test_a_server_that_dies_says_its_last_words(
    plan: ServePlan, tmp_path: Path, saw: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_HTTP", fault)
    monkeypatch.setenv(fake_client.FAULTS, "fail")
    results, said = ran(msgspec.structs.replace(plan, runs=plan.runs[:1]), tmp_path)
    (process,) = results.cross_checks
    assert process.status == "crashed" and words in (process.reason or "")
    assert "none, the server: crashed" in said


def test_a_lowered_clock_voids_what_was_said(plan: ServePlan, tmp_path: Path, saw: Path) -> None:
    def hot() -> Seen:
        return dataclasses.replace(looks_quiet(), throttle=("hw_thermal",))

    results, _ = ran(msgspec.structs.replace(plan, runs=plan.runs[:1]), tmp_path, look=hot)
    assert {item.status for item in results.cross_checks[0].loads} == {"void"}
    assert "clock was lowered" in (results.cross_checks[0].loads[0].reason or "")


def test_bench_serving_is_asked_what_the_load_says(tmp_path: Path) -> None:
    def told(load: Load, mode: str = "csgmv") -> dict[str, str]:
        words = arguments_of_client(load, Mode(mode), 4, SERVING, tmp_path / "x")
        return dict(pairwise(words)) | {"all": " ".join(words)}

    decode = told(Load("decode", 32, 16))
    assert decode["--num-prompts"] == decode["--max-concurrency"] == "32"
    assert decode["--random-output-len"] == str(SERVING.long_tokens) and "a0 a1 a2 a3" in decode["all"]
    assert decode["--lora-request-distribution"] == "distinct"
    stream = told(Load("stream", 8, 128, mix="one"))
    assert stream["--num-prompts"] == str(8 * WAVES) and stream["--lora-name"] == "a0"
    assert "--lora-request-distribution" not in stream
    arrivals = Load("arrivals", 32, 16, rate_rps=5.0)
    assert told(arrivals)["--request-rate"] == "5" and "--max-concurrency" not in told(arrivals)
    assert told(arrivals)["--num-prompts"] == str(prompts_of(arrivals, SERVING))
    assert "--lora-name" not in told(Load("decode", 1, 16, base_fraction=1.0))
    assert "--lora-name" not in told(Load("decode", 1, 16), "none")


def test_what_it_cannot_ask_is_named() -> None:
    for load in (
        Load("prefill", 8, 16), Load("stream", 8, 16, skew=1.0), Load("stream", 8, 16, mix="zipf:1.2"),
        Load("stream", 8, 16, base_fraction=0.5),
    ):  # fmt: skip
        assert not_crossed(load) is not None
    assert not_crossed(Load("stream", 8, 16, base_fraction=1.0)) is None


@pytest.mark.parametrize("name", ["median_ttft_ms", "p99_itl_ms", "output_throughput"])
@pytest.mark.parametrize("value", [None, 0.0, -1.0, math.nan, math.inf, "5", True])
def test_what_is_no_figure_is_never_one(name: str, value: object) -> None:
    record = json.loads(RECORD.read_text())
    asked = {"prompts": record["completed"], "tokens": record["total_output_tokens"] // record["completed"]}
    assert {*said_of(RECORD.read_bytes(), **asked)} == {*cross_check.SAID}
    with pytest.raises(CrossError, match=name):
        said_of(json.dumps(record | {name: value}).encode(), **asked)
    del record[name]
    with pytest.raises(CrossError, match=name):
        said_of(json.dumps(record).encode(), **asked)


def test_less_than_was_asked_is_no_record() -> None:
    with pytest.raises(CrossError, match="answers to 4 of 5"):
        said_of(RECORD.read_bytes(), prompts=5, tokens=144)
    with pytest.raises(CrossError, match="576 of 580 tokens arrived"):
        said_of(RECORD.read_bytes(), prompts=4, tokens=145)
    with pytest.raises(CrossError, match="no record"):
        said_of(b"[1", prompts=4, tokens=144)


def test_bench_serving_can_be_imported_where_datasets_is_not() -> None:
    code = (
        "import importlib.util as u, sys; old = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'datasets' else old(name)\n"
        "from bench.engine import peer_client; peer_client.without_datasets()\n"
        "from datasets import load_dataset\n"
        "try: load_dataset('x')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "expected prompts of random ids" in done.stdout


def test_a_word_of_the_tokenizer_is_one_id(tiny: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from bench.engine import weights

    folder = weights.tokenizer(str(tiny), tmp_path / "model", tmp_path)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [0, 499, 7, 7]
    assert made.get_vocab_size() == 500 and made.encode(made.decode(ids)).ids == ids
    assert weights.tokenizer(str(tiny), folder, tmp_path) == folder
