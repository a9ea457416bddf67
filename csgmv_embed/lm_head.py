"""LoRA on lm_head, shrink to the rank and expand into the logits in place: contract, checks, launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from csgmv_embed import registered
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.batch.walk import walk
from csgmv_embed.errors import ShapeError
from csgmv_embed.kernels.sgmv import ExpandConstants, ShrinkConstants, lm_head_expand_kernel, lm_head_shrink_kernel
from csgmv_embed.launch import checks, direct, tiles
from csgmv_embed.launch.checks import check_tensor
from csgmv_embed.launch.direct import NOTHING, Launch, Nothing, width


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
    Raises ShapeError, DtypeError, DeviceError, GradError, CapacityError.
    """
    if registered.traces(hidden_states):
        operands = {"hidden_states": hidden_states, "a_table": a_table, "b_table": b_table, "logits": logits}
        registered.call("lm_head_lora", operands, batch)
        return logits
    planned = _planned(batch)
    shrunk = _empty_shrunk(hidden_states, a_table)
    shrink = _shrink(hidden_states, a_table, shrunk, batch, planned)
    expand = _expand(shrunk, b_table, logits, batch, planned)  # checked before anything runs
    shrink()
    expand()
    return logits


def lm_head_shrink(
    hidden_states: torch.Tensor, a_table: torch.Tensor, batch: EmbeddingBatch, out: torch.Tensor | None = None
) -> torch.Tensor:
    """out[t, :r] = A[slot, :r] @ hidden_states[t], out[t, r:] = 0 for the rows with an adapter; others are not written.

    Arguments as in `lm_head_lora`; out (tokens, max_rank), dtype of hidden_states, allocated if None. Returns out.
    """
    if out is None:
        out = _empty_shrunk(hidden_states, a_table)
    if registered.traces(hidden_states):
        registered.call("lm_head_shrink", {"hidden_states": hidden_states, "a_table": a_table, "out": out}, batch)
        return out
    _shrink(hidden_states, a_table, out, batch, _planned(batch))()
    return out


def lm_head_expand(
    shrunk: torch.Tensor, b_table: torch.Tensor, logits: torch.Tensor, batch: EmbeddingBatch
) -> torch.Tensor:
    """logits[t] += scaling * B[slot] @ shrunk[t] in place; shrunk (tokens, max_rank) as `lm_head_shrink` gives it.

    Other arguments as in `lm_head_lora`. Returns logits.
    """
    if registered.traces(shrunk):
        registered.call("lm_head_expand", {"shrunk": shrunk, "b_table": b_table, "logits": logits}, batch)
        return logits
    _expand(shrunk, b_table, logits, batch, _planned(batch))()
    return logits


def _shrink_registered(
    hidden_states: torch.Tensor, a_table: torch.Tensor, out: torch.Tensor, batch: EmbeddingBatch
) -> None:
    lm_head_shrink(hidden_states, a_table, batch, out)


AXES = {"hidden_states": 2, "a_table": 3, "b_table": 3, "logits": 2, "shrunk": 2, "out": 2}
STATES = "Tensor hidden_states, Tensor a_table"
LOGITS = "Tensor b_table, Tensor(a!) logits"
registered.register("lm_head_lora", f"{STATES}, {LOGITS}", "logits", lm_head_lora, AXES)
registered.register("lm_head_shrink", f"{STATES}, Tensor(a!) out", "out", _shrink_registered, AXES)
registered.register("lm_head_expand", f"Tensor shrunk, {LOGITS}", "logits", lm_head_expand, AXES)


def _empty_shrunk(hidden_states: torch.Tensor, a_table: torch.Tensor) -> torch.Tensor:
    """(tokens, max_rank). Raises ShapeError."""
    if hidden_states.ndim != 2 or a_table.ndim != 3:
        checks.check_axes("hidden_states", hidden_states, 2, "(tokens, hidden)")
        checks.check_axes("a_table", a_table, 3, "(slots, max_rank, hidden)")
    return hidden_states.new_empty(hidden_states.shape[0], a_table.shape[1])


def _planned(batch: EmbeddingBatch) -> tuple[direct.Tensors, direct.Key]:
    """What the kernels read of a batch, and what a launch depends on beside the operands. Raises ShapeError."""
    return batch.structure(), (batch.seen(), tiles.forced_now.seen)


def _shrink(
    hidden_states: torch.Tensor,
    a_table: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    planned: tuple[direct.Tensors, direct.Key],
) -> Callable[[], None]:
    """The checked launch."""
    arrays, known = planned
    operands = hidden_states, a_table, out
    launch = direct.ready(lm_head_shrink_kernel, arrays, operands, known, _prepare_shrink, batch)
    slots, max_rank, _ = a_table.shape
    batch.check_fits(hidden_states.shape[0], slots, max_rank, "hidden_states")
    return launch


