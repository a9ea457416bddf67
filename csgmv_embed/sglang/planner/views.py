"""What the kernels take of a batch: views of arrays that are on the device already, nothing copied, nothing checked."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.batch import Contents, EmbeddingBatch

# Attributes of a LoRABatchInfo
BATCH = "csgmv_embed_batch"  # the embedding layer's batch, if this plugin planned it; None: nobody has LoRA there
HEAD = "csgmv_embed_head"  # lm_head's
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


def head_batch(info: Any, contents: Contents, max_tokens: int | None = None) -> EmbeddingBatch:
    """lm_head's batch of a LoRABatchInfo. An adapter without LoRA on lm_head has zeros in SGLang's tables."""
    return _in_order(info, _view(info, None, info.lora_ranks, contents, max_tokens))


def linear_batch(
    info: Any,
    tile_words: torch.Tensor,
    tile_rows: torch.Tensor,
    tile_block: int,
    contents: Contents,
    max_tokens: int | None = None,
) -> EmbeddingBatch:
    """The batch of the linear layers of a LoRABatchInfo, by its tiles of tile_block rows."""
    batch = _view(info, None, info.lora_ranks, contents, max_tokens)
    batch.tile_words, batch.tile_rows, batch.tile_block = tile_words, tile_rows, tile_block
    return batch


def _in_order(info: Any, batch: EmbeddingBatch) -> EmbeddingBatch:
    """The batch without the permutation, where that changes nothing.

    The rows that a prefill leaves for lm_head stay in the order of the requests; their segments are runs of one slot,
    of which a slot may have several. The info of such rows is the one that expects a number of them.
    """
    if info.expected_tokens is not None:
        batch.permutation = None
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


def current_head(batch_info: Any) -> EmbeddingBatch:
    """lm_head's batch of a batch info, whoever made it."""
    batch: EmbeddingBatch | None = getattr(batch_info, HEAD, None)
    if batch is None:
        batch = _in_order(batch_info, EmbeddingBatch.from_sglang(batch_info))
        if not batch.static:  # SGLang's own captured info changes without notice
            setattr(batch_info, HEAD, batch)
    return batch
