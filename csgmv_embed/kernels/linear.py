"""The Triton kernels of LoRA on linear layers: shrink to the ranks, expand into the output.

A linear layer may be several stacked ones, its *slices*: q, k and v, or gate and up. Slice i has columns
starts[i] : starts[i + 1] of the output, the same rows of B, and rows i * rank : (i + 1) * rank of A, packed by the rank
of the slot as SGLang stacks them. For every row t with an adapter, s its slot, and for no other:

    shrunk[t, i * max_rank + r] = sum over k of x[t, k] * A[s, i * rank + r, k]                     for r < rank
    out[t, n] += scaling[s] * sum over r < rank of B[s, n, r] * shrunk[t, i * max_rank + r]    for n of slice i

The batch gives *tiles* of at most BLOCK_M rows of one slot: tile_rows[g] are the rows, -1 where there is none, and
tile_words[g] the word slot << 16 | rank and the scaling. Both load side by side and everything else follows from them,
so a program waits for memory twice; a tile without work has a word of 0, and its programs end there.

The long sum over k may be cut into `splits` parts, each the work of programs of its own. Each leaves a float32 row, and
the expand adds these in their order, so that results do not depend on which program came first. Where the shrunk rows
themselves are wanted, a third kernel adds them.

With `overlap` the expand is a programmatic dependent launch behind the shrink: what it reads of the batch, of the
output and of B it asks for while the shrink still runs.

Invariants
- Products are of the tables' dtype, summed in float32. The shrunk row is rounded to the dtype of x; the scaled sum and
  the output are added in float32 and rounded once.
- What lies beyond a slot's rank in A, B and shrunk may be anything. A load is masked by whole groups of a width that
  divides what places a row, which keeps it wide; EXACT says that the width divides the rank too, else the rest of the
  last group is replaced by zero.
- Offsets are 64-bit. Each width is at most 16 bytes.
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by linear.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import NamedTuple

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from csgmv_embed.kernels.common import product


class ShrinkConstants(NamedTuple):
    """Constants compiled into the shrink. Strides and widths in elements; block_m are tokens, block_n rows of A."""

    x_stride_token: int
    a_stride_slot: int
    a_stride_row: int
    shrunk_stride_token: int
    shrunk_stride_split: int
    in_features: int
    slices: int
    max_rank: int
    overlap: bool
    widen: bool  # for Triton's interpreter, which multiplies bfloat16 wrongly
    width: int  # of x and of A
    splits: int
    block_m: int
    block_n: int
    block_k: int
    stages: int


class ExpandConstants(NamedTuple):
    """Constants compiled into the expand. block_n are columns of the output, block_k ranks."""

    shrunk_stride_token: int
    shrunk_stride_split: int
    b_stride_slot: int
    b_stride_row: int
    out_stride_token: int
    starts: tuple[int, ...]  # of the slices, and their end
    max_rank: int
    overlap: bool
    widen: bool
    shrunk_width: int
    b_width: int
    out_width: int
    splits: int
    block_m: int
    block_n: int
    block_k: int
    steps: int  # blocks of columns a program
    whole: bool  # every slice is a whole number of programs
    ahead: bool  # a block of B is asked for one step early, the first before the shrunk rows are waited for
    stages: int


class SumConstants(NamedTuple):
    """Constants compiled into the sum of a shrink's parts."""

    parts_stride_token: int
    parts_stride_split: int
    out_stride_token: int
    slices: int
    max_rank: int
    splits: int
    block_m: int
    block_n: int


