"""The segments of lm_head's rows: runs of requests of one slot, cut into chunks. numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csgmv_embed.batch.plan import Int64Array, chunk_constants, counting

_ONE = np.array(1)


class HeadPlan(NamedTuple):
    """The segments of one pass of lm_head over the rows that sampling or log-probabilities keep."""

    seg_slots: Int64Array
    seg_indptr: Int64Array
    chunk_size: int
    tokens: int


def merged_chunks(slots: Int64Array, lens: Int64Array, chunk_size: int) -> tuple[Int64Array, Int64Array]:
    """Runs of requests of one slot, cut every chunk_size tokens: slots (segments,), bounds (segments + 1,).

    slots, lens (requests,). Equals SGLang's merge_and_chunk_segments: a run without tokens keeps one empty segment.
    """
    first = np.ones(len(slots), dtype=np.bool_)  # of its run
    np.not_equal(slots[1:], slots[:-1], out=first[1:])
    (starts,) = first.nonzero()
    run_tokens = np.add.reduceat(lens, starts) if len(lens) else lens
    chunk, round_up = chunk_constants(chunk_size)
    counts = np.maximum((run_tokens + round_up) // chunk, _ONE)
    # segment g of a run begins at run_start + (g - first segment) * chunk_size
    base = run_tokens.cumsum() - run_tokens - (counts.cumsum() - counts) * chunk
    segments = int(counts.sum())
    bounds = np.empty(segments + 1, dtype=np.int64)
    bounds[:segments] = base.repeat(counts) + counting(segments) * chunk
    bounds[segments] = lens.sum()
    return slots[starts].repeat(counts), bounds
