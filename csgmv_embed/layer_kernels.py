"""The Triton kernel of the whole embedding layer: base row, A row and product with B in one pass over the output.

Equation, for every row t < num_tokens and column h < hidden:

    base[t, h] = embedding[id, h]           if 0 <= id < num_rows, else embedding[missing_row, h] or 0
                 out[t, h] as it is         with add
    out[t, h]  = base[t, h] + scaling[slot] * sum over r < rank of B[slot, h, r] * A[slot, r, id]

A as the lookup reads it (kernels.py): a row of extra for an added token, zero for an id that is in neither.

A program has two kinds of rows: those of its group, for `steps` blocks of columns, and others
group   `segments` neighbouring segments of csgmv's structure, walked in runs of one slot (segment_runs.py);
others  a tile of rows in the order of the tokens, of which it copies those that no group writes: with token words the
        rows whose word is 0, found as fast as in a lookup without LoRA, and groups leave the slots of rank 0 out;
        without words the rows behind the last segment.

Worked example, chunk size 2, ranks [2, 0], lengths [3, 1] in slots [0, 1]: with words the groups write rows 0, 1 and
2, and row 3 is copied as one of the others.

Invariants
- Every element of out's num_tokens rows is written by exactly one program; with add, rows without adapter by none.
- Products are of the tables' dtype, summed in float32; scaling and base are applied in float32, with one rounding.
- What lies beyond a slot's rank in A and B is read at most within an aligned group and then replaced by zero: it may
  be anything, NaN too.
- Offsets into tables and out are 64-bit.
- a_width divides all that places a row of A, b_width of B, column_width of embedding and out; none is above 16 bytes.
- With a permutation no segment is longer than segments * block_tokens * tiles positions.

What both kinds of rows begin with is loaded before either is written: without adapter a row waits for two trips to
memory (id and word, row), with one for four (bounds, permutation, id, rows).
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by layer.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import Literal, NamedTuple

import triton
import triton.language as tl

from csgmv_embed.segment_runs import b_block, product, rank_and_scaling, rows_at, run_at

# Which rows a program copies beside those of its group: none, those whose word is 0, those behind the last segment, or
# all there are, and then there are no groups.
Others = Literal["none", "by words", "behind", "all"]


class LayerConstants(NamedTuple):
    """What is compiled into the kernel. Strides and widths in elements."""

    num_rows: int  # of the embedding
    missing_row: int  # -1: ids outside the embedding read zeros
    e_stride_row: int
    vocab_size: int
    num_extra: int
    a_stride_slot: int
    a_stride_rank: int
    a_stride_vocab: int
    extra_stride_slot: int
    extra_stride_token: int
    extra_stride_rank: int
    b_stride_slot: int
    b_stride_hidden: int
    out_stride_token: int
    hidden: int
    max_rank: int
    has_extra: bool
    has_permutation: bool  # else segments are requests, in a replay longer than in the capture maybe
    others: Others
    add: bool
    widen: bool  # for Triton's interpreter, which multiplies bfloat16 wrongly
    a_width: int  # elements that may be read as one
    b_width: int
    column_width: int
    segments: int  # of a group, a power of two
    block_tokens: int
    block_hidden: int
    block_rank: int
    steps: int
    other_tokens: int  # of a tile of other rows
    other_columns: int


@triton.jit
def _ids(rows, live, input_ids):
    return tl.load(input_ids + rows, mask=live, other=-1).to(tl.int64)


@triton.jit
def _a_rows(ids, live, slot, start_rank, rank, a_table, extra, c: tl.constexpr):
    """A[slot, ranks, ids] as (tokens, ranks); zero beyond the rank and for an id that is in no table."""
    WIDTH: tl.constexpr = c.a_width
    k = start_rank + tl.arange(0, c.block_rank)
    wanted = ((k // WIDTH) * WIDTH < rank)[None, :]
    found = live & (ids >= 0) & (ids < c.vocab_size)
    row = tl.multiple_of(slot.to(tl.int64) * c.a_stride_slot + ids * c.a_stride_vocab, WIDTH)
    pointers = a_table + (row[:, None] + k[None, :].to(tl.int64) * c.a_stride_rank)
    values = tl.load(pointers, mask=found[:, None] & wanted, other=0.0)
    if c.has_extra:
        added = live & (ids >= c.vocab_size) & (ids - c.vocab_size < c.num_extra)
        row = slot.to(tl.int64) * c.extra_stride_slot + (ids - c.vocab_size) * c.extra_stride_token
        pointers = extra + (row[:, None] + k[None, :].to(tl.int64) * c.extra_stride_rank)
        values = tl.where(added[:, None], tl.load(pointers, mask=added[:, None] & wanted, other=0.0), values)
    return tl.where((k < rank)[None, :], values, 0.0)


@triton.jit
def _columns(first, BLOCK: tl.constexpr, STEPS: tl.constexpr, c: tl.constexpr):
    """A block of columns, and which of them there are."""
    column = first + tl.arange(0, BLOCK)
    if c.hidden % (BLOCK * STEPS) == 0:
        inside = tl.full((1, BLOCK), 1, tl.int1)
    else:
        inside = ((column // c.column_width) * c.column_width < c.hidden)[None, :]
    return column, inside


@triton.jit
def _read_base(rows, ids, live, column, inside, tables, c: tl.constexpr):
    """What LoRA is added to: (tokens, columns) of the embedding's rows, or with add of the rows of out."""
    _, embedding, _, _, _, out = tables
    WIDTH: tl.constexpr = c.column_width
    if c.add:
        row, table = rows.to(tl.int64) * c.out_stride_token, out
    else:
        found = (ids >= 0) & (ids < c.num_rows)
        if c.missing_row >= 0:
            ids = tl.where(found, ids, c.missing_row)
        else:
            live = live & found
        row, table = ids * c.e_stride_row, embedding
    row = tl.multiple_of(row, WIDTH)
    return tl.load(table + (row[:, None] + column[None, :]), mask=live[:, None] & inside, other=0.0)


