"""The Triton kernel of the whole embedding layer: base row, A row and product with B in one pass over the output.

Equation, for every row t < num_tokens and column h < HIDDEN:

    base[t, h] = embedding[id, h]           if 0 <= id < NUM_ROWS, else embedding[MISSING_ROW, h] or 0
                 out[t, h] as it is         with ADD
    out[t, h]  = base[t, h] + scaling[slot] * sum over r < rank of B[slot, h, r] * A[slot, r, id]

A as the lookup reads it (kernels.py): a row of extra for an added token, zero for an id that is in neither.

A program has two kinds of rows: those of its group (grid axis 1), for STEPS blocks of columns (axis 0), and
group   SEGMENTS neighbouring segments of csgmv's structure, walked in runs of one slot (segment_runs.py);
others  a tile of rows in the order of the tokens, of which it copies those that no group writes: with token words the
        rows whose word is 0, found as fast as in a lookup without LoRA, and groups leave the slots of rank 0 out;
        without words the rows behind the last segment.

Worked example, chunk size 2, ranks [2, 0], lengths [3, 1] in slots [0, 1]: with words the groups write rows 0, 1 and
2, and row 3 is copied as one of the others.

Invariants
- Every element of out's num_tokens rows is written by exactly one program; with ADD, rows without adapter by none.
- Products are of the tables' dtype, summed in float32; scaling and base are applied in float32, with one rounding.
- What lies beyond a slot's rank in A and B is read at most within an aligned group and then replaced by zero: it may
  be anything, NaN too.
- Offsets into tables and out are 64-bit.
- GROUP divides all that places a row of A, B_GROUP of B, COLUMN_GROUP of embedding and out; none is above 16 bytes.
- Without LOOP no segment is longer than SEGMENTS * BLOCK_TOKENS * tiles positions.

The loads of both kinds of rows go out before the first is used: with words a token without adapter waits for two
trips to memory, one with an adapter for four (bounds, permutation, id, rows).
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by layer.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl

from csgmv_embed.segment_runs import b_block, product, rank_and_scaling, rows_at, run_at


@triton.jit
def _a_rows(
    ids,
    live,
    slot,
    start_rank,
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
    BLOCK_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
):
    """A[slot, ranks, ids] as (tokens, ranks); zero beyond the rank and for an id that is in no table."""
    k = start_rank + tl.arange(0, BLOCK_RANK)
    wanted = ((k // GROUP) * GROUP < rank)[None, :]
    found = live & (ids >= 0) & (ids < VOCAB_SIZE)
    row = tl.multiple_of(slot * A_STRIDE_SLOT + ids * A_STRIDE_VOCAB, GROUP)
    pointers = a_table + (row[:, None] + k[None, :].to(tl.int64) * A_STRIDE_RANK)
    values = tl.load(pointers, mask=found[:, None] & wanted, other=0.0)
    if HAS_EXTRA:
        added = live & (ids >= VOCAB_SIZE) & (ids - VOCAB_SIZE < NUM_EXTRA)
        row = slot * EXTRA_STRIDE_SLOT + (ids - VOCAB_SIZE) * EXTRA_STRIDE_TOKEN
        pointers = extra + (row[:, None] + k[None, :].to(tl.int64) * EXTRA_STRIDE_RANK)
        values = tl.where(added[:, None], tl.load(pointers, mask=added[:, None] & wanted, other=0.0), values)
    return tl.where((k < rank)[None, :], values, 0.0)


@triton.jit
def _columns(first, HIDDEN: tl.constexpr, BLOCK_HIDDEN: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr):
    """A block of columns, and which of them there are."""
    column = first + tl.arange(0, BLOCK_HIDDEN)
    if HIDDEN % (BLOCK_HIDDEN * STEPS) == 0:
        inside = tl.full((1, BLOCK_HIDDEN), 1, tl.int1)
    else:
        inside = ((column // GROUP) * GROUP < HIDDEN)[None, :]
    return column, inside


@triton.jit
def _base_row(ids, live, NUM_ROWS: tl.constexpr, MISSING_ROW: tl.constexpr):
    """The row of the embedding that each id reads, and whether it reads one."""
    found = (ids >= 0) & (ids < NUM_ROWS)
    if MISSING_ROW >= 0:
        return tl.where(found, ids, MISSING_ROW), live
    return ids, live & found


@triton.jit
def _read(rows, live, column, inside, table, STRIDE: tl.constexpr, GROUP: tl.constexpr):
    row = tl.multiple_of(rows.to(tl.int64) * STRIDE, GROUP)
    return tl.load(table + (row[:, None] + column[None, :]), mask=live[:, None] & inside, other=0.0)


@triton.jit
def _write(rows, live, column, inside, values, out, STRIDE: tl.constexpr, GROUP: tl.constexpr):
    row = tl.multiple_of(rows.to(tl.int64) * STRIDE, GROUP)
    tl.store(out + (row[:, None] + column[None, :]), values.to(out.dtype.element_ty), mask=live[:, None] & inside)


@triton.jit
def _copy_base(
    rows,
    ids,
    live,
    first_column,
    embedding,
    out,
    NUM_ROWS: tl.constexpr,
    MISSING_ROW: tl.constexpr,
    E_STRIDE_ROW: tl.constexpr,
    OUT_STRIDE_TOKEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    COLUMN_GROUP: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A tile of rows without adapter."""
    base_rows, base_live = _base_row(ids, live, NUM_ROWS, MISSING_ROW)
    for step in range(STEPS):
        column, inside = _columns(first_column + step * BLOCK_HIDDEN, HIDDEN, BLOCK_HIDDEN, STEPS, COLUMN_GROUP)
        base = _read(base_rows, base_live, column, inside, embedding, E_STRIDE_ROW, COLUMN_GROUP)
        _write(rows, live, column, inside, base, out, OUT_STRIDE_TOKEN, COLUMN_GROUP)


