"""What the buffers of a batch can hold, and what the host knows of what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from csgmv_embed.batch.staging import Packing, packing_of
from csgmv_embed.batch.tile_plan import block_for, most_tiles


@dataclass(frozen=True)
class BatchCapacity:
    """What the buffers of a batch can hold; `segments`: csgmv's structure beside the token words."""

    max_tokens: int
    max_sequences: int
    slots: int
    chunk_size: int
    segments: bool
    tiles: bool = False

    @property
    def max_segments(self) -> int:
        """Most segments any batch can need: full chunks, and one ragged chunk for each slot in use."""
        return self.max_tokens // self.chunk_size + min(self.slots, self.max_sequences, self.max_tokens)

    @property
    def packing(self) -> Packing:
        """Of token_adapters, and with segments of permutation, seg_indptr, seg_slots, ranks and scalings."""
        if not self.segments:
            return packing_of((self.max_tokens,))
        structure = (self.max_tokens, self.max_segments + 1, self.max_segments, self.slots, self.slots)
        return packing_of((self.max_tokens, *structure, *self.tile_sizes))

    @property
    def tile_block(self) -> int:
        """Rows of a tile."""
        return block_for(self.max_tokens)

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """Elements of tile_words and tile_rows."""
        most = most_tiles(self.max_tokens, min(self.slots, self.max_sequences), self.tile_block)
        return (2 * most, self.tile_block * most) if self.tiles else ()


@dataclass
class Contents:
    """What the host knows of the tokens in the buffers; one object for every view of them."""

    num_tokens: int | None  # None: not known on the host
    max_rank: int | None  # largest rank in use; None: not known on the host
    adapted: bool = True  # whether a token may have an adapter