@triton.jit
def _write(rows, live, column, inside, values, out, c: tl.constexpr):
    WIDTH: tl.constexpr = c.column_width
    row = tl.multiple_of(rows.to(tl.int64) * c.out_stride_token, WIDTH)
    tl.store(out + (row[:, None] + column[None, :]), values.to(out.dtype.element_ty), mask=live[:, None] & inside)


@triton.jit
def _products(ids, live, slot, rank, a, column, a_table, extra, b_table, c: tl.constexpr, FULL: tl.constexpr):
    """The sums over r, (tokens, columns). a: the rows of A, if a block holds all ranks. FULL: the rank is max_rank."""
    WIDTH: tl.constexpr = c.b_width
    SPAN: tl.constexpr = c.block_hidden * c.steps
    SHAPE: tl.constexpr = (c.block_tokens, c.block_hidden)
    full: tl.constexpr = FULL and c.max_rank % c.block_rank == 0
    b_row = tl.multiple_of(slot.to(tl.int64) * c.b_stride_slot + column.to(tl.int64) * c.b_stride_hidden, WIDTH)
    total = tl.zeros(SHAPE, tl.float32)
    if c.max_rank <= c.block_rank:
        b = b_block(b_row, b_table, column, 0, rank, c.hidden, SPAN, c.block_rank, WIDTH, full)
        total = product(a, b, total, c.widen)
    else:
        for start_rank in range(0, rank, c.block_rank):
            some = _a_rows(ids, live, slot, start_rank, rank, a_table, extra, c)
            b = b_block(b_row, b_table, column, start_rank, rank, c.hidden, SPAN, c.block_rank, WIDTH, full)
            total = product(some, b, total, c.widen)
    return total


@triton.jit
def _write_lora(rows, live, slot, rank, scaling, first_column, tables, c: tl.constexpr, FULL: tl.constexpr):
    """A tile of rows of one slot that has an adapter."""
    input_ids, _, a_table, extra, b_table, out = tables
    ids = _ids(rows, live, input_ids)
    # Else they are read again with each block of columns.
    a = _a_rows(ids, live, slot, 0, rank, a_table, extra, c) if c.max_rank <= c.block_rank else 0
    for step in range(c.steps):
        column, inside = _columns(first_column + step * c.block_hidden, c.block_hidden, c.steps, c)
        base = _read_base(rows, ids, live, column, inside, tables, c)
        total = _products(ids, live, slot, rank, a, column, a_table, extra, b_table, c, FULL)
        _write(rows, live, column, inside, base.to(tl.float32) + scaling * total, out, c)


