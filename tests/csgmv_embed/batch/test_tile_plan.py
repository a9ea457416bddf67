"""The tiles of linear layers: every row of a slot with an adapter is in one tile of its slot, and no other row is."""

from __future__ import annotations

import numpy as np
import pytest

from csgmv_embed import EmbeddingBatch
from csgmv_embed.batch.tile_plan import NO_ROW, block_for, most_tiles, plan_tiles


def test_the_worked_example():
    words, rows = np.zeros(8, np.int32), np.zeros(8, np.int32)
    scalings = np.array([2.0, 1.0, 0.5], np.float32)
    permutation = np.arange(5, dtype=np.int32)
    count = plan_tiles(permutation, np.array([3, 1, 1]), np.array([8, 0, 4]), scalings.view(np.int32), 2, words, rows)
    assert count == 3
    assert rows.tolist() == [0, 1, 2, NO_ROW, 4, NO_ROW, NO_ROW, NO_ROW]
    pairs = words.reshape(-1, 2)
    assert pairs[:, 0].tolist() == [8, 8, 2 << 16 | 4, 0]
    assert pairs[:3, 1].copy().view(np.float32).tolist() == [2.0, 2.0, 0.5]


@pytest.mark.parametrize("seed", range(20))
def test_random_batches(seed: int):
    rng = np.random.default_rng(seed)
    slots, requests = int(rng.integers(1, 7)), int(rng.integers(0, 30))
    ranks = rng.integers(0, 3, slots) * 8
    lens = rng.integers(0, 60, requests) if seed % 2 else None
    of_request = rng.integers(0, slots, requests)
    scalings = rng.random(slots).astype(np.float32).tolist()
    batch = EmbeddingBatch.build(
        None if lens is None else lens.tolist(),
        of_request.tolist(),
        ranks.tolist(),
        scalings=scalings,
        tiles=True,
        device="cpu",
    )
    assert batch.tile_words is not None and batch.tile_rows is not None
    of_token = of_request if lens is None else of_request.repeat(lens)
    words = batch.tile_words.numpy().reshape(-1, 2)
    rows = batch.tile_rows.numpy().reshape(-1, batch.tile_block)
    assert len(words) == len(rows) <= most_tiles(len(of_token), slots, batch.tile_block)
    seen = []
    for (word, scaling), tile in zip(words, rows, strict=True):
        own = tile[tile != NO_ROW]
        if word == 0:
            assert len(own) == 0
            continue
        slot = word >> 16
        assert len(own) and word & 0xFFFF == ranks[slot] > 0
        assert np.int32(scaling).view(np.float32) == np.float32(scalings[slot])
        assert (of_token[own] == slot).all()
        seen += own.tolist()
    assert sorted(seen) == np.flatnonzero(ranks[of_token] > 0).tolist()


def test_the_block_follows_the_tokens():
    assert (block_for(1), block_for(512), block_for(513)) == (16, 16, 64)
