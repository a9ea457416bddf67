"""The host plan of a batch for SGLang's csgmv backend: its LoRABatchInfo, and our token words, in one transfer.

SGLang's own `prepare_lora_batch` walks the segments in Python and sends eight arrays one by one. This one computes the
same arrays with numpy into one pinned buffer. Every field equals SGLang's; where SGLang leaves the tail of a captured
buffer as an earlier batch left it, the tail is neutral here: empty segments, no LoRA.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from csgmv_embed.batch import Contents, EmbeddingBatch
from csgmv_embed.batch.plan import Int32Array, Ints, checked, group_sizes
from csgmv_embed.batch.staging import Layout, Staging, layout_of
from csgmv_embed.batch.tile_plan import block_for
from csgmv_embed.errors import CapacityError, ShapeError
from csgmv_embed.sglang.arrays import ARRAYS as ARRAYS
from csgmv_embed.sglang.arrays import Plan, named, sizes_of, tile_sizes, token_words, write, write_tiles
from csgmv_embed.sglang.heads import HeadPlan, merged_chunks
from csgmv_embed.sglang.state import STATE as STATE
from csgmv_embed.sglang.state import State as State
from csgmv_embed.sglang.state import Step
from csgmv_embed.sglang.state import attach as attach
from csgmv_embed.sglang.views import BATCH as BATCH
from csgmv_embed.sglang.views import HEAD as HEAD
from csgmv_embed.sglang.views import LINEAR as LINEAR
from csgmv_embed.sglang.views import head_batch, layer_batch, linear_batch

STATIC = "csgmv_embed_static"  # attribute of a LoRABatchInfo whose buffers belong to a captured graph


@dataclass
class StaticBatch:
    """The buffers of a captured graph: SGLang's arrays, our words and ranks in one device buffer."""

    layout: Layout
    buffer: torch.Tensor
    staging: Staging
    layer: EmbeddingBatch
    head: EmbeddingBatch
    linear: EmbeddingBatch | None = None


def pack(state: State, batch_info: Any) -> None:
    """Move the arrays of a LoRABatchInfo for captured graphs into one buffer, in the same sizes, with our words.

    batch_info is fresh from the backend's own init method. Its attributes become views of the buffer.
    """
    tokens = batch_info.permutation.shape[0]
    requests = batch_info.req_weight_indices.shape[0] if state.release.request_fields else batch_info.bs
    segments, slots = batch_info.weight_indices.shape[0], batch_info.lora_ranks.shape[0]
    sizes = sizes_of(segments, tokens, requests, slots)
    block = block_for(tokens)
    tiles = tile_sizes(tokens, min(slots, requests), block) if state.linear_wanted else (0, 0)
    layout = layout_of((*sizes, tokens, slots, *tiles))
    device = batch_info.seg_indptr.device
    with torch.inference_mode(False):  # an inference tensor could not be refilled outside that mode
        buffer = torch.zeros(layout.total, dtype=torch.int32, device=device)
    *views, words, ranks, tile_words, tile_rows = layout.device(buffer)
    arrays = named(views)
    for name in ARRAYS if state.release.request_fields else ARRAYS[:3] + ARRAYS[5:]:
        setattr(batch_info, name, arrays[name])
    contents = Contents(0, 0)
    layer = layer_batch(batch_info, words, ranks, contents, max_tokens=tokens)
    head = head_batch(batch_info, contents, max_tokens=tokens)
    static = StaticBatch(layout, buffer, Staging(device, layout.total), layer, head)
    if state.linear_wanted:
        static.linear = linear_batch(batch_info, tile_words, tile_rows, block, contents, max_tokens=tokens)
    setattr(batch_info, STATIC, static)
    state.last_step = None


def prepare(
    state: State,
    forward_batch: Any,
    weight_indices: list[int],
    lora_ranks: list[int],
    scalings: list[float],
    static_info: Any = None,
) -> None:
    """What the backend's `prepare_lora_batch` does: sets batch_info, lm_head_batch_info, lm_head_pass_batch_infos.

    forward_batch is SGLang's; weight_indices (requests,) the slot of each request; lora_ranks and scalings (slots,).
    static_info: the packed LoRABatchInfo of a captured graph to fill in place; None: a new one.
    A decode step equal to the last one sends nothing.
    Raises ShapeError, SlotError on values that do not fit together, CapacityError if the batch exceeds a captured
    graph's buffers; the backend is then as it was.
    """
    backend = state.backend
    step = _repeated(state, forward_batch, weight_indices, lora_ranks, scalings, static_info)
    if step is None:
        batch_info, heads = _planned(state, forward_batch, weight_indices, lora_ranks, scalings, static_info)
    else:
        batch_info, heads = _again(step), []
    if state.release.request_fields:
        batch_info = backend._add_moe_lora_info(forward_batch, batch_info)
    backend.batch_info = batch_info
    infos = [_head_info(state, batch_info, *head) for head in heads]
    backend.lm_head_batch_info = infos[0] if infos else None
    backend.lm_head_pass_batch_infos = infos[1:] or None


