"""How programs walk csgmv's segments: each takes several neighbouring ones, in runs of one slot (kernels/common.py)."""

from __future__ import annotations

from typing import NamedTuple

from csgmv_embed.batch.batch import EmbeddingBatch

MAX_SEGMENTS = 16  # of a group
SMALLEST_CHUNK = 16  # of SGLang's


class Walk(NamedTuple):
    """`groups` groups of `segments` neighbouring segments, each with `tiles` programs for a block of columns."""

    segments: int
    groups: int
    tiles: int


def walk(batch: EmbeddingBatch, tokens: int, block_m: int) -> Walk:
    """How programs with tiles of block_m rows cover `tokens` tokens: each takes several segments, or part of one."""
    chunk_size = max(1, batch.chunk_size)
    segments = 1
    while 2 * segments * chunk_size <= block_m and segments < MAX_SEGMENTS:
        segments *= 2
    used = batch.num_segments
    if batch.static and batch.permutation is not None:
        # Buffers hold more than so many tokens can need, grouped by slot. SGLang's chunks follow the number of
        # tokens: those of a replay may be smaller than those of the capture.
        used = min(used, tokens // min(chunk_size, SMALLEST_CHUNK) + min(batch.slots, tokens))
    tiles = 1 if segments > 1 else -(-min(chunk_size, tokens) // block_m)
    return Walk(segments, -(-used // segments), tiles)
