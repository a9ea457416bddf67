"""The oracles: each computes what an op promises, in plain torch, slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


def embedding_lora_a_reference(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    token_slots: torch.Tensor,
    ranks: torch.Tensor,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """out[t, :r] = A[slot, :r, id], out[t, r:] = 0 with slot = token_slots[t], r = ranks[slot].

    input_ids, token_slots (tokens,) integers; a_table (slots, max_rank, >= vocab_size); ranks (slots,);
    extra_embeddings (slots, extra, max_rank) serves ids in [vocab_size, vocab_size + extra). Any other id
    outside [0, vocab_size) gives a zero row. Returns (tokens, max_rank) in the dtype of a_table.
    """
    ids, slots = input_ids.long(), token_slots.long()
    max_rank = a_table.shape[1]
    out = a_table.new_zeros(ids.numel(), max_rank)
    base = (ids >= 0) & (ids < vocab_size)
    out[base] = a_table[slots[base], :, ids[base]]
    if extra_embeddings is not None:
        extra = (ids >= vocab_size) & (ids < vocab_size + extra_embeddings.shape[1])
        out[extra] = extra_embeddings[slots[extra], ids[extra] - vocab_size]
    columns = torch.arange(max_rank, device=ids.device)
    return out.masked_fill_(columns[None, :] >= ranks.long()[slots][:, None], 0)


def embedding_lora_reference(
    input_ids: torch.Tensor,
    embedding: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    token_slots: torch.Tensor,
    ranks: torch.Tensor,
    scalings: torch.Tensor,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
    *,
    missing_row: int | None = None,
) -> torch.Tensor:
    """The embedding layer in float64: out[t] = embedding[id] + scaling * B[slot] @ A[slot, :, id].

    Arguments as in `embedding_lora`, with token_slots (tokens,), ranks and scalings (slots,) in place of the batch.
    Returns (tokens, hidden) float64.
    """
    ids = input_ids.long()
    found = (ids >= 0) & (ids < embedding.shape[0])
    base = embedding.new_zeros(ids.numel(), embedding.shape[1])
    base[found] = embedding[ids[found]]
    if missing_row is not None:
        base[~found] = embedding[missing_row]
    looked_up = embedding_lora_a_reference(input_ids, a_table, token_slots, ranks, vocab_size, extra_embeddings)
    return base.double() + _expanded(looked_up, b_table, token_slots, ranks, scalings)


def lora_linear_reference(
    x: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    out: torch.Tensor,
    token_slots: torch.Tensor,
    ranks: torch.Tensor,
    scalings: torch.Tensor,
    starts: Sequence[int] | None = None,
) -> torch.Tensor:
    """LoRA on a linear layer in float64: out[t, n] + scaling * B[slot, n] @ A_i[slot] @ x[t], rounded nowhere.

    Arguments as in `lora_linear`, with token_slots (tokens,), ranks and scalings (slots,) in place of the batch.
    Returns (tokens, columns of out) float64; out is left as it is.
    """
    columns = (0, b_table.shape[1]) if starts is None else tuple(starts)
    found = out.double()
    for slot in token_slots.unique().tolist():
        of_slot, rank = token_slots == slot, int(ranks[slot])
        for index, (first, end) in enumerate(pairwise(columns)):
            a = a_table[slot, index * rank : (index + 1) * rank].double()
            product = x[of_slot].double() @ a.T @ b_table[slot, first:end, :rank].double().T
            found[of_slot, first:end] += float(scalings[slot]) * product
    return found


def _expanded(
    rows: torch.Tensor, b_table: torch.Tensor, token_slots: torch.Tensor, ranks: torch.Tensor, scalings: torch.Tensor
) -> torch.Tensor:
    """scaling * B[slot] @ rows[t] in float64, slot by slot."""
    slots = token_slots.long()
    out = rows.new_zeros(rows.shape[0], b_table.shape[1], dtype=torch.float64)
    for slot in slots.unique().tolist():
        of_slot, rank = slots == slot, int(ranks[slot])
        product = rows[of_slot, :rank].double() @ b_table[slot, :, :rank].double().T
        out[of_slot] = float(scalings[slot]) * product
    return out
