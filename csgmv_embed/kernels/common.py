"""Parts of kernels: the walk of csgmv's segments, a row of A, a block of B, the product of blocks.

csgmv cuts the tokens of a slot into chunks of a size that suits its own kernels, 16 by default. A tile of 16 tokens
reads the whole B table of its slot for them alone; the segments of a slot lie side by side, so a program takes several
of them and reads it once. Worked example, four segments a program: seg_slots = [0, 0, 0, 2] are two runs, tokens
seg_indptr[0] to seg_indptr[3] of slot 0, then those of segment 3.

A WIDTH is how many elements may be read or written as one: it divides all that places a row of its tensor and is at
most 16 bytes. Loads are masked by whole widths, which keeps them wide although the rank of a row is only known at run
time; what is read past the rank lies inside the row and is replaced by zero in registers.
"""

# Triton's DSL is untyped: parameters are tensors of pointers and integers, checked by the ops.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def overlap_launches():
    """Programmatic dependent launch: the next kernel may be set up now; this one waits for earlier ones, then reads."""
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def load_ids(rows, mask, input_ids_ptr):
    return tl.load(input_ids_ptr + rows, mask=mask, other=-1).to(tl.int64)


@triton.jit
def run_at(segment, last, seg_slots_ptr, seg_indptr_ptr, SEGMENTS: tl.constexpr):
    """(slot, first position, end, next segment) of the run that begins at `segment` and ends before `last`.

    SEGMENTS: most segments of a run, a power of two. All loads go out side by side. From `last` on an empty run.
    """
    there = segment < last
    slot = tl.load(seg_slots_ptr + segment, mask=there, other=0).to(tl.int32)
    first = tl.load(seg_indptr_ptr + segment, mask=there, other=0).to(tl.int32)
    if SEGMENTS == 1:
        after = segment + 1
        end = tl.load(seg_indptr_ptr + after, mask=there, other=0).to(tl.int32)
    else:
        index = segment + tl.arange(0, SEGMENTS)
        inside = index < last
        slots = tl.load(seg_slots_ptr + index, mask=inside, other=0).to(tl.int32)
        ends = tl.load(seg_indptr_ptr + index + 1, mask=inside, other=0).to(tl.int32)
        after = tl.maximum(tl.min(tl.where(inside & (slots == slot), last, index)), segment + 1)
        end = tl.max(tl.where(index < after, ends, 0))  # ends never fall
    return slot, first, end, after


@triton.jit
def rows_at(start, end, num_tokens, permutation_ptr, HAS_PERMUTATION: tl.constexpr, BLOCK_M: tl.constexpr):
    """The rows at positions start, start + 1, ..., and a mask of those that exist."""
    position = start + tl.arange(0, BLOCK_M)
    mask = position < end
    rows = position
    if HAS_PERMUTATION:
        rows = tl.load(permutation_ptr + position, mask=mask, other=0).to(tl.int32)
    return rows, mask & (rows < num_tokens)


@triton.jit
def rank_and_scaling(slot, num_slots, slot_ranks_ptr, scalings_ptr, MAX_RANK: tl.constexpr):
    """Rank, at most MAX_RANK, and scaling of a slot. The rank is 0 for an invalid slot."""
    known = (slot >= 0) & (slot < num_slots)
    rank = tl.minimum(tl.load(slot_ranks_ptr + slot, mask=known, other=0).to(tl.int32), MAX_RANK)
    return rank, tl.load(scalings_ptr + slot, mask=known, other=0.0).to(tl.float32)


@triton.jit
def a_rows(ids, mask, slot, near, inside, k, a_ptr, extra_ptr, c: tl.constexpr):
    """A[slot, k, ids] as (ids, k); zero where not inside and for an id that is in no table.

    ids (M,) int64, k (K,). slot: of all rows, or (M,). inside: k < rank, (1, K) or (M, K); near: the same of the first
    k of its width, what may be read. c: vocab_size, num_extra, has_extra, a_width and the strides of A and extra.
    """
    WIDTH: tl.constexpr = c.a_width
    slot = slot.to(tl.int64)
    found = mask & (ids >= 0) & (ids < c.vocab_size)
    row = tl.multiple_of(slot * c.a_stride_slot + ids * c.a_stride_vocab, WIDTH)
    pointers = a_ptr + (row[:, None] + k[None, :].to(tl.int64) * c.a_stride_rank)
    values = tl.load(pointers, mask=found[:, None] & near, other=0.0)
    if c.has_extra:
        added = mask & (ids >= c.vocab_size) & (ids - c.vocab_size < c.num_extra)
        row = slot * c.extra_stride_slot + (ids - c.vocab_size) * c.extra_stride_token
        pointers = extra_ptr + (row[:, None] + k[None, :].to(tl.int64) * c.extra_stride_rank)
        values = tl.where(added[:, None], tl.load(pointers, mask=added[:, None] & near, other=0.0), values)
    return tl.where(inside, values, 0.0)


@triton.jit
def b_block(
    b_row,
    b_ptr,
    n,
    start_k,
    rank,
    N: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH: tl.constexpr,
    FULL: tl.constexpr,
):
    """B[n, start_k : start_k + BLOCK_K] transposed, (K, N); zero from the rank on.

    b_row: where the rows of the columns n begin; N: columns of all; SPAN: columns of a program. FULL: the block lies
    within the rank, so that nothing has to be masked.
    """
    k = start_k + tl.arange(0, BLOCK_K)
    pointers = b_ptr + (b_row[None, :] + k[:, None])
    whole: tl.constexpr = N % SPAN == 0
    if FULL and whole:
        values = tl.load(pointers)
    elif FULL:
        values = tl.load(pointers, mask=(n < N)[None, :], other=0.0)
    else:
        wanted = ((k // WIDTH) * WIDTH < rank)[:, None]
        if not whole:
            wanted = wanted & (n < N)[None, :]
        values = tl.load(pointers, mask=wanted, other=0.0)
        values = tl.where((k < rank)[:, None], values, 0.0)
    return values


@triton.jit
def product(left, right, total, WIDEN: tl.constexpr):
    """total + left @ right in float32. WIDEN is for Triton's interpreter, which gets bfloat16 products wrong."""
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


INTERPRETED = isinstance(product, InterpretedFunction)  # as TRITON_INTERPRET said when the kernels were made
