"""The Triton kernels of the whole embedding layer: base row, A row and product with B in one pass over the output.

Equation, for every row t < num_tokens and column h < hidden:

    base[t, h] = embedding[id, h]           if 0 <= id < num_rows, else embedding[missing_row, h] or 0
                 out[t, h] as it is         with add
    out[t, h]  = base[t, h] + scaling[slot] * sum over r < rank of B[slot, h, r] * A[slot, r, id]

A as the lookup reads it (lookup.py): a row of extra for an added token, zero for an id that is in neither.

embedding_rows_kernel is for a batch in which nobody has an adapter: base rows alone. In embedding_lora_kernel a program
has a group and maybe bare rows, which have no adapter:
group  `segments` neighbouring segments of csgmv's structure, walked in runs of one slot (common.py), for `steps`
       blocks of columns;
bare   a tile of rows in the order of the tokens. copy_bare: of those it copies the ones whose word is 0, found as fast
       as in a lookup without LoRA, and groups leave the slots of rank 0 out. copy_padding: it copies rows behind the
       last segment, and groups write the slots of rank 0 too.

Worked example, chunk size 2, ranks [2, 0], lengths [3, 1] in slots [0, 1]: with copy_bare the groups write rows 0, 1
and 2, and row 3 is copied as a bare one.

Invariants
- Every element of out's num_tokens rows is written by exactly one program; with add, rows without adapter by none.
- Products are of the tables' dtype, summed in float32; scaling and base are applied in float32, with one rounding.
- What lies beyond a slot's rank in A and B is read at most within an aligned group and then replaced by zero: it may
  be anything, NaN too.
- Offsets into tables and out are 64-bit.
- a_width divides all that places a row of A, b_width of B, out_width of embedding and out (common.py, WIDTH).
- With a permutation no segment is longer than segments * block_m * tiles positions.

What both kinds of rows begin with is loaded before either is written: a bare row waits for two trips to memory (id and
word, row), one with an adapter for four (bounds, permutation, id, rows).
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by the op.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import NamedTuple

import triton
import triton.language as tl

from csgmv_embed.kernels.common import a_rows, b_block, load_ids, product, rank_and_scaling, rows_at, run_at


class RowsConstants(NamedTuple):
    """Constants compiled into the copy of base rows.

    Strides and widths in elements; bare_m are rows, bare_n columns.
    """

    num_rows: int  # of the embedding
    missing_row: int  # -1: ids outside the embedding read zeros
    e_stride_row: int
    out_stride_token: int
    hidden: int
    out_width: int  # elements that may be read and written as one
    bare_m: int
    bare_n: int
    add: bool = False


class LayerConstants(NamedTuple):
    """Constants compiled into the whole layer. block_m are rows, block_n columns, block_k ranks of a product."""

    num_rows: int
    missing_row: int
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
    add: bool
    copy_bare: bool
    copy_padding: bool
    widen: bool  # for Triton's interpreter, which multiplies bfloat16 wrongly
    a_width: int
    b_width: int
    out_width: int
    segments: int  # of a group, a power of two
    block_m: int
    block_n: int
    block_k: int
    steps: int
    bare_m: int  # of a tile of bare rows
    bare_n: int


@triton.jit
def _columns(first, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, c: tl.constexpr):
    """A block of columns, and the mask of those that there are."""
    n = first + tl.arange(0, BLOCK_N)
    if c.hidden % (BLOCK_N * STEPS) == 0:
        inside = tl.full((1, BLOCK_N), 1, tl.int1)
    else:
        inside = ((n // c.out_width) * c.out_width < c.hidden)[None, :]
    return n, inside


@triton.jit
def _read_base(rows, ids, mask, n, inside, embedding_ptr, out_ptr, c: tl.constexpr):
    """What LoRA is added to: (M, N) of the embedding's rows, or with add of the rows of out."""
    WIDTH: tl.constexpr = c.out_width
    if c.add:
        row, base_ptr = rows.to(tl.int64) * c.out_stride_token, out_ptr
    else:
        found = (ids >= 0) & (ids < c.num_rows)
        if c.missing_row >= 0:
            ids = tl.where(found, ids, c.missing_row)
        else:
            mask = mask & found
        row, base_ptr = ids * c.e_stride_row, embedding_ptr
    row = tl.multiple_of(row, WIDTH)
    return tl.load(base_ptr + (row[:, None] + n[None, :]), mask=mask[:, None] & inside, other=0.0)


@triton.jit
def _write(rows, mask, n, inside, values, out_ptr, c: tl.constexpr):
    WIDTH: tl.constexpr = c.out_width
    row = tl.multiple_of(rows.to(tl.int64) * c.out_stride_token, WIDTH)
    pointers = out_ptr + (row[:, None] + n[None, :])
    tl.store(pointers, values.to(out_ptr.dtype.element_ty), mask=mask[:, None] & inside)


