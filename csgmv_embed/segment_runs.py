"""Walking csgmv's segments inside a kernel: neighbouring segments of one slot are taken together.

csgmv cuts the tokens of a slot into chunks of a size that suits its own kernels, 16 by default. A tile of 16 tokens
reads the whole B table of its slot for them alone; the segments of a slot lie side by side, so a program takes several
of them and reads it once. Worked example, four segments a program: seg_slots = [0, 0, 0, 2] are two runs, tokens
seg_indptr[0] to seg_indptr[3] of slot 0, then those of segment 3.

`walk` says on the host how many programs that takes, the functions below it are parts of kernels.
"""

# Triton's DSL is untyped: parameters of kernels are tensors of pointers and integers, checked by the callers.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import NamedTuple

import triton
import triton.language as tl

from csgmv_embed.batch import EmbeddingBatch

MAX_SEGMENTS = 16  # of a group


class Walk(NamedTuple):
    """`groups` groups of `segments` neighbouring segments, each with `tiles` programs for a block of columns."""

    segments: int
    groups: int
    tiles: int


def walk(batch: EmbeddingBatch, tokens: int, block_tokens: int) -> Walk:
    """How programs with tiles of block_tokens cover a batch of `tokens` tokens: several segments, or part of one."""
    chunk_size = max(1, batch.chunk_size)
    segments = 1
    while 2 * segments * chunk_size <= block_tokens and segments < MAX_SEGMENTS:
        segments *= 2
    used = batch.num_segments
    if batch.permutation is not None:  # grouped by slot: no more than these can have a token
        used = min(used, tokens // chunk_size + min(batch.slots, tokens))
    tiles = 1 if segments > 1 else -(-min(chunk_size, tokens) // block_tokens)
    return Walk(segments, -(-used // segments), tiles)


@triton.jit
def run_at(segment, last, seg_slots, seg_indptr, SEGMENTS: tl.constexpr):
    """(slot, first position, end, next segment) of the run that begins at `segment` and ends before `last`.

    SEGMENTS: most segments of a run, a power of two. All loads go out side by side. From `last` on an empty run.
    """
    there = segment < last
    slot = tl.load(seg_slots + segment, mask=there, other=0).to(tl.int32)
    first = tl.load(seg_indptr + segment, mask=there, other=0).to(tl.int32)
    if SEGMENTS == 1:
        after = segment + 1
        end = tl.load(seg_indptr + after, mask=there, other=0).to(tl.int32)
    else:
        index = segment + tl.arange(0, SEGMENTS)
        inside = index < last
        slots = tl.load(seg_slots + index, mask=inside, other=0).to(tl.int32)
        ends = tl.load(seg_indptr + index + 1, mask=inside, other=0).to(tl.int32)
        after = tl.maximum(tl.min(tl.where(inside & (slots == slot), last, index)), segment + 1)
        end = tl.max(tl.where(index < after, ends, 0))  # ends never fall
    return slot, first, end, after


@triton.jit
def rows_at(start, end, num_tokens, permutation, HAS_PERMUTATION: tl.constexpr, BLOCK_TOKENS: tl.constexpr):
    """The rows at positions start, start + 1, ..., and which of them there are."""
    position = start + tl.arange(0, BLOCK_TOKENS)
    live = position < end
    rows = position
    if HAS_PERMUTATION:
        rows = tl.load(permutation + position, mask=live, other=0).to(tl.int32)
    return rows, live & (rows < num_tokens)


@triton.jit
def rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK: tl.constexpr):
    """Rank, at most MAX_RANK, and scaling of a slot; rank 0 for a slot that is none."""
    known = (slot >= 0) & (slot < num_slots)
    rank = tl.minimum(tl.load(slot_ranks + slot, mask=known, other=0).to(tl.int32), MAX_RANK)
    return rank, tl.load(scalings + slot, mask=known, other=0.0).to(tl.float32)


@triton.jit
def b_block(
    b_row,
    b_table,
    column,
    start_rank,
    rank,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    FULL: tl.constexpr,
):
    """B[column, start_rank : start_rank + BLOCK_RANK] transposed, (ranks, columns); zero beyond the rank.

    b_row: where the rows of the columns begin; SPAN: columns of a program. FULL: the block lies within the rank, so
    that nothing has to be masked.
    """
    k = start_rank + tl.arange(0, BLOCK_RANK)
    pointers = b_table + (b_row[None, :] + k[:, None])
    whole: tl.constexpr = COLUMNS % SPAN == 0
    if FULL and whole:
        values = tl.load(pointers)
    elif FULL:
        values = tl.load(pointers, mask=(column < COLUMNS)[None, :], other=0.0)
    else:
        wanted = ((k // GROUP) * GROUP < rank)[:, None]
        if not whole:
            wanted = wanted & (column < COLUMNS)[None, :]
        values = tl.load(pointers, mask=wanted, other=0.0)
        values = tl.where((k < rank)[:, None], values, 0.0)
    return values


@triton.jit
def product(left, right, total, WIDEN: tl.constexpr):
    """total + left @ right in float32. WIDEN: for Triton's interpreter, which multiplies bfloat16 wrongly."""
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")
