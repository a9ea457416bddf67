"""SGLang's engine behind the interface of `drive`. Only this module imports SGLang, and only where it uses it."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from bench.engine.drive import RequestFailed
from bench.engine.messages import CrossJob, ServeJob
from bench.engine.requests import Request
from bench.engine.weights import MODULES
from bench.model.records import Scalar
from bench.model.served import ServedAnswer
from bench.model.serving import Mode, prompt_lengths

# Decode graphs of loads whose requests come and go, beside those of the loads' own sizes.
CAPTURED = (1, 2, 4, 8, 16, 32)
MEMORY_FRACTION = 0.6
PREFILL_TOKENS = 16384
LEAST_CONTEXT = 4096
DTYPE = "bfloat16"
STOPS = {"ignore_eos": True, "temperature": 0.0}


def options(job: ServeJob | CrossJob) -> dict[str, Any]:
    """The arguments of an engine in a mode. Modes differ only in LoRA, its chunk size and decode graphs."""
    mode, setup = Mode(job.mode), job.setup
    sizes = {load.requests for load in job.loads}
    if any(load.kind in ("stream", "arrivals") for load in job.loads):
        sizes |= {*CAPTURED}
    longest = max(max(prompt_lengths(load)) for load in job.loads)
    tokens = max(job.serving.long_tokens, job.serving.stream_tokens, 256)
    found: dict[str, Any] = {
        "model_path": job.prepared.model,
        "skip_tokenizer_init": True,
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_radix_cache": True,
        "disable_prefill_cuda_graph": True,
        "mem_fraction_static": MEMORY_FRACTION,
        "max_running_requests": max(sizes),
        "chunked_prefill_size": PREFILL_TOKENS,
        "max_prefill_tokens": PREFILL_TOKENS,
        "context_length": max(LEAST_CONTEXT, longest + tokens + 8),
        "dtype": DTYPE,
        "tp_size": setup.tp,
        "log_level": "error",
        "random_seed": job.serving.seed,
    }
    if mode.eager:
        found["disable_decode_cuda_graph"] = True
    else:
        found["cuda_graph_bs_decode"] = sorted(sizes)
    return found | (_lora(job, mode) if mode.lora else {})


def _lora(job: ServeJob | CrossJob, mode: Mode) -> dict[str, Any]:
    setup = job.setup
    base = any(load.base_fraction for load in job.loads)  # a request without an adapter takes a slot of its own
    found: dict[str, Any] = {
        "enable_lora": True,
        "max_loras_per_batch": setup.num_slots + base,
        "max_lora_rank": max(setup.ranks),
        "lora_target_modules": ["all"] if setup.targets == "all" else list(MODULES[setup.targets]),
        "lora_paths": {adapter_name(index): path for index, path in enumerate(job.prepared.adapters)},
        "lora_backend": mode.backend,
    }
    return found | ({"max_lora_chunk_size": mode.chunk_size} if mode.chunk_size else {})


def adapter_name(index: int) -> str:
    """An adapter's name in an engine."""
    return f"a{index}"


def warm() -> None:
    """Import what an engine's process and its scheduler import, so that their files are read only once."""
    import sglang.srt.entrypoints.engine
    import sglang.srt.models.registry  # noqa: F401 - a scheduler imports every model


def open_engine(job: ServeJob) -> SglangEngine:
    """Start the engine of a job."""
    return SglangEngine(job)


class SglangEngine:
    """One running engine."""

    def __init__(self, job: ServeJob) -> None:
        import sglang

        given = options(job)
        self._lora = Mode(job.mode).lora
        self._engine = sglang.Engine(**given)
        shown = {name: value for name, value in given.items() if isinstance(value, str | int | float | bool)}
        del shown["model_path"]  # of this machine alone
        self.described: dict[str, Scalar] = shown | {
            "decode_graphs": " ".join(map(str, given.get("cuda_graph_bs_decode", []))) or None,
            "sglang": sglang.__version__,
            "flashinfer": os.environ.get("SGLANG_IS_FLASHINFER_AVAILABLE"),
        }

    def ask(self, asked: list[Request], new_tokens: int) -> None:
        self._generated(asked, new_tokens)

    def answers(self, asked: list[Request], new_tokens: int) -> list[ServedAnswer]:
        found = self._generated(asked, new_tokens, return_logprob=True, logprob_start_len=0)
        return [answer_of(item) for item in found]

    def _generated(self, asked: list[Request], new_tokens: int, **more: Any) -> list[dict[str, Any]]:
        sampling = {"max_new_tokens": new_tokens, **STOPS}
        ids = [request.ids for request in asked]
        found = self._engine.generate(input_ids=ids, sampling_params=sampling, **self._adapters(asked), **more)
        for item in found:
            check(item, new_tokens)
        return list(found)

    def _adapters(self, asked: Sequence[Request]) -> dict[str, Any]:
        names = [None if request.adapter is None else adapter_name(request.adapter) for request in asked]
        return {"lora_path": names} if self._lora else {}

    async def stream(self, request: Request, new_tokens: int) -> AsyncIterator[int]:
        sampling = {"max_new_tokens": new_tokens, **STOPS}
        named = {name: values[0] for name, values in self._adapters([request]).items()}
        pieces = await self._engine.async_generate(
            input_ids=request.ids, sampling_params=sampling, stream=True, **named
        )
        async for piece in pieces:
            if failed := aborted(piece):
                raise RequestFailed(failed)
            yield int(piece["meta_info"]["completion_tokens"])

    def run(self, task: Coroutine[Any, Any, Any]) -> Any:
        return self._engine.loop.run_until_complete(task)

    async def begin_trace(self, folder: Path) -> None:
        from sglang.srt.managers.io_struct import ProfileReq

        asked = ProfileReq(output_dir=str(folder), activities=["GPU"], with_stack=False, record_shapes=False)
        await self._engine.tokenizer_manager.start_profile(asked)

    async def end_trace(self) -> None:
        await self._engine.tokenizer_manager.stop_profile()

    def close(self) -> None:
        self._engine.shutdown()


def aborted(item: dict[str, Any]) -> str | None:
    """Why the engine aborted a request; None if it did not."""
    reason = item["meta_info"].get("finish_reason") or {}
    if reason.get("type") == "abort":
        return str(reason.get("message") or "aborted")[:300]
    return None


def check(item: dict[str, Any], new_tokens: int) -> None:
    """Raises RequestFailed unless an answer has as many tokens as were asked for."""
    if failed := aborted(item):
        raise RequestFailed(failed)
    if item["meta_info"]["completion_tokens"] != new_tokens:
        raise RequestFailed(f"{item['meta_info']['completion_tokens']} of {new_tokens} tokens arrived")


def answer_of(item: dict[str, Any]) -> ServedAnswer:
    """SGLang's answer as a record has it.

    Each entry is (log-probability, token, ...); a prompt's first has no value.
    """
    meta = item["meta_info"]
    prompt = [entry[0] for entry in meta.get("input_token_logprobs") or [] if entry[0] is not None]
    answer = [entry[0] for entry in meta["output_token_logprobs"]]
    tokens = [entry[1] for entry in meta["output_token_logprobs"]]
    for value in (*prompt, *answer):
        if not isfinite(value):
            raise RequestFailed(f"a log-probability is {value}")
    bits = struct.pack(f"<{len(tokens)}q{len(prompt) + len(answer)}d", *tokens, *prompt, *answer)
    return ServedAnswer(tokens, answer, prompt, sha256(bits).hexdigest()[:16])
