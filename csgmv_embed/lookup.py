"""The lookup, the A side of LoRA on an embedding layer: contract, checks, choice of plan, launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from csgmv_embed import registered
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.batch.plan import integer
from csgmv_embed.kernels.lookup import (
    LookupConstants,
    embedding_lora_a_segments_kernel,
    embedding_lora_a_tokens_kernel,
)
from csgmv_embed.launch import checks, direct, tiles
from csgmv_embed.launch.direct import ALIGNMENT, NOTHING, Launch, Nothing, launches, seen, width
from csgmv_embed.launch.tables import a_table_constants

# Programs, for each block of ranks, that write the zero rows of a captured batch. Mostly there are few such rows: as
# many programs as all tokens need nearly doubled the time of a full prefill in small tiles.
MAX_PADDING_PROGRAMS = 64


def embedding_lora_a(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    pdl: bool = False,
) -> torch.Tensor:
    """The A side of LoRA on an embedding layer: out[t, :r] = A[slot, :r, id], out[t, r:] = 0.

    slot is the adapter slot that `batch` gives token t; r = rank[slot], id = input_ids[t].

    input_ids         (tokens,) int32 or int64, contiguous. Ids in [vocab_size, vocab_size + extra) read
                      extra_embeddings; any other id outside [0, vocab_size) gives a zero row.
    a_table           (slots, max_rank, >= vocab_size) fp16, bf16 or fp32, of any strides.
    batch             the adapters of these tokens. A static batch may hold fewer tokens than input_ids, but not more:
                      the rows behind them are zero. Empty input_ids fit any batch.
    extra_embeddings  (slots, extra, max_rank), dtype of a_table, of any strides.
    out               (tokens, max_rank), dtype of a_table, rows contiguous; may be uninitialised: every
                      element is written. Allocated if None.
    pdl               programmatic dependent launch: the kernel is set up while its predecessor still runs, and waits
                      for it before reading. It has no effect before compute capability 9.0 and on AMD GPUs; a warning
                      says so once. It saves time if the neighbouring kernels are launched so too, and costs time
                      between ordinary kernels (docs/results/h100.md).

    Returns out, without autograd. Makes one kernel launch and no synchronisation; with a static batch it can be
    captured in a CUDA graph. Raises ShapeError, DtypeError, DeviceError, GradError, CapacityError.
    """
    if type(vocab_size) is not int:
        vocab_size = integer("vocab_size", vocab_size)
    if registered.traces(input_ids):
        return _traced(input_ids, a_table, batch, vocab_size, extra_embeddings, out, pdl)
    return _launched(input_ids, a_table, batch, vocab_size, extra_embeddings, out, pdl)


def _launched(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor | None,
    pdl: bool,
) -> torch.Tensor:
    """The op where nothing traces: launch what an equal call launched, or check and prepare it."""
    pdl = pdl and direct.overlaps_or_warns(a_table.device)  # part of the key: a stand-in driver has many targets
    tokens, shape = input_ids.numel(), a_table.shape
    out_seen = None
    if out is not None:
        out_seen = seen(out)
    elif len(shape) == 3:
        out = a_table.new_empty(tokens, shape[1])
    else:
        raise checks.wrong_shape("a_table", a_table, "(slots, max_rank, vocab)")
    extra = a_table if extra_embeddings is None else extra_embeddings  # never read when there is none
    words = batch.token_adapters
    tensors: direct.Tensors
    pointers: Sequence[int]
    misaligned: object
    if words is None:
        tensors = (input_ids, *batch.segment_arrays(), a_table, extra, out)
        pointers, misaligned = direct.addresses(tensors)
        batch_seen: object = batch.seen()
    else:  # the same by hand: a decode step in its smallest form comes by here
        tensors = input_ids, words, a_table, extra, out
        ids_at, words_at, a_at, out_at = input_ids.data_ptr(), words.data_ptr(), a_table.data_ptr(), out.data_ptr()
        pointers = ids_at, words_at, a_at, a_at if extra is a_table else extra.data_ptr(), out_at
        misaligned = (ids_at | words_at | a_at | pointers[3] | out_at) % ALIGNMENT
        if misaligned:
            misaligned = tuple([pointer % ALIGNMENT for pointer in pointers])
        batch_seen = batch.seen_words()
    key = (
        "embedding_lora_a",
        seen(input_ids),
        a_table.dtype,  # what seen(a_table) says, whose shape is at hand
        a_table.device,
        shape,
        a_table.stride(),
        a_table.is_neg(),
        a_table.requires_grad and torch.is_grad_enabled(),
        None if extra_embeddings is None else seen(extra_embeddings),
        out_seen,
        misaligned,
        batch_seen,
        vocab_size,
        pdl,
        tiles.forced_now.seen,
    )
    launch = launches.get(key)
    if launch is None:
        launch = direct.keep(key, _prepare(input_ids, a_table, batch, vocab_size, extra_embeddings, out, pdl))
    batch.check_fits(tokens, shape[0], shape[1], "input_ids")
    launch(tensors, pointers)
    return out


def _traced(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor | None,
    pdl: bool,
) -> torch.Tensor:
    """The same as an op of torch."""
    checks.check_axes("input_ids", input_ids, 1, "(tokens,)")
    checks.check_axes("a_table", a_table, 3, "(slots, max_rank, vocab)")
    if out is None:
        out = a_table.new_empty(input_ids.shape[0], a_table.shape[1])
    operands = {"input_ids": input_ids, "a_table": a_table, "extra_embeddings": extra_embeddings, "out": out}
    registered.call("embedding_lora_a", operands, batch, vocab_size, pdl)
    return out


def _run_registered(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    pdl: bool,
) -> None:
    embedding_lora_a(input_ids, a_table, batch, vocab_size, extra_embeddings, out, pdl=pdl)


registered.register(
    "embedding_lora_a",
    "Tensor input_ids, Tensor a_table, Tensor? extra_embeddings, Tensor(a!) out",
    "out",
    _run_registered,
    {"input_ids": 1, "a_table": 3, "extra_embeddings": 3, "out": 2},
    "SymInt vocab_size, bool pdl",
)


def _prepare(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    pdl: bool,
) -> Launch | Nothing:
    """The checked launch of such a call."""
    slots, max_rank, _ = checks.check_a_table(a_table, vocab_size, extra_embeddings)
    checks.check_ids(input_ids, a_table, "a_table")
    checks.check_device(batch.device, a_table, "a_table")
    tokens = input_ids.shape[0]
    checks.check_tensor("out", out, (tokens, max_rank), f"({tokens}, {max_rank})", a_table, "a_table")
    checks.check_rows_apart("out", out)
    if tokens == 0 or max_rank == 0:
        return NOTHING
    plan: tiles.Plan = "segments" if batch.token_adapters is None else "tokens"
    contiguous, element_bytes = a_table.stride(1) == 1, a_table.element_size()
    tile = tiles.choose_lookup(plan, tokens, max_rank, contiguous, element_bytes, direct.gpu_name(a_table.device))
    constants = _constants(a_table, vocab_size, extra_embeddings, out, tile, batch.permutation is not None, pdl)
    row_tiles, rank_blocks = -(-tokens // tile.block_m), -(-max_rank // tile.block_n)
    if plan == "tokens":
        grid = (row_tiles, rank_blocks, 1)
        return Launch(embedding_lora_a_tokens_kernel, grid, (tokens,), constants, tile.num_warps, pdl=pdl)
    segment_tiles = max(1, -(-min(batch.chunk_size, tokens) // tile.block_m))
    # Rows behind the last segment: none if the batch was built for these tokens, any number at some later replay.
    exact = not batch.static and batch.num_tokens == tokens
    padding_programs = 0 if exact else min(row_tiles, MAX_PADDING_PROGRAMS)
    grid = (batch.num_segments * segment_tiles + padding_programs, rank_blocks, 1)
    counts = (tokens, min(slots, batch.slots), batch.num_segments, segment_tiles)
    return Launch(embedding_lora_a_segments_kernel, grid, counts, constants, tile.num_warps, pdl=pdl)


def _constants(
    a_table: torch.Tensor,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    tile: tiles.LookupTile,
    has_permutation: bool,
    pdl: bool,
) -> LookupConstants:
    return LookupConstants(
        **a_table_constants(a_table, vocab_size, extra_embeddings),
        out_stride_token=out.stride(0),
        has_permutation=has_permutation,
        pdl=pdl,
        out_width=width(out, a_table.shape[1], out.stride(0)),
        block_m=tile.block_m,
        block_n=tile.block_n,
    )
