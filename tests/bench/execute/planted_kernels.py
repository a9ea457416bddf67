"""A stand-in for the library's lookup with regressions planted in it: the work gate's tests put it into a copy.

VARIANTS and KERNEL are filled in by the test. A batch's number of tokens chooses the variant; `good` is what the others
are measured against, and every variant gives the same, right output.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from csgmv_embed import lookup, to_storage

VARIANTS: dict[int, str] = {}
KERNEL = "embedding_lora_a_tokens_kernel"


@triton.jit
def planted(
    ids_pointer,
    words_pointer,
    table,
    out,
    tokens,
    stride_slot,
    stride_rank,
    stride_vocab,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """out[t, r] = table[slot, r, id] for BLOCK * STEPS tokens a program, BLOCK of them at a time."""
    column = tl.arange(0, RANK)
    for step in range(STEPS):
        rows = (tl.program_id(0) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        live = rows < tokens
        ids = tl.load(ids_pointer + rows, mask=live, other=0)
        word = tl.load(words_pointer + rows, mask=live, other=0)
        row = (word >> 16).to(tl.int64) * stride_slot + ids * stride_vocab
        if CONTIGUOUS:
            pointers = table + tl.multiple_of(row, 8)[:, None] + column[None, :]
        else:
            pointers = table + row[:, None] + column[None, :] * stride_rank
        has = (word & 0xFFFF) > 0
        values = tl.load(pointers, mask=(live & has)[:, None], other=0.0)
        values = tl.where(column[None, :] < (word & 0xFFFF)[:, None], values, 0.0)
        tl.store(out + rows[:, None] * RANK + column[None, :], values, mask=live[:, None])


# The same, of a stride that the compiler knows nothing of.
unspecialized = triton.jit(do_not_specialize=["stride_rank"])(planted.fn)

# variant -> (tokens at a time, steps a program, contiguous rows, warps)
SHAPES = {
    "good": (16, 1, True, 4),
    "serial_loop": (1, 64, True, 4),  # one token after another instead of side by side
    "lost_vectors": (16, 1, False, 4),  # one element a load
    "extra_launch": (16, 1, True, 4),
    "wrong_storage": (16, 1, False, 4),  # one 32-byte sector for every element
    "spill": (256, 1, True, 1),  # a tile that one warp cannot hold in registers
}


def embedding_lora_a(input_ids, a_table, batch, vocab_size, extra_embeddings=None, out=None, *, pdl=False):
    """In the place of the library's call, for the contender csgmv_embed-vocab_major."""
    tokens, rank = input_ids.numel(), a_table.shape[1]
    out = torch.empty(tokens, rank, dtype=a_table.dtype, device=a_table.device)
    variant = VARIANTS.get(tokens, "good")
    block, steps, contiguous, warps = SHAPES[variant]
    kernel = unspecialized if variant == "lost_vectors" else getattr(lookup, KERNEL)
    if variant == "wrong_storage":
        a_table = to_storage(a_table, "rank_major")
    for _ in range(2 if variant == "extra_launch" else 1):
        kernel[(triton.cdiv(tokens, block * steps),)](
            input_ids,
            batch.token_adapters,
            a_table,
            out,
            tokens,
            *a_table.stride(),
            rank,
            block,
            steps,
            contiguous,
            num_warps=warps,
        )
    return out


setattr(lookup, KERNEL, planted)
