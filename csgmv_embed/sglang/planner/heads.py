"""lm_head's own batches: the rows that a prefill keeps, as SGLang's segments and as tiles of one slot each."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch

from csgmv_embed.batch import Contents
from csgmv_embed.batch.plan import Int32Array, Int64Array, Ints, chunk_constants, counting, group_sizes
from csgmv_embed.batch.staging import packing_of
from csgmv_embed.batch.tile_plan import block_for, plan_tiles
from csgmv_embed.sglang.planner.arrays import Plan, tile_sizes
from csgmv_embed.sglang.planner.sending import lora_utils, send_new, staging_of, write_all
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import HEAD, tiled_batch

HEAD_ARRAYS = 4  # of a HeadPlan that are sent, its first
_ONE = np.array(1)
_NOTHING = np.zeros(0, dtype=np.int32)


class HeadPlan(NamedTuple):
    """One pass of lm_head over the rows that sampling or log-probabilities keep: SGLang's segments, and our tiles."""

    seg_slots: Int64Array
    seg_indptr: Int64Array
    tile_words: Int32Array  # none if lm_head is not served, or nobody has LoRA there
    tile_rows: Int32Array
    chunk_size: int
    tokens: int


def merged_chunks(slots: Int64Array, lens: Int64Array, chunk_size: int) -> tuple[Int64Array, Int64Array]:
    """Merge runs of requests of one slot, cut every chunk_size tokens: slots (segments,), bounds (segments + 1,).

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


def plan_heads(state: State, forward_batch: Any, weight_indices: list[int], plan: Plan) -> list[HeadPlan]:
    """The lm_head batch, and its passes if log-probabilities are computed in passes. Empty if lm_head has no LoRA."""
    if state.lm_head_targeted is False or plan.lens is None:  # decode keeps every row
        return []
    kept = lora_utils().get_lm_head_pruned_lens(forward_batch)
    if kept is None:
        return []
    batches = [(plan.slots, np.array(kept, dtype=np.int64))]
    passes = state.backend._get_lm_head_pass_segments(weight_indices, kept)
    batches += [(np.array(slots, dtype=np.int64), np.array(lens, dtype=np.int64)) for slots, lens in passes or ()]
    return [_planned(state, slots, lens) for slots, lens in batches]


def _planned(state: State, slots: Int64Array, lens: Int64Array) -> HeadPlan:
    """slots, lens (requests,): the rows that each keeps."""
    tokens = int(lens.sum())
    chunk_size = state.backend._determine_chunk_size_for_tokens(tokens)
    segments = merged_chunks(slots, lens, chunk_size)
    return HeadPlan(*segments, *_tiles(state, slots, lens, tokens), chunk_size, tokens)


def _tiles(state: State, slots: Int64Array, lens: Int64Array, tokens: int) -> tuple[Int32Array, Int32Array]:
    """Words and rows; empty without work."""
    if not (state.head_wanted and state.heads_of(slots)[0]):
        return _NOTHING, _NOTHING
    ranks, block = state.head_ranks(), block_for(tokens)
    sizes = tile_sizes(tokens, min(len(ranks), len(slots)), block)
    words, rows = (np.zeros(size, dtype=np.int32) for size in sizes)
    by_slot = slots.repeat(lens).argsort(kind="stable").astype(np.int32)
    plan_tiles(by_slot, group_sizes(lens, slots, len(ranks)), ranks, state.scalings.words, block, words, rows)
    return words, rows


def head_arrays(heads: list[HeadPlan]) -> list[Ints]:
    """The arrays of each pass, in the order in which they are sent."""
    return [array for head in heads for array in (head.seg_slots, head.seg_indptr, head.tile_words, head.tile_rows)]


def send_heads(state: State, heads: list[HeadPlan]) -> list[tuple[torch.Tensor, ...]]:
    """Send lm_head's arrays. They are always new, because lm_head runs outside the captured graph."""
    if not heads:
        return []
    arrays = head_arrays(heads)
    packing = packing_of(tuple(map(len, arrays)))
    write_all(staging_of(state).next(packing).views, arrays)
    found = iter(send_new(state, packing))
    return list(zip(*[found] * HEAD_ARRAYS, strict=True))


def head_info(state: State, batch_info: Any, head: HeadPlan, arrays: tuple[torch.Tensor, ...]) -> Any:
    """SGLang's LoRABatchInfo of one pass. arrays: the first HEAD_ARRAYS of the plan, on the device."""
    seg_slots, seg_indptr, tile_words, tile_rows = arrays
    eager = {"use_cuda_graph": False} if state.release.lm_head_eager else {}
    info = dataclasses.replace(
        batch_info,
        num_segments=len(head.seg_slots),
        max_len=head.chunk_size,
        seg_indptr=seg_indptr,
        weight_indices=seg_slots,
        permutation=_positions(state, head.tokens),
        expected_tokens=head.tokens,
        **eager,
    )
    if state.head_wanted:
        contents, block = Contents(head.tokens, state.ranks.largest), block_for(head.tokens)
        has_work = len(head.tile_words) > 0
        setattr(info, HEAD, tiled_batch(info, tile_words, tile_rows, block, contents) if has_work else None)
    return info


def _positions(state: State, tokens: int) -> torch.Tensor:
    """0, 1, ... tokens - 1 on the device: lm_head's rows are in order. Made once, read only."""
    if state.positions is None or state.positions.shape[0] < tokens:
        size = 1 << (max(tokens, 256) - 1).bit_length()
        with torch.inference_mode(False):
            state.positions = torch.arange(size, dtype=torch.int32, device=state.backend.device)
    return state.positions[:tokens]
