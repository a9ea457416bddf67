"""The Triton kernel of the whole embedding layer: base row, A row and product with B in one pass over the output.

Equation, for every row t < num_tokens and column h < HIDDEN:

    base[t, h] = embedding[id, h]           if 0 <= id < NUM_ROWS, else embedding[MISSING_ROW, h] or 0
                 out[t, h] as it is         with ADD
    out[t, h]  = base[t, h] + scaling[slot] * sum over r < rank of B[slot, h, r] * A[slot, r, id]

A as the lookup reads it (kernels.py): a row of extra for an added token, zero for an id that is in neither.

Two kinds of programs share the grid, axis 0 the blocks of columns, axis 1 first
groups   neighbouring segments of csgmv's structure, walked in runs of one slot (segment_runs.py): the rows with an adapter;
then
bases    tiles of rows in the order of the tokens: those that no group writes. With token words these are the rows whose
         word is 0, two dependent loads away as in a lookup without LoRA; without words the rows behind the last
         segment, and the groups write the rows of slots of rank 0 themselves. None with ADD.

Worked example, chunk size 2, ranks [2, 0], lengths [3, 1] in slots [0, 1]: with words, groups write rows 0, 1 and 2, and
row 3 is copied by a base program.

Invariants
- Every element of out's num_tokens rows is written by exactly one program.
- Products are of the tables' dtype, summed in float32; scaling and base are applied in float32; one rounding at the end.
- What lies beyond a slot's rank in A and B is read at most within an aligned group and then replaced by zero: it may be
  anything, NaN too.
- Offsets into tables and out are 64-bit.
- GROUP divides all that places a row of A, B_GROUP of B, COLUMN_GROUP of embedding and out; none is above 16 bytes.
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by layer.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl

from csgmv_embed.segment_runs import product, rank_and_scaling, run_at


@triton.jit
def _a_rows(
    ids,
    live,
    slot,
    column,
    rank,
    a_table,
    extra,
    VOCAB_SIZE: tl.constexpr,
    NUM_EXTRA: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    A_STRIDE_VOCAB: tl.constexpr,
    EXTRA_STRIDE_SLOT: tl.constexpr,
    EXTRA_STRIDE_TOKEN: tl.constexpr,
    EXTRA_STRIDE_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
):
    """A[slot, column, ids] as (tokens, columns); zero beyond the rank and for an id that is in no table."""
    wanted = ((column // GROUP) * GROUP < rank)[None, :]
    found = live & (ids >= 0) & (ids < VOCAB_SIZE)
    row = tl.multiple_of(slot * A_STRIDE_SLOT + ids * A_STRIDE_VOCAB, GROUP)
    pointers = a_table + (row[:, None] + column[None, :].to(tl.int64) * A_STRIDE_RANK)
    values = tl.load(pointers, mask=found[:, None] & wanted, other=0.0)
    if HAS_EXTRA:
        added = live & (ids >= VOCAB_SIZE) & (ids - VOCAB_SIZE < NUM_EXTRA)
        row = slot * EXTRA_STRIDE_SLOT + (ids - VOCAB_SIZE) * EXTRA_STRIDE_TOKEN
        pointers = extra + (row[:, None] + column[None, :].to(tl.int64) * EXTRA_STRIDE_RANK)
        values = tl.where(added[:, None], tl.load(pointers, mask=added[:, None] & wanted, other=0.0), values)
    return tl.where((column < rank)[None, :], values, 0.0)


@triton.jit
def _base_rows(
    rows,
    ids,
    live,
    column,
    inside,
    embedding,
    out,
    NUM_ROWS: tl.constexpr,
    MISSING_ROW: tl.constexpr,
    E_STRIDE_ROW: tl.constexpr,
    OUT_STRIDE_TOKEN: tl.constexpr,
    COLUMN_GROUP: tl.constexpr,
    ADD: tl.constexpr,
):
    """What the LoRA part is added to, (tokens, columns)."""
    if ADD:
        row = tl.multiple_of(rows.to(tl.int64) * OUT_STRIDE_TOKEN, COLUMN_GROUP)
        values = tl.load(out + (row[:, None] + column[None, :]), mask=live[:, None] & inside, other=0.0)
    else:
        found = (ids >= 0) & (ids < NUM_ROWS)
        if MISSING_ROW >= 0:
            ids = tl.where(found, ids, MISSING_ROW)
            found = live
        else:
            found = found & live
        row = tl.multiple_of(ids * E_STRIDE_ROW, COLUMN_GROUP)
        values = tl.load(embedding + (row[:, None] + column[None, :]), mask=found[:, None] & inside, other=0.0)
    return values


@triton.jit
def _write(rows, live, column, inside, values, out, OUT_STRIDE_TOKEN: tl.constexpr, COLUMN_GROUP: tl.constexpr):
    row = tl.multiple_of(rows.to(tl.int64) * OUT_STRIDE_TOKEN, COLUMN_GROUP)
    tl.store(out + (row[:, None] + column[None, :]), values.to(out.dtype.element_ty), mask=live[:, None] & inside)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments", "groups", "tiles"])
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
    groups,
    tiles,
    NUM_ROWS: tl.constexpr,
    MISSING_ROW: tl.constexpr,
    E_STRIDE_ROW: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_EXTRA: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    A_STRIDE_VOCAB: tl.constexpr,
    EXTRA_STRIDE_SLOT: tl.constexpr,
    EXTRA_STRIDE_TOKEN: tl.constexpr,
    EXTRA_STRIDE_RANK: tl.constexpr,
    B_STRIDE_SLOT: tl.constexpr,
    B_STRIDE_HIDDEN: tl.constexpr,
    OUT_STRIDE_TOKEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    HAS_WORDS: tl.constexpr,
    ADD: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    COLUMN_GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """Grid (ceil(HIDDEN / BLOCK_HIDDEN), groups * tiles + bases).

    A group is SEGMENTS segments. Its program `tile` takes tiles of BLOCK_TOKENS positions of each run in turn, `tiles`
    apart; with more than one segment a group there is one tile.
    """
    column = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    if HIDDEN % BLOCK_HIDDEN == 0:
        inside = tl.full((1, BLOCK_HIDDEN), 1, tl.int1)
    else:
        inside = ((column // COLUMN_GROUP) * COLUMN_GROUP < HIDDEN)[None, :]
    program = tl.program_id(1)
    if program < groups * tiles:
        group = program // tiles
        segment = group * SEGMENTS
        last = tl.minimum(segment + SEGMENTS, num_segments)
        while segment < last:
            slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
            rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
            if HAS_WORDS or ADD:
                end = tl.where(rank > 0, end, first)  # nobody here: a base program writes these rows, or they stay
            slot = slot.to(tl.int64)
            for start in range(first + (program - group * tiles) * BLOCK_TOKENS, end, tiles * BLOCK_TOKENS):
                position = start + tl.arange(0, BLOCK_TOKENS)
                live = position < end
                rows = position
                if HAS_PERMUTATION:
                    rows = tl.load(permutation + position, mask=live, other=0)
                live = live & (rows < num_tokens)
                ids = tl.load(input_ids + rows, mask=live, other=-1).to(tl.int64)
                base = _base_rows(
                    rows,
                    ids,
                    live,
                    column,
                    inside,
                    embedding,
                    out,
                    NUM_ROWS,
                    MISSING_ROW,
                    E_STRIDE_ROW,
                    OUT_STRIDE_TOKEN,
                    COLUMN_GROUP,
                    ADD,
                )
                total = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
                for start_rank in range(0, rank if MAX_RANK > BLOCK_RANK else BLOCK_RANK, BLOCK_RANK):
                    k = start_rank + tl.arange(0, BLOCK_RANK)
                    a = _a_rows(
                        ids,
                        live,
                        slot,
                        k,
                        rank,
                        a_table,
                        extra,
                        VOCAB_SIZE,
                        NUM_EXTRA,
                        A_STRIDE_SLOT,
                        A_STRIDE_RANK,
                        A_STRIDE_VOCAB,
                        EXTRA_STRIDE_SLOT,
                        EXTRA_STRIDE_TOKEN,
                        EXTRA_STRIDE_RANK,
                        GROUP,
                        HAS_EXTRA,
                    )
                    row = tl.multiple_of(slot * B_STRIDE_SLOT + column.to(tl.int64) * B_STRIDE_HIDDEN, B_GROUP)
                    wanted = ((k // B_GROUP) * B_GROUP < rank)[:, None]
                    in_b = wanted if HIDDEN % BLOCK_HIDDEN == 0 else wanted & (column < HIDDEN)[None, :]
                    b = tl.load(b_table + (row[None, :] + k[:, None]), mask=in_b, other=0.0)
                    b = tl.where((k < rank)[:, None], b, 0.0)
                    total = product(a, b, total, WIDEN)
                values = base.to(tl.float32) + scaling * total
                _write(rows, live, column, inside, values, out, OUT_STRIDE_TOKEN, COLUMN_GROUP)
    elif not ADD:
        rows = (program - groups * tiles) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        live = rows < num_tokens
        ids = tl.load(input_ids + rows, mask=live, other=-1).to(tl.int64)
        if HAS_WORDS:
            live = live & (tl.load(words + rows, mask=live, other=1) == 0)
        else:
            live = live & (rows >= tl.load(seg_indptr + num_segments).to(tl.int32))
        base = _base_rows(
            rows,
            ids,
            live,
            column,
            inside,
            embedding,
            out,
            NUM_ROWS,
            MISSING_ROW,
            E_STRIDE_ROW,
            OUT_STRIDE_TOKEN,
            COLUMN_GROUP,
            ADD,
        )
        _write(rows, live, column, inside, base, out, OUT_STRIDE_TOKEN, COLUMN_GROUP)
