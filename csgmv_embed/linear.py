"""LoRA on linear layers: shrink the input to the ranks, expand it into the output in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from csgmv_embed import registered
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.batch.tile_plan import DECODE_BLOCK, most_tiles
from csgmv_embed.errors import DtypeError, ShapeError
from csgmv_embed.kernels.linear import (
    ExpandConstants,
    ShrinkConstants,
    SumConstants,
    lora_expand_kernel,
    lora_shrink_kernel,
    lora_shrink_sum_kernel,
)
from csgmv_embed.launch import checks, direct, tiles
from csgmv_embed.launch.checks import check_axes, check_tensor
from csgmv_embed.launch.direct import NOTHING, Launch, Nothing, overlaps_launches, width


def lora_linear(
    x: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    starts: Sequence[int] | None = None,
) -> torch.Tensor:
    """LoRA on a linear layer of one or more slices, in place: out[t, n] += scaling * B[slot, n] @ A_i[slot] @ x[t].

    i is the slice that column n belongs to. `batch` gives slot, rank and scaling of row t. Rows without adapter stay as
    they are. So do rows behind the tokens of a static batch.

    x        (tokens, in_features) fp16, bf16 or fp32, rows contiguous.
    a_table  (slots, slices * max_rank, in_features), dtype of x, last axis contiguous. A slot of rank r has row k of
             slice i at i * r + k: packed, as SGLang stacks q, k and v, or gate and up.
    b_table  (slots, out_features, max_rank), dtype of x, last axis contiguous: the slices' rows one after another.
    out      (tokens, >= out_features), rows contiguous and apart, any float dtype; other columns stay.
    batch    planned with tiles=True.
    starts   first column of each slice, and out_features: (0, 4096, 5120, 6144) for q, k and v. None: one slice.

    Under tensor parallelism, b_table and out are a rank's shard of the columns, or a_table and x its shard of the
    input. Products of values in the tables' dtype are accumulated in float32 (float32 tables: IEEE, not TF32). The
    shrunk row is rounded to the dtype of x. B's products are scaled and added to the output in float32, and the result
    is rounded once. The result is the same in every run. Returns out. Makes two kernel launches and no synchronisation;
    with a static batch it can be captured in a CUDA graph. Raises ShapeError, DtypeError, DeviceError, GradError,
    CapacityError.
    """
    _check_axes(x, a_table)
    if registered.traces(x):
        operands = {"x": x, "a_table": a_table, "b_table": b_table, "out": out}
        registered.call("lora_linear", operands, batch, _columns(b_table, starts))
        return out
    planned = _planned(batch)
    columns = _columns(b_table, starts)
    tile = _shrink_tile(x, a_table, batch)
    shrunk = _empty_shrunk(x, a_table, tile.splits)
    # In a prefill, programs of the expand that wait would take the place of those of the shrink.
    overlap = overlaps_launches(x.device) and batch.tile_block <= DECODE_BLOCK
    shrink = _shrink(x, a_table, shrunk, batch, planned, len(columns) - 1, tile, overlap)
    expand = _expand(shrunk, b_table, out, batch, planned, columns, overlap)  # checked before anything runs
    shrink()
    expand()
    return out


def lora_shrink(
    x: torch.Tensor, a_table: torch.Tensor, batch: EmbeddingBatch, slices: int = 1, out: torch.Tensor | None = None
) -> torch.Tensor:
    """out[t, i * max_rank + r] = A_i[slot, r] @ x[t] for r < rank; all other elements of out are left as they are.

    Arguments are as in `lora_linear`. out (tokens, slices * max_rank) has the dtype of x and contiguous rows that do
    not overlap. If None, it is allocated uninitialised, and elements that are not written hold arbitrary values.
    Returns out.
    """
    _check_axes(x, a_table)
    if out is None:
        out = x.new_empty(x.shape[0], a_table.shape[1])
    if registered.traces(x):
        registered.call("lora_shrink", {"x": x, "a_table": a_table, "out": out}, batch, slices)
        return out
    planned = _planned(batch)
    check_axes("out", out, 2, "(tokens, slices * max_rank)")
    tile = _shrink_tile(x, a_table, batch)
    if batch.tile_block > DECODE_BLOCK and x.shape[1] <= tiles.WIDE_FEATURES:
        tile = tile._replace(splits=1)  # adding the parts of so many rows takes longer than it saves
    if tile.splits == 1:
        _shrink(x, a_table, out[:, None], batch, planned, slices, tile, False)()
        return out
    parts = _empty_shrunk(x, a_table, tile.splits)
    shrink = _shrink(x, a_table, parts, batch, planned, slices, tile, False)
    total = _sum(parts, a_table, out, batch, planned, slices)
    shrink()
    total()
    return out


def lora_expand(
    shrunk: torch.Tensor,
    b_table: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    starts: Sequence[int] | None = None,
) -> torch.Tensor:
    """out[t, n] += scaling * B[slot, n] @ shrunk[t, slice of n] in place; shrunk as `lora_shrink` gives it.

    Other arguments as in `lora_linear`. Returns out.
    """
    check_axes("shrunk", shrunk, 2, "(tokens, slices * max_rank)")
    if registered.traces(shrunk):
        operands = {"shrunk": shrunk, "b_table": b_table, "out": out}
        registered.call("lora_expand", operands, batch, _columns(b_table, starts))
        return out
    planned = _planned(batch)
    _expand(shrunk[:, None], b_table, out, batch, planned, _columns(b_table, starts), False)()
    return out


def _shrink_registered(
    x: torch.Tensor, a_table: torch.Tensor, out: torch.Tensor, batch: EmbeddingBatch, slices: int
) -> None:
    lora_shrink(x, a_table, batch, slices, out)


SUM_COLUMNS = 64  # of a program that adds the parts of a shrink
AXES = {"x": 2, "a_table": 3, "b_table": 3, "out": 2, "shrunk": 2}
OUT = "Tensor b_table, Tensor(a!) out"
registered.register("lora_linear", f"Tensor x, Tensor a_table, {OUT}", "out", lora_linear, AXES, "SymInt[] starts")
registered.register(
    "lora_shrink", "Tensor x, Tensor a_table, Tensor(a!) out", "out", _shrink_registered, AXES, "SymInt slices"
)
registered.register("lora_expand", f"Tensor shrunk, {OUT}", "out", lora_expand, AXES, "SymInt[] starts")


def _columns(b_table: torch.Tensor, starts: Sequence[int] | None) -> tuple[int, ...]:
    """The first column of each slice, and the end of the last. Raises ShapeError."""
    check_axes("b_table", b_table, 3, "(slots, out_features, max_rank)")
    features = b_table.shape[1]
    if starts is None:
        return (0, features)
    columns = tuple(starts)
    rising = all(before <= after for before, after in pairwise(columns))
    if len(columns) < 2 or (columns[0], columns[-1]) != (0, features) or not rising:
        raise ShapeError(
            f"starts is {columns}; expected the first column of each slice, from 0 on, and {features}, the rows of "
            "b_table"
        )
    return columns


def _check_axes(x: torch.Tensor, a_table: torch.Tensor) -> None:
    """Raises ShapeError before extents are asked for."""
    check_axes("x", x, 2, "(tokens, in_features)")
    check_axes("a_table", a_table, 3, "(slots, slices * max_rank, in_features)")


def _empty_shrunk(x: torch.Tensor, a_table: torch.Tensor, splits: int) -> torch.Tensor:
    """(tokens, splits, slices * max_rank), so that no stride depends on the tokens: those are compiled in."""
    dtype = torch.float32 if splits > 1 else x.dtype
    return x.new_empty(x.shape[0], splits, a_table.shape[1], dtype=dtype)


def _planned(batch: EmbeddingBatch) -> tuple[direct.Tensors, direct.Key]:
    """What the kernels read of a batch, and what a launch depends on beside the operands. Raises ShapeError."""
    words, rows = batch.tile_words, batch.tile_rows
    if words is None or rows is None:
        raise ShapeError("this batch was planned without tiles; expected one made with tiles=True")
    return (words, rows), (batch.seen(), words.shape[0], batch.tile_block)


def _shrink_tile(x: torch.Tensor, a_table: torch.Tensor, batch: EmbeddingBatch) -> tiles.ShrinkTile:
    """Asked in every call: it says how much memory the shrunk rows take."""
    tokens, in_features = x.shape
    decode = batch.tile_block <= DECODE_BLOCK
    token_tiles = 0 if decode else most_tiles(tokens, batch.slots, batch.tile_block)
    gpu = direct.gpu_name(x.device)
    return tiles.choose_linear_shrink(decode, token_tiles, a_table.shape[1], in_features, x.element_size(), gpu)


def _shrink(
    x: torch.Tensor,
    a_table: torch.Tensor,
    shrunk: torch.Tensor,
    batch: EmbeddingBatch,
    planned: tuple[direct.Tensors, direct.Key],
    slices: int,
    tile: tiles.ShrinkTile,
    overlap: bool,
) -> Callable[[], None]:
    """The checked launch."""
    arrays, known = planned
    operands, options = (x, a_table, shrunk), (slices, tile, overlap)
    launch = direct.ready(lora_shrink_kernel, arrays, operands, (known, options), _prepare_shrink, batch, *options)
    batch.check_fits(x.shape[0], a_table.shape[0], a_table.shape[1] // slices, "x")
    return launch


def _expand(
    shrunk: torch.Tensor,
    b_table: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    planned: tuple[direct.Tensors, direct.Key],
    columns: tuple[int, ...],
    overlap: bool,
) -> Callable[[], None]:
    """The checked launch."""
    arrays, known = planned
    operands, options = (shrunk, b_table, out), (columns, overlap)
    seen = known, options, tiles.forced_now.seen
    launch = direct.ready(lora_expand_kernel, arrays, operands, seen, _prepare_expand, batch, *options)
    slots, _, max_rank = b_table.shape
    batch.check_fits(shrunk.shape[0], slots, max_rank, "shrunk")
    return launch


def _sum(
    parts: torch.Tensor,
    a_table: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    planned: tuple[direct.Tensors, direct.Key],
    slices: int,
) -> Callable[[], None]:
    """The checked launch; a_table is looked at, not read."""
    arrays, known = planned
    return direct.ready(
        lora_shrink_sum_kernel,
        arrays,
        (parts, out),
        (known, slices, a_table.shape),
        _prepare_sum,
        a_table,
        batch,
        slices,
    )


def _tiles(batch: EmbeddingBatch, tokens: int) -> int:
    """Tiles that a batch of `tokens` rows can have: all, or in static buffers what a later replay may need."""
    assert batch.tile_words is not None
    held = batch.tile_words.shape[0] // 2
    return min(held, most_tiles(tokens, batch.slots, batch.tile_block))


def _prepare_shrink(
    x: torch.Tensor,
    a_table: torch.Tensor,
    shrunk: torch.Tensor,
    batch: EmbeddingBatch,
    slices: int,
    tile: tiles.ShrinkTile,
    overlap: bool,
) -> Launch | Nothing:
    check_tensor("x", x, (None, None), "(tokens, in_features)", x, "x")
    tokens, in_features = x.shape
    check_tensor("a_table", a_table, (None, None, in_features), f"(slots, slices * max_rank, {in_features})", x, "x")
    slots, stacked, _ = a_table.shape
    rows = shrunk[:, 0]
    check_tensor("out", rows, (tokens, stacked), f"({tokens}, {stacked})", x, "x", any_dtype=tile.splits > 1)
    checks.check_rows_apart("out", rows)
    if slices < 1 or stacked % slices:
        raise ShapeError(f"a_table has {stacked} rows a slot; expected a multiple of the {slices} slices")
    checks.check_device(batch.device, x, "x")
    if tokens == 0 or stacked == 0 or batch.without_adapter:
        return NOTHING
    constants = ShrinkConstants(
        x_stride_token=x.stride(0),
        a_stride_slot=a_table.stride(0),
        a_stride_row=a_table.stride(1),
        shrunk_stride_token=shrunk.stride(0),
        shrunk_stride_split=shrunk.stride(1),
        in_features=in_features,
        slices=slices,
        max_rank=stacked // slices,
        overlap=overlap,
        widen=checks.INTERPRETED,
        width=min(
            width(x, in_features, x.stride(0)), width(a_table, in_features, a_table.stride(0), a_table.stride(1))
        ),
        splits=tile.splits,
        block_m=batch.tile_block,
        block_n=tile.block_n,
        block_k=min(tile.block_k, max(tiles.MIN_TILE, tiles.next_power_of_2(in_features))),
        stages=tile.stages,
    )
    grid = (-(-stacked // tile.block_n) * tile.splits, _tiles(batch, tokens), 1)
    counts = (tokens, min(batch.slots, slots))
    return Launch(lora_shrink_kernel, grid, counts, constants, tile.num_warps)


def _prepare_sum(
    parts: torch.Tensor, out: torch.Tensor, a_table: torch.Tensor, batch: EmbeddingBatch, slices: int
) -> Launch | Nothing:
    """Of operands that the shrink has checked, but for what it is summed into."""
    (tokens, splits, stacked), slots = parts.shape, a_table.shape[0]
    check_tensor("out", out, (tokens, stacked), f"({tokens}, {stacked})", a_table, "a_table")
    checks.check_rows_apart("out", out)
    if tokens == 0 or stacked == 0 or batch.without_adapter:
        return NOTHING
    constants = SumConstants(
        parts_stride_token=parts.stride(0),
        parts_stride_split=parts.stride(1),
        out_stride_token=out.stride(0),
        slices=slices,
        max_rank=stacked // slices,
        splits=splits,
        block_m=batch.tile_block,
        block_n=SUM_COLUMNS,
    )
    grid = (-(-stacked // SUM_COLUMNS), _tiles(batch, tokens), 1)
    return Launch(lora_shrink_sum_kernel, grid, (tokens, min(batch.slots, slots)), constants, 4)


def _prepare_expand(
    shrunk: torch.Tensor,
    b_table: torch.Tensor,
    out: torch.Tensor,
    batch: EmbeddingBatch,
    columns: tuple[int, ...],
    overlap: bool,
) -> Launch | Nothing:
    tokens, splits, _ = shrunk.shape
    check_tensor("b_table", b_table, (None, None, None), "(slots, out_features, max_rank)", b_table, "b_table")
    slots, features, max_rank = b_table.shape
    slices = len(columns) - 1
    described = f"({tokens}, {slices} * {max_rank}), the slices and the max_rank of b_table"
    check_tensor(
        "shrunk", shrunk[:, 0], (tokens, slices * max_rank), described, b_table, "b_table", any_dtype=splits > 1
    )
    described = f"({tokens}, at least {features})"
    check_tensor("out", out, (tokens, None), described, b_table, "b_table", any_dtype=True)
    if out.shape[1] < features:
        raise ShapeError(f"out has shape {tuple(out.shape)}; expected {described}")
    if splits == 1 and shrunk.dtype != b_table.dtype:
        raise DtypeError(f"shrunk is {shrunk.dtype}; expected {b_table.dtype}, as b_table")
    checks.check_rows_apart("out", out)
    checks.check_device(batch.device, b_table, "b_table")
    if tokens == 0 or max_rank == 0 or features == 0 or batch.without_adapter:
        return NOTHING
    decode, gpu = batch.tile_block <= DECODE_BLOCK, direct.gpu_name(b_table.device)
    tile = tiles.choose_linear_expand(decode, features, max_rank, b_table.element_size(), gpu)
    span = tile.block_n * tile.steps
    widths = [after - before for before, after in pairwise(columns)]
    constants = ExpandConstants(
        shrunk_stride_token=shrunk.stride(0),
        shrunk_stride_split=shrunk.stride(1),
        b_stride_slot=b_table.stride(0),
        b_stride_row=b_table.stride(1),
        out_stride_token=out.stride(0),
        starts=columns,
        max_rank=max_rank,
        overlap=overlap,
        widen=checks.INTERPRETED,
        shrunk_width=width(shrunk, max_rank, shrunk.stride(0), shrunk.stride(1)),
        b_width=width(b_table, max_rank, b_table.stride(0), b_table.stride(1)),
        out_width=width(out, out.stride(0), *columns),
        splits=splits,
        block_m=batch.tile_block,
        block_n=tile.block_n,
        block_k=tile.block_k,
        steps=tile.steps,
        stages=tile.stages,
        whole=all(size % span == 0 for size in widths),
        ahead=decode and features <= tiles.WIDE_FEATURES,  # with more columns other programs hide what one waits for
    )
    grid = (sum(-(-size // span) for size in widths), _tiles(batch, tokens), 1)
    counts = (tokens, min(batch.slots, slots))
    return Launch(lora_expand_kernel, grid, counts, constants, tile.num_warps, pdl=overlap)
