"""The public call: checks, choice of plan, launch."""

from __future__ import annotations

import math

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from csgmv_embed import tuning
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.errors import CapacityError, DeviceError, DtypeError, ShapeError
from csgmv_embed.kernels import embedding_lora_a_segments_kernel, embedding_lora_a_tokens_kernel

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ID_DTYPES = (torch.int32, torch.int64)
VECTOR_BYTES = 16  # the widest load of one thread

# Host tensors make sense where nothing is launched on a GPU: in the interpreter, or in a tool that only compiles.
accept_host_tensors = isinstance(embedding_lora_a_tokens_kernel, InterpretedFunction)


def embedding_lora_a(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The A side of LoRA on an embedding layer: out[t, :r] = A[slot, :r, id], out[t, r:] = 0.

    slot is the adapter slot of token t by `batch`, r = rank[slot], id = input_ids[t].

    input_ids         (tokens,) int32 or int64, contiguous. Ids in [vocab_size, vocab_size + extra) read
                      extra_embeddings; any other id outside [0, vocab_size) gives a zero row.
    a_table           (slots, max_rank, >= vocab_size) fp16, bf16 or fp32, of any strides.
    batch             the adapters of these tokens. A static batch may hold fewer tokens than input_ids:
                      the rows behind them are zero.
    extra_embeddings  (slots, extra, max_rank), dtype of a_table, of any strides.
    out               (tokens, max_rank), dtype of a_table, rows contiguous; may be uninitialised: every
                      element is written. Allocated if None.

    Returns out. One kernel launch, no synchronisation; safe to capture in a CUDA graph with a static
    batch. Raises ShapeError, DtypeError, DeviceError, CapacityError.
    """
    _check(input_ids, a_table, batch, vocab_size, extra_embeddings)
    tokens, max_rank = input_ids.numel(), a_table.shape[1]
    if out is None:
        out = torch.empty(tokens, max_rank, dtype=a_table.dtype, device=a_table.device)
    else:
        _check_out(out, tokens, a_table)
    if out.numel() > 0:
        _launch(input_ids, a_table, batch, vocab_size, extra_embeddings, out)
    return out


def _launch(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    tokens, max_rank = out.shape
    config = tuning.choose(tokens, max_rank, a_table.stride(1) == 1)
    rank_blocks = triton.cdiv(max_rank, config.block_rank)
    extra = a_table if extra_embeddings is None else extra_embeddings  # never read when there is none
    shared = (
        vocab_size,
        0 if extra_embeddings is None else extra.shape[1],
        *a_table.stride(),
        *extra.stride(),
        out.stride(0),
        max_rank,
        config.block_tokens,
        config.block_rank,
        _vector_group(a_table, out),
        extra_embeddings is not None,
    )
    tiles = triton.cdiv(tokens, config.block_tokens)
    if batch.token_adapters is not None:
        embedding_lora_a_tokens_kernel[(tiles, rank_blocks)](
            input_ids, batch.token_adapters, a_table, extra, out, tokens, *shared, num_warps=config.num_warps
        )
        return
    segment_tiles = triton.cdiv(batch.chunk_size, config.block_tokens)
    padding_tiles = 0 if batch.num_tokens == tokens else tiles
    embedding_lora_a_segments_kernel[(batch.num_segments * segment_tiles + padding_tiles, rank_blocks)](
        input_ids,
        batch.seg_indptr if batch.permutation is None else batch.permutation,
        batch.seg_indptr,
        batch.seg_slots,
        batch.ranks,
        a_table,
        extra,
        out,
        tokens,
        min(a_table.shape[0], batch.ranks.shape[0]),
        batch.num_segments,
        segment_tiles,
        *shared,
        batch.permutation is not None,
        num_warps=config.num_warps,
    )


def _vector_group(a_table: torch.Tensor, out: torch.Tensor) -> int:
    """Elements that may be moved as one: a power of two dividing everything that places a row (kernels.py, GROUP)."""
    if a_table.stride(1) != 1:
        return 1
    size = a_table.element_size()
    return math.gcd(
        VECTOR_BYTES // size,
        a_table.shape[1],
        a_table.stride(0),
        a_table.stride(2),
        out.stride(0),
        a_table.data_ptr() // size,
        out.data_ptr() // size,
    )


def _check(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None,
) -> None:
    if input_ids.ndim != 1 or not input_ids.is_contiguous():
        raise ShapeError(
            f"input_ids has shape {tuple(input_ids.shape)}, strides {input_ids.stride()}; expected contiguous (tokens,)"
        )
    if input_ids.dtype not in ID_DTYPES:
        raise DtypeError(f"input_ids is {input_ids.dtype}; expected torch.int32 or torch.int64")
    if a_table.ndim != 3:
        raise ShapeError(f"a_table has shape {tuple(a_table.shape)}; expected (slots, max_rank, vocab)")
    if a_table.dtype not in FLOAT_DTYPES:
        raise DtypeError(f"a_table is {a_table.dtype}; expected one of {', '.join(map(str, FLOAT_DTYPES))}")
    slots, max_rank, columns = a_table.shape
    if not 0 <= vocab_size <= columns:
        raise ShapeError(f"vocab_size is {vocab_size}; expected 0 to {columns}, the last extent of a_table")
    if extra_embeddings is not None:
        if extra_embeddings.ndim != 3 or extra_embeddings.shape[0] < slots or extra_embeddings.shape[2] != max_rank:
            raise ShapeError(
                f"extra_embeddings has shape {tuple(extra_embeddings.shape)}; expected ({slots}, extra, {max_rank})"
            )
        if extra_embeddings.dtype != a_table.dtype:
            raise DtypeError(f"extra_embeddings is {extra_embeddings.dtype}; expected {a_table.dtype}, as a_table")
    _check_devices(input_ids, a_table, batch, extra_embeddings)
    _check_batch(input_ids.numel(), slots, max_rank, batch)


def _check_devices(
    input_ids: torch.Tensor, a_table: torch.Tensor, batch: EmbeddingBatch, extra_embeddings: torch.Tensor | None
) -> None:
    device = a_table.device
    if device.type != "cuda" and not accept_host_tensors:
        raise DeviceError(
            f"a_table is on {device}; expected a CUDA device, or TRITON_INTERPRET=1 set before the import"
        )
    others = {"input_ids": input_ids.device, "batch": batch.device}
    if extra_embeddings is not None:
        others["extra_embeddings"] = extra_embeddings.device
    for name, other in others.items():
        if other != device:
            raise DeviceError(f"{name} is on {other}; expected {device}, where a_table is")


def _check_batch(tokens: int, slots: int, max_rank: int, batch: EmbeddingBatch) -> None:
    if batch.static:
        assert batch.max_tokens is not None
        if tokens > batch.max_tokens:
            raise CapacityError(f"input_ids has {tokens} tokens; expected at most {batch.max_tokens}, as allocated")
    elif batch.num_tokens is not None and tokens != batch.num_tokens:
        raise ShapeError(f"input_ids has {tokens} tokens; expected {batch.num_tokens}, the tokens of the batch")
    if batch.max_rank is None:
        return  # SGLang's ranks live on the device; the kernel clamps rank and slot instead
    if batch.ranks.shape[0] > slots:
        raise ShapeError(f"the batch has {batch.ranks.shape[0]} slots; expected at most {slots}, those of a_table")
    if batch.max_rank > max_rank:
        raise ShapeError(f"the batch has an adapter of rank {batch.max_rank}; expected at most {max_rank} (a_table)")


def _check_out(out: torch.Tensor, tokens: int, a_table: torch.Tensor) -> None:
    max_rank = a_table.shape[1]
    if tuple(out.shape) != (tokens, max_rank) or (out.numel() > 0 and out.stride(1) != 1):
        raise ShapeError(
            f"out has shape {tuple(out.shape)}, strides {out.stride()}; "
            f"expected ({tokens}, {max_rank}), rows contiguous"
        )
    if out.dtype != a_table.dtype:
        raise DtypeError(f"out is {out.dtype}; expected {a_table.dtype}, as a_table")
    if out.device != a_table.device:
        raise DeviceError(f"out is on {out.device}; expected {a_table.device}, where a_table is")
