"""Launch configurations of the kernels.

Chosen from 182 tiles timed once on an NVIDIA H200 (bf16, 8 slots, vocab 128256, ranks 8 to 256, 1 to 16384 tokens,
graphs of 60 launches, 20 rotating index sets): the rule below is within 4 % of the best tile from rank 16 on when
rows are contiguous (15 % at rank 8), and within 16 % when they are not. Another GPU may want others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import triton


class LaunchConfig(NamedTuple):
    """One program copies a tile of block_tokens rows by block_rank columns with num_warps warps."""

    block_tokens: int
    block_rank: int
    num_warps: int


# Contiguous rows: (largest output in elements, elements of a tile).
# Small batches wait for memory: small tiles put more programs in flight. Large ones need bytes in flight: 2048
# elements are two 16-byte loads a thread (rank 256, 16384 tokens: 6.6 us).
ROW_TILES = ((1 << 17, 512), (1 << 19, 1024), (1 << 62, 2048))

# Scattered elements: tall tiles of few ranks, ranks in the outer grid axis, so that programs running together read
# neighbouring ids of the same (slot, rank) line of the table (rank 256, 16384 tokens: 85 us, the worst tile 103).
SCATTERED_TILE = LaunchConfig(block_tokens=32, block_rank=16, num_warps=4)


@lru_cache(maxsize=4096)
def choose(num_tokens: int, max_rank: int, rows_contiguous: bool) -> LaunchConfig:
    """The configuration for num_tokens rows of max_rank columns; rows_contiguous: the table is vocab-major."""
    rank = int(triton.next_power_of_2(max_rank))
    if not rows_contiguous:
        block_rank = min(rank, SCATTERED_TILE.block_rank)
        return LaunchConfig(SCATTERED_TILE.block_tokens, block_rank, SCATTERED_TILE.num_warps)
    elements = next(tile for limit, tile in ROW_TILES if num_tokens * max_rank <= limit)
    block_rank = min(rank, 256)
    return LaunchConfig(min(64, elements // block_rank), block_rank, 4)
