"""The whole embedding layer (base lookup, A lookup and product with B) in one kernel: contract, checks, launch."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed import registered
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.batch.plan import integer
from csgmv_embed.batch.walk import walk
from csgmv_embed.errors import ShapeError
from csgmv_embed.kernels.embedding import (
    LayerConstants,
    RowsConstants,
    embedding_lora_kernel,
    embedding_rows_kernel,
)
from csgmv_embed.launch import checks, direct, tiles
from csgmv_embed.launch.direct import NOTHING, Launch, Nothing, launches, seen, width
from csgmv_embed.launch.launchers import Grid
from csgmv_embed.launch.tables import a_table_constants

NO_ROW = -1  # ids outside the embedding read zeros
MAX_BARE_TOKENS, MAX_BARE_COLUMNS = 16, 2048  # of a tile of rows without adapter
PADDING_TOKENS = 4  # the same of rows behind the last segment
BARE_COLUMNS = 1024  # the same in a batch without adapters
BARE_PROGRAMS = 2048  # from here on a program of a batch without adapters takes more than one row

# input_ids, embedding, a_table, b_table, extra_embeddings, out. To be added to, the output is the embedding as well.
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]


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

    `batch` gives slot, rank and scaling of token t; id = input_ids[t]. A token without adapter gets only its base row.
    So does a row behind the tokens of a static batch.

    input_ids         (tokens,) int32 or int64, contiguous. An id outside [0, rows) has a base row of zeros. In the
                      LoRA part, ids in [vocab_size, vocab_size + extra) read extra_embeddings, and other ids
                      outside [0, vocab_size) add nothing.
    embedding         (rows, hidden), dtype of a_table, rows contiguous.
    a_table           (slots, max_rank, >= vocab_size) fp16, bf16 or fp32, of any strides.
    b_table           (slots, hidden, max_rank), dtype of a_table, last axis contiguous.
    batch             planned with segments=True (any chunk size, with scalings) or from SGLang.
    extra_embeddings  (slots, extra, max_rank), dtype of a_table, of any strides.
    out               (tokens, hidden), dtype of a_table, rows contiguous; may be uninitialised. Allocated if None.
    missing_row       index of the row of `embedding` that ids outside it read, instead of zeros.

    Products of values in the tables' dtype are accumulated in float32 (float32 tables: IEEE, not TF32). Scaling and
    base row are applied in float32, and the result is rounded once. Returns out, without autograd. Makes one kernel
    launch and no synchronisation; with a static batch it can be captured in a CUDA graph. Raises ShapeError,
    DtypeError, DeviceError, GradError, CapacityError.
    """
    missing = NO_ROW
    if missing_row is not None:
        missing = integer("missing_row", missing_row)
        if missing < 0:
            raise ShapeError(f"missing_row is {missing}; expected a row of embedding, or None for zeros")
    if out is None:
        checks.check_axes("embedding", embedding, 2, "(rows, hidden)")
        out = a_table.new_empty(input_ids.numel(), embedding.shape[1])
    operands = input_ids, embedding, a_table, b_table, extra_embeddings, out
    _run(operands, batch, vocab_size, missing, add=False)
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

    Use it if the base layer does more than look up, such as an all-reduce over its vocabulary shards. base_output
    (tokens, hidden) has the dtype of a_table and contiguous rows. Rows without adapter stay as they are. Everything
    else is as in `embedding_lora`. Returns base_output.
    """
    operands = input_ids, base_output, a_table, b_table, extra_embeddings, base_output
    _run(operands, batch, vocab_size, NO_ROW, add=True)
    return base_output


def _run(operands: Operands, batch: EmbeddingBatch, vocab_size: int, missing_row: int, *, add: bool) -> None:
    """Launch what `operands` are given for, whether it was prepared before or is new."""
    input_ids, embedding, a_table, b_table, extra_embeddings, out = operands
    if type(vocab_size) is not int:
        vocab_size = integer("vocab_size", vocab_size)
    if registered.traces(input_ids):
        _traced(operands, batch, vocab_size, missing_row, add=add)
        return
    extra = a_table if extra_embeddings is None else extra_embeddings  # never read when there is none
    structure = batch.structure()
    words = structure[0] if batch.token_adapters is None else batch.token_adapters  # then never read
    tensors: direct.Tensors = (input_ids, words, *structure, embedding, a_table, extra, b_table, out)
    pointers, misaligned = direct.addresses(tensors)
    key = (
        "embedding_lora",
        seen(input_ids),
        None if add else seen(embedding),
        seen(a_table),
        seen(b_table),
        None if extra_embeddings is None else seen(extra_embeddings),
        seen(out),
        misaligned,
        batch.seen(),
        vocab_size,
        missing_row,
        tiles.forced_now.seen,
    )
    launch = launches.get(key)
    if launch is None:
        _check(operands, batch, vocab_size, missing_row, add=add)
        launch = direct.keep(key, _prepare(operands, batch, vocab_size, missing_row, add=add))
    slots, max_rank, _ = a_table.shape
    batch.check_fits(input_ids.shape[0], slots, max_rank, "input_ids")
    if launch.plan == "rows":
        tensors = input_ids, embedding, out
        pointers = [pointers[0], pointers[7], pointers[-1]]
    launch(tensors, pointers)


def _traced(operands: Operands, batch: EmbeddingBatch, vocab_size: int, missing_row: int, *, add: bool) -> None:
    """The same as an op of torch."""
    input_ids, embedding, a_table, b_table, extra_embeddings, out = operands
    given = {"input_ids": input_ids, "a_table": a_table, "b_table": b_table, "extra_embeddings": extra_embeddings}
    if add:
        registered.call("embedding_lora_add", {**given, "base_output": out}, batch, vocab_size)
    else:
        given = {**given, "embedding": embedding, "out": out}
        registered.call("embedding_lora", given, batch, vocab_size, missing_row)


def _run_registered(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    extra_embeddings: torch.Tensor | None,
    embedding: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    missing_row: int,
) -> None:
    operands = input_ids, embedding, a_table, b_table, extra_embeddings, out
    _run(operands, batch, vocab_size, missing_row, add=False)


def _add_registered(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    extra_embeddings: torch.Tensor | None,
    base_output: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
) -> None:
    embedding_lora_add(base_output, input_ids, a_table, b_table, batch, vocab_size, extra_embeddings)


TABLES = "Tensor input_ids, Tensor a_table, Tensor b_table, Tensor? extra_embeddings"
AXES = {"input_ids": 1, "embedding": 2, "a_table": 3, "b_table": 3, "extra_embeddings": 3, "out": 2, "base_output": 2}
registered.register(
    "embedding_lora",
    f"{TABLES}, Tensor embedding, Tensor(a!) out",
    "out",
    _run_registered,
    AXES,
    "SymInt vocab_size, SymInt missing_row",
)
registered.register(
    "embedding_lora_add",
    f"{TABLES}, Tensor(a!) base_output",
    "base_output",
    _add_registered,
    AXES,
    "SymInt vocab_size",
)


def _check(operands: Operands, batch: EmbeddingBatch, vocab_size: int, missing_row: int, *, add: bool) -> None:
    """Raises ShapeError, DtypeError, DeviceError, GradError."""
    input_ids, embedding, a_table, b_table, extra_embeddings, out = operands
    check = checks.check_tensor
    slots, max_rank, _ = checks.check_a_table(a_table, vocab_size, extra_embeddings)
    checks.check_ids(input_ids, a_table, "a_table")
    checks.check_device(batch.device, a_table, "a_table")
    tokens = input_ids.shape[0]
    check("b_table", b_table, (slots, None, max_rank), f"({slots}, hidden, {max_rank})", a_table, "a_table")
    hidden = b_table.shape[1]
    if not add:
        check("embedding", embedding, (None, hidden), f"(rows, {hidden})", a_table, "a_table")
        if not NO_ROW <= missing_row < embedding.shape[0]:
            raise ShapeError(
                f"missing_row is {missing_row}; expected a row of embedding, 0 to {embedding.shape[0] - 1}"
            )
    name = "base_output" if add else "out"
    check(name, out, (tokens, hidden), f"({tokens}, {hidden})", a_table, "a_table")
    checks.check_rows_apart(name, out)


def _prepare(
    operands: Operands, batch: EmbeddingBatch, vocab_size: int, missing_row: int, *, add: bool
) -> Launch | Nothing:
    """The launch of checked operands."""
    _, embedding, a_table, b_table, extra_embeddings, out = operands
    if out.numel() == 0 or (add and batch.without_adapter):
        return NOTHING
    tokens, hidden = out.shape
    gpu = direct.gpu_name(out.device)
    tile = tiles.choose_layer(tokens, a_table.shape[1], hidden, out.element_size(), gpu)
    out_width = min(width(embedding, hidden, embedding.stride(0)), width(out, hidden, out.stride(0)))
    if batch.without_adapter:
        return _rows_launch(embedding, out, missing_row, out_width, tile.num_warps)
    slots, max_rank, _ = a_table.shape
    grid, bare = _grid(batch, tokens, hidden, tile, add=add)
    constants = LayerConstants(
        num_rows=0 if add else embedding.shape[0],  # then never read: the tokens, each number of which would compile
        missing_row=missing_row,
        e_stride_row=0 if add else embedding.stride(0),
        **a_table_constants(a_table, vocab_size, extra_embeddings),
        b_stride_slot=b_table.stride(0),
        b_stride_hidden=b_table.stride(1),
        out_stride_token=out.stride(0),
        hidden=hidden,
        has_permutation=batch.permutation is not None,
        add=add,
        widen=checks.INTERPRETED,
        b_width=width(b_table, max_rank, b_table.stride(0), b_table.stride(1)),
        out_width=out_width,
        block_m=tile.block_m,
        block_n=tile.block_n,
        block_k=tiles.block_k(tile, max_rank),
        steps=tile.steps,
        **bare,
    )
    counts = (tokens, min(batch.slots, slots), batch.num_segments)
    return Launch(embedding_lora_kernel, grid, counts, constants, tile.num_warps)


def _rows_launch(
    embedding: torch.Tensor, out: torch.Tensor, missing_row: int, out_width: int, num_warps: int
) -> Launch:
    """Of a batch in which nobody has an adapter."""
    tokens, hidden = out.shape
    columns, blocks = _bare_columns(BARE_COLUMNS, hidden)
    rows = _bare_rows(tokens, blocks, BARE_PROGRAMS)
    constants = RowsConstants(
        num_rows=embedding.shape[0],
        missing_row=missing_row,
        e_stride_row=embedding.stride(0),
        out_stride_token=out.stride(0),
        hidden=hidden,
        out_width=out_width,
        bare_m=rows,
        bare_n=columns,
    )
    grid = (blocks, -(-tokens // rows), 1)
    return Launch(embedding_rows_kernel, grid, (tokens,), constants, num_warps, plan="rows")


def _grid(
    batch: EmbeddingBatch, tokens: int, hidden: int, tile: tiles.MatrixTile, *, add: bool
) -> tuple[Grid, dict[str, Any]]:
    """The grid, and the constants that say which rows its programs take."""
    steps = walk(batch, tokens, tile.block_m)
    copy_bare, copy_padding = (False, False) if add else _copied(batch, tokens)
    column_programs = -(-hidden // (tile.block_n * tile.steps))
    programs = column_programs * steps.tiles
    columns, blocks = _bare_columns(MAX_BARE_COLUMNS, hidden)
    # Bare rows take no programs beyond those of the groups, if tiles of a few rows can do; those behind the batch are
    # shared by whatever programs there are.
    rows = _bare_rows(tokens, blocks, programs * steps.groups) if copy_bare else PADDING_TOKENS
    bare_programs = blocks * -(-tokens // rows) if copy_bare else blocks * copy_padding
    grid = (column_programs, steps.tiles, max(steps.groups, -(-bare_programs // programs), 1))
    return grid, {
        "copy_bare": copy_bare,
        "copy_padding": copy_padding,
        "segments": steps.segments,
        "bare_m": rows,
        "bare_n": columns,
    }


def _copied(batch: EmbeddingBatch, tokens: int) -> tuple[bool, bool]:
    """What programs copy beside the rows of their groups: those whose word is 0, those behind the last segment."""
    # A static batch may be replayed without an adapter: its words say so at once, at 2 % of a prefill that has some.
    if batch.token_adapters is not None and (batch.static or tokens <= tiles.WORDS_MAX_TOKENS):
        return True, False
    return False, batch.static or batch.num_tokens != tokens


def _bare_columns(most: int, hidden: int) -> tuple[int, int]:
    """Columns of a tile of bare rows, and how many of these blocks a row has."""
    columns = min(most, tiles.next_power_of_2(hidden))
    return columns, -(-hidden // columns)


def _bare_rows(tokens: int, blocks: int, programs: int) -> int:
    """Rows of such a tile, so that about so many programs copy all rows."""
    return min(MAX_BARE_TOKENS, tiles.next_power_of_2(-(-tokens * blocks // programs)))
