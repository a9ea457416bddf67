"""Our LoRA on linear layers: the shrink, the expand, and both as a server calls them, added in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

import csgmv_embed
from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.ours.layer import TOO_OLD
from bench.contenders.ours.lookup import batch_of
from bench.workload import shrunk_rows, sites, traffic
from bench.workload.tensors import Workload
from csgmv_embed import EmbeddingBatch

Part = Literal["shrink", "expand", "linear"]
# Values of the result's size that are rounded: the shrunk rows, the sum with the base.
ROUNDINGS: dict[Part, int] = {"shrink": 1, "expand": 1, "linear": 2}


class CsgmvEmbedSite(ProductOp):
    """lora_shrink, lora_expand or lora_linear on the batch of SGLang 0.5.16.

    The batch is static in decode; each prefill has its own. The tables have one storage, so the name is that of the
    family's default.
    """

    name = "csgmv_embed-vocab_major"

    def __init__(self, part: Part) -> None:
        self.part, self.roundings, self.in_place = part, ROUNDINGS[part], part != "shrink"

    def unavailable(self) -> str | None:
        op = f"lora_{self.part}"
        return None if hasattr(csgmv_embed, op) else TOO_OLD.format(op)

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        static = static and workload.case.phase == "decode"
        batch = batch_of(workload, static=static, segments=True, tiles=True, scalings=workload.scalings)
        make: Callable[[Workload, EmbeddingBatch], Launch] = {
            "shrink": _shrink,
            "expand": _expand,
            "linear": _linear,
        }[self.part]
        return make(workload, batch)

    def required_bytes(self, workload: Workload) -> int:
        """The least bytes of the op; for both launches also the shrunk rows, written and read in between."""
        between = 2 * traffic.shrunk_of_site(workload) if self.part == "linear" else 0
        return traffic.minimum(workload) + between

    def kernels(self) -> list[KernelRef]:
        parts = ("shrink", "expand") if self.part == "linear" else (self.part,)
        return [KernelRef(("csgmv_embed.linear", f"lora_{part}_kernel")) for part in parts]

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        return shrunk_rows.without_rest(workload, output) if self.part == "shrink" else output


def _shrink(workload: Workload, batch: EmbeddingBatch) -> Launch:
    x, tables, slices = workload.given("x"), workload.all_site_tables(), sites.shape_of(workload.case).slices
    return lambda k: csgmv_embed.lora_shrink(x[k], tables[k][0], batch, slices)


def _expand(workload: Workload, batch: EmbeddingBatch) -> Launch:
    shrunk, base, tables = workload.given("shrunk"), workload.given("base"), workload.all_site_tables()
    starts = sites.shape_of(workload.case).starts
    return lambda k: csgmv_embed.lora_expand(shrunk[k], tables[k][1], base[k], batch, starts)


def _linear(workload: Workload, batch: EmbeddingBatch) -> Launch:
    x, base, tables = workload.given("x"), workload.given("base"), workload.all_site_tables()
    starts = sites.shape_of(workload.case).starts
    return lambda k: csgmv_embed.lora_linear(x[k], *tables[k], base[k], batch, starts)
