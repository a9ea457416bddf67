"""The two Triton kernels of LoRA on lm_head: shrink to the rank, expand into the vocabulary.

Equations, for every row t of a segment of a slot with rank > 0; all other rows stay as they are:

    shrunk[t, r] = sum over h of x[t, h] * A[slot, r, h]     for r < rank, 0 for rank <= r < max_rank
    logits[t, v] += scaling[slot] * sum over r < rank of B[slot, v, r] * shrunk[t, r]

Programs walk groups of csgmv's segments in runs of one slot (common.py), so that a B table is read once for all
tokens of its slot that fit a tile. Groups are the inner axis of the grid of the expand: programs that run together read
the same block of B and write neighbouring bytes of different rows.

Worked example, chunk size 2, two segments a group, ranks [2, 0], lengths [3, 1] in slots [0, 1]: segments [0, 0, 1],
group 0 is one run of rows 0, 1, 2, group 1 a run of row 3, which has no adapter and is left alone.

Invariants
- Products are of the tables' dtype, summed in float32. shrunk is rounded to the dtype of x; the scaled sum and the
  logits are added in float32 and rounded once.
- What lies beyond a slot's rank in A, B and shrunk may be anything: it is replaced by zero.
- Offsets are 64-bit: tokens * vocabulary passes 2^31.
- Each width divides all that places a row of its tensor and is at most 16 bytes.
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by the op.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import NamedTuple

import triton
import triton.language as tl

from csgmv_embed.kernels.common import b_block, product, rank_and_scaling, rows_at, run_at


class ShrinkConstants(NamedTuple):
    """What is compiled into the shrink. Strides and widths in elements; blocks: m rows, n ranks, k hidden states."""

    x_stride_token: int
    a_stride_slot: int
    a_stride_rank: int
    shrunk_stride_token: int
    hidden: int
    max_rank: int
    has_permutation: bool  # else segments are requests, in a replay longer than in the capture maybe
    widen: bool  # for Triton's interpreter, which multiplies bfloat16 wrongly
    width: int  # of hidden states and of A
    segments: int  # of a group, a power of two
    block_m: int
    block_n: int
    block_k: int


class ExpandConstants(NamedTuple):
    """The same of the expand; block_m are rows, block_n columns of the vocabulary, block_k ranks."""

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
    block_m: int
    block_n: int
    block_k: int
    steps: int


@triton.jit
def _row_block(x_row, mask, start_k, end, x_ptr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """x[rows, start_k : start_k + BLOCK_K]; zero from `end` on. FULL: the block ends before."""
    k = start_k + tl.arange(0, BLOCK_K)
    pointers = x_ptr + (x_row[:, None] + k[None, :])
    if FULL:
        values = tl.load(pointers, mask=mask[:, None], other=0.0)
    else:
        values = tl.load(pointers, mask=mask[:, None] & ((k // WIDTH) * WIDTH < end)[None, :], other=0.0)
        values = tl.where((k < end)[None, :], values, 0.0)
    return values


@triton.jit
def _shrink_tile(rows, mask, slot, rank, first_n, x_ptr, a_ptr, shrunk_ptr, c: tl.constexpr):
    """A tile of rows of one slot by a block of ranks."""
    WIDTH: tl.constexpr = c.width
    SHAPE: tl.constexpr = (c.block_m, c.block_n)
    n = first_n + tl.arange(0, c.block_n)
    a_row = tl.multiple_of(slot.to(tl.int64) * c.a_stride_slot + n.to(tl.int64) * c.a_stride_rank, WIDTH)
    rows = rows.to(tl.int64)
    x_row = tl.multiple_of(rows * c.x_stride_token, WIDTH)
    total = tl.zeros(SHAPE, tl.float32)
    whole: tl.constexpr = c.hidden % c.block_k == 0
    for start_k in range(0, c.hidden, c.block_k):
        x = _row_block(x_row, mask, start_k, c.hidden, x_ptr, c.block_k, WIDTH, whole)
        a = _row_block(a_row, n < rank, start_k, c.hidden, a_ptr, c.block_k, WIDTH, whole)
        total = product(x, tl.trans(a), total, c.widen)
    pointers = shrunk_ptr + (rows[:, None] * c.shrunk_stride_token + n[None, :])
    tl.store(pointers, total.to(shrunk_ptr.dtype.element_ty), mask=mask[:, None] & (n < c.max_rank)[None, :])


@triton.jit
def _expand_tile(
    rows, mask, slot, rank, scaling, first_n, shrunk_ptr, b_ptr, logits_ptr, c: tl.constexpr, FULL: tl.constexpr
):
    """A tile of rows of one slot by `steps` blocks of the vocabulary. FULL: the rank is max_rank."""
    SHRUNK_WIDTH: tl.constexpr = c.shrunk_width
    LOGITS_WIDTH: tl.constexpr = c.logits_width
    B_WIDTH: tl.constexpr = c.b_width
    SPAN: tl.constexpr = c.block_n * c.steps
    SHAPE: tl.constexpr = (c.block_m, c.block_n)
    full: tl.constexpr = FULL and c.max_rank % c.block_k == 0
    rows = rows.to(tl.int64)
    x_row = tl.multiple_of(rows * c.shrunk_stride_token, SHRUNK_WIDTH)
    out_row = tl.multiple_of(rows * c.logits_stride_token, LOGITS_WIDTH)
    if c.max_rank <= c.block_k:
        x = _row_block(x_row, mask, 0, rank, shrunk_ptr, c.block_k, SHRUNK_WIDTH, full)
    for step in range(c.steps):
        n = first_n + step * c.block_n + tl.arange(0, c.block_n)
        if c.vocab % SPAN == 0:
            inside = mask[:, None]
        else:
            inside = mask[:, None] & ((n // LOGITS_WIDTH) * LOGITS_WIDTH < c.vocab)[None, :]
        pointers = logits_ptr + (out_row[:, None] + n[None, :])
        before = tl.load(pointers, mask=inside, other=0.0)
        b_row = tl.multiple_of(slot.to(tl.int64) * c.b_stride_slot + n.to(tl.int64) * c.b_stride_vocab, B_WIDTH)
        total = tl.zeros(SHAPE, tl.float32)
        if c.max_rank <= c.block_k:
            b = b_block(b_row, b_ptr, n, 0, rank, c.vocab, SPAN, c.block_k, B_WIDTH, full)
            total = product(x, b, total, c.widen)
        else:
            for start_k in range(0, rank, c.block_k):
                x = _row_block(x_row, mask, start_k, rank, shrunk_ptr, c.block_k, SHRUNK_WIDTH, full)
                b = b_block(b_row, b_ptr, n, start_k, rank, c.vocab, SPAN, c.block_k, B_WIDTH, full)
                total = product(x, b, total, c.widen)
        values = before.to(tl.float32) + scaling * total
        tl.store(pointers, values.to(logits_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments"])
def lm_head_shrink_kernel(
    permutation_ptr,
    seg_indptr_ptr,
    seg_slots_ptr,
    slot_ranks_ptr,
    scalings_ptr,
    x_ptr,
    a_ptr,
    shrunk_ptr,
    num_tokens,
    num_slots,
    num_segments,
    c: tl.constexpr,
):
    """Grid (ceil(max_rank / block_n), tiles of a group, groups). c: ShrinkConstants."""
    tile = tl.program_id(1)
    segment = tl.program_id(2) * c.segments
    last = tl.minimum(segment + c.segments, num_segments)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots_ptr, seg_indptr_ptr, c.segments)
        rank, _ = rank_and_scaling(slot, num_slots, slot_ranks_ptr, scalings_ptr, c.max_rank)
        start = first + tile * c.block_m
        if rank == 0:
            start = end
        while start < end:
            rows, mask = rows_at(start, end, num_tokens, permutation_ptr, c.has_permutation, c.block_m)
            _shrink_tile(rows, mask, slot, rank, tl.program_id(0) * c.block_n, x_ptr, a_ptr, shrunk_ptr, c)
            start = start + tl.num_programs(1) * c.block_m if not c.has_permutation else end


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments"])
def lm_head_expand_kernel(
    permutation_ptr,
    seg_indptr_ptr,
    seg_slots_ptr,
    slot_ranks_ptr,
    scalings_ptr,
    shrunk_ptr,
    b_ptr,
    logits_ptr,
    num_tokens,
    num_slots,
    num_segments,
    c: tl.constexpr,
):
    """Grid (tiles of a group, groups, ceil(vocab / (block_n * steps))). c: ExpandConstants."""
    tile = tl.program_id(0)
    segment = tl.program_id(1) * c.segments
    last = tl.minimum(segment + c.segments, num_segments)
    first_n = tl.program_id(2) * (c.block_n * c.steps)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots_ptr, seg_indptr_ptr, c.segments)
        rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks_ptr, scalings_ptr, c.max_rank)
        start = first + tile * c.block_m
        if rank == 0:
            start = end
        while start < end:
            rows, mask = rows_at(start, end, num_tokens, permutation_ptr, c.has_permutation, c.block_m)
            if rank == c.max_rank:
                _expand_tile(rows, mask, slot, c.max_rank, scaling, first_n, shrunk_ptr, b_ptr, logits_ptr, c, True)
            else:
                _expand_tile(rows, mask, slot, rank, scaling, first_n, shrunk_ptr, b_ptr, logits_ptr, c, False)
            start = start + tl.num_programs(0) * c.block_m if not c.has_permutation else end