@triton.jit
def _copy_base(
    rows,
    mask,
    first_n,
    input_ids_ptr,
    embedding_ptr,
    out_ptr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    c: tl.constexpr,
):
    """A tile of rows without adapter, STEPS blocks of columns wide."""
    ids = load_ids(rows, mask, input_ids_ptr)
    for step in range(STEPS):
        n, inside = _columns(first_n + step * BLOCK, BLOCK, STEPS, c)
        base = _read_base(rows, ids, mask, n, inside, embedding_ptr, out_ptr, c)
        _write(rows, mask, n, inside, base, out_ptr, c)


@triton.jit
def _a_block(ids, mask, slot, rank, start_k, a_ptr, extra_ptr, c: tl.constexpr):
    """Rows of A of one slot by a block of ranks."""
    k = start_k + tl.arange(0, c.block_k)
    near = ((k // c.a_width) * c.a_width < rank)[None, :]
    return a_rows(ids, mask, slot, near, (k < rank)[None, :], k, a_ptr, extra_ptr, c)


@triton.jit
def _product(ids, mask, slot, rank, a, n, a_ptr, extra_ptr, b_ptr, c: tl.constexpr, FULL: tl.constexpr):
    """The sums over r, (M, N). a: the rows of A, if a block holds all ranks. FULL: the rank is max_rank."""
    WIDTH: tl.constexpr = c.b_width
    SPAN: tl.constexpr = c.block_n * c.steps
    SHAPE: tl.constexpr = (c.block_m, c.block_n)
    full: tl.constexpr = FULL and c.max_rank % c.block_k == 0
    b_row = tl.multiple_of(slot.to(tl.int64) * c.b_stride_slot + n.to(tl.int64) * c.b_stride_hidden, WIDTH)
    total = tl.zeros(SHAPE, tl.float32)
    if c.max_rank <= c.block_k:
        b = b_block(b_row, b_ptr, n, 0, rank, c.hidden, SPAN, c.block_k, WIDTH, full)
        total = product(a, b, total, c.widen)
    else:
        for start_k in range(0, rank, c.block_k):
            some = _a_block(ids, mask, slot, rank, start_k, a_ptr, extra_ptr, c)
            b = b_block(b_row, b_ptr, n, start_k, rank, c.hidden, SPAN, c.block_k, WIDTH, full)
            total = product(some, b, total, c.widen)
    return total


@triton.jit
def _write_lora(
    rows,
    mask,
    slot,
    rank,
    scaling,
    first_n,
    input_ids_ptr,
    embedding_ptr,
    a_ptr,
    extra_ptr,
    b_ptr,
    out_ptr,
    c: tl.constexpr,
    FULL: tl.constexpr,
):
    """A tile of rows of one slot that has an adapter."""
    ids = load_ids(rows, mask, input_ids_ptr)
    a = 0
    if c.max_rank <= c.block_k:  # else they are read again with each block of columns
        a = _a_block(ids, mask, slot, rank, 0, a_ptr, extra_ptr, c)
    for step in range(c.steps):
        n, inside = _columns(first_n + step * c.block_n, c.block_n, c.steps, c)
        base = _read_base(rows, ids, mask, n, inside, embedding_ptr, out_ptr, c)
        total = _product(ids, mask, slot, rank, a, n, a_ptr, extra_ptr, b_ptr, c, FULL)
        _write(rows, mask, n, inside, base.to(tl.float32) + scaling * total, out_ptr, c)


@triton.jit
def _write_tile(
    rows,
    mask,
    slot,
    rank,
    scaling,
    first_n,
    input_ids_ptr,
    embedding_ptr,
    a_ptr,
    extra_ptr,
    b_ptr,
    out_ptr,
    c: tl.constexpr,
):
    """A tile of rows of one slot."""
    # No ids are read up here: a program that waits for them in vain ends a trip to memory later.
    tables = input_ids_ptr, embedding_ptr, a_ptr, extra_ptr, b_ptr, out_ptr
    if rank == 0:
        if not c.copy_bare and not c.add:
            _copy_base(rows, mask, first_n, input_ids_ptr, embedding_ptr, out_ptr, c.block_n, c.steps, c)
    elif rank == c.max_rank:
        _write_lora(rows, mask, slot, c.max_rank, scaling, first_n, *tables, c, True)
    else:
        _write_lora(rows, mask, slot, rank, scaling, first_n, *tables, c, False)


@triton.jit
def _copy_padding(
    program,
    blocks: tl.constexpr,
    num_segments,
    num_tokens,
    input_ids_ptr,
    seg_indptr_ptr,
    embedding_ptr,
    out_ptr,
    c: tl.constexpr,
):
    """The rows behind the last segment. blocks: tiles of bare_n columns that a row has.

    Mostly there are none, so these rows get no programs of their own: those of the groups share them.
    """
    row = (program // blocks) * c.bare_m
    rows_at_once = (tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2) // blocks) * c.bare_m
    start = tl.load(seg_indptr_ptr + num_segments).to(tl.int32) + row
    end = tl.where(row < rows_at_once, num_tokens, start)
    while start < end:
        bare = start + tl.arange(0, c.bare_m)
        n = (program % blocks) * c.bare_n
        _copy_base(bare, bare < num_tokens, n, input_ids_ptr, embedding_ptr, out_ptr, c.bare_n, 1, c)
        start += rows_at_once


@triton.jit(do_not_specialize=["num_tokens"])
def embedding_rows_kernel(input_ids_ptr, embedding_ptr, out_ptr, num_tokens, c: tl.constexpr):
    """Grid (ceil(hidden / bare_n), ceil(num_tokens / bare_m)). c: RowsConstants."""
    rows = tl.program_id(1) * c.bare_m + tl.arange(0, c.bare_m)
    first_n = tl.program_id(0) * c.bare_n
    _copy_base(rows, rows < num_tokens, first_n, input_ids_ptr, embedding_ptr, out_ptr, c.bare_n, 1, c)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments"])
def embedding_lora_kernel(
    input_ids_ptr,
    token_adapters_ptr,
    permutation_ptr,
    seg_indptr_ptr,
    seg_slots_ptr,
    slot_ranks_ptr,
    scalings_ptr,
    embedding_ptr,
    a_ptr,
    extra_ptr,
    b_ptr,
    out_ptr,
    num_tokens,
    num_slots,
    num_segments,
    c: tl.constexpr,
):
    """Grid (ceil(hidden / (block_n * steps)), tiles of a group, groups or more, for all tiles of bare rows).

    c: LayerConstants. The programs of a group take its tiles in turn, without a permutation more than once; a group of
    several segments has one program. Tiles of bare rows are bare_m by bare_n, long rows that few programs share.
    """
    tables = input_ids_ptr, embedding_ptr, a_ptr, extra_ptr, b_ptr, out_ptr
    first_n = tl.program_id(0) * (c.block_n * c.steps)
    tile = tl.program_id(1)
    segment = tl.program_id(2) * c.segments
    last = tl.minimum(segment + c.segments, num_segments)
    slot, first, end, after = run_at(segment, last, seg_slots_ptr, seg_indptr_ptr, c.segments)
    blocks: tl.constexpr = (c.hidden + c.bare_n - 1) // c.bare_n
    program = (tl.program_id(2) * tl.num_programs(1) + tile) * tl.num_programs(0) + tl.program_id(0)
    if c.copy_bare:
        bare = (program // blocks) * c.bare_m + tl.arange(0, c.bare_m)
        is_bare = bare < num_tokens
        bare_ids = load_ids(bare, is_bare, input_ids_ptr)
        is_bare = is_bare & (tl.load(token_adapters_ptr + bare, mask=is_bare, other=1) == 0)
        bare_n, inside = _columns((program % blocks) * c.bare_n, c.bare_n, 1, c)
        base = _read_base(bare, bare_ids, is_bare, bare_n, inside, embedding_ptr, out_ptr, c)
    rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks_ptr, scalings_ptr, c.max_rank)
    start = first + tile * c.block_m
    rows, mask = rows_at(start, end, num_tokens, permutation_ptr, c.has_permutation, c.block_m)
    if c.copy_bare:
        _write(bare, is_bare, bare_n, inside, base, out_ptr, c)
    if c.segments == 1 and c.has_permutation:
        if start < end:
            _write_tile(rows, mask, slot, rank, scaling, first_n, *tables, c)
    else:
        while segment < last:
            while start < end:
                _write_tile(rows, mask, slot, rank, scaling, first_n, *tables, c)
                start += tl.num_programs(1) * c.block_m
                if not c.has_permutation:
                    rows, mask = rows_at(start, end, num_tokens, permutation_ptr, c.has_permutation, c.block_m)
            segment = after
            slot, first, end, after = run_at(segment, last, seg_slots_ptr, seg_indptr_ptr, c.segments)
            rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks_ptr, scalings_ptr, c.max_rank)
            start = first + tile * c.block_m
            rows, mask = rows_at(start, end, num_tokens, permutation_ptr, c.has_permutation, c.block_m)
    if c.copy_padding:
        _copy_padding(
            program, blocks, num_segments, num_tokens, input_ids_ptr, seg_indptr_ptr, embedding_ptr, out_ptr, c
        )