@triton.jit
def _write_lora(
    rows,
    ids,
    live,
    slot,
    rank,
    scaling,
    first_column,
    embedding,
    a_table,
    extra,
    b_table,
    out,
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
    ADD: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    COLUMN_GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    STEPS: tl.constexpr,
    FULL: tl.constexpr,
):
    """A tile of rows of one slot, STEPS blocks of columns. FULL: the rank is MAX_RANK."""
    slot = slot.to(tl.int64)
    full: tl.constexpr = FULL and MAX_RANK > 0 and MAX_RANK % BLOCK_RANK == 0
    if MAX_RANK <= BLOCK_RANK:
        a = _a_rows(
            ids,
            live,
            slot,
            0,
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
            BLOCK_RANK,
            GROUP,
            HAS_EXTRA,
        )
    base_rows, base_live = _base_row(ids, live, NUM_ROWS, MISSING_ROW)
    for step in range(STEPS):
        column, inside = _columns(first_column + step * BLOCK_HIDDEN, HIDDEN, BLOCK_HIDDEN, STEPS, COLUMN_GROUP)
        if ADD:
            base = _read(rows, live, column, inside, out, OUT_STRIDE_TOKEN, COLUMN_GROUP)
        else:
            base = _read(base_rows, base_live, column, inside, embedding, E_STRIDE_ROW, COLUMN_GROUP)
        b_row = tl.multiple_of(slot * B_STRIDE_SLOT + column.to(tl.int64) * B_STRIDE_HIDDEN, B_GROUP)
        total = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
        if MAX_RANK <= BLOCK_RANK:
            b = b_block(b_row, b_table, column, 0, rank, HIDDEN, BLOCK_HIDDEN * STEPS, BLOCK_RANK, B_GROUP, full)
            total = product(a, b, total, WIDEN)
        else:
            for start_rank in range(0, rank, BLOCK_RANK):
                a = _a_rows(
                    ids,
                    live,
                    slot,
                    start_rank,
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
                    BLOCK_RANK,
                    GROUP,
                    HAS_EXTRA,
                )
                b = b_block(
                    b_row, b_table, column, start_rank, rank, HIDDEN, BLOCK_HIDDEN * STEPS, BLOCK_RANK, B_GROUP, full
                )
                total = product(a, b, total, WIDEN)
        values = base.to(tl.float32) + scaling * total
        _write(rows, live, column, inside, values, out, OUT_STRIDE_TOKEN, COLUMN_GROUP)


