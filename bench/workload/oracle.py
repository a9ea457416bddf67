"""The exact result of each op, from bench.workload.reference: a lookup's in its dtype, the others' in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bench.workload import reference, shrunk_rows, sites

if TYPE_CHECKING:
    from bench.model.case import Storage
    from bench.workload.tensors import Workload


def exact(workload: Workload, index_set: int) -> torch.Tensor:
    """The result that a launch of the case's op on this index set must give.

    Ops that add in place are given what `restore` brings back.
    """
    case = workload.case
    token_slots = torch.from_numpy(workload.token_slots()).to(workload.device)
    ranks = torch.from_numpy(workload.ranks).to(workload.device)
    if case.op == "lookup":
        ids = workload.index_sets[index_set]
        return reference.lookup(ids, _a_table(workload), token_slots, ranks)
    scalings = torch.tensor(workload.scalings, dtype=torch.float64, device=workload.device)
    if case.op == "layer":
        return reference.layer(
            workload.index_sets[index_set],
            workload.weight("embedding"),
            _a_table(workload),
            workload.weight("b"),
            token_slots,
            ranks,
            scalings,
        )
    if case.site != "none":
        return _site(workload, index_set, token_slots, ranks, scalings)
    if case.op == "head":
        rows, a_table = workload.given("hidden_states")[index_set], workload.weight("head_a")
    else:  # an expand is a head whose A hands its input on
        rows = workload.given("shrunk")[index_set]
        a_table = torch.eye(case.rank, dtype=workload.dtype, device=workload.device).expand(workload.num_slots, -1, -1)
    logits = workload.unadded(index_set)  # of its own: what the launch wrote is about to be compared
    return reference.linear(rows, a_table, workload.weight("b"), logits, token_slots, ranks, scalings)


def _site(
    workload: Workload, index_set: int, token_slots: torch.Tensor, ranks: torch.Tensor, scalings: torch.Tensor
) -> torch.Tensor:
    """A shrink is one into zeros with B the identity; an expand is one whose A hands its input on."""
    case, shape = workload.case, sites.shape_of(workload.case)
    a_table, b_table = workload.site_tables(index_set)
    starts = shape.starts
    if case.op == "shrink":
        rows = workload.given("x")[index_set]
        columns = shape.slices * case.rank
        starts = tuple(range(0, columns + 1, case.rank))
        identity = torch.eye(case.rank, dtype=workload.dtype, device=workload.device)
        b_table, scalings = identity.repeat(workload.num_slots, shape.slices, 1), torch.ones_like(scalings)
        base = torch.zeros(workload.num_tokens, columns, dtype=workload.dtype, device=workload.device)
        return reference.linear(rows, a_table, b_table, base, token_slots, ranks, scalings, starts)
    base = workload.unadded(index_set)  # of its own: what the launch wrote is about to be compared
    if case.op == "linear":
        rows = workload.given("x")[index_set]
        return reference.linear(rows, a_table, b_table, base, token_slots, ranks, scalings, starts)
    rows = shrunk_rows.packed(workload, workload.given("shrunk")[index_set])
    a_table = torch.eye(rows.shape[1], dtype=workload.dtype, device=workload.device).expand(workload.num_slots, -1, -1)
    return reference.linear(rows, a_table, b_table, base, token_slots, ranks, scalings, starts)


def _a_table(workload: Workload) -> torch.Tensor:
    storage: Storage = "vocab_major" if "vocab_major" in workload.tables else "rank_major"
    return workload.table(storage)
