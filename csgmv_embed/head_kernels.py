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

from csgmv_embed.segment_runs import b_block, product, rank_and_scaling, rows_at, run_at


@triton.jit
def _x_block(x_row, live, start, end, x, BLOCK: tl.constexpr, GROUP: tl.constexpr, FULL: tl.constexpr):
    """x[rows, start : start + BLOCK]; zero from `end` on. FULL: the block ends before."""
    k = start + tl.arange(0, BLOCK)
    pointers = x + (x_row[:, None] + k[None, :])
    if FULL:
        values = tl.load(pointers, mask=live[:, None], other=0.0)
    else:
        values = tl.load(pointers, mask=live[:, None] & ((k // GROUP) * GROUP < end)[None, :], other=0.0)
        values = tl.where((k < end)[None, :], values, 0.0)
    return values


@triton.jit
def _shrink_tile(
    rows,
    live,
    slot,
    rank,
    first_rank,
    hidden,
    a_table,
    shrunk,
    HIDDEN_STRIDE_TOKEN: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    SHRUNK_STRIDE_TOKEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """A tile of rows of one slot by a block of ranks."""
    k = first_rank + tl.arange(0, BLOCK_RANK)
    a_row = tl.multiple_of(slot.to(tl.int64) * A_STRIDE_SLOT + k.to(tl.int64) * A_STRIDE_RANK, GROUP)
    rows = rows.to(tl.int64)
    x_row = tl.multiple_of(rows * HIDDEN_STRIDE_TOKEN, GROUP)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_RANK), tl.float32)
    whole: tl.constexpr = HIDDEN % BLOCK_HIDDEN == 0
    for start in range(0, HIDDEN, BLOCK_HIDDEN):
        x = _x_block(x_row, live, start, HIDDEN, hidden, BLOCK_HIDDEN, GROUP, whole)
        a = _x_block(a_row, k < rank, start, HIDDEN, a_table, BLOCK_HIDDEN, GROUP, whole)
        total = product(x, tl.trans(a), total, WIDEN)
    pointers = shrunk + (rows[:, None] * SHRUNK_STRIDE_TOKEN + k[None, :])
    tl.store(pointers, total.to(shrunk.dtype.element_ty), mask=live[:, None] & (k < MAX_RANK)[None, :])


@triton.jit
def _expand_tile(
    rows,
    live,
    slot,
    rank,
    scaling,
    first_column,
    shrunk,
    b_table,
    logits,
    SHRUNK_STRIDE_TOKEN: tl.constexpr,
    B_STRIDE_SLOT: tl.constexpr,
    B_STRIDE_VOCAB: tl.constexpr,
    LOGITS_STRIDE_TOKEN: tl.constexpr,
    VOCAB: tl.constexpr,
    MAX_RANK: tl.constexpr,
    WIDEN: tl.constexpr,
    SHRUNK_GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    LOGITS_GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    STEPS: tl.constexpr,
    FULL: tl.constexpr,
):
    """A tile of rows of one slot by STEPS blocks of the vocabulary. FULL: the rank is MAX_RANK."""
    full: tl.constexpr = FULL and MAX_RANK % BLOCK_RANK == 0
    rows = rows.to(tl.int64)
    x_row = tl.multiple_of(rows * SHRUNK_STRIDE_TOKEN, SHRUNK_GROUP)
    out_row = tl.multiple_of(rows * LOGITS_STRIDE_TOKEN, LOGITS_GROUP)
    if MAX_RANK <= BLOCK_RANK:
        x = _x_block(x_row, live, 0, rank, shrunk, BLOCK_RANK, SHRUNK_GROUP, full)
    for step in range(STEPS):
        column = first_column + step * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
        if VOCAB % (BLOCK_VOCAB * STEPS) == 0:
            inside = live[:, None]
        else:
            inside = live[:, None] & ((column // LOGITS_GROUP) * LOGITS_GROUP < VOCAB)[None, :]
        pointers = logits + (out_row[:, None] + column[None, :])
        before = tl.load(pointers, mask=inside, other=0.0)
        b_row = tl.multiple_of(slot.to(tl.int64) * B_STRIDE_SLOT + column.to(tl.int64) * B_STRIDE_VOCAB, B_GROUP)
        total = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), tl.float32)
        if MAX_RANK <= BLOCK_RANK:
            b = b_block(b_row, b_table, column, 0, rank, VOCAB, BLOCK_VOCAB * STEPS, BLOCK_RANK, B_GROUP, full)
            total = product(x, b, total, WIDEN)
        else:
            for start in range(0, rank, BLOCK_RANK):
                x = _x_block(x_row, live, start, rank, shrunk, BLOCK_RANK, SHRUNK_GROUP, full)
                b = b_block(b_row, b_table, column, start, rank, VOCAB, BLOCK_VOCAB * STEPS, BLOCK_RANK, B_GROUP, full)
                total = product(x, b, total, WIDEN)
        values = before.to(tl.float32) + scaling * total
        tl.store(pointers, values.to(logits.dtype.element_ty), mask=inside)


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
    LOOP: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Grid (ceil(MAX_RANK / BLOCK_RANK), groups * tiles). LOOP: as in the expand."""
    program = tl.program_id(1)
    segment = (program // tiles) * SEGMENTS
    last = tl.minimum(segment + SEGMENTS, num_segments)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
        rank, _ = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
        start = first + (program % tiles) * BLOCK_TOKENS
        if rank == 0:
            start = end
        while start < end:
            rows, live = rows_at(start, end, num_tokens, permutation, HAS_PERMUTATION, BLOCK_TOKENS)
            _shrink_tile(
                rows,
                live,
                slot,
                rank,
                tl.program_id(0) * BLOCK_RANK,
                hidden,
                a_table,
                shrunk,
                HIDDEN_STRIDE_TOKEN,
                A_STRIDE_SLOT,
                A_STRIDE_RANK,
                SHRUNK_STRIDE_TOKEN,
                HIDDEN,
                MAX_RANK,
                WIDEN,
                GROUP,
                BLOCK_TOKENS,
                BLOCK_RANK,
                BLOCK_HIDDEN,
            )
            start = start + tiles * BLOCK_TOKENS if LOOP else end


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
    LOOP: tl.constexpr,
    WIDEN: tl.constexpr,
    SHRUNK_GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    LOGITS_GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Grid (groups * tiles, ceil(VOCAB / (BLOCK_VOCAB * STEPS))).

    LOOP: a segment may be longer than SEGMENTS * BLOCK_TOKENS * tiles, and its programs take its tiles in turn.
    """
    program = tl.program_id(0)
    segment = (program // tiles) * SEGMENTS
    last = tl.minimum(segment + SEGMENTS, num_segments)
    while segment < last:
        slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
        rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
        start = first + (program % tiles) * BLOCK_TOKENS
        if rank == 0:
            start = end
        while start < end:
            rows, live = rows_at(start, end, num_tokens, permutation, HAS_PERMUTATION, BLOCK_TOKENS)
            if rank == MAX_RANK:
                _expand_tile(
                    rows,
                    live,
                    slot,
                    MAX_RANK,
                    scaling,
                    tl.program_id(1) * (BLOCK_VOCAB * STEPS),
                    shrunk,
                    b_table,
                    logits,
                    SHRUNK_STRIDE_TOKEN,
                    B_STRIDE_SLOT,
                    B_STRIDE_VOCAB,
                    LOGITS_STRIDE_TOKEN,
                    VOCAB,
                    MAX_RANK,
                    WIDEN,
                    SHRUNK_GROUP,
                    B_GROUP,
                    LOGITS_GROUP,
                    BLOCK_TOKENS,
                    BLOCK_VOCAB,
                    BLOCK_RANK,
                    STEPS,
                    True,
                )
            else:
                _expand_tile(
                    rows,
                    live,
                    slot,
                    rank,
                    scaling,
                    tl.program_id(1) * (BLOCK_VOCAB * STEPS),
                    shrunk,
                    b_table,
                    logits,
                    SHRUNK_STRIDE_TOKEN,
                    B_STRIDE_SLOT,
                    B_STRIDE_VOCAB,
                    LOGITS_STRIDE_TOKEN,
                    VOCAB,
                    MAX_RANK,
                    WIDEN,
                    SHRUNK_GROUP,
                    B_GROUP,
                    LOGITS_GROUP,
                    BLOCK_TOKENS,
                    BLOCK_VOCAB,
                    BLOCK_RANK,
                    STEPS,
                    False,
                )
            start = start + tiles * BLOCK_TOKENS if LOOP else end
