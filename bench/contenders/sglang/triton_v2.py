"""SGLang's newest backend, which runs base and LoRA of a module in one call of its own: `forward_with_base`."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.sglang.head import SglangHead
from bench.contenders.sglang.layer import SglangLayer
from bench.contenders.sglang.ops import offsets
from bench.contenders.sglang.tokens import SglangTokens
from bench.workload.tensors import Workload


class SglangTritonV2(ProductOp):
    """A subclass says what of the backend object it calls. Bytes are those of the triton backend's way."""

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
        kind = _kinds().EMBEDDING

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
    """On given logits, in the place of the base product that the backend would run beside the shrink."""

    in_place = True
    roundings = 3

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        hidden, logits = workload.given("hidden_states"), workload.given("logits")
        a_table, b_table, bounds = workload.weight("head_a"), workload.weight("b"), offsets(workload)
        kind, slices = _kinds().LM_HEAD, (0, workload.out_features)

        def launch(k: int) -> torch.Tensor:
            out: torch.Tensor = backend.forward_with_base(
                None, hidden[k], lambda: logits[k], a_table, b_table, bounds, slices, kind=kind
            )
            return out

        return launch

    def required_bytes(self, workload: Workload) -> int:
        return SglangHead("triton").required_bytes(workload)


def _kinds() -> Any:
    return importlib.import_module("sglang.srt.lora.dense.plan").DenseLoraKind
