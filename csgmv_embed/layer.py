"""The whole embedding layer: base lookup, A lookup and product with B in one kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch

from csgmv_embed import operands, ops, tuning
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.checks import check_axes
from csgmv_embed.errors import DeviceError, ShapeError
from csgmv_embed.host_plan import integer
from csgmv_embed.kernels.embedding import (
    LayerConstants,
    RowsConstants,
    embedding_lora_kernel,
    embedding_rows_kernel,
)
from csgmv_embed.launch import launch
from csgmv_embed.operands import Key, Prepared, seen, width
from csgmv_embed.segment_runs import walk

NO_ROW = -1  # ids outside the embedding read zeros
MAX_BARE_TOKENS, MAX_BARE_COLUMNS = 16, 2048  # of a tile of rows without adapter
PADDING_TOKENS = 4  # the same of rows behind the last segment
BARE_COLUMNS = 1024  # the same in a batch without adapters
BARE_PROGRAMS = 2048  # from here on a program of a batch without adapters takes more than one row


def embedding_lora(
    input_ids: torch.Tensor,
    embedding: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    missing_row: int | None = None,
) -> torch.Tensor:
    """The embedding layer with LoRA: out[t] = embedding[id] + scaling * B[slot] @ A[slot, :, id].

    slot, rank and scaling of token t by `batch`, id = input_ids[t]; a token without adapter, and a row behind the
    tokens of a static batch, gets its base row alone.

    input_ids         (tokens,) int32 or int64, contiguous. An id outside [0, rows) has a base row of zeros. For the
                      LoRA part, ids in [vocab_size, vocab_size + extra) read extra_embeddings, other ids outside
                      [0, vocab_size) nothing.
    embedding         (rows, hidden), dtype of a_table, rows contiguous.
    a_table           (slots, max_rank, >= vocab_size) fp16, bf16 or fp32, of any strides.
    b_table           (slots, hidden, max_rank), dtype of a_table, last axis contiguous.
    batch             planned with segments=True (any chunk size, with scalings) or from SGLang.
    extra_embeddings  (slots, extra, max_rank), dtype of a_table, of any strides.
    out               (tokens, hidden), dtype of a_table, rows contiguous; may be uninitialised. Allocated if None.
    missing_row       the row of `embedding` that ids outside it read instead of zeros.

    Products are of the tables' dtype, summed in float32 (float32 tables: IEEE, not TF32); scaling and base row are
    applied in float32 and the sum is rounded once.
    Returns out, outside autograd. One kernel launch, no synchronisation; safe to capture in a CUDA graph with a static
    batch. Raises ShapeError, DtypeError, DeviceError, CapacityError.
    """
    tokens = input_ids.shape[0] if input_ids.ndim else 0
    if out is None:
        check_axes("embedding", embedding, 2, "(rows, hidden)")
        out = a_table.new_empty(tokens, embedding.shape[1])
    missing = NO_ROW
    if missing_row is not None:
        missing = integer("missing_row", missing_row)
        if missing < 0:
            raise ShapeError(f"missing_row is {missing}; expected a row of embedding, or None for zeros")
    tables = embedding, a_table, b_table
    _run(input_ids, tables, batch, vocab_size, extra_embeddings, out, missing, add=False)
    return out


def embedding_lora_add(
    base_output: torch.Tensor,
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """The LoRA part alone, in place: base_output[t] += scaling * B[slot] @ A[slot, :, id].

    For a base layer that has to do more than look up, all-reduce its vocabulary shards for example. base_output
    (tokens, hidden), dtype of a_table, rows contiguous; rows without adapter stay as they are. All else as in
    `embedding_lora`. Returns base_output.
    """
    tables = base_output, a_table, b_table
    _run(input_ids, tables, batch, vocab_size, extra_embeddings, base_output, NO_ROW, add=True)
    return base_output


class _Launch(NamedTuple):
    prepared: Prepared
    bare: bool  # base rows alone
    by_words: bool  # its programs read the token words


_prepared: dict[Key, _Launch | None] = {}


def _run(
    input_ids: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    missing_row: int,
    *,
    add: bool,
) -> None:
    embedding, a_table, b_table = tables
    if type(vocab_size) is not int:
        vocab_size = integer("vocab_size", vocab_size)
    key: Key = (
        *map(seen, (input_ids, a_table, b_table, out)),
        None if add else seen(embedding),  # out, then
        None if extra_embeddings is None else seen(extra_embeddings),
        operands.seen_batch(batch),
        vocab_size,
        missing_row,
        tuning.forced_layer(),
    )

    def prepare() -> _Launch | None:
        _check(input_ids, tables, batch, vocab_size, extra_embeddings, out, missing_row, add=add)
        if input_ids.shape[0] == 0 or b_table.shape[1] == 0:
            return None
        if operands.without_adapter(batch):
            return None if add else _prepare_rows(input_ids, tables, out, missing_row)
        return _prepare_lora(input_ids, tables, batch, vocab_size, extra_embeddings, out, missing_row, add=add)

    launched = operands.kept(_prepared, key, prepare)
    operands.check_batch(batch, input_ids.shape[0], a_table.shape[0], a_table.shape[1], "input_ids")
    if launched is None:
        return
    if launched.bare:
        launch(embedding_rows_kernel, launched.prepared.grid, (input_ids, embedding, out), *launched.prepared[1:])
        return
    extra = a_table if extra_embeddings is None else extra_embeddings  # never read when there is none
    structure = operands.structure(batch)
    words = batch.token_adapters if launched.by_words else structure[0]  # never read otherwise
    assert words is not None
    tensors = (input_ids, words, *structure, embedding, a_table, extra, b_table, out)
    launch(embedding_lora_kernel, launched.prepared.grid, tensors, *launched.prepared[1:])


def _prepare_rows(
    input_ids: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    missing_row: int,
) -> _Launch:
    embedding, a_table, b_table = tables
    tokens, (_, hidden, max_rank) = input_ids.shape[0], b_table.shape
    columns, blocks = _bare_columns(BARE_COLUMNS, hidden)
    rows = _bare_rows(tokens, blocks, BARE_PROGRAMS)
    constants = RowsConstants(
        num_rows=embedding.shape[0],
        missing_row=missing_row,
        e_stride_row=embedding.stride(0),
        out_stride_token=out.stride(0),
        hidden=hidden,
        out_width=min(width(embedding, hidden, embedding.stride(0)), width(out, hidden, out.stride(0))),
        bare_m=rows,
        bare_n=columns,
    )
    warps = tuning.choose_layer(tokens, max_rank, hidden, a_table.element_size()).num_warps
    return _Launch(Prepared((blocks, -(-tokens // rows), 1), (tokens,), (constants,), warps), True, False)


def _prepare_lora(
    input_ids: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    missing_row: int,
    *,
    add: bool,
) -> _Launch:
    embedding, a_table, b_table = tables
    tokens, (slots, hidden, max_rank) = input_ids.shape[0], b_table.shape
    extra = a_table if extra_embeddings is None else extra_embeddings
    config = tuning.choose_layer(tokens, max_rank, hidden, a_table.element_size())
    steps = walk(batch, tokens, config.block_tokens)
    copy_bare, copy_padding = (False, False) if add else _copied(batch, tokens)
    column_programs = -(-hidden // (config.block_columns * config.steps))
    programs = column_programs * steps.tiles
    columns, blocks = _bare_columns(MAX_BARE_COLUMNS, hidden)
    # They take no programs beyond those of the groups, if tiles of a few rows can do; those behind the batch are
    # shared by whatever programs there are.
    rows = _bare_rows(tokens, blocks, programs * steps.groups) if copy_bare else PADDING_TOKENS
    bare_programs = blocks * -(-tokens // rows) if copy_bare else blocks * copy_padding
    constants = LayerConstants(
        num_rows=embedding.shape[0],
        missing_row=missing_row,
        e_stride_row=embedding.stride(0),
        vocab_size=vocab_size,
        num_extra=0 if extra_embeddings is None else extra.shape[1],
        a_stride_slot=a_table.stride(0),
        a_stride_rank=a_table.stride(1),
        a_stride_vocab=a_table.stride(2),
        extra_stride_slot=extra.stride(0),
        extra_stride_token=extra.stride(1),
        extra_stride_rank=extra.stride(2),
        b_stride_slot=b_table.stride(0),
        b_stride_hidden=b_table.stride(1),
        out_stride_token=out.stride(0),
        hidden=hidden,
        max_rank=max_rank,
        has_extra=extra_embeddings is not None,
        has_permutation=batch.permutation is not None,
        add=add,
        copy_bare=copy_bare,
        copy_padding=copy_padding,
        widen=operands.INTERPRETED,
        a_width=width(a_table, max_rank, a_table.stride(0), a_table.stride(2)) if a_table.stride(1) == 1 else 1,
        b_width=width(b_table, max_rank, b_table.stride(0), b_table.stride(1)),
        out_width=min(width(embedding, hidden, embedding.stride(0)), width(out, hidden, out.stride(0))),
        segments=steps.segments,
        block_m=config.block_tokens,
        block_n=config.block_columns,
        block_k=tuning.block_rank(config, max_rank),
        steps=config.steps,
        bare_m=rows,
        bare_n=columns,
    )
    grid = (column_programs, steps.tiles, max(steps.groups, -(-bare_programs // programs), 1))
    counts = (tokens, min(batch.slots, slots), batch.num_segments)
    return _Launch(Prepared(grid, counts, (constants,), config.num_warps), False, copy_bare)


def _copied(batch: EmbeddingBatch, tokens: int) -> tuple[bool, bool]:
    """What programs copy beside the rows of their groups: those whose word is 0, those behind the last segment."""
    # A static batch may be replayed without an adapter: its words say so at once, at 2 % of a prefill that has some.
    if batch.token_adapters is not None and (batch.static or tokens <= tuning.WORDS_MAX_TOKENS):
        return True, False
    return False, batch.static or batch.num_tokens != tokens


def _bare_columns(most: int, hidden: int) -> tuple[int, int]:
    """Columns of a tile of bare rows, and how many of these blocks a row has."""
    columns = min(most, tuning.next_power_of_2(hidden))
    return columns, -(-hidden // columns)


def _bare_rows(tokens: int, blocks: int, programs: int) -> int:
    """Rows of such a tile, so that about so many programs copy all rows."""
    return min(MAX_BARE_TOKENS, tuning.next_power_of_2(-(-tokens * blocks // programs)))


def _check(
    input_ids: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    missing_row: int,
    *,
    add: bool,
) -> None:
    embedding, a_table, b_table = tables
    check = operands.check_tensor
    ops.check_ids(input_ids)
    check("a_table", a_table, (None,) * 3, "(slots, max_rank, vocab)", a_table, "a_table", contiguous_last=False)
    slots, max_rank, columns = a_table.shape
    tokens = input_ids.shape[0]
    check("b_table", b_table, (slots, None, max_rank), f"({slots}, hidden, {max_rank})", a_table, "a_table")
    hidden = b_table.shape[1]
    if add:
        check("base_output", out, (tokens, hidden), f"({tokens}, {hidden})", a_table, "a_table")
        operands.check_rows_apart("base_output", out)
    else:
        check("embedding", embedding, (None, hidden), f"(rows, {hidden})", a_table, "a_table")
        check("out", out, (tokens, hidden), f"({tokens}, {hidden})", a_table, "a_table")
        operands.check_rows_apart("out", out)
        if not NO_ROW <= missing_row < embedding.shape[0]:
            raise ShapeError(
                f"missing_row is {missing_row}; expected a row of embedding, 0 to {embedding.shape[0] - 1}"
            )
    if not 0 <= vocab_size <= columns:
        raise ShapeError(f"vocab_size is {vocab_size}; expected 0 to {columns}, the last extent of a_table")
    if extra_embeddings is not None:
        wanted = f"({slots}, extra, {max_rank})"
        shape = (slots, None, max_rank)
        check("extra_embeddings", extra_embeddings, shape, wanted, a_table, "a_table", contiguous_last=False)
    operands.check_device(batch, a_table, "a_table")
    if input_ids.device != a_table.device:
        raise DeviceError(f"input_ids is on {input_ids.device}; expected {a_table.device}, where a_table is")
