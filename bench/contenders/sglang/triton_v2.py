"""SGLang's newest backend. It runs base and LoRA of a module in one call of its own: `forward_with_base`.

It sorts tokens by adapter on the GPU, once in a forward pass for all modules. Here the first launch does that, before a
graph is captured, and no timed launch does it again. Scratch memory is kept for each stream.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.sglang.head import SglangExpand, SglangHead
from bench.contenders.sglang.layer import SglangLayer
from bench.contenders.sglang.ops import offsets
from bench.contenders.sglang.tokens import SglangTokens
from bench.workload.tensors import Workload


class SglangTritonV2(ProductOp):
    """A subclass says which calls of the backend object it makes. Bytes are counted as for the triton backend."""

    name = "sglang_triton_v2"
    tf32 = True

    def unavailable(self) -> str | None:
        return SglangTokens.peer.unavailable()

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        with SglangTokens.peer.preparing(workload, static=static) as (backend, prepare):
            backend.validate_lora_targets(None, {"embed_tokens", "lm_head"})
            prepare()
        return self.launch_on(backend, workload)

    @abstractmethod
    def launch_on(self, backend: Any, workload: Workload) -> Launch: ...

    def kernels(self) -> list[KernelRef]:
        return []  # a plan chooses among several at run time


class SglangTritonV2Layer(SglangTritonV2):
    roundings = 2

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        embedding, a_table, b_table = workload.weight("embedding"), workload.table("rank_major"), workload.weight("b")
        ids, vocab, bounds = workload.index_sets, workload.case.vocab, offsets(workload)
        layer = SimpleNamespace(vocab_size=vocab, new_embeddings_buffer=None)
        kind = kinds().EMBEDDING

        def launch(k: int) -> torch.Tensor:
            def base() -> torch.Tensor:
                return functional.embedding(ids[k].masked_fill(ids[k] >= vocab, 0), embedding)

            slices = (0, workload.out_features)
            out: torch.Tensor = backend.forward_with_base(
                layer, ids[k], base, a_table, b_table, bounds, slices, kind=kind
            )
            return out

        return launch

    def required_bytes(self, workload: Workload) -> int:
        return SglangLayer("triton").required_bytes(workload)


class SglangTritonV2Head(SglangTritonV2):
    """lm_head on given logits, which replace the base product that the backend would run beside the shrink."""

    in_place = True
    roundings = 3

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        hidden, logits = workload.given("hidden_states"), workload.given("logits")
        a_table, b_table, bounds = workload.weight("head_a"), workload.weight("b"), offsets(workload)
        kind, slices = kinds().LM_HEAD, (0, workload.out_features)

        def launch(k: int) -> torch.Tensor:
            out: torch.Tensor = backend.forward_with_base(
                None, hidden[k], lambda: logits[k], a_table, b_table, bounds, slices, kind=kind
            )
            return out

        return launch

    def required_bytes(self, workload: Workload) -> int:
        return SglangHead("triton").required_bytes(workload)


class SglangTritonV2Expand(SglangTritonV2):
    """The expand of SglangTritonV2Head, on given shrunk rows."""

    in_place = True
    roundings = 2

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        shrunk, logits = [bridge(rows) for rows in workload.given("shrunk")], workload.given("logits")
        b_table, runner, kind = workload.weight("b"), backend.runner, kinds().LM_HEAD
        slices = (0, workload.out_features)

        def launch(k: int) -> torch.Tensor:
            plan = plan_of(runner, kind, workload, 0)  # those of vocabulary modules depend on the phase alone
            out: torch.Tensor = runner.run_b(shrunk[k], b_table, logits[k], offsets=slices, plan=plan)
            return out

        return launch

    def required_bytes(self, workload: Workload) -> int:
        return SglangExpand("triton").required_bytes(workload)


def kinds() -> Any:
    """The kinds of modules that have a plan."""
    return importlib.import_module("sglang.srt.lora.dense.plan").DenseLoraKind


def plan_of(runner: Any, kind: Any, workload: Workload, features: int) -> Any:
    """The plan of a module, asked for as forward_with_base does in every call."""
    return runner.plan_for(kind, workload.case.rank, features, workload.out_features, num_tokens=workload.num_tokens)


def bridge(rows: torch.Tensor) -> Any:
    """Shrunk rows in the form that an expand takes."""
    return importlib.import_module("sglang.srt.lora.dense.runner").Bridge(rows)
