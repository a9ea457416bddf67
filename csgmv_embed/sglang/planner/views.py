"""What the kernels take of a batch: views of arrays that are on the device already, nothing copied, nothing checked."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.batch import Contents, EmbeddingBatch

# Attributes of a LoRABatchInfo
BATCH = "csgmv_embed_batch"  # the embedding layer's batch, if this plugin planned it; None: nobody has LoRA there
HEAD = "csgmv_embed_head"  # lm_head's, absent if this plugin did not plan it; None: nobody has LoRA there
LINEAR = "csgmv_embed_linear"  # that of the linear layers; absent or None if this plugin did not plan it


def layer_batch(
    info: Any, words: torch.Tensor, ranks: torch.Tensor, contents: Contents, max_tokens: int | None = None
) -> EmbeddingBatch:
    """The embedding layer's batch of a LoRABatchInfo.

    words (tokens,) and ranks (slots,) are 0 where an adapter has no LoRA on the embedding layer, whatever
    info.lora_ranks says: what reads the words and what reads the segments have to agree. max_tokens: of the buffers of
    a captured graph, whose launches cover all segments that the buffers can hold.
    """
    return _view(info, words, ranks, contents, max_tokens)


def tiled_batch(
    info: Any,
    tile_words: torch.Tensor,
    tile_rows: torch.Tensor,
    tile_block: int,
    contents: Contents,
    max_tokens: int | None = None,
) -> EmbeddingBatch:
    """The batch of the linear layers, or of lm_head, of a LoRABatchInfo, by its tiles of tile_block rows."""
    batch = _view(info, None, info.lora_ranks, contents, max_tokens)
    batch.tile_words, batch.tile_rows, batch.tile_block = tile_words, tile_rows, tile_block
    return batch


def _view(
    info: Any, words: torch.Tensor | None, ranks: torch.Tensor, contents: Contents, max_tokens: int | None
) -> EmbeddingBatch:
    return EmbeddingBatch(
        token_adapters=words,
        permutation=info.permutation,
        seg_indptr=info.seg_indptr,
        seg_slots=info.weight_indices,
        ranks=ranks,
        scalings=info.scalings,
        slots=ranks.shape[0],
        chunk_size=1 if info.max_len is None else info.max_len,
        max_tokens=max_tokens,
        num_segments=info.weight_indices.shape[0] if max_tokens is not None else info.num_segments,
        contents=contents,
    )


def current_batch(batch_info: Any) -> EmbeddingBatch | None:
    """The embedding layer's batch of the backend's batch info; None: no adapter of it has LoRA on that layer.

    One that SGLang planned itself is read as it is.
    """
    batch: Any = getattr(batch_info, BATCH, BATCH)
    return EmbeddingBatch.from_sglang(batch_info) if batch is BATCH else batch