def _planned(
    state: State,
    forward_batch: Any,
    weight_indices: list[int],
    lora_ranks: list[int],
    scalings: list[float],
    static_info: Any,
) -> tuple[Any, list[tuple[HeadPlan, tuple[torch.Tensor, ...]]]]:
    """Plan the batch and send it: its batch info, and each lm_head pass with its arrays."""
    plan = _checked_plan(state, forward_batch, weight_indices, lora_ranks, scalings)
    heads = _plan_heads(state, forward_batch, weight_indices, plan)
    if static_info is not None:
        _check_capacity(getattr(static_info, STATIC), plan)
    state.last_step = None  # until all is written
    if static_info is None:
        batch_info, head_arrays = _fill_new(state, plan, heads)
    else:
        batch_info, head_arrays = _fill_static(state, static_info, plan), _send_heads(state, heads)
    if plan.lens is None and not heads:
        # A caller may write into its lists later; those of the adapters were copied when they changed.
        given = [*weight_indices], state.ranks.given, state.scalings.given
        state.last_step = Step(*given, state.words_version, static_info, batch_info)
    return batch_info, list(zip(heads, head_arrays, strict=True))


def _repeated(
    state: State,
    forward_batch: Any,
    weight_indices: list[int],
    lora_ranks: list[int],
    scalings: list[float],
    static_info: Any,
) -> Step | None:
    """The last call if this is the same decode step again; most are, until a request or an adapter comes or goes.

    Its arrays are on the device still: those of a graph are written here alone, those of an eager batch never again.
    """
    step = state.last_step
    if (
        step is None
        or static_info is not step.static_info
        or not forward_batch.forward_mode.is_decode()
        or forward_batch.batch_size != len(step.slots)
        or (weight_indices, lora_ranks, scalings) != (step.slots, step.ranks, step.scalings)
    ):
        return None
    state.word_by_slot()  # an adapter that was loaded or evicted since makes another version
    return step if state.words_version == step.words_version else None


def _again(step: Step) -> Any:
    """The batch info of a step that is on the device already."""
    return step.batch_info if step.static_info is not None else copy.copy(step.batch_info)


def _checked_plan(
    state: State, forward_batch: Any, weight_indices: list[int], lora_ranks: list[int], scalings: list[float]
) -> Plan:
    slots = state.backend.max_loras_per_batch
    if len(lora_ranks) != slots or len(scalings) != slots:
        raise ShapeError(f"lora_ranks, scalings have {len(lora_ranks)}, {len(scalings)} slots; expected {slots} each")
    if len(weight_indices) != forward_batch.batch_size:
        raise ShapeError(f"weight_indices has {len(weight_indices)} entries; expected {forward_batch.batch_size}")
    lens, seq_slots, tokens = checked(_lengths(forward_batch), weight_indices, slots)
    chunk_size = state.backend._determine_chunk_size(forward_batch)
    state.ranks.update(lora_ranks)
    state.scalings.update(scalings)
    return Plan(lens, seq_slots, tokens, chunk_size)


def _lengths(forward_batch: Any) -> Any:
    """Tokens of each request; None if one each."""
    mode = forward_batch.forward_mode
    if mode.is_decode():
        return None
    if mode.is_extend() and not mode.is_target_verify() and forward_batch.extend_seq_lens_cpu is not None:
        return forward_batch.extend_seq_lens_cpu
    # The rarer modes are SGLang's to know, and to refuse.
    return _utils().generate_sequence_lengths(forward_batch, device="cpu").numpy()


@cache
def _utils() -> Any:
    return importlib.import_module("sglang.srt.lora.utils")


def _check_capacity(static: StaticBatch, plan: Plan) -> None:
    _, segments, tokens, _, requests, slots, *_ = static.layout.sizes
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


def _fill_static(state: State, info: Any, plan: Plan) -> Any:
    """Send the plan into the buffers of a captured graph; returns its batch info, up to date."""
    static: StaticBatch = getattr(info, STATIC)
    host = static.staging.next(static.layout)
    host.words.fill(0)  # one call for the neutral tails of all arrays
    *views, words, ranks, tile_words, tile_rows = host.views
    requests = len(plan.slots)
    segments = write(state, plan, views)
    word_by_slot = state.word_by_slot()
    if word_by_slot is not None:
        words[: plan.tokens] = token_words(word_by_slot, plan)
        ranks[:] = state.layer_ranks
    if static.linear is not None:
        write_tiles(state, plan, views, static.linear.tile_block, tile_words, tile_rows)
    static.staging.send(static.buffer)
    contents = static.layer.contents  # the head's too
    contents.num_tokens, contents.max_rank = plan.tokens, state.ranks.largest
    info.bs, info.num_segments, info.max_len = requests, segments, plan.chunk_size
    static.layer.chunk_size = static.head.chunk_size = plan.chunk_size
    setattr(info, BATCH, static.layer)
    setattr(info, HEAD, static.head)
    setattr(info, LINEAR, static.linear)
    return info