@triton.jit
def _tile_at(tile, tile_words, tile_rows, num_tokens, num_slots, MAX_RANK: tl.constexpr, BLOCK_M: tl.constexpr):
    """(slot, rank, scaling, rows, which of them there are) of a tile; rank 0 if there is nothing to do."""
    word = tl.load(tile_words + 2 * tile)
    scaling = tl.load(tile_words + 2 * tile + 1).to(tl.float32, bitcast=True)
    rows = tl.load(tile_rows + tile * BLOCK_M + tl.arange(0, BLOCK_M))
    tl.debug_barrier()  # else the compiler asks for the rows behind the exit of idle programs, which waits for the word
    slot = word >> 16
    rank = tl.where(slot < num_slots, tl.minimum(word & 0xFFFF, MAX_RANK), 0)
    return slot.to(tl.int64), rank, scaling, rows.to(tl.int64), (rows >= 0) & (rows < num_tokens)


@triton.jit
def _columns(n, rank, c: tl.constexpr):
    """Where A's packed rows n lie in a shrunk row.

    How these numbers come about hides from the compiler that neighbours lie side by side. It would then guess along
    which axis threads do, and Triton 3.8 guesses the tokens, where 32 threads write to 32 rows. The hint decides that
    and nothing else: as nothing is said of what divides the first of them, each element is accessed alone.
    """
    SLICES: tl.constexpr = c.slices
    column = n
    if SLICES > 1:
        piece = tl.zeros_like(n)
        for i in tl.static_range(1, SLICES):
            piece += (n >= i * rank).to(tl.int32)
        column = n + piece * (c.max_rank - rank)
        column = tl.max_contiguous(column, 2)
    return column


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def lora_shrink_kernel(tile_words, tile_rows, x, a_table, shrunk, num_tokens, num_slots, c: tl.constexpr):
    """Grid (blocks of A's rows * splits, tiles). c: ShrinkConstants."""
    if c.overlap:
        gdc_launch_dependents()
    WIDTH: tl.constexpr = c.width
    BLOCKS: tl.constexpr = (c.slices * c.max_rank + c.block_n - 1) // c.block_n
    SPAN: tl.constexpr = ((c.in_features + c.splits * c.block_k - 1) // (c.splits * c.block_k)) * c.block_k
    WHOLE: tl.constexpr = c.in_features == c.splits * SPAN
    SHAPE: tl.constexpr = (c.block_n, c.block_m)
    slot, rank, _, rows, live = _tile_at(
        tl.program_id(1), tile_words, tile_rows, num_tokens, num_slots, c.max_rank, c.block_m
    )
    block, split = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    n = block * c.block_n + tl.arange(0, c.block_n)
    if block * c.block_n < c.slices * rank:
        wanted = n < c.slices * rank
        a_row = tl.multiple_of(slot * c.a_stride_slot + n.to(tl.int64) * c.a_stride_row, WIDTH)
        x_row = tl.multiple_of(rows * c.x_stride_token, WIDTH)
        total = tl.zeros(SHAPE, tl.float32)
        for start in tl.range(split * SPAN, split * SPAN + SPAN, c.block_k, num_stages=c.stages):
            k = start + tl.arange(0, c.block_k)
            a_mask, x_mask = wanted[:, None], live[:, None]
            if not WHOLE:
                inside = ((k // WIDTH) * WIDTH < c.in_features)[None, :]
                a_mask, x_mask = a_mask & inside, x_mask & inside
            a = tl.load(a_table + (a_row[:, None] + k[None, :]), mask=a_mask, other=0.0)
            tokens = tl.load(x + (x_row[:, None] + k[None, :]), mask=x_mask, other=0.0)
            # A on the left: its rows are many, and warps share out the rows of the left factor.
            total = product(a, tl.trans(tokens), total, c.widen)
        values = total.to(shrunk.dtype.element_ty)
        row = rows * c.shrunk_stride_token + split * c.shrunk_stride_split
        column = _columns(n, rank, c)
        tl.store(shrunk + (row[None, :] + column[:, None]), values, mask=live[None, :] & wanted[:, None])


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def lora_shrink_sum_kernel(tile_words, tile_rows, parts, out, num_tokens, num_slots, c: tl.constexpr):
    """out[t, n] = sum of the parts, for the rows and columns that the shrink wrote. Grid (blocks of columns, tiles)."""
    _, rank, _, rows, live = _tile_at(
        tl.program_id(1), tile_words, tile_rows, num_tokens, num_slots, c.max_rank, c.block_m
    )
    SPLITS: tl.constexpr = c.splits
    n = tl.program_id(0) * c.block_n + tl.arange(0, c.block_n)
    if tl.program_id(0) * c.block_n < c.slices * rank:
        column = _columns(n, rank, c)
        mask = live[:, None] & (n < c.slices * rank)[None, :]
        place = parts + (rows[:, None] * c.parts_stride_token + column[None, :])
        total = tl.load(place, mask=mask, other=0.0)
        for split in tl.static_range(1, SPLITS):
            total += tl.load(place + split * c.parts_stride_split, mask=mask, other=0.0)
        place = out + (rows[:, None] * c.out_stride_token + column[None, :])
        tl.store(place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _place(block, c: tl.constexpr):
    """(slice, first column, end of the slice) of a block of columns; blocks never cross slices."""
    SPAN: tl.constexpr = c.block_n * c.steps
    piece, first, end = 0, 0, 0
    for i in tl.static_range(len(c.starts) - 1):
        blocks = (c.starts[i + 1] - c.starts[i] + SPAN - 1) // SPAN
        here = (block >= 0) & (block < blocks)
        piece = tl.where(here, i, piece)
        first = tl.where(here, c.starts[i] + block * SPAN, first)
        end = tl.where(here, c.starts[i + 1], end)
        block = block - blocks
    return piece, first, end


@triton.jit
def _shrunk_block(x_row, live, start, rank, shrunk, c: tl.constexpr, EXACT: tl.constexpr):
    """shrunk[rows, start : start + block_k], the parts of the long sum added in their order; zero from the rank on."""
    WIDTH: tl.constexpr = c.shrunk_width
    SPLITS: tl.constexpr = c.splits
    k = start + tl.arange(0, c.block_k)
    mask = live[:, None] & ((k // WIDTH) * WIDTH < rank)[None, :]
    total = tl.load(shrunk + (x_row[:, None] + k[None, :]), mask=mask, other=0.0)
    if not EXACT:  # before anything is added to it: the rest of a group is whatever the memory held
        total = tl.where((k < rank)[None, :], total, 0.0)
    for split in tl.static_range(1, SPLITS):
        place = x_row[:, None] + (split * c.shrunk_stride_split + k)[None, :]
        part = tl.load(shrunk + place, mask=mask, other=0.0)
        if not EXACT:
            part = tl.where((k < rank)[None, :], part, 0.0)
        total += part
    return total


@triton.jit
def _b_block(b_row, inside, start, rank, b_table, c: tl.constexpr, EXACT: tl.constexpr, WHOLE: tl.constexpr):
    """B[columns, start : start + block_k] transposed, (ranks, columns); zero from the rank on."""
    WIDTH: tl.constexpr = c.b_width
    k = start + tl.arange(0, c.block_k)
    mask = ((k // WIDTH) * WIDTH < rank)[:, None]
    if not WHOLE:
        mask = mask & inside[None, :]
    values = tl.load(b_table + (b_row[None, :] + k[:, None]), mask=mask, other=0.0)
    if not EXACT:
        values = tl.where((k < rank)[:, None], values, 0.0)
    return values


@triton.jit
def _out_mask(column, live, end, c: tl.constexpr, WHOLE: tl.constexpr):
    WIDTH: tl.constexpr = c.out_width
    mask = live[:, None]
    if not WHOLE:
        mask = mask & ((column // WIDTH) * WIDTH < end)[None, :]
    return mask


@triton.jit
def _expand_tile(
    slot,
    rank,
    scaling,
    rows,
    live,
    piece,
    first,
    end,
    shrunk,
    b_table,
    out,
    c: tl.constexpr,
    EXACT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """A tile by `steps` blocks of columns of one slice."""
    B: tl.constexpr = c.b_width
    SHRUNK: tl.constexpr = c.shrunk_width
    OUT: tl.constexpr = c.out_width
    SHAPE: tl.constexpr = (c.block_m, c.block_n)
    ONE: tl.constexpr = c.max_rank <= c.block_k
    x_row = tl.multiple_of(rows * c.shrunk_stride_token + piece * c.max_rank, SHRUNK)
    out_row = tl.multiple_of(rows * c.out_stride_token, OUT)
    column = first + tl.arange(0, c.block_n)
    b_first = slot * c.b_stride_slot
    before = tl.load(out + (out_row[:, None] + column[None, :]), mask=_out_mask(column, live, end, c, WHOLE), other=0.0)
    AHEAD: tl.constexpr = ONE and c.ahead
    if AHEAD:
        b_row = tl.multiple_of(b_first + column.to(tl.int64) * c.b_stride_row, B)
        b = _b_block(b_row, column < end, 0, rank, b_table, c, EXACT, WHOLE)
    if c.overlap:
        gdc_wait()
    if ONE:
        x = _shrunk_block(x_row, live, 0, rank, shrunk, c, EXACT).to(b_table.dtype.element_ty)
    for step in tl.range(0, c.steps, num_stages=c.stages):
        column = first + step * c.block_n + tl.arange(0, c.block_n)
        b_row = tl.multiple_of(b_first + column.to(tl.int64) * c.b_stride_row, B)
        total = tl.zeros(SHAPE, tl.float32)
        if ONE and not AHEAD:
            b = _b_block(b_row, column < end, 0, rank, b_table, c, EXACT, WHOLE)
        # The next block of the output is on its way while this one is multiplied.
        ahead = column + c.block_n
        mask = _out_mask(ahead, live & (step + 1 < c.steps), end, c, WHOLE)
        after = tl.load(out + (out_row[:, None] + ahead[None, :]), mask=mask, other=0.0)
        if ONE:
            total = product(x, b, total, c.widen)
            if AHEAD and c.steps > 1:
                b_row = tl.multiple_of(b_first + ahead.to(tl.int64) * c.b_stride_row, B)
                b = _b_block(b_row, (ahead < end) & (step + 1 < c.steps), 0, rank, b_table, c, EXACT, False)
        else:
            for start in range(0, rank, c.block_k):
                x = _shrunk_block(x_row, live, start, rank, shrunk, c, EXACT).to(b_table.dtype.element_ty)
                b = _b_block(b_row, column < end, start, rank, b_table, c, EXACT, WHOLE)
                total = product(x, b, total, c.widen)
        values = (before.to(tl.float32) + scaling * total).to(out.dtype.element_ty)
        tl.store(out + (out_row[:, None] + column[None, :]), values, mask=_out_mask(column, live, end, c, WHOLE))
        before = after


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def lora_expand_kernel(
    tile_words,
    tile_rows,
    shrunk,
    b_table,
    out,
    num_tokens,
    num_slots,
    c: tl.constexpr,
):
    """Grid (blocks of columns, tiles). c: ExpandConstants.

    Programs that run together write neighbouring columns of the same rows.
    """
    WIDTH: tl.constexpr = c.b_width if c.b_width > c.shrunk_width else c.shrunk_width
    slot, rank, scaling, rows, live = _tile_at(
        tl.program_id(1), tile_words, tile_rows, num_tokens, num_slots, c.max_rank, c.block_m
    )
    piece, first, end = _place(tl.program_id(0), c)
    if rank > 0:
        if rank % WIDTH == 0:
            _expand_tile(slot, rank, scaling, rows, live, piece, first, end, shrunk, b_table, out, c, True, c.whole)
        else:
            _expand_tile(slot, rank, scaling, rows, live, piece, first, end, shrunk, b_table, out, c, False, c.whole)
