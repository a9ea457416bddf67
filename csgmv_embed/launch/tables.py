"""The constants by which kernels read the A table of an embedding layer and its added tokens."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.launch.direct import width


def a_table_constants(a_table: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None) -> dict[str, Any]:
    """Check the A table and the added tokens, and return their constants.

    a_table (slots, max_rank, >= vocab_size); extra_embeddings (slots, extra, max_rank).
    """
    extra = a_table if extra_embeddings is None else extra_embeddings  # never read when there is none
    max_rank = a_table.shape[1]
    wide = a_table.stride(1) == 1  # the ranks of a token lie side by side
    return {
        "vocab_size": vocab_size,
        "num_extra": 0 if extra_embeddings is None else extra.shape[1],
        "a_stride_slot": a_table.stride(0),
        "a_stride_rank": a_table.stride(1),
        "a_stride_vocab": a_table.stride(2),
        "extra_stride_slot": extra.stride(0),
        "extra_stride_token": extra.stride(1),
        "extra_stride_rank": extra.stride(2),
        "has_extra": extra_embeddings is not None,
        "max_rank": max_rank,
        "a_width": width(a_table, max_rank, a_table.stride(0), a_table.stride(2)) if wide else 1,
    }
