"""LoRA on linear layers in plain torch, adapter by adapter, and the base product of the site."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.model.case import ELEMENT_BYTES
from bench.workload import shrunk_rows, sites, traffic
from bench.workload.tensors import Workload

ORACLE_ROWS = 16384  # of the site's weight at a time, in float64
Part = Literal["shrink", "expand", "linear"]
# Values of the result's size that are rounded: the shrunk rows, the product with B, the sum with the base.
ROUNDINGS: dict[Part, int] = {"shrink": 1, "expand": 2, "linear": 3}


class Group(NamedTuple):
    """The rows of an adapter."""

    slot: int
    rank: int
    scaling: float
    rows: torch.Tensor


class TorchSite(ProductOp):
    """Gathers each adapter's rows and multiplies them with all of its A, then adds each slice's product with B."""

    name = "torch_gather"

    def __init__(self, part: Part) -> None:
        self.part, self.roundings, self.in_place = part, ROUNDINGS[part], part != "shrink"

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        """`static` has no effect: row numbers have fixed addresses and no padding."""
        case, shape = workload.case, sites.shape_of(workload.case)
        tables = workload.all_site_tables()
        groups, slices = list(_groups(workload)), list(pairwise(shape.starts))

        def shrunk_of(k: int, group: Group, rows: torch.Tensor) -> torch.Tensor:
            """(rows, slices * rank of the slot)."""
            return rows @ tables[k][0][group.slot, : shape.slices * group.rank].T

        def add(k: int, group: Group, shrunk: torch.Tensor, out: torch.Tensor) -> None:
            """Adds to the group's rows, which are gathered and copied back."""
            taken = out.index_select(0, group.rows)
            for piece, (first, end) in enumerate(slices):
                of_slice = shrunk[:, piece * group.rank : (piece + 1) * group.rank]
                b = tables[k][1][group.slot, first:end, : group.rank].T
                taken[:, first:end].addmm_(of_slice, b, alpha=group.scaling)
            out.index_copy_(0, group.rows, taken)

        def shrink(k: int) -> torch.Tensor:
            out = x[k].new_empty(workload.num_tokens, shape.slices * case.rank)
            for group in groups:
                found = shrunk_of(k, group, x[k].index_select(0, group.rows))
                out[:, : found.shape[1]].index_copy_(0, group.rows, found)
            return out

        def expand(k: int) -> torch.Tensor:
            for group in groups:
                width = shape.slices * group.rank
                add(k, group, packed[k].index_select(0, group.rows)[:, :width], base[k])
            return base[k]

        def linear(k: int) -> torch.Tensor:
            for group in groups:
                add(k, group, shrunk_of(k, group, x[k].index_select(0, group.rows)), base[k])
            return base[k]

        if self.part == "shrink":
            x = workload.given("x")
            return shrink
        base = workload.given("base")
        if self.part == "expand":
            packed = [shrunk_rows.packed(workload, rows) for rows in workload.given("shrunk")]
            return expand
        x = workload.given("x")
        return linear

    def required_bytes(self, workload: Workload) -> int:
        """Rows gathered (read, written, read) and, where added to, copied there and back; A, B; shrunk rows between."""
        rows_in, shrunk, out = traffic.inputs_of_site(workload), traffic.shrunk_of_site(workload), 0
        if self.part == "shrink":
            return 3 * rows_in + traffic.site_a_tables(workload) + 3 * shrunk
        out = 6 * traffic.written(workload) + traffic.b_tables(workload)
        if self.part == "expand":
            return 3 * shrunk + out
        return 3 * rows_in + traffic.site_a_tables(workload) + 2 * shrunk + out

    def kernels(self) -> list[KernelRef]:
        return []

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        return shrunk_rows.packed(workload, output, back=True) if self.part == "shrink" else output


class BaseSite(ProductOp):
    """F.linear with the weight of the site: the product that LoRA is added to."""

    name = "base"
    roundings = 2  # cuBLAS may sum parts in the dtype of the case

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        x = workload.given("x")
        weights = [workload.site_weight(index) for index in range(len(workload.index_sets))]
        return lambda k: functional.linear(x[k], weights[k])

    def required_bytes(self, workload: Workload) -> int:
        shape = sites.shape_of(workload.case)
        rows = workload.num_tokens * (shape.features + shape.out_features)
        return (shape.out_features * shape.features + rows) * ELEMENT_BYTES[workload.case.dtype]

    def kernels(self) -> list[KernelRef]:
        return []

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        rows = workload.given("x")[index_set].double()
        blocks = workload.site_weight(index_set).split(ORACLE_ROWS)
        return torch.cat([rows @ block.double().T for block in blocks], dim=1)


def _groups(workload: Workload) -> Iterator[Group]:
    """Of the slots with an adapter."""
    token_slots = workload.token_slots()
    for slot in np.unique(token_slots).tolist():
        if rank := int(workload.ranks[slot]):
            rows = torch.from_numpy(np.flatnonzero(token_slots == slot)).to(workload.device)
            yield Group(slot, rank, workload.scalings[slot], rows)
