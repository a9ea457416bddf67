"""The arrays of a batch in one buffer: views of it on the device, and writing a plan into a host buffer."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.batch.capacity import BatchCapacity, Contents
from csgmv_embed.batch.plan import Int32Array, Int64Array, Ranks, group_sizes, plan_segments
from csgmv_embed.batch.staging import HostBuffer
from csgmv_embed.batch.tile_plan import plan_tiles


def device_arrays(capacity: BatchCapacity, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
    """The arrays of an EmbeddingBatch without contents, and the one buffer that holds them all."""
    packing = capacity.packing
    with torch.inference_mode(False):  # an inference tensor could not be refilled outside that mode
        buffer = torch.empty(packing.total, dtype=torch.int32, device=device)
    words, *structure = packing.device(buffer)
    permutation, seg_indptr, seg_slots, ranks, scalings = structure[:5] or (None, None, None, None, None)
    tile_words, tile_rows = structure[5:] or (None, None)
    made = {
        "token_adapters": words,
        "permutation": permutation,
        "seg_indptr": seg_indptr,
        "seg_slots": seg_slots,
        "ranks": ranks,
        "scalings": None if scalings is None else scalings.view(torch.float32),
        "tile_words": tile_words,
        "tile_rows": tile_rows,
        "tile_block": capacity.tile_block if capacity.tiles else 0,
        "slots": capacity.slots,
        "chunk_size": capacity.chunk_size,
        "max_tokens": capacity.max_tokens,
        "num_segments": capacity.max_segments,
        "contents": Contents(0, 0),
    }
    return made, buffer


def write_plan(
    host: HostBuffer,
    capacity: BatchCapacity,
    ranks: Ranks,
    lens: Int64Array | None,
    slots: Int64Array,
    tokens: int,
    factors: Int32Array,
) -> None:
    """Write the arrays of these tokens into a host buffer of zeros. factors: the scalings as 32-bit words."""
    words, *structure = host.views
    of_sequence = ranks.words[slots]
    words[:tokens] = of_sequence if lens is None else of_sequence.repeat(lens)
    tiles = structure[5:]
    if structure:
        *structure, scalings = structure[:5]
        plan_segments(lens, slots, ranks.values, capacity.chunk_size, tokens, *structure)
        scalings[:] = factors
    if tiles:
        group_tokens = group_sizes(lens, slots, len(ranks.values))
        permutation = structure[0][:tokens]
        plan_tiles(permutation, group_tokens, ranks.values, factors, capacity.tile_block, *tiles)