@triton.jit
def _copy_base(rows, live, first_column, tables, BLOCK: tl.constexpr, STEPS: tl.constexpr, c: tl.constexpr):
    """A tile of rows without adapter."""
    input_ids, _, _, _, _, out = tables
    ids = _ids(rows, live, input_ids)
    for step in range(STEPS):
        column, inside = _columns(first_column + step * BLOCK, BLOCK, STEPS, c)
        base = _read_base(rows, ids, live, column, inside, tables, c)
        _write(rows, live, column, inside, base, out, c)


@triton.jit
def _write_tile(rows, live, slot, rank, scaling, first_column, tables, c: tl.constexpr):
    """A tile of rows of one slot."""
    # No ids are read up here: a program that waits for them in vain ends a trip to memory later.
    if rank == 0:
        if c.others != "by words" and not c.add:
            _copy_base(rows, live, first_column, tables, c.block_hidden, c.steps, c)
    elif rank == c.max_rank:
        _write_lora(rows, live, slot, c.max_rank, scaling, first_column, tables, c, True)
    else:
        _write_lora(rows, live, slot, rank, scaling, first_column, tables, c, False)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments"])
def embedding_lora_kernel(
    input_ids,
    words,
    permutation,
    seg_indptr,
    seg_slots,
    slot_ranks,
    scalings,
    embedding,
    a_table,
    extra,
    b_table,
    out,
    num_tokens,
    num_slots,
    num_segments,
    c: tl.constexpr,
):
    """Grid (ceil(hidden / (block_hidden * steps)), tiles of a group, groups or more, for all tiles of other rows).

    c: LayerConstants. The programs of a group take its tiles in turn, without a permutation more than once; a group of
    several segments has one program. Tiles of other rows are other_tokens by other_columns, long rows that few
    programs share.
    """
    tables = input_ids, embedding, a_table, extra, b_table, out
    first_column = tl.program_id(0) * (c.block_hidden * c.steps)
    tile = tl.program_id(1)
    segment = tl.program_id(2) * c.segments
    last = tl.minimum(segment + c.segments, num_segments)
    if c.others != "all":
        slot, first, end, after = run_at(segment, last, seg_slots, seg_indptr, c.segments)
    blocks: tl.constexpr = (c.hidden + c.other_columns - 1) // c.other_columns
    other = (tl.program_id(2) * tl.num_programs(1) + tile) * tl.num_programs(0) + tl.program_id(0)
    if c.others == "by words" or c.others == "all":
        others = (other // blocks) * c.other_tokens + tl.arange(0, c.other_tokens)
        copied = others < num_tokens
        other_ids = _ids(others, copied, input_ids)
        if c.others == "by words":
            copied = copied & (tl.load(words + others, mask=copied, other=1) == 0)
        other_column, inside = _columns((other % blocks) * c.other_columns, c.other_columns, 1, c)
        base = _read_base(others, other_ids, copied, other_column, inside, tables, c)
    if c.others != "all":
        rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, c.max_rank)
        start = first + tile * c.block_tokens
        rows, live = rows_at(start, end, num_tokens, permutation, c.has_permutation, c.block_tokens)
    if c.others == "by words" or c.others == "all":
        _write(others, copied, other_column, inside, base, out, c)
    if c.others != "all" and c.segments == 1 and c.has_permutation:
        if start < end:
            _write_tile(rows, live, slot, rank, scaling, first_column, tables, c)
    elif c.others != "all":
        while segment < last:
            while start < end:
                _write_tile(rows, live, slot, rank, scaling, first_column, tables, c)
                start += tl.num_programs(1) * c.block_tokens
                if not c.has_permutation:
                    rows, live = rows_at(start, end, num_tokens, permutation, c.has_permutation, c.block_tokens)
            segment = after
            slot, first, end, after = run_at(segment, last, seg_slots, seg_indptr, c.segments)
            rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, c.max_rank)
            start = first + tile * c.block_tokens
            rows, live = rows_at(start, end, num_tokens, permutation, c.has_permutation, c.block_tokens)
    if c.others == "behind":
        # Mostly there are none, so these rows get no programs of their own: those of the groups share them.
        row = (other // blocks) * c.other_tokens
        rows_at_once = (tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2) // blocks) * c.other_tokens
        start = tl.load(seg_indptr + num_segments).to(tl.int32) + row
        end = tl.where(row < rows_at_once, num_tokens, start)
        while start < end:
            others = start + tl.arange(0, c.other_tokens)
            copied = others < num_tokens
            _copy_base(others, copied, (other % blocks) * c.other_columns, tables, c.other_columns, 1, c)
            start += rows_at_once
