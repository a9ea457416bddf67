"""LoRA on lm_head: shrink the hidden states to the rank, expand them into the logits in place."""

from __future__ import annotations

import torch

from csgmv_embed import operands, tuning
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.checks import check_axes
from csgmv_embed.errors import ShapeError
from csgmv_embed.kernels.sgmv import ExpandConstants, ShrinkConstants, lm_head_expand_kernel, lm_head_shrink_kernel
from csgmv_embed.launch import launch
from csgmv_embed.operands import Key, Prepared, check_tensor, seen, width
from csgmv_embed.segment_runs import walk


def lm_head_lora(
    hidden_states: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    logits: torch.Tensor,
    batch: EmbeddingBatch,
) -> torch.Tensor:
    """LoRA on lm_head, in place: logits[t] += scaling * B[slot] @ (A[slot] @ hidden_states[t]).

    slot, rank and scaling of row t by `batch`; rows without adapter, and those behind the tokens of a static batch,
    stay as they are.

    hidden_states  (tokens, hidden) fp16, bf16 or fp32, rows contiguous.
    a_table        (slots, max_rank, hidden), dtype of hidden_states, last axis contiguous.
    b_table        (slots, vocab, max_rank), dtype of hidden_states, last axis contiguous. Under tensor parallelism the
                   shard of this rank's vocabulary; A is whole.
    logits         (tokens, >= vocab), rows contiguous and apart, any float dtype; columns from vocab on stay.
    batch          planned with segments=True (any chunk size, with scalings) or from SGLang.

    Products are of the tables' dtype, summed in float32 (float32 tables: IEEE, not TF32). The row of A's products is
    rounded to the dtype of hidden_states; B's are scaled and added to the logits in float32 and rounded once.
    Returns logits. Two kernel launches, no synchronisation; safe to capture in a CUDA graph with a static batch.
    Raises ShapeError, DtypeError, DeviceError, CapacityError.
    """
    shrunk = _empty_shrunk(hidden_states, a_table)
    shrink = _shrink(hidden_states, a_table, shrunk, batch)
    expand = _expand(shrunk, b_table, logits, batch)  # checked before anything runs
    _launch(lm_head_shrink_kernel, shrink, batch, hidden_states, a_table, shrunk)
    _launch(lm_head_expand_kernel, expand, batch, shrunk, b_table, logits)
    return logits


def lm_head_shrink(
    hidden_states: torch.Tensor, a_table: torch.Tensor, batch: EmbeddingBatch, out: torch.Tensor | None = None
) -> torch.Tensor:
    """out[t, :r] = A[slot, :r] @ hidden_states[t], out[t, r:] = 0 for the rows with an adapter; others are not written.

    Arguments as in `lm_head_lora`; out (tokens, max_rank), dtype of hidden_states, allocated if None. Returns out.
    """
    if out is None:
        out = _empty_shrunk(hidden_states, a_table)
    _launch(lm_head_shrink_kernel, _shrink(hidden_states, a_table, out, batch), batch, hidden_states, a_table, out)
    return out


def lm_head_expand(
    shrunk: torch.Tensor, b_table: torch.Tensor, logits: torch.Tensor, batch: EmbeddingBatch
) -> torch.Tensor:
    """logits[t] += scaling * B[slot] @ shrunk[t] in place; shrunk (tokens, max_rank) as `lm_head_shrink` gives it.

    Other arguments as in `lm_head_lora`. Returns logits.
    """
    _launch(lm_head_expand_kernel, _expand(shrunk, b_table, logits, batch), batch, shrunk, b_table, logits)
    return logits


def _empty_shrunk(hidden_states: torch.Tensor, a_table: torch.Tensor) -> torch.Tensor:
    """(tokens, max_rank). Raises ShapeError."""
    check_axes("hidden_states", hidden_states, 2, "(tokens, hidden)")
    check_axes("a_table", a_table, 3, "(slots, max_rank, hidden)")
    return hidden_states.new_empty(hidden_states.shape[0], a_table.shape[1])


_shrinks: dict[Key, Prepared | None] = {}
_expands: dict[Key, Prepared | None] = {}


def _shrink(
    hidden_states: torch.Tensor, a_table: torch.Tensor, out: torch.Tensor, batch: EmbeddingBatch
) -> Prepared | None:
    """The checked launch; None: there is nothing to do."""
    key: Key = (*map(seen, (hidden_states, a_table, out)), operands.seen_batch(batch), tuning.forced_layer())
    prepared = operands.kept(_shrinks, key, lambda: _prepare_shrink(hidden_states, a_table, out, batch))
    slots, max_rank, _ = a_table.shape
    operands.check_batch(batch, hidden_states.shape[0], slots, max_rank, "hidden_states")
    return prepared