def _fill_new(state: State, plan: Plan, heads: list[HeadPlan]) -> tuple[Any, list[tuple[torch.Tensor, ...]]]:
    """Send the plan to new device arrays; returns the batch info, and slots and bounds of each lm_head pass."""
    slots, requests = state.backend.max_loras_per_batch, len(plan.slots)
    word_by_slot = state.word_by_slot()
    own: list[Ints] = []  # what is sent beside SGLang's arrays: nothing if no adapter has LoRA on the embedding layer
    if word_by_slot is not None:
        own = [token_words(word_by_slot, plan), state.layer_ranks]
    extras = own + _head_arrays(heads)
    block = block_for(plan.tokens)
    tiles = tile_sizes(plan.tokens, min(slots, requests), block) if state.linear_wanted else ()
    planned = (*sizes_of(plan.most_segments(slots), plan.tokens, requests, slots), *tiles, *map(len, extras))
    layout = layout_of(planned, shrinking=2)
    views = _staging(state).next(layout).views
    segments = write(state, plan, views[: len(ARRAYS)])
    first_extra = len(ARRAYS) + len(tiles)
    if tiles:
        tile_words, tile_rows = views[len(ARRAYS) : first_extra]
        tile_words.fill(0)
        write_tiles(state, plan, views[: len(ARRAYS)], block, tile_words, tile_rows)
    _write_all(views[first_extra:], extras)
    found = _send_new(state, layout, (segments + 1, segments))

    arrays, extra_arrays = named(found[: len(ARRAYS)]), iter(found[first_extra:])
    info = _batch_info(state, plan, arrays, segments)
    contents = Contents(plan.tokens, state.ranks.largest)
    if tiles:
        words, rows = found[len(ARRAYS) : first_extra]
        setattr(info, LINEAR, linear_batch(info, words, rows, block, contents))
    if word_by_slot is None:
        setattr(info, BATCH, None)
    else:
        setattr(info, BATCH, layer_batch(info, next(extra_arrays), next(extra_arrays), contents))
    if state.lm_head_targeted is not False:
        setattr(info, HEAD, head_batch(info, contents))
    return info, list(zip(extra_arrays, extra_arrays, strict=True))


def _staging(state: State) -> Staging:
    if state.staging is None:
        state.staging = Staging(torch.device(state.backend.device))
    return state.staging


def _write_all(views: list[Int32Array], arrays: list[Ints]) -> None:
    for view, array in zip(views, arrays, strict=True):
        view[:] = array


def _send_new(state: State, layout: Layout, used: Sequence[int] = ()) -> list[torch.Tensor]:
    """Send what was written last to a new device buffer; its arrays. used: as Layout.device takes it."""
    buffer = torch.empty(layout.total, dtype=torch.int32, device=state.backend.device)
    _staging(state).send(buffer)
    return layout.device(buffer, used)


def _batch_info(state: State, plan: Plan, arrays: dict[str, torch.Tensor], segments: int) -> Any:
    """SGLang's LoRABatchInfo of an eager batch."""
    if not state.release.request_fields:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("req_")}
    return _utils().LoRABatchInfo(
        use_cuda_graph=False,
        bs=len(plan.slots),
        num_segments=segments,
        max_len=plan.chunk_size,
        seg_lens=None,
        **arrays,
    )


def _plan_heads(state: State, forward_batch: Any, weight_indices: list[int], plan: Plan) -> list[HeadPlan]:
    """The lm_head batch, then its passes if log-probabilities are computed in passes; none if lm_head has no LoRA."""
    if state.lm_head_targeted is False or plan.lens is None:  # decode keeps every row
        return []
    kept = _utils().get_lm_head_pruned_lens(forward_batch)
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


def _head_arrays(heads: list[HeadPlan]) -> list[Ints]:
    return [array for head in heads for array in (head.seg_slots, head.seg_indptr)]


def _send_heads(state: State, heads: list[HeadPlan]) -> list[tuple[torch.Tensor, ...]]:
    """lm_head runs outside the captured graph, so its arrays are new although the batch's are not."""
    if not heads:
        return []
    arrays = _head_arrays(heads)
    layout = layout_of(tuple(map(len, arrays)))
    _write_all(_staging(state).next(layout).views, arrays)
    found = iter(_send_new(state, layout))
    return list(zip(found, found, strict=True))


def _head_info(state: State, batch_info: Any, head: HeadPlan, arrays: tuple[torch.Tensor, ...]) -> Any:
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
