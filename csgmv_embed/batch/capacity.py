"""What the buffers of a batch can hold, and what the host knows about their contents."""

from __future__ import annotations

from dataclasses import dataclass

from csgmv_embed.batch.staging import Packing, packing_of
from csgmv_embed.batch.tile_plan import block_for, most_tiles


@dataclass(frozen=True)
class BatchCapacity:
    """What the buffers of a batch can hold. With `segments`, csgmv's structure in addition to the token words."""

    max_tokens: int
    max_sequences: int
    slots: int
    chunk_size: int
    segments: bool
    tiles: bool = False

    @property
    def max_segments(self) -> int:
        """The most segments that any batch can need: full chunks, and one partial chunk for each slot in use."""
        return self.max_tokens // self.chunk_size + min(self.slots, self.max_sequences, self.max_tokens)

    @property
    def packing(self) -> Packing:
        """The packing of the arrays.

        These are token_adapters, and with segments also permutation, seg_indptr, seg_slots, ranks and scalings.
        """
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
    """What the host knows about the tokens in the buffers. All views of the buffers share one object."""

    num_tokens: int | None  # None: not known on the host
    max_rank: int | None  # largest rank in use; None: not known on the host
    adapted: bool = True  # whether a token may have an adapter