def _expand(
    shrunk: torch.Tensor, b_table: torch.Tensor, logits: torch.Tensor, batch: EmbeddingBatch
) -> Prepared | None:
    key: Key = (*map(seen, (shrunk, b_table, logits)), operands.seen_batch(batch), tuning.forced_layer())
    prepared = operands.kept(_expands, key, lambda: _prepare_expand(shrunk, b_table, logits, batch))
    slots, _, max_rank = b_table.shape
    operands.check_batch(batch, shrunk.shape[0], slots, max_rank, "shrunk")
    return prepared


def _launch(kernel: object, prepared: Prepared | None, batch: EmbeddingBatch, *operand: torch.Tensor) -> None:
    if prepared is not None:
        launch(kernel, prepared.grid, (*operands.structure(batch), *operand), *prepared[1:])


def _prepare_shrink(
    hidden_states: torch.Tensor, a_table: torch.Tensor, out: torch.Tensor, batch: EmbeddingBatch
) -> Prepared | None:
    check_tensor("hidden_states", hidden_states, (None, None), "(tokens, hidden)", hidden_states, "hidden_states")
    tokens, hidden = hidden_states.shape
    shape = (None, None, hidden)
    check_tensor("a_table", a_table, shape, f"(slots, max_rank, {hidden})", hidden_states, "hidden_states")
    slots, max_rank, _ = a_table.shape
    check_tensor("out", out, (tokens, max_rank), f"({tokens}, {max_rank})", hidden_states, "hidden_states")
    operands.check_rows_apart("out", out)
    operands.check_device(batch, hidden_states, "hidden_states")
    if tokens == 0 or max_rank == 0 or operands.without_adapter(batch):
        return None
    config = tuning.choose_shrink(hidden_states.element_size())
    steps = walk(batch, tokens, config.block_tokens)
    constants = ShrinkConstants(
        x_stride_token=hidden_states.stride(0),
        a_stride_slot=a_table.stride(0),
        a_stride_rank=a_table.stride(1),
        shrunk_stride_token=out.stride(0),
        hidden=hidden,
        max_rank=max_rank,
        has_permutation=batch.permutation is not None,
        widen=operands.INTERPRETED,
        width=min(
            width(hidden_states, hidden, hidden_states.stride(0)),
            width(a_table, hidden, a_table.stride(0), a_table.stride(1)),
        ),
        segments=steps.segments,
        block_m=config.block_tokens,
        block_n=tuning.block_rank(config, max_rank),
        block_k=min(config.block_columns, max(16, tuning.next_power_of_2(hidden))),
    )
    grid = (-(-max_rank // constants.block_n), steps.tiles, steps.groups)
    counts = (tokens, min(batch.slots, slots), batch.num_segments)
    return Prepared(grid, counts, (constants,), config.num_warps)


def _prepare_expand(
    shrunk: torch.Tensor, b_table: torch.Tensor, logits: torch.Tensor, batch: EmbeddingBatch
) -> Prepared | None:
    check_tensor("shrunk", shrunk, (None, None), "(tokens, max_rank)", shrunk, "shrunk")
    tokens, max_rank = shrunk.shape
    check_tensor("b_table", b_table, (None, None, max_rank), f"(slots, vocab, {max_rank})", shrunk, "shrunk")
    slots, vocab, _ = b_table.shape
    described = f"({tokens}, at least {vocab})"
    check_tensor("logits", logits, (tokens, None), described, shrunk, "shrunk", any_dtype=True)
    if logits.shape[1] < vocab:
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected {described}")
    operands.check_rows_apart("logits", logits)
    operands.check_device(batch, shrunk, "shrunk")
    if tokens == 0 or max_rank == 0 or vocab == 0 or operands.without_adapter(batch):
        return None
    config = tuning.choose_expand(tokens, batch.slots, max_rank, shrunk.element_size())
    steps = walk(batch, tokens, config.block_tokens)
    constants = ExpandConstants(
        shrunk_stride_token=shrunk.stride(0),
        b_stride_slot=b_table.stride(0),
        b_stride_vocab=b_table.stride(1),
        logits_stride_token=logits.stride(0),
        vocab=vocab,
        max_rank=max_rank,
        has_permutation=batch.permutation is not None,
        widen=operands.INTERPRETED,
        shrunk_width=width(shrunk, max_rank, shrunk.stride(0)),
        b_width=width(b_table, max_rank, b_table.stride(0), b_table.stride(1)),
        logits_width=width(logits, vocab, logits.stride(0)),
        segments=steps.segments,
        block_m=config.block_tokens,
        block_n=config.block_columns,
        block_k=tuning.block_rank(config, max_rank),
        steps=config.steps,
    )
    grid = (steps.tiles, steps.groups, -(-vocab // (config.block_columns * config.steps)))
    counts = (tokens, min(batch.slots, slots), batch.num_segments)
    return Prepared(grid, counts, (constants,), config.num_warps)
