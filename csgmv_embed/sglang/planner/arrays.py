"""The arrays of SGLang's LoRABatchInfo for one batch, and the token words. numpy writes them, torch views them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from csgmv_embed.batch.plan import Int32Array, Int64Array, counting_int32, group_sizes, plan_segments
from csgmv_embed.batch.tile_plan import most_tiles, plan_tiles
from csgmv_embed.sglang.planner.state import State

# The arrays of every plan, in the order in which they lie in the buffer.
ARRAYS = (
    "seg_indptr",
    "weight_indices",
    "permutation",
    "req_seg_indptr",
    "req_weight_indices",
    "lora_ranks",
    "scalings",
)


class Plan(NamedTuple):
    """A checked batch, as the scheduler gave it."""

    lens: Int64Array | None  # None: one token each
    slots: Int64Array
    tokens: int
    chunk_size: int

    def most_segments(self, slots: int) -> int:
        """Upper bound of the segments of the batch: full chunks, and one partial chunk for each slot in use."""
        return self.tokens // self.chunk_size + min(slots, len(self.slots), self.tokens)


def sizes_of(segments: int, tokens: int, requests: int, slots: int) -> tuple[int, ...]:
    """Elements of ARRAYS."""
    return (segments + 1, segments, tokens, requests + 1, requests, slots, slots)


def named(views: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    arrays = dict(zip(ARRAYS, views, strict=True))
    arrays["scalings"] = arrays["scalings"].view(torch.float32)
    return arrays


def write(state: State, plan: Plan, views: list[Int32Array]) -> int:
    """Write ARRAYS. Returns the number of segments. Tails are neutral if they were zeros."""
    seg_indptr, seg_slots, permutation, req_indptr, req_slots, ranks, scalings = views
    requests = len(plan.slots)
    segments = plan_segments(
        plan.lens,
        plan.slots,
        state.ranks.values,
        plan.chunk_size,
        plan.tokens,
        permutation,
        seg_indptr,
        seg_slots,
        ranks,
    )
    req_indptr.fill(plan.tokens)  # its tail
    if plan.lens is None:
        req_indptr[: requests + 1] = counting_int32(requests + 1)
    else:
        req_indptr[0] = 0
        req_indptr[1 : requests + 1] = plan.lens.cumsum()
    req_slots[:requests] = plan.slots
    scalings[:] = state.scalings.words
    return segments


def tile_sizes(tokens: int, slots: int, block: int) -> tuple[int, int]:
    """Elements of the words and of the rows of the tiles of linear layers."""
    most = most_tiles(tokens, slots, block)
    return 2 * most, block * most


def write_tiles(
    state: State,
    plan: Plan,
    views: list[Int32Array],
    block: int,
    words: Int32Array,
    rows: Int32Array,
    head_words: Int32Array | None,
) -> None:
    """Write the tiles of all slots with LoRA. views: ARRAYS as `write` left them; words must be zeros.

    head_words: the words of the same tiles for lm_head, 0 where the slot's adapter has no LoRA on lm_head.
    """
    ranks = state.ranks.values
    group_tokens = group_sizes(plan.lens, plan.slots, len(ranks))
    plan_tiles(views[2][: plan.tokens], group_tokens, ranks, state.scalings.words, block, words, rows)
    if head_words is not None:
        head_words[:] = words
        if state.slot_has_head is not None:
            pairs = head_words.reshape(-1, 2)
            pairs[~state.slot_has_head[pairs[:, 0] >> 16], 0] = 0


def token_words(word_by_slot: Int32Array, plan: Plan) -> Int32Array:
    """The word of each token, in the order of the tokens."""
    of_request = word_by_slot[plan.slots]
    return of_request if plan.lens is None else of_request.repeat(plan.lens)
