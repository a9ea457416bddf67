"""The two Triton kernels of the lookup and the tile copy they share.

Equation, for every row t < num_tokens and column r < MAX_RANK:

    out[t, r] = A[slot, r, id]                    if r < rank and 0 <= id < VOCAB_SIZE
              = extra[slot, id - VOCAB_SIZE, r]   if r < rank and VOCAB_SIZE <= id < VOCAB_SIZE + NUM_EXTRA
              = 0                                 otherwise

The kernels differ in how row t learns (slot, rank):

tokens    from token_adapters[t] = slot << 16 | rank. The id and this word load side by side, then the row: two
          dependent loads. A word of 0 is a row without LoRA, padding included.
segments  from the batch structure of csgmv: segment g covers permutation[seg_indptr[g] : seg_indptr[g+1]], all of
          slot seg_slots[g]. Bounds, permutation, id, row: four dependent loads, but it runs on SGLang's own
          batch info as it is.

Worked example, chunk size 2, ranks [2, 0], sequences of lengths [3, 1] in slots [0, 1]:
token_adapters = [2, 2, 2, 65536], permutation = [0, 1, 2, 3], seg_indptr = [0, 2, 3, 4], seg_slots = [0, 0, 1].

Invariants
- Every element of out's num_tokens rows is written exactly once, so the caller need not clear it.
- A table row is read only under `found`, so an id outside the table never forms a read.
- Offsets into the tables and out are 64-bit: slot * stride passes 2^31 on real tables.
- With PDL nothing is read or written before gdc_wait, which returns when all earlier kernels of the stream have ended
  and their writes are visible. A kernel launched early after this one has to wait likewise.
- GROUP divides MAX_RANK, the strides and the alignment of the table, OUT_GROUP those of out, and either is at most 16
  bytes of elements.
  Loads are masked by whole groups, which keeps them wide although the rank of a row is only known at run time;
  what a group reads past the rank lies inside the row and is zeroed in registers.
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by ops.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _overlap_launches():
    """Programmatic dependent launch: the next kernel may be set up now, this one reads only after those before it."""
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def _copy_rows(
    rows,
    live,
    ids,
    slots,
    ranks,
    a_table,
    extra,
    out,
    VOCAB_SIZE: tl.constexpr,
    NUM_EXTRA: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    A_STRIDE_VOCAB: tl.constexpr,
    EXTRA_STRIDE_SLOT: tl.constexpr,
    EXTRA_STRIDE_TOKEN: tl.constexpr,
    EXTRA_STRIDE_RANK: tl.constexpr,
    OUT_STRIDE_TOKEN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
):
    """Write out[rows, block of ranks] for the live rows; ids, slots, ranks are per row."""
    column = tl.program_id(1) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    group = (column // GROUP) * GROUP
    if MAX_RANK % BLOCK_RANK == 0:
        wanted = group[None, :] < ranks[:, None]  # no column of a tile lies beyond MAX_RANK
    else:
        wanted = group[None, :] < tl.minimum(ranks, MAX_RANK)[:, None]
    ids = ids.to(tl.int64)
    slots = slots.to(tl.int64)

    found = live & (ids >= 0) & (ids < VOCAB_SIZE)
    row = tl.multiple_of(slots * A_STRIDE_SLOT + ids * A_STRIDE_VOCAB, GROUP)
    pointers = a_table + (row[:, None] + column[None, :].to(tl.int64) * A_STRIDE_RANK)
    values = tl.load(pointers, mask=found[:, None] & wanted, other=0.0)
    if HAS_EXTRA:
        added = live & (ids >= VOCAB_SIZE) & (ids - VOCAB_SIZE < NUM_EXTRA)
        row = slots * EXTRA_STRIDE_SLOT + (ids - VOCAB_SIZE) * EXTRA_STRIDE_TOKEN
        pointers = extra + (row[:, None] + column[None, :].to(tl.int64) * EXTRA_STRIDE_RANK)
        values = tl.where(added[:, None], tl.load(pointers, mask=added[:, None] & wanted, other=0.0), values)
    values = tl.where(column[None, :] < ranks[:, None], values, 0.0)

    row = tl.multiple_of(rows.to(tl.int64) * OUT_STRIDE_TOKEN, OUT_GROUP)
    if MAX_RANK % BLOCK_RANK == 0:
        tl.store(out + (row[:, None] + column[None, :]), values, mask=live[:, None])
    else:
        inside = (column // OUT_GROUP) * OUT_GROUP < MAX_RANK
        tl.store(out + (row[:, None] + column[None, :]), values, mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def embedding_lora_a_tokens_kernel(
    input_ids,
    token_adapters,
    a_table,
    extra,
    out,
    num_tokens,
    VOCAB_SIZE: tl.constexpr,
    NUM_EXTRA: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    A_STRIDE_VOCAB: tl.constexpr,
    EXTRA_STRIDE_SLOT: tl.constexpr,
    EXTRA_STRIDE_TOKEN: tl.constexpr,
    EXTRA_STRIDE_RANK: tl.constexpr,
    OUT_STRIDE_TOKEN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (ceil(num_tokens / BLOCK_TOKENS), ceil(MAX_RANK / BLOCK_RANK)): a tile of tokens by ranks each."""
    if PDL:
        _overlap_launches()
    rows = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    live = rows < num_tokens
    ids = tl.load(input_ids + rows, mask=live, other=-1)
    word = tl.load(token_adapters + rows, mask=live, other=0)
    _copy_rows(
        rows,
        live,
        ids,
        word >> 16,
        word & 0xFFFF,
        a_table,
        extra,
        out,
        VOCAB_SIZE,
        NUM_EXTRA,
        A_STRIDE_SLOT,
        A_STRIDE_RANK,
        A_STRIDE_VOCAB,
        EXTRA_STRIDE_SLOT,
        EXTRA_STRIDE_TOKEN,
        EXTRA_STRIDE_RANK,
        OUT_STRIDE_TOKEN,
        MAX_RANK,
        BLOCK_RANK,
        GROUP,
        OUT_GROUP,
        HAS_EXTRA,
    )


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments", "tiles"])
def embedding_lora_a_segments_kernel(
    input_ids,
    permutation,
    seg_indptr,
    seg_slots,
    slot_ranks,
    a_table,
    extra,
    out,
    num_tokens,
    num_slots,
    num_segments,
    tiles,
    VOCAB_SIZE: tl.constexpr,
    NUM_EXTRA: tl.constexpr,
    A_STRIDE_SLOT: tl.constexpr,
    A_STRIDE_RANK: tl.constexpr,
    A_STRIDE_VOCAB: tl.constexpr,
    EXTRA_STRIDE_SLOT: tl.constexpr,
    EXTRA_STRIDE_TOKEN: tl.constexpr,
    EXTRA_STRIDE_RANK: tl.constexpr,
    OUT_STRIDE_TOKEN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    PDL: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
):
    """Grid (num_segments * tiles + padding, ceil(MAX_RANK / BLOCK_RANK)).

    Program p < num_segments * tiles copies tiles p % tiles, p % tiles + tiles, ... of segment p // tiles: one of
    them, unless a replay brings longer segments than the capture saw. The programs after them write the zero rows
    behind the last segment, in turn: padding tokens of a captured batch, none or all but a few of them.
    """
    if PDL:
        _overlap_launches()
    program = tl.program_id(0)
    segment = program // tiles
    in_batch = segment < num_segments
    if in_batch:
        end = tl.load(seg_indptr + segment + 1).to(tl.int32)
        first = tl.load(seg_indptr + segment).to(tl.int32) + (program - segment * tiles) * BLOCK_TOKENS
        slot = tl.load(seg_slots + segment).to(tl.int32)
        in_table = (slot >= 0) & (slot < num_slots)
        rank = tl.load(slot_ranks + slot, mask=in_table, other=0).to(tl.int32)
        step = tiles * BLOCK_TOKENS
    else:
        end = num_tokens
        first = tl.load(seg_indptr + num_segments).to(tl.int32) + (program - num_segments * tiles) * BLOCK_TOKENS
        slot = 0
        rank = 0
        step = (tl.num_programs(0) - num_segments * tiles) * BLOCK_TOKENS
    for start in range(first, end, step):
        position = start + tl.arange(0, BLOCK_TOKENS)
        live = position < end
        if HAS_PERMUTATION:
            rows = tl.load(permutation + position, mask=live & in_batch, other=0)
            rows = tl.where(in_batch, rows, position)
        else:
            rows = position
        live = live & (rows < num_tokens)
        ids = tl.load(input_ids + rows, mask=live, other=-1)
        _copy_rows(
            rows,
            live,
            ids,
            tl.full((BLOCK_TOKENS,), 0, tl.int32) + slot,
            tl.full((BLOCK_TOKENS,), 0, tl.int32) + rank,
            a_table,
            extra,
            out,
            VOCAB_SIZE,
            NUM_EXTRA,
            A_STRIDE_SLOT,
            A_STRIDE_RANK,
            A_STRIDE_VOCAB,
            EXTRA_STRIDE_SLOT,
            EXTRA_STRIDE_TOKEN,
            EXTRA_STRIDE_RANK,
            OUT_STRIDE_TOKEN,
            MAX_RANK,
            BLOCK_RANK,
            GROUP,
            OUT_GROUP,
            HAS_EXTRA,
        )
