"""The two Triton kernels of the lookup. They differ in how they find the adapter of a row, and copy rows alike.

Equation, for every row t < num_tokens and column r < max_rank:

    out[t, r] = A[slot, r, id]                    if r < rank and 0 <= id < vocab_size
              = extra[slot, id - vocab_size, r]   if r < rank and vocab_size <= id < vocab_size + num_extra
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
- With pdl nothing is read or written before gdc_wait, which returns when all earlier kernels of the stream have ended
  and their writes are visible. A kernel launched early after this one has to wait likewise.
- a_width divides max_rank, the strides and the address of the table, out_width those of out (common.py, WIDTH).
"""

# Triton's DSL is untyped: parameters here are tensors of pointers and integers, checked by the op.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import NamedTuple

import triton
import triton.language as tl

from csgmv_embed.kernels.common import a_rows, load_ids, overlap_launches


class LookupConstants(NamedTuple):
    """Constants compiled into a lookup. Strides and widths in elements; block_m are rows, block_n ranks."""

    vocab_size: int
    num_extra: int
    a_stride_slot: int
    a_stride_rank: int
    a_stride_vocab: int
    extra_stride_slot: int
    extra_stride_token: int
    extra_stride_rank: int
    out_stride_token: int
    max_rank: int
    has_extra: bool
    has_permutation: bool  # else the rows of a segment are in order
    pdl: bool
    a_width: int
    out_width: int
    block_m: int
    block_n: int


@triton.jit
def _copy_rows(rows, mask, ids, slot, rank, a_ptr, extra_ptr, out_ptr, c: tl.constexpr):
    """Write out[rows, block of ranks]; slot and rank: of all rows, or (M,) and (M, 1)."""
    WIDTH: tl.constexpr = c.out_width
    n = tl.program_id(1) * c.block_n + tl.arange(0, c.block_n)
    if c.max_rank % c.block_n == 0:
        inside = mask[:, None]  # no column of a tile lies beyond max_rank
    else:
        rank = tl.minimum(rank, c.max_rank)
        inside = mask[:, None] & ((n // WIDTH) * WIDTH < c.max_rank)[None, :]
    near = ((n // c.a_width) * c.a_width)[None, :] < rank
    values = a_rows(ids, mask, slot, near, n[None, :] < rank, n, a_ptr, extra_ptr, c)
    row = tl.multiple_of(rows.to(tl.int64) * c.out_stride_token, WIDTH)
    tl.store(out_ptr + (row[:, None] + n[None, :]), values, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def embedding_lora_a_tokens_kernel(
    input_ids_ptr, token_adapters_ptr, a_ptr, extra_ptr, out_ptr, num_tokens, c: tl.constexpr
):
    """Grid (ceil(num_tokens / block_m), ceil(max_rank / block_n)): a tile of rows by ranks each. c: LookupConstants."""
    if c.pdl:
        overlap_launches()
    rows = tl.program_id(0) * c.block_m + tl.arange(0, c.block_m)
    mask = rows < num_tokens
    ids = load_ids(rows, mask, input_ids_ptr)
    word = tl.load(token_adapters_ptr + rows, mask=mask, other=0)
    _copy_rows(rows, mask, ids, word >> 16, (word & 0xFFFF)[:, None], a_ptr, extra_ptr, out_ptr, c)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_segments", "tiles"])
def embedding_lora_a_segments_kernel(
    input_ids_ptr,
    permutation_ptr,
    seg_indptr_ptr,
    seg_slots_ptr,
    slot_ranks_ptr,
    a_ptr,
    extra_ptr,
    out_ptr,
    num_tokens,
    num_slots,
    num_segments,
    tiles,
    c: tl.constexpr,
):
    """Grid (num_segments * tiles + padding, ceil(max_rank / block_n)). c: LookupConstants.

    Program p < num_segments * tiles copies tiles p % tiles, p % tiles + tiles, ... of segment p // tiles: one of
    them, unless a replay brings longer segments than the capture saw. The programs after them write the zero rows
    behind the last segment, in turn: padding tokens of a captured batch, none or all but a few of them.
    """
    if c.pdl:
        overlap_launches()
    program = tl.program_id(0)
    segment = program // tiles
    in_batch = segment < num_segments
    if in_batch:
        end = tl.load(seg_indptr_ptr + segment + 1).to(tl.int32)
        first = tl.load(seg_indptr_ptr + segment).to(tl.int32) + (program - segment * tiles) * c.block_m
        slot = tl.load(seg_slots_ptr + segment).to(tl.int32)
        in_table = (slot >= 0) & (slot < num_slots)
        rank = tl.load(slot_ranks_ptr + slot, mask=in_table, other=0).to(tl.int32)
        step = tiles * c.block_m
    else:
        end = num_tokens
        first = tl.load(seg_indptr_ptr + num_segments).to(tl.int32) + (program - num_segments * tiles) * c.block_m
        slot = 0
        rank = 0
        step = (tl.num_programs(0) - num_segments * tiles) * c.block_m
    for start in range(first, end, step):
        position = start + tl.arange(0, c.block_m)
        mask = position < end
        if c.has_permutation:
            rows = tl.load(permutation_ptr + position, mask=mask & in_batch, other=0)
            rows = tl.where(in_batch, rows, position)
        else:
            rows = position
        mask = mask & (rows < num_tokens)
        ids = load_ids(rows, mask, input_ids_ptr)
        _copy_rows(rows, mask, ids, slot, rank, a_ptr, extra_ptr, out_ptr, c)