def _expand(
    shrunk: torch.Tensor,
    b_table: torch.Tensor,
    logits: torch.Tensor,
    batch: EmbeddingBatch,
    planned: tuple[direct.Tensors, direct.Key],
) -> Callable[[], None]:
    """The checked launch."""
    arrays, known = planned
    operands = shrunk, b_table, logits
    launch = direct.ready(lm_head_expand_kernel, arrays, operands, known, _prepare_expand, batch)
    slots, _, max_rank = b_table.shape
    batch.check_fits(shrunk.shape[0], slots, max_rank, "shrunk")
    return launch


def _prepare_shrink(
    hidden_states: torch.Tensor, a_table: torch.Tensor, out: torch.Tensor, batch: EmbeddingBatch
) -> Launch | Nothing:
    check_tensor("hidden_states", hidden_states, (None, None), "(tokens, hidden)", hidden_states, "hidden_states")
    tokens, hidden = hidden_states.shape
    shape = (None, None, hidden)
    check_tensor("a_table", a_table, shape, f"(slots, max_rank, {hidden})", hidden_states, "hidden_states")
    slots, max_rank, _ = a_table.shape
    check_tensor("out", out, (tokens, max_rank), f"({tokens}, {max_rank})", hidden_states, "hidden_states")
    checks.check_rows_apart("out", out)
    checks.check_device(batch.device, hidden_states, "hidden_states")
    if tokens == 0 or max_rank == 0 or batch.without_adapter:
        return NOTHING
    gpu = direct.gpu_name(hidden_states.device)
    tile = tiles.choose_head_shrink(tokens, max_rank, hidden_states.element_size(), gpu)
    steps = walk(batch, tokens, tile.block_m)
    constants = ShrinkConstants(
        x_stride_token=hidden_states.stride(0),
        a_stride_slot=a_table.stride(0),
        a_stride_rank=a_table.stride(1),
        shrunk_stride_token=out.stride(0),
        hidden=hidden,
        max_rank=max_rank,
        has_permutation=batch.permutation is not None,
        widen=checks.INTERPRETED,
        width=min(
            width(hidden_states, hidden, hidden_states.stride(0)),
            width(a_table, hidden, a_table.stride(0), a_table.stride(1)),
        ),
        segments=steps.segments,
        block_m=tile.block_m,
        block_n=tile.block_n,
        block_k=min(tile.block_k, max(tiles.MIN_TILE, tiles.next_power_of_2(hidden))),
    )
    grid = (-(-max_rank // tile.block_n), steps.tiles, steps.groups)
    counts = (tokens, min(batch.slots, slots), batch.num_segments)
    return Launch(lm_head_shrink_kernel, grid, counts, constants, tile.num_warps)


def _prepare_expand(
    shrunk: torch.Tensor, b_table: torch.Tensor, logits: torch.Tensor, batch: EmbeddingBatch
) -> Launch | Nothing:
    check_tensor("shrunk", shrunk, (None, None), "(tokens, max_rank)", shrunk, "shrunk")
    tokens, max_rank = shrunk.shape
    check_tensor("b_table", b_table, (None, None, max_rank), f"(slots, vocab, {max_rank})", shrunk, "shrunk")
    slots, vocab, _ = b_table.shape
    described = f"({tokens}, at least {vocab})"
    check_tensor("logits", logits, (tokens, None), described, shrunk, "shrunk", any_dtype=True)
    if logits.shape[1] < vocab:
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected {described}")
    checks.check_rows_apart("logits", logits)
    checks.check_device(batch.device, shrunk, "shrunk")
    if tokens == 0 or max_rank == 0 or vocab == 0 or batch.without_adapter:
        return NOTHING
    gpu = direct.gpu_name(shrunk.device)
    tile = tiles.choose_head_expand(tokens, batch.slots, max_rank, shrunk.element_size(), gpu)
    steps = walk(batch, tokens, tile.block_m)
    constants = ExpandConstants(
        shrunk_stride_token=shrunk.stride(0),
        b_stride_slot=b_table.stride(0),
        b_stride_vocab=b_table.stride(1),
        logits_stride_token=logits.stride(0),
        vocab=vocab,
        max_rank=max_rank,
        has_permutation=batch.permutation is not None,
        widen=checks.INTERPRETED,
        shrunk_width=width(shrunk, max_rank, shrunk.stride(0)),
        b_width=width(b_table, max_rank, b_table.stride(0), b_table.stride(1)),
        logits_width=width(logits, vocab, logits.stride(0)),
        segments=steps.segments,
        block_m=tile.block_m,
        block_n=tile.block_n,
        block_k=tiles.block_k(tile, max_rank),
        steps=tile.steps,
    )
    grid = (steps.tiles, steps.groups, -(-vocab // (tile.block_n * tile.steps)))
    counts = (tokens, min(batch.slots, slots), batch.num_segments)
    return Launch(lm_head_expand_kernel, grid, counts, constants, tile.num_warps)
