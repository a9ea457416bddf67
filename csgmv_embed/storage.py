"""Storage of the A table: the same logical (slots, max_rank, vocab) in one of two orders.

rank-major   strides (max_rank*vocab, vocab, 1): SGLang's contiguous tensor. The values of one token lie `vocab`
             elements apart, so a lookup touches one 32-byte sector for each of them.
vocab-major  strides (vocab*max_rank, 1, max_rank): the values of one token are one contiguous row.
"""

from __future__ import annotations

from typing import Literal

import torch

from csgmv_embed.errors import ShapeError

Storage = Literal["rank_major", "vocab_major"]


def empty_a_table(
    slots: int, max_rank: int, vocab: int, *, dtype: torch.dtype, device: torch.device | str, storage: Storage
) -> torch.Tensor:
    """An uninitialised A table, logical shape (slots, max_rank, vocab), in the given storage."""
    if storage == "rank_major":
        return torch.empty(slots, max_rank, vocab, dtype=dtype, device=device)
    if storage == "vocab_major":
        return torch.empty(slots, vocab, max_rank, dtype=dtype, device=device).transpose(1, 2)
    raise ShapeError(f"storage is {storage!r}; expected 'rank_major' or 'vocab_major'")


def storage_of(a_table: torch.Tensor) -> Literal["rank_major", "vocab_major", "strided"]:
    """Which storage a (slots, max_rank, vocab) tensor has; 'strided' if neither axis is the contiguous one."""
    if a_table.ndim != 3:
        raise ShapeError(f"a_table has shape {tuple(a_table.shape)}; expected (slots, max_rank, vocab)")
    if a_table.stride(1) == 1:
        return "vocab_major"
    return "rank_major" if a_table.stride(2) == 1 else "strided"


def to_storage(a_table: torch.Tensor, storage: Storage) -> torch.Tensor:
    """The same logical table in `storage`; the tensor itself if it has that storage, else a copy."""
    if storage_of(a_table) == storage:
        return a_table
    slots, max_rank, vocab = a_table.shape
    copy = empty_a_table(slots, max_rank, vocab, dtype=a_table.dtype, device=a_table.device, storage=storage)
    return copy.copy_(a_table)
