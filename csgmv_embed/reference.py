"""The oracle: the promise of the op in plain torch, slow and obvious."""

from __future__ import annotations

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
