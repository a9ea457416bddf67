"""The two Triton kernels of LoRA on lm_head: shrink to the rank, expand into the vocabulary.

Equations, for every row t of a segment of a slot with rank > 0; all other rows stay as they are:

    shrunk[t, r] = sum over h of hidden[t, h] * A[slot, r, h]     for r < rank, 0 for rank <= r < max_rank
    logits[t, v] += scaling[slot] * sum over r < rank of B[slot, v, r] * shrunk[t, r]

Programs walk groups of csgmv's segments in runs of one slot (segment_runs.py), so that a B table is read once for all
tokens of its slot that fit a tile. Groups are the inner axis of the grid of the expand: programs that run together read
the same block of B and write neighbouring bytes of different rows.

Worked example, chunk size 2, two segments a group, ranks [2, 0], lengths [3, 1] in slots [0, 1]: segments [0, 0, 1],
group 0 is one run of rows 0, 1, 2, group 1 a run of row 3, which has no adapter and is left alone.

Invariants
- Products are of the tables' dtype, summed in float32. shrunk is rounded to the dtype of hidden; the scaled sum and the
  logits are added in float32 and rounded once.
- What lies beyond a slot's rank in A, B and shrunk may be anything: it is replaced by zero.
- Offsets are 64-bit: tokens * vocabulary passes 2^31.
- Each width divides all that places a row of its tensor and is at most 16 bytes.
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by head.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import NamedTuple

import triton
import triton.language as tl

from csgmv_embed.segment_runs import b_block, product, rank_and_scaling, rows_at, run_at


class ShrinkConstants(NamedTuple):
    """What is compiled into the shrink. Strides and widths in elements."""

    hidden_stride_token: int
    a_stride_slot: int
    a_stride_rank: int
    shrunk_stride_token: int
    hidden: int
    max_rank: int
    has_permutation: bool  # else segments are requests, in a replay longer than in the capture maybe
    widen: bool  # for Triton's interpreter, which multiplies bfloat16 wrongly
    width: int  # elements of hidden states and of A that may be read as one
    segments: int  # of a group, a power of two
    block_tokens: int
    block_rank: int
    block_hidden: int


class ExpandConstants(NamedTuple):
    """The same of the expand."""

    shrunk_stride_token: int
    b_stride_slot: int
    b_stride_vocab: int
    logits_stride_token: int
    vocab: int
    max_rank: int
    has_permutation: bool
    widen: bool
    shrunk_width: int
    b_width: int
    logits_width: int
    segments: int
    block_tokens: int
    block_vocab: int
    block_rank: int
    steps: int


@triton.jit
def _x_block(x_row, live, start, end, x, BLOCK: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """x[rows, start : start + BLOCK]; zero from `end` on. FULL: the block ends before."""
    k = start + tl.arange(0, BLOCK)
    pointers = x + (x_row[:, None] + k[None, :])
    if FULL:
        values = tl.load(pointers, mask=live[:, None], other=0.0)
    else:
        values = tl.load(pointers, mask=live[:, None] & ((k // WIDTH) * WIDTH < end)[None, :], other=0.0)
        values = tl.where((k < end)[None, :], values, 0.0)
    return values


@triton.jit
def _shrink_tile(rows, live, slot, rank, first_rank, hidden, a_table, shrunk, c: tl.constexpr):
    """A tile of rows of one slot by a block of ranks."""
    WIDTH: tl.constexpr = c.width
    SHAPE: tl.constexpr = (c.block_tokens, c.block_rank)
    k = first_rank + tl.arange(0, c.block_rank)
    a_row = tl.multiple_of(slot.to(tl.int64) * c.a_stride_slot + k.to(tl.int64) * c.a_stride_rank, WIDTH)
    rows = rows.to(tl.int64)
    x_row = tl.multiple_of(rows * c.hidden_stride_token, WIDTH)
    total = tl.zeros(SHAPE, tl.float32)
    whole: tl.constexpr = c.hidden % c.block_hidden == 0
    for start in range(0, c.hidden, c.block_hidden):
        x = _x_block(x_row, live, start, c.hidden, hidden, c.block_hidden, WIDTH, whole)
        a = _x_block(a_row, k < rank, start, c.hidden, a_table, c.block_hidden, WIDTH, whole)
        total = product(x, tl.trans(a), total, c.widen)
    pointers = shrunk + (rows[:, None] * c.shrunk_stride_token + k[None, :])
    tl.store(pointers, total.to(shrunk.dtype.element_ty), mask=live[:, None] & (k < c.max_rank)[None, :])


@triton.jit
def _expand_tile(
    rows, live, slot, rank, scaling, first_column, shrunk, b_table, logits, c: tl.constexpr, FULL: tl.constexpr
):
    """A tile of rows of one slot by `steps` blocks of the vocabulary. FULL: the rank is max_rank."""
    SHRUNK: tl.constexpr = c.shrunk_width
    LOGITS: tl.constexpr = c.logits_width
    B: tl.constexpr = c.b_width
    SPAN: tl.constexpr = c.block_vocab * c.steps
    SHAPE: tl.constexpr = (c.block_tokens, c.block_vocab)
    full: tl.constexpr = FULL and c.max_rank % c.block_rank == 0
    rows = rows.to(tl.int64)
    x_row = tl.multiple_of(rows * c.shrunk_stride_token, SHRUNK)
    out_row = tl.multiple_of(rows * c.logits_stride_token, LOGITS)
    if c.max_rank <= c.block_rank:
        x = _x_block(x_row, live, 0, rank, shrunk, c.block_rank, SHRUNK, full)
    for step in range(c.steps):
        column = first_column + step * c.block_vocab + tl.arange(0, c.block_vocab)
        if c.vocab % SPAN == 0:
            inside = live[:, None]
        else:
            inside = live[:, None] & ((column // LOGITS) * LOGITS < c.vocab)[None, :]
        pointers = logits + (out_row[:, None] + column[None, :])
        before = tl.load(pointers, mask=inside, other=0.0)
        b_row = tl.multiple_of(slot.to(tl.int64) * c.b_stride_slot + column.to(tl.int64) * c.b_stride_vocab, B)
        total = tl.zeros(SHAPE, tl.float32)
        if c.max_rank <= c.block_rank:
            b = b_block(b_row, b_table, column, 0, rank, c.vocab, SPAN, c.block_rank, B, full)
            total = product(x, b, total, c.widen)
        else:
            for start in range(0, rank, c.block_rank):
                x = _x_block(x_row, live, start, rank, shrunk, c.block_rank, SHRUNK, full)
                b = b_block(b_row, b_table, column, start, rank, c.vocab, SPAN, c.block_rank, B, full)
                total = product(x, b, total, c.widen)
        values = before.to(tl.float32) + scaling * total
        tl.store(pointers, values.to(logits.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments"])
def lm_head_shrink_kernel(
    permutation,
    seg_indptr,
    seg_slots,
    slot_ranks,
    scalings,
    hidden,
    a_table,
    shrunk,
    num_tokens,
    num_slots,
    num_segments,
    c: tl.constexpr,
):
    """Grid (ceil(max_rank / block_rank), tiles of a group, groups). c: ShrinkConstants."""
    tile = tl.program_id(1)
    segment = tl.program_id(2) * c.segments
    last = tl.minimum(segment + c.segments, num_segments)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, c.segments)
        rank, _ = rank_and_scaling(slot, num_slots, slot_ranks, scalings, c.max_rank)
        start = first + tile * c.block_tokens
        if rank == 0:
            start = end
        while start < end:
            rows, live = rows_at(start, end, num_tokens, permutation, c.has_permutation, c.block_tokens)
            _shrink_tile(rows, live, slot, rank, tl.program_id(0) * c.block_rank, hidden, a_table, shrunk, c)
            start = start + tl.num_programs(1) * c.block_tokens if not c.has_permutation else end


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments"])
def lm_head_expand_kernel(
    permutation,
    seg_indptr,
    seg_slots,
    slot_ranks,
    scalings,
    shrunk,
    b_table,
    logits,
    num_tokens,
    num_slots,
    num_segments,
    c: tl.constexpr,
):
    """Grid (tiles of a group, groups, ceil(vocab / (block_vocab * steps))). c: ExpandConstants."""
    tile = tl.program_id(0)
    segment = tl.program_id(1) * c.segments
    last = tl.minimum(segment + c.segments, num_segments)
    first_column = tl.program_id(2) * (c.block_vocab * c.steps)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, c.segments)
        rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, c.max_rank)
        start = first + tile * c.block_tokens
        if rank == 0:
            start = end
        while start < end:
            rows, live = rows_at(start, end, num_tokens, permutation, c.has_permutation, c.block_tokens)
            if rank == c.max_rank:
                _expand_tile(rows, live, slot, c.max_rank, scaling, first_column, shrunk, b_table, logits, c, True)
            else:
                _expand_tile(rows, live, slot, rank, scaling, first_column, shrunk, b_table, logits, c, False)
            start = start + tl.num_programs(0) * c.block_tokens if not c.has_permutation else end
