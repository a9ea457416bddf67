"""The two Triton kernels of LoRA on lm_head: shrink to the rank, expand into the vocabulary.

Equations, for every row t of a segment of a slot with rank > 0; all other rows stay as they are:

    shrunk[t, r] = sum over h of hidden[t, h] * A[slot, r, h]     for r < rank, 0 for rank <= r < MAX_RANK
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
- Each GROUP divides all that places a row of its tensor and is at most 16 bytes.
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by head.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl

from csgmv_embed.segment_runs import product, rank_and_scaling, run_at


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments", "tiles"])
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
    tiles,
    HIDDEN_STRIDE_TOKEN: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    SHRUNK_STRIDE_TOKEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Grid (ceil(MAX_RANK / BLOCK_RANK), groups * tiles)."""
    rank_column = tl.program_id(0) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    program = tl.program_id(1)
    group = program // tiles
    segment = group * SEGMENTS
    last = tl.minimum(segment + SEGMENTS, num_segments)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
        rank, _ = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
        end = tl.where(rank > 0, end, first)
        a_row = tl.multiple_of(slot.to(tl.int64) * A_STRIDE_SLOT + rank_column.to(tl.int64) * A_STRIDE_RANK, GROUP)
        for start in range(first + (program - group * tiles) * BLOCK_TOKENS, end, tiles * BLOCK_TOKENS):
            position = start + tl.arange(0, BLOCK_TOKENS)
            live = position < end
            rows = position
            if HAS_PERMUTATION:
                rows = tl.load(permutation + position, mask=live, other=0)
            live = live & (rows < num_tokens)
            rows = rows.to(tl.int64)
            x_row = tl.multiple_of(rows * HIDDEN_STRIDE_TOKEN, GROUP)
            total = tl.zeros((BLOCK_TOKENS, BLOCK_RANK), tl.float32)
            for start_column in range(0, HIDDEN, BLOCK_HIDDEN):
                column = start_column + tl.arange(0, BLOCK_HIDDEN)
                inside = column < HIDDEN if HIDDEN % GROUP else (column // GROUP) * GROUP < HIDDEN
                x = tl.load(
                    hidden + (x_row[:, None] + column[None, :]), mask=live[:, None] & inside[None, :], other=0.0
                )
                wanted = (rank_column < rank)[None, :] & inside[:, None]
                a = tl.load(a_table + (a_row[None, :] + column[:, None]), mask=wanted, other=0.0)
                total = product(x, a, total, WIDEN)
            written = live[:, None] & (rank_column < MAX_RANK)[None, :]
            pointers = shrunk + (rows[:, None] * SHRUNK_STRIDE_TOKEN + rank_column[None, :])
            tl.store(pointers, total.to(shrunk.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments", "tiles"])
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
    tiles,
    SHRUNK_STRIDE_TOKEN: tl.constexpr,
    B_STRIDE_SLOT: tl.constexpr,
    B_STRIDE_VOCAB: tl.constexpr,
    LOGITS_STRIDE_TOKEN: tl.constexpr,
    VOCAB: tl.constexpr,
    MAX_RANK: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    WIDEN: tl.constexpr,
    SHRUNK_GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    LOGITS_GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """Grid (groups * tiles, ceil(VOCAB / BLOCK_VOCAB))."""
    column = tl.program_id(1) * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
    if VOCAB % BLOCK_VOCAB == 0:
        inside = tl.full((1, BLOCK_VOCAB), 1, tl.int1)
    else:
        inside = ((column // LOGITS_GROUP) * LOGITS_GROUP < VOCAB)[None, :]
    program = tl.program_id(0)
    group = program // tiles
    segment = group * SEGMENTS
    last = tl.minimum(segment + SEGMENTS, num_segments)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
        rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
        end = tl.where(rank > 0, end, first)
        b_row = tl.multiple_of(slot.to(tl.int64) * B_STRIDE_SLOT + column.to(tl.int64) * B_STRIDE_VOCAB, B_GROUP)
        for start in range(first + (program - group * tiles) * BLOCK_TOKENS, end, tiles * BLOCK_TOKENS):
            position = start + tl.arange(0, BLOCK_TOKENS)
            live = position < end
            rows = position
            if HAS_PERMUTATION:
                rows = tl.load(permutation + position, mask=live, other=0)
            live = live & (rows < num_tokens)
            rows = rows.to(tl.int64)
            x_row = tl.multiple_of(rows * SHRUNK_STRIDE_TOKEN, SHRUNK_GROUP)
            out_row = tl.multiple_of(rows * LOGITS_STRIDE_TOKEN, LOGITS_GROUP)
            pointers = logits + (out_row[:, None] + column[None, :])
            before = tl.load(pointers, mask=live[:, None] & inside, other=0.0)
            total = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), tl.float32)
            for start_rank in range(0, rank if MAX_RANK > BLOCK_RANK else BLOCK_RANK, BLOCK_RANK):
                k = start_rank + tl.arange(0, BLOCK_RANK)
                wanted = ((k // SHRUNK_GROUP) * SHRUNK_GROUP < rank)[None, :] & live[:, None]
                x = tl.load(shrunk + (x_row[:, None] + k[None, :]), mask=wanted, other=0.0)
                x = tl.where((k < rank)[None, :], x, 0.0)
                wanted = ((k // B_GROUP) * B_GROUP < rank)[:, None]
                in_b = wanted if VOCAB % BLOCK_VOCAB == 0 else wanted & (column < VOCAB)[None, :]
                b = tl.load(b_table + (b_row[None, :] + k[:, None]), mask=in_b, other=0.0)
                b = tl.where((k < rank)[:, None], b, 0.0)
                total = product(x, b, total, WIDEN)
            values = before.to(tl.float32) + scaling * total
            tl.store(pointers, values.to(logits.dtype.element_ty), mask=live[:, None] & inside)
