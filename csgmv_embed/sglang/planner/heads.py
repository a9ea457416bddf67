"""lm_head's own batches: the rows that a prefill keeps, in runs of requests of one slot, cut into chunks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch

from csgmv_embed.batch import Contents
from csgmv_embed.batch.plan import Int64Array, Ints, chunk_constants, counting
from csgmv_embed.batch.staging import packing_of
from csgmv_embed.sglang.planner.arrays import Plan
from csgmv_embed.sglang.planner.sending import lora_utils, send_new, staging_of, write_all
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import HEAD, head_batch

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


def plan_heads(state: State, forward_batch: Any, weight_indices: list[int], plan: Plan) -> list[HeadPlan]:
    """The lm_head batch, then its passes if log-probabilities are computed in passes; none if lm_head has no LoRA."""
    if state.lm_head_targeted is False or plan.lens is None:  # decode keeps every row
        return []
    kept = lora_utils().get_lm_head_pruned_lens(forward_batch)
    if kept is None:
        return []
    batches = [(plan.slots, np.array(kept, dtype=np.int64))]
    passes = state.backend._get_lm_head_pass_segments(weight_indices, kept)
    batches += [(np.array(slots, dtype=np.int64), np.array(lens, dtype=np.int64)) for slots, lens in passes or ()]
    heads = []
    for slots, lens in batches:
        tokens = int(lens.sum())
        chunk_size = state.backend._determine_chunk_size_for_tokens(tokens)
        heads.append(HeadPlan(*merged_chunks(slots, lens, chunk_size), chunk_size, tokens))
    return heads


def head_arrays(heads: list[HeadPlan]) -> list[Ints]:
    """Slots and bounds of each, as they are sent."""
    return [array for head in heads for array in (head.seg_slots, head.seg_indptr)]


def send_heads(state: State, heads: list[HeadPlan]) -> list[tuple[torch.Tensor, ...]]:
    """lm_head runs outside the captured graph, so its arrays are new although the batch's are not."""
    if not heads:
        return []
    arrays = head_arrays(heads)
    packing = packing_of(tuple(map(len, arrays)))
    write_all(staging_of(state).next(packing).views, arrays)
    found = iter(send_new(state, packing))
    return list(zip(found, found, strict=True))


def head_info(state: State, batch_info: Any, head: HeadPlan, arrays: tuple[torch.Tensor, ...]) -> Any:
    """SGLang's LoRABatchInfo of one pass; arrays: its slots and bounds on the device."""
    seg_slots, seg_indptr = arrays
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
    setattr(info, HEAD, head_batch(info, Contents(head.tokens, state.ranks.largest)))
    return info


def _positions(state: State, tokens: int) -> torch.Tensor:
    """0, 1, ... tokens - 1 on the device: lm_head's rows are in order. Made once, read only."""
    if state.positions is None or state.positions.shape[0] < tokens:
        size = 1 << (max(tokens, 256) - 1).bit_length()
        with torch.inference_mode(False):
            state.positions = torch.arange(size, dtype=torch.int32, device=state.backend.device)
    return state.positions[:tokens]
