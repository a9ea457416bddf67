"""Plans the tiles of a batch, which the kernels of linear layers walk. Uses numpy only.

A tile is at most `block` rows of one slot. Worked example with block 2, ranks [8, 0, 4], tokens 0, 1, 2 of slot 0,
token 3 of slot 1, token 4 of slot 2: the tiles are rows 0 and 1 of slot 0, row 2 of slot 0, and row 4 of slot 2. Row 3
has no adapter and no tile.
"""

from __future__ import annotations

import numpy as np

from csgmv_embed.batch.plan import Int32Array, Int64Array, counting

NO_ROW = -1
DECODE_BLOCK, PREFILL_BLOCK = 16, 64
DECODE_TOKENS = 512  # up to here a slot seldom has rows for a larger tile


def block_for(tokens: int) -> int:
    """Rows of a tile, for a batch or buffers of this many tokens."""
    return DECODE_BLOCK if tokens <= DECODE_TOKENS else PREFILL_BLOCK


def most_tiles(tokens: int, slots: int, block: int) -> int:
    """Upper bound of the tiles of `tokens` tokens in `slots` slots: full tiles, and one partial tile for each slot."""
    return tokens // block + min(slots, tokens)


def plan_tiles(
    permutation: Int32Array,
    group_tokens: Int64Array,
    ranks: Int64Array,
    scalings: Int32Array,
    block: int,
    words: Int32Array,
    rows: Int32Array,
) -> int:
    """Write the tiles into the given arrays. Returns their number.

    permutation (tokens,) groups the tokens by slot; group_tokens (slots,) counts them. ranks (slots,); scalings
    (slots,) as 32-bit words. words (2 * most_tiles,) must be zeros on entry. Each tile gets a pair (slot << 16 | rank,
    scaling); the rest stays 0. rows (block * most_tiles,) are overwritten, with NO_ROW where a tile has no row.
    """
    rows.fill(NO_ROW)
    adapted = ranks > 0
    tiles = np.where(adapted, -(-group_tokens // block), 0)
    owners = counting(len(ranks)).repeat(tiles)
    count = len(owners)
    pairs = words.reshape(-1, 2)
    pairs[:count, 0] = owners << 16 | ranks[owners]
    pairs[:count, 1] = scalings[owners]
    # Row p of its group lies at first tile of the group * block + p.
    shift = (tiles.cumsum() - tiles) * block - (group_tokens.cumsum() - group_tokens)
    place = counting(len(permutation)) + shift.repeat(group_tokens)
    if not adapted.all():
        chosen = adapted.repeat(group_tokens)
        place, permutation = place[chosen], permutation[chosen]
    rows[place] = permutation
    return count
