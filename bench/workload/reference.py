"""The ops in plain torch, on a workload's tensors. They judge every contender, so they use no contender's code.

The library has references of its own, with the additional features that a server needs (csgmv_embed/reference.py). A
test compares the two. Slots are (tokens,); ranks and scalings (slots,).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


def lookup(ids: torch.Tensor, a_table: torch.Tensor, slots: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """(tokens, rank) in the dtype of A (slots, rank, vocab): the column of each id, zero behind the slot's rank."""
    slots = slots.long()
    rows = a_table[slots, :, ids]
    beyond = torch.arange(a_table.shape[1], device=ids.device) >= ranks.long()[slots, None]
    return rows.masked_fill_(beyond, 0)


def linear(
    x: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    base: torch.Tensor,
    slots: torch.Tensor,
    ranks: torch.Tensor,
    scalings: torch.Tensor,
    starts: Sequence[int] | None = None,
) -> torch.Tensor:
    """base + scaling * B @ A @ x in float64, (tokens, columns).

    A (slots, slices * rank, features) is packed by each slot's own rank; columns starts[i] to starts[i + 1] of B
    (slots, columns, rank) belong to slice i.
    """
    found = base.double()
    slices = [*pairwise(starts or (0, b_table.shape[1]))]
    for slot in slots.unique().tolist():
        mine, rank, scaling = (slots == slot).nonzero()[:, 0], int(ranks[slot]), float(scalings[slot])
        rows = x[mine].double()
        for number, (first, end) in enumerate(slices):
            shrunk = rows @ a_table[slot, number * rank : (number + 1) * rank].double().T
            found[mine, first:end] += scaling * (shrunk @ b_table[slot, first:end, :rank].double().T)
    return found


def layer(
    ids: torch.Tensor,
    embedding: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    slots: torch.Tensor,
    ranks: torch.Tensor,
    scalings: torch.Tensor,
) -> torch.Tensor:
    """embedding[id] + scaling * B @ A[:, id] in float64, (tokens, hidden): `linear` on rows that were looked up."""
    width = a_table.shape[1]
    identity = torch.eye(width, dtype=a_table.dtype, device=a_table.device).expand(len(ranks), -1, -1)
    rows = lookup(ids, a_table, slots, ranks)
    return linear(rows, identity, b_table, embedding[ids], slots, ranks, scalings)
