"""Our LoRA on lm_head: shrink and expand, and the expand alone, both added in place into given logits."""

from __future__ import annotations

import csgmv_embed
from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.ours.layer import TOO_OLD
from bench.contenders.ours.lookup import batch_of
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload


class CsgmvEmbedHead(ProductOp):
    """lora_linear on lm_head. Its tables have one storage, so the name is that of the family's default."""

    name = "csgmv_embed-vocab_major"
    in_place = True
    roundings = 2  # the shrunk rows, the sum

    def unavailable(self) -> str | None:
        return None if hasattr(csgmv_embed, "lora_linear") else TOO_OLD.format("lora_linear")

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        batch = batch_of(workload, static=static, tiles=True, scalings=workload.scalings)
        hidden, logits = workload.given("hidden_states"), workload.given("logits")
        a_table, b_table = workload.weight("head_a"), workload.weight("b")
        return lambda k: csgmv_embed.lora_linear(hidden[k], a_table, b_table, logits[k], batch)

    def required_bytes(self, workload: Workload) -> int:
        """The least bytes of the op, and the shrunk rows written and read."""
        between = 2 * traffic.live_ranks(workload) * ELEMENT_BYTES[workload.case.dtype]
        return traffic.minimum(workload) + between

    def kernels(self) -> list[KernelRef]:
        return [KernelRef(("csgmv_embed.linear", f"lora_{part}_kernel")) for part in ("shrink", "expand")]


class CsgmvEmbedExpand(ProductOp):
    """lora_expand on given shrunk rows."""

    name = "csgmv_embed-vocab_major"
    in_place = True
    roundings = 1

    def unavailable(self) -> str | None:
        return None if hasattr(csgmv_embed, "lora_expand") else TOO_OLD.format("lora_expand")

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        batch = batch_of(workload, static=static, tiles=True, scalings=workload.scalings)
        shrunk, logits, b_table = workload.given("shrunk"), workload.given("logits"), workload.weight("b")
        return lambda k: csgmv_embed.lora_expand(shrunk[k], b_table, logits[k], batch)

    def required_bytes(self, workload: Workload) -> int:
        return traffic.minimum(workload)

    def kernels(self) -> list[KernelRef]:
        return [KernelRef(("csgmv_embed.linear", "lora_expand_kernel"))]
