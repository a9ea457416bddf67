"""Batches of captured graphs: their buffers are packed once and filled in place at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from csgmv_embed.batch import Contents, EmbeddingBatch
from csgmv_embed.batch.plan import group_sizes
from csgmv_embed.batch.staging import Packing, Staging, packing_of
from csgmv_embed.batch.tile_plan import block_for
from csgmv_embed.errors import CapacityError
from csgmv_embed.sglang.planner.arrays import ARRAYS, Plan, named, sizes_of, tile_sizes, token_words, write, write_tiles
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import BATCH, HEAD, LINEAR, layer_batch, tiled_batch

STATIC = "csgmv_embed_static"  # attribute of a LoRABatchInfo whose buffers belong to a captured graph


@dataclass
class StaticBatch:
    """The buffers of a captured graph: SGLang's arrays, and our words and ranks, in one device buffer."""

    packing: Packing
    buffer: torch.Tensor
    staging: Staging
    layer: EmbeddingBatch
    linear: EmbeddingBatch | None  # of all tiles; None if neither linear layers nor lm_head are served
    head: EmbeddingBatch | None  # the same tiles, by words of its own; None if lm_head is not served


def pack(state: State, batch_info: Any) -> None:
    """Move the arrays of a LoRABatchInfo for captured graphs into one buffer, in the same sizes, with our words.

    batch_info comes fresh from the backend's own init method. Its attributes become views of the buffer.
    """
    tokens = batch_info.permutation.shape[0]
    requests = batch_info.req_weight_indices.shape[0] if state.release.request_fields else batch_info.bs
    segments, slots = batch_info.weight_indices.shape[0], batch_info.lora_ranks.shape[0]
    sizes = sizes_of(segments, tokens, requests, slots)
    block = block_for(tokens)
    tiles = tile_sizes(tokens, min(slots, requests), block) if state.linear_wanted or state.head_wanted else (0, 0)
    packing = packing_of((*sizes, tokens, slots, *tiles, tiles[0] if state.head_wanted else 0))
    device = batch_info.seg_indptr.device
    with torch.inference_mode(False):  # an inference tensor could not be refilled outside that mode
        buffer = torch.zeros(packing.total, dtype=torch.int32, device=device)
    *views, words, ranks, tile_words, tile_rows, head_words = packing.device(buffer)
    arrays = named(views)
    for name in ARRAYS if state.release.request_fields else ARRAYS[:3] + ARRAYS[5:]:
        setattr(batch_info, name, arrays[name])
    contents = Contents(0, 0)
    layer = layer_batch(batch_info, words, ranks, contents, max_tokens=tokens)
    linear = head = None
    if tile_words.shape[0]:
        linear = tiled_batch(batch_info, tile_words, tile_rows, block, contents, max_tokens=tokens)
    if head_words.shape[0]:
        head = tiled_batch(batch_info, head_words, tile_rows, block, contents, max_tokens=tokens)
    setattr(batch_info, STATIC, StaticBatch(packing, buffer, Staging(device, packing.total), layer, linear, head))
    state.last_step = None


def check_capacity(static: StaticBatch, plan: Plan) -> None:
    """Raises CapacityError if the buffers do not hold the batch."""
    _, segments, tokens, _, requests, slots, *_ = static.packing.sizes
    if len(plan.slots) > requests or plan.tokens > tokens:
        raise CapacityError(
            f"the batch has {len(plan.slots)} requests, {plan.tokens} tokens; the captured graph holds at most "
            f"{requests} requests, {tokens} tokens"
        )
    if plan.tokens <= segments or plan.most_segments(slots) <= segments:  # a segment has a token at least
        return
    group_tokens = group_sizes(plan.lens, plan.slots, slots)
    needed = int((-(-group_tokens // plan.chunk_size)).sum())
    if needed > segments:
        raise CapacityError(f"the batch has {needed} segments; the captured graph holds at most {segments}")


def fill_captured(state: State, info: Any, plan: Plan) -> Any:
    """Send the plan into the buffers of a captured graph. Returns its updated batch info."""
    static: StaticBatch = getattr(info, STATIC)
    host = static.staging.next(static.packing)
    host.words.fill(0)  # one call for the neutral tails of all arrays
    *views, words, ranks, tile_words, tile_rows, head_words = host.views
    requests = len(plan.slots)
    segments = write(state, plan, views)
    word_by_slot = state.word_by_slot()
    if word_by_slot is not None:
        words[: plan.tokens] = token_words(word_by_slot, plan)
        ranks[:] = state.layer_ranks
    if static.linear is not None:
        wanted = head_words if static.head is not None else None
        write_tiles(state, plan, views, static.linear.tile_block, tile_words, tile_rows, wanted)
    static.staging.send(static.buffer)
    contents = static.layer.contents  # that of the others too
    contents.num_tokens, contents.max_rank = plan.tokens, state.ranks.largest
    info.bs, info.num_segments, info.max_len = requests, segments, plan.chunk_size
    static.layer.chunk_size = plan.chunk_size
    setattr(info, BATCH, static.layer)
    if static.head is not None:
        setattr(info, HEAD, static.head)
    setattr(info, LINEAR, static.linear)
    return info