@triton.jit
def _write_tile(
    rows,
    live,
    slot,
    rank,
    scaling,
    first_column,
    input_ids,
    embedding,
    a_table,
    extra,
    b_table,
    out,
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
    OTHERS: tl.constexpr,
    ADD: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    COLUMN_GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A tile of rows of one slot."""
    ids = tl.load(input_ids + rows, mask=live, other=-1).to(tl.int64)
    if rank == MAX_RANK:
        _write_lora(
            rows,
            ids,
            live,
            slot,
            MAX_RANK,
            scaling,
            first_column,
            embedding,
            a_table,
            extra,
            b_table,
            out,
            NUM_ROWS,
            MISSING_ROW,
            E_STRIDE_ROW,
            VOCAB_SIZE,
            NUM_EXTRA,
            A_STRIDE_SLOT,
            A_STRIDE_RANK,
            A_STRIDE_VOCAB,
            EXTRA_STRIDE_SLOT,
            EXTRA_STRIDE_TOKEN,
            EXTRA_STRIDE_RANK,
            B_STRIDE_SLOT,
            B_STRIDE_HIDDEN,
            OUT_STRIDE_TOKEN,
            HIDDEN,
            MAX_RANK,
            HAS_EXTRA,
            ADD,
            WIDEN,
            GROUP,
            B_GROUP,
            COLUMN_GROUP,
            BLOCK_TOKENS,
            BLOCK_HIDDEN,
            BLOCK_RANK,
            STEPS,
            True,
        )
    elif rank > 0:
        _write_lora(
            rows,
            ids,
            live,
            slot,
            rank,
            scaling,
            first_column,
            embedding,
            a_table,
            extra,
            b_table,
            out,
            NUM_ROWS,
            MISSING_ROW,
            E_STRIDE_ROW,
            VOCAB_SIZE,
            NUM_EXTRA,
            A_STRIDE_SLOT,
            A_STRIDE_RANK,
            A_STRIDE_VOCAB,
            EXTRA_STRIDE_SLOT,
            EXTRA_STRIDE_TOKEN,
            EXTRA_STRIDE_RANK,
            B_STRIDE_SLOT,
            B_STRIDE_HIDDEN,
            OUT_STRIDE_TOKEN,
            HIDDEN,
            MAX_RANK,
            HAS_EXTRA,
            ADD,
            WIDEN,
            GROUP,
            B_GROUP,
            COLUMN_GROUP,
            BLOCK_TOKENS,
            BLOCK_HIDDEN,
            BLOCK_RANK,
            STEPS,
            False,
        )
    elif rank == 0 and OTHERS != 1 and not ADD:
        _copy_base(
            rows,
            ids,
            live,
            first_column,
            embedding,
            out,
            NUM_ROWS,
            MISSING_ROW,
            E_STRIDE_ROW,
            OUT_STRIDE_TOKEN,
            HIDDEN,
            COLUMN_GROUP,
            BLOCK_HIDDEN,
            STEPS,
        )


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments", "tiles"])
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
    OTHERS: tl.constexpr,
    LOOP: tl.constexpr,
    ADD: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    B_GROUP: tl.constexpr,
    COLUMN_GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    STEPS: tl.constexpr,
    OTHER_TOKENS: tl.constexpr,
    OTHER_COLUMNS: tl.constexpr,
):
    """Grid (ceil(HIDDEN / (BLOCK_HIDDEN * STEPS)), groups * tiles or more, for all tiles of other rows).

    OTHERS: 0 no other rows, 1 by token words, 2 behind the last segment, 3 all, and no groups; their tiles are
    OTHER_TOKENS by OTHER_COLUMNS, long rows that few programs share. The programs of a group take its tiles in turn,
    LOOP: more than once; with more than one segment a group there is one.
    """
    first_column = tl.program_id(0) * (BLOCK_HIDDEN * STEPS)
    program = tl.program_id(1)
    segment = (program // tiles) * SEGMENTS
    last = tl.minimum(segment + SEGMENTS, num_segments)
    if OTHERS != 3 and SEGMENTS == 1 and not LOOP:
        slot, first, end, _ = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
    blocks: tl.constexpr = (HIDDEN + OTHER_COLUMNS - 1) // OTHER_COLUMNS
    other = program * tl.num_programs(0) + tl.program_id(0)
    if OTHERS == 1 or OTHERS == 3:
        others = (other // blocks) * OTHER_TOKENS + tl.arange(0, OTHER_TOKENS)
        copied = others < num_tokens
        other_ids = tl.load(input_ids + others, mask=copied, other=-1).to(tl.int64)
        if OTHERS == 1:
            copied = copied & (tl.load(words + others, mask=copied, other=1) == 0)
    if OTHERS != 3 and SEGMENTS == 1 and not LOOP:
        rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
        start = first + (program % tiles) * BLOCK_TOKENS
        rank = tl.where(start < end, rank, -1)  # an empty segment, of a slot with an adapter maybe, is no work
        rows, live = rows_at(start, end, num_tokens, permutation, HAS_PERMUTATION, BLOCK_TOKENS)
    if OTHERS == 1 or OTHERS == 3:
        _copy_base(
            others,
            other_ids,
            copied,
            (other % blocks) * OTHER_COLUMNS,
            embedding,
            out,
            NUM_ROWS,
            MISSING_ROW,
            E_STRIDE_ROW,
            OUT_STRIDE_TOKEN,
            HIDDEN,
            COLUMN_GROUP,
            OTHER_COLUMNS,
            1,
        )
    if OTHERS != 3 and SEGMENTS == 1 and not LOOP:
        _write_tile(
            rows,
            live,
            slot,
            rank,
            scaling,
            first_column,
            input_ids,
            embedding,
            a_table,
            extra,
            b_table,
            out,
            NUM_ROWS,
            MISSING_ROW,
            E_STRIDE_ROW,
            VOCAB_SIZE,
            NUM_EXTRA,
            A_STRIDE_SLOT,
            A_STRIDE_RANK,
            A_STRIDE_VOCAB,
            EXTRA_STRIDE_SLOT,
            EXTRA_STRIDE_TOKEN,
            EXTRA_STRIDE_RANK,
            B_STRIDE_SLOT,
            B_STRIDE_HIDDEN,
            OUT_STRIDE_TOKEN,
            HIDDEN,
            MAX_RANK,
            HAS_EXTRA,
            OTHERS,
            ADD,
            WIDEN,
            GROUP,
            B_GROUP,
            COLUMN_GROUP,
            BLOCK_TOKENS,
            BLOCK_HIDDEN,
            BLOCK_RANK,
            STEPS,
        )
    elif OTHERS != 3:
        while segment < last:
            slot, first, end, segment = run_at(segment, last, seg_slots, seg_indptr, SEGMENTS)
            rank, scaling = rank_and_scaling(slot, num_slots, slot_ranks, scalings, MAX_RANK)
            start = first + (program % tiles) * BLOCK_TOKENS
            while start < end:
                rows, live = rows_at(start, end, num_tokens, permutation, HAS_PERMUTATION, BLOCK_TOKENS)
                _write_tile(
                    rows,
                    live,
                    slot,
                    rank,
                    scaling,
                    first_column,
                    input_ids,
                    embedding,
                    a_table,
                    extra,
                    b_table,
                    out,
                    NUM_ROWS,
                    MISSING_ROW,
                    E_STRIDE_ROW,
                    VOCAB_SIZE,
                    NUM_EXTRA,
                    A_STRIDE_SLOT,
                    A_STRIDE_RANK,
                    A_STRIDE_VOCAB,
                    EXTRA_STRIDE_SLOT,
                    EXTRA_STRIDE_TOKEN,
                    EXTRA_STRIDE_RANK,
                    B_STRIDE_SLOT,
                    B_STRIDE_HIDDEN,
                    OUT_STRIDE_TOKEN,
                    HIDDEN,
                    MAX_RANK,
                    HAS_EXTRA,
                    OTHERS,
                    ADD,
                    WIDEN,
                    GROUP,
                    B_GROUP,
                    COLUMN_GROUP,
                    BLOCK_TOKENS,
                    BLOCK_HIDDEN,
                    BLOCK_RANK,
                    STEPS,
                )
                start = start + tiles * BLOCK_TOKENS if LOOP else end
    if OTHERS == 2:
        # Mostly there are none, so these rows get no programs of their own: those of the groups share them.
        rows_at_once = (tl.num_programs(0) * tl.num_programs(1) // blocks) * OTHER_TOKENS
        start = tl.load(seg_indptr + num_segments).to(tl.int32) + (other // blocks) * OTHER_TOKENS
        end = tl.where((other // blocks) * OTHER_TOKENS < rows_at_once, num_tokens, start)
        while start < end:
            others = start + tl.arange(0, OTHER_TOKENS)
            copied = others < num_tokens
            other_ids = tl.load(input_ids + others, mask=copied, other=-1).to(tl.int64)
            _copy_base(
                others,
                other_ids,
                copied,
                (other % blocks) * OTHER_COLUMNS,
                embedding,
                out,
                NUM_ROWS,
                MISSING_ROW,
                E_STRIDE_ROW,
                OUT_STRIDE_TOKEN,
                HIDDEN,
                COLUMN_GROUP,
                OTHER_COLUMNS,
                1,
            )
            start += rows_at_once
