"""What SGLang's engine is started with and asked exists in the installed SGLang; its answers are read as they are."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from bench.engine import sglang_engine
from bench.engine.drive import RequestFailed
from bench.engine.messages import Prepared, ServeJob
from bench.model import config
from bench.model.records import Environment
from bench.model.serving import Setup, make_serve_plan

LOADED = config.load()


def job(mode: str, profile: str = "8b", **setup: Any) -> ServeJob:
    plan = make_serve_plan(LOADED.serve, LOADED.serving, profile)
    prepared = Prepared("/model", ["/a", "/b"], 32, 128256, Environment({}, "k", {}), 0.0)
    given = Setup(**setup) if setup else plan.setup
    return ServeJob(mode, given, plan.serving, plan.loads, prepared, (), "", 0.0, "")


def test_modes_differ_in_what_they_say_and_in_nothing_else() -> None:
    none, triton, csgmv, plugin, chunk, eager = (
        sglang_engine.options(job(mode))
        for mode in ("none", "triton", "csgmv", "plugin", "csgmv-chunk64", "csgmv-eager")
    )
    assert csgmv == plugin, "the plugin is switched by its environment alone"
    assert csgmv | {"lora_backend": "triton"} == triton
    assert csgmv | {"max_lora_chunk_size": 64} == chunk
    graphs = {"cuda_graph_bs_decode": csgmv["cuda_graph_bs_decode"]}
    assert {**eager, **graphs} == {**csgmv, "disable_decode_cuda_graph": True}
    assert {name: value for name, value in csgmv.items() if name in none} == none
    assert not any("lora" in name for name in none)


def test_every_size_of_a_load_has_a_decode_graph_and_a_place() -> None:
    found = sglang_engine.options(job("csgmv"))
    assert {1, 32, 128, 256} <= {*found["cuda_graph_bs_decode"]} and found["max_running_requests"] == 256
    assert found["cuda_graph_bs_decode"] == [1, 2, 4, 8, 16, 32, 128, 256], "requests of a stream come and go"
    asked = job("csgmv")
    steady = tuple(load for load in asked.loads if load.kind not in ("stream", "arrivals"))
    alone = sglang_engine.options(msgspec.structs.replace(asked, loads=steady))
    assert alone["cuda_graph_bs_decode"] == [1, 8, 16, 32, 128, 256], "only those that are measured"
    assert found["max_loras_per_batch"] == 9, "8 slots, and one for those without an adapter"
    assert sglang_engine.options(job("csgmv", "ends"))["max_loras_per_batch"] == 8
    assert sglang_engine.options(job("csgmv", "evict"))["max_loras_per_batch"] == 8
    assert sglang_engine.options(job("csgmv", targets="ends"))["lora_target_modules"] == ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("mode", ["none", "triton", "csgmv-chunk64-eager", "plugin"])
def test_sglang_knows_each_option(mode: str) -> None:
    arguments = pytest.importorskip("sglang.srt.server_args")
    assert {*sglang_engine.options(job(mode))} <= {*inspect.signature(arguments.ServerArgs).parameters}


def test_sglang_takes_what_is_asked_of_it() -> None:
    engine = pytest.importorskip("sglang.srt.entrypoints.engine").Engine
    asked = {"input_ids", "sampling_params", "lora_path", "return_logprob", "logprob_start_len"}
    assert asked <= {*inspect.signature(engine.generate).parameters}
    assert {"input_ids", "sampling_params", "lora_path", "stream"} <= {
        *inspect.signature(engine.async_generate).parameters
    }
    request = pytest.importorskip("sglang.srt.managers.io_struct").ProfileReq
    request(output_dir="/x", activities=["GPU"], with_stack=False, record_shapes=False)


def told(**more: Any) -> dict[str, Any]:
    meta = {
        "finish_reason": {"type": "length"},
        "completion_tokens": 2,
        "input_token_logprobs": [(None, 7, None), (-3.25, 8, None)],
        "output_token_logprobs": [(-0.5, 11, None), (-0.25, 12, None)],
    }
    return {"meta_info": meta | more}


def test_an_answer_is_read_whole_and_its_hash_sees_what_a_file_does_not_keep() -> None:
    found = sglang_engine.answer_of(told())
    assert (found.tokens, found.logprobs, found.prompt_logprobs) == ([11, 12], [-0.5, -0.25], [-3.25])
    near = sglang_engine.answer_of(told(output_token_logprobs=[(-0.5, 11, None), (-0.25000001, 12, None)]))
    assert found.exact != near.exact and sglang_engine.answer_of(told()).exact == found.exact


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"completion_tokens": 1}, "1 of 2 tokens arrived"),
        ({"finish_reason": {"type": "abort", "message": "no slot"}}, "no slot"),
    ],
)
def test_an_answer_that_is_not_whole_fails(more: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestFailed, match=said):
        sglang_engine.check(told(**more), 2)


def test_a_log_probability_that_is_none_fails() -> None:
    with pytest.raises(RequestFailed, match="log-probability is nan"):
        sglang_engine.answer_of(told(output_token_logprobs=[(float("nan"), 1, None)]))
