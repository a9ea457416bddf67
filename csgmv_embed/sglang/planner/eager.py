"""Batches that are launched eagerly: each gets new device arrays, sent in one transfer."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from csgmv_embed.batch import Contents
from csgmv_embed.batch.plan import Ints
from csgmv_embed.batch.staging import packing_of
from csgmv_embed.batch.tile_plan import block_for
from csgmv_embed.sglang.planner.arrays import ARRAYS, Plan, named, sizes_of, tile_sizes, token_words, write, write_tiles
from csgmv_embed.sglang.planner.heads import HEAD_ARRAYS, HeadPlan, head_arrays
from csgmv_embed.sglang.planner.sending import lora_utils, send_new, staging_of, write_all
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import BATCH, HEAD, LINEAR, layer_batch, tiled_batch

Array = TypeVar("Array")


def fill_new(state: State, plan: Plan, heads: list[HeadPlan]) -> tuple[Any, list[tuple[torch.Tensor, ...]]]:
    """Send the plan to new device arrays. Returns the batch info, and the arrays of each lm_head pass."""
    slots, requests = state.backend.max_loras_per_batch, len(plan.slots)
    word_by_slot = state.word_by_slot()
    own: list[Ints] = []  # what is sent beside SGLang's arrays: nothing if no adapter has LoRA on the embedding layer
    if word_by_slot is not None:
        own = [token_words(word_by_slot, plan), state.layer_ranks]
    extras = own + head_arrays(heads)
    head_served = state.head_wanted and state.lm_head_targeted is not False
    some_head, all_heads = state.heads_of(plan.slots) if head_served else (False, True)
    block = block_for(plan.tokens)
    tiles: tuple[int, ...] = ()
    if state.linear_wanted or some_head:
        tiles = tile_sizes(plan.tokens, min(slots, requests), block)
        if some_head and not all_heads:
            tiles = (*tiles, tiles[0])  # lm_head's own words
    planned = (*sizes_of(plan.most_segments(slots), plan.tokens, requests, slots), *tiles, *map(len, extras))
    packing = packing_of(planned, shrinking=2)
    views = staging_of(state).next(packing).views
    of_batch, of_tiles, others = _parted(views, len(tiles))
    segments = write(state, plan, of_batch)
    if tiles:
        words, rows, *own_words = of_tiles
        words.fill(0)
        write_tiles(state, plan, of_batch, block, words, rows, own_words[0] if own_words else None)
    write_all(others, extras)

    arrays, tile_arrays, other_arrays = _parted(send_new(state, packing, (segments + 1, segments)), len(tiles))
    info = _batch_info(state, plan, named(arrays), segments)
    contents = Contents(plan.tokens, state.ranks.largest)
    if head_served:
        setattr(info, HEAD, None)
    if tiles:
        tile_words, tile_rows, *head_words = tile_arrays
        setattr(info, LINEAR, tiled_batch(info, tile_words, tile_rows, block, contents))
        if some_head:
            setattr(
                info, HEAD, tiled_batch(info, head_words[0] if head_words else tile_words, tile_rows, block, contents)
            )
    if word_by_slot is None:
        setattr(info, BATCH, None)
    else:
        layer_words, layer_ranks, *other_arrays = other_arrays
        setattr(info, BATCH, layer_batch(info, layer_words, layer_ranks, contents))
    return info, list(zip(*[iter(other_arrays)] * HEAD_ARRAYS, strict=True))


def _parted(arrays: list[Array], tiles: int) -> tuple[list[Array], list[Array], list[Array]]:
    """Those of SGLang, those of the tiles and the others, as they lie in the buffer."""
    end = len(ARRAYS) + tiles
    return arrays[: len(ARRAYS)], arrays[len(ARRAYS) : end], arrays[end:]


def _batch_info(state: State, plan: Plan, arrays: dict[str, torch.Tensor], segments: int) -> Any:
    """SGLang's LoRABatchInfo of an eager batch."""
    if not state.release.request_fields:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("req_")}
    return lora_utils().LoRABatchInfo(
        use_cuda_graph=False,
        bs=len(plan.slots),
        num_segments=segments,
        max_len=plan.chunk_size,
        seg_lens=None,
        **arrays,
    )
