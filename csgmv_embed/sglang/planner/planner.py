"""The host plan of a batch for SGLang's csgmv backend: its LoRABatchInfo, and our token words, in one transfer.

SGLang's own `prepare_lora_batch` walks the segments in Python and sends eight arrays one by one. This one computes the
same arrays with numpy into one pinned buffer. Every field equals SGLang's; where SGLang leaves the tail of a captured
buffer as an earlier batch left it, the tail is neutral here: empty segments, no LoRA.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from csgmv_embed.batch.plan import checked
from csgmv_embed.errors import ShapeError
from csgmv_embed.sglang.planner.arrays import Plan
from csgmv_embed.sglang.planner.captured import STATIC, check_capacity, fill_captured
from csgmv_embed.sglang.planner.eager import fill_new
from csgmv_embed.sglang.planner.heads import HeadPlan, head_info, plan_heads, send_heads
from csgmv_embed.sglang.planner.sending import lora_utils
from csgmv_embed.sglang.planner.state import State, Step


def prepare(
    state: State,
    forward_batch: Any,
    weight_indices: list[int],
    lora_ranks: list[int],
    scalings: list[float],
    static_info: Any = None,
) -> None:
    """Replaces the backend's `prepare_lora_batch`: sets batch_info, lm_head_batch_info, lm_head_pass_batch_infos.

    forward_batch is SGLang's; weight_indices (requests,) is the slot of each request; lora_ranks and scalings (slots,).
    static_info: the packed LoRABatchInfo of a captured graph to fill in place; None makes a new one. A decode step that
    equals the last one sends nothing. Raises ShapeError or SlotError for values that do not fit together, and
    CapacityError if the batch exceeds a captured graph's buffers; the backend is then unchanged.
    """
    backend = state.backend
    step = _repeated(state, forward_batch, weight_indices, lora_ranks, scalings, static_info)
    if step is None:
        batch_info, heads = _planned(state, forward_batch, weight_indices, lora_ranks, scalings, static_info)
    else:
        batch_info, heads = _again(step), []
    if state.release.moe_info:
        batch_info = backend._add_moe_lora_info(forward_batch, batch_info)
    backend.batch_info = batch_info
    infos = [head_info(state, batch_info, *head) for head in heads]
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
    heads = plan_heads(state, forward_batch, weight_indices, plan)
    if static_info is not None:
        check_capacity(getattr(static_info, STATIC), plan)
    state.last_step = None  # until all is written
    if static_info is None:
        batch_info, head_arrays = fill_new(state, plan, heads)
    else:
        batch_info, head_arrays = fill_captured(state, static_info, plan), send_heads(state, heads)
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
    return lora_utils().generate_sequence_lengths(forward_batch, device="cpu").numpy()
