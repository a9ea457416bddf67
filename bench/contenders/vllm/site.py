"""vLLM's LoRA on linear layers: its lora_shrink and lora_expand on its LoRAKernelMeta, as PunicaWrapperGPU calls them.

Its shrunk rows are float32, (slices, tokens, rank), and cleared before each shrink.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch

from bench.contenders.base import Launch
from bench.contenders.vllm.package import SHRUNK_BYTES, Grid, Kernels, VllmOp, used_slots
from bench.model.case import ELEMENT_BYTES
from bench.workload import shrunk_rows, sites, traffic
from bench.workload.tensors import Workload

Part = Literal["shrink", "expand", "linear"]
# Values of the result's size that are rounded: B times the scaling, the shrunk rows, the product with B, the sum.
ROUNDINGS: dict[Part, int] = {"shrink": 1, "expand": 4, "linear": 4}


class Tables(NamedTuple):
    """The tables of one index set, one tensor for each slice: a (slots, rank, features), b (slots, width, rank)."""

    a: list[torch.Tensor]
    b: list[torch.Tensor]


class VllmSite(VllmOp):
    """Runs in place. The buffer between shrink and expand is allocated in every call, as vLLM does."""

    def __init__(self, part: Part, grid: Grid = "all") -> None:
        super().__init__(grid)
        self.part, self.roundings, self.in_place = part, ROUNDINGS[part], part != "shrink"
        self.parts = ("shrink", "expand") if part == "linear" else (part,)

    def launch_on(self, workload: Workload, kernels: Kernels) -> Launch:
        tables = _tables(workload)
        x = workload.given("x") if self.part != "expand" else []
        base = workload.given("base") if self.part != "shrink" else []
        if self.part == "shrink":
            return lambda k: kernels.shrink(x[k], tables[k].a)
        if self.part == "linear":
            return lambda k: kernels.expand(kernels.shrink(x[k], tables[k].a), tables[k].b, base[k])
        slices = sites.shape_of(workload.case).slices
        shrunk = [_planes(shrunk_rows.without_rest(workload, rows), slices) for rows in workload.given("shrunk")]
        return lambda k: kernels.expand(shrunk[k], tables[k].b, base[k])

    def required_bytes(self, workload: Workload) -> int:
        """Input, tables to the largest rank, shrunk rows cleared, written and read, output read and written."""
        case, shape = workload.case, sites.shape_of(workload.case)
        ranks = case.rank * used_slots(workload)
        element, live = ELEMENT_BYTES[case.dtype], traffic.live_tokens(workload)
        plane = shape.slices * case.rank * SHRUNK_BYTES
        shrink = traffic.inputs_of_site(workload) + ranks * shape.slices * shape.features * element
        shrink += (workload.num_tokens + live) * plane
        expand = live * plane + ranks * shape.out_features * element + 2 * live * shape.out_features * element
        return {"shrink": shrink, "expand": expand, "linear": shrink + expand}[self.part]

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        if self.part != "shrink":
            return output
        return output.permute(1, 0, 2).reshape(workload.num_tokens, -1).to(workload.dtype)


def _tables(workload: Workload) -> list[Tables]:
    """For each index set; those that share tables share these."""
    made: dict[int, Tables] = {}
    found = []
    for index in range(len(workload.index_sets)):
        a_table, b_table = workload.site_tables(index)
        if a_table.data_ptr() not in made:
            made[a_table.data_ptr()] = _apart(workload, a_table, b_table)
        found.append(made[a_table.data_ptr()])
    return found


def _apart(workload: Workload, a_table: torch.Tensor, b_table: torch.Tensor) -> Tables:
    case, shape = workload.case, sites.shape_of(workload.case)
    a = [a_table.new_zeros(workload.num_slots, case.rank, shape.features) for _ in shape.widths]
    b = [b_table.new_zeros(workload.num_slots, width, case.rank) for width in shape.widths]
    for slot, rank in enumerate(workload.ranks.tolist()):
        for piece, (first, end) in enumerate(pairwise(shape.starts)):
            a[piece][slot, :rank] = a_table[slot, piece * rank : (piece + 1) * rank]
            b[piece][slot, :, :rank] = b_table[slot, first:end, :rank] * workload.scalings[slot]
    return Tables(a, b)


def _planes(rows: torch.Tensor, slices: int) -> torch.Tensor:
    """Shrunk rows as vLLM keeps them: (slices, tokens, rank) float32."""
    return rows.view(rows.shape[0], slices, -1).permute(1, 0, 2).float().contiguous()
