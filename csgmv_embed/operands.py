"""What the ops of the whole layer and of lm_head ask of their operands, and how wide the kernels may read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from triton.runtime.interpreter import InterpretedFunction

from csgmv_embed import ops
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.checks import check_memory
from csgmv_embed.errors import DeviceError, DtypeError, ShapeError
from csgmv_embed.kernels.embedding import embedding_lora_kernel
from csgmv_embed.ops import FLOAT_DTYPES, VECTOR_BYTES

MAX_KEPT = 1024  # prepared launches of an op; steps come in few sizes
INTERPRETED = isinstance(embedding_lora_kernel, InterpretedFunction)

T = TypeVar("T")
Key = tuple[object, ...]


class Prepared(NamedTuple):
    """A launch but for its tensors."""

    grid: tuple[int, int, int]
    counts: tuple[int, ...]
    constants: tuple[object, ...]
    num_warps: int


def structure(batch: EmbeddingBatch) -> tuple[torch.Tensor, ...]:
    """Permutation, bounds and slots of the segments, ranks and scalings: what every kernel reads of a batch.

    Without a permutation, which the kernels are told, the bounds stand in its place.
    """
    bounds, slots, ranks, scalings = batch.seg_indptr, batch.seg_slots, batch.ranks, batch.scalings
    assert bounds is not None and slots is not None and ranks is not None and scalings is not None
    return bounds if batch.permutation is None else batch.permutation, bounds, slots, ranks, scalings


def kept(store: dict[Key, T], key: Key, make: Callable[[], T]) -> T:
    """store[key], made on first use. Checking and preparing a launch costs more than launching."""
    try:
        return store[key]  # None is an answer, too: nothing to launch
    except KeyError:
        found = make()
    if len(store) >= MAX_KEPT:
        store.clear()
    store[key] = found
    return found


def seen(tensor: torch.Tensor) -> Key:
    """All of a tensor that a check or a launch depends on, but its address modulo VECTOR_BYTES."""
    return (
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.data_ptr() % VECTOR_BYTES,
        tensor.is_neg(),
    )


def seen_batch(batch: EmbeddingBatch) -> Key:
    """The same of a batch."""
    words, contents, static = batch.token_adapters, batch._contents, batch.max_tokens is not None
    return (
        batch.device,
        static,
        contents.adapted,
        None if static else contents.num_tokens,
        batch.chunk_size,
        batch.num_segments,
        batch.slots,
        batch.permutation is None,
        None if words is None else words.data_ptr() % VECTOR_BYTES,
        None if batch.seg_indptr is None else batch.seg_indptr.dtype,
    )


def without_adapter(batch: EmbeddingBatch) -> bool:
    """Whether no token of the batch has an adapter, now and whenever this launch is repeated in a graph."""
    return not batch.static and not batch.adapted


def width(tensor: torch.Tensor, *placing: int) -> int:
    """Most elements that may be read as one: a power of two dividing the address and all `placing`, in elements."""
    size = tensor.element_size()
    return ops.aligned(math.gcd(VECTOR_BYTES // size, *placing), tensor.data_ptr(), size)


def check_batch(batch: EmbeddingBatch, tokens: int, slots: int, max_rank: int, what: str) -> None:
    """Raises ShapeError, CapacityError. `what` names the operand that has the tokens."""
    if batch.seg_indptr is None or batch.scalings is None:
        raise ShapeError("this batch was planned without csgmv's structure; expected one made with segments=True")
    batch.check_fits(tokens, slots, max_rank, what)


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int | None, ...],
    described: str,
    like: torch.Tensor,
    like_name: str,
    *,
    any_dtype: bool = False,
    contiguous_last: bool = True,
) -> None:
    """Raises ShapeError, DtypeError, DeviceError. shape: None where any extent will do; described: it in words."""
    fits = tensor.ndim == len(shape) and all(
        wanted is None or have == wanted for have, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected {described}")
    if contiguous_last and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ShapeError(f"{name} has strides {tensor.stride()}; expected its last axis contiguous")
    if tensor.dtype not in FLOAT_DTYPES:
        raise DtypeError(f"{name} is {tensor.dtype}; expected one of {', '.join(map(str, FLOAT_DTYPES))}")
    if not any_dtype and tensor.dtype != like.dtype:
        raise DtypeError(f"{name} is {tensor.dtype}; expected {like.dtype}, as {like_name}")
    check_memory(name, tensor)
    if tensor.device != like.device:
        raise DeviceError(f"{name} is on {tensor.device}; expected {like.device}, where {like_name} is")


def check_rows_apart(name: str, tensor: torch.Tensor) -> None:
    """Rows that are written must not share memory. Raises ShapeError."""
    if tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]:
        raise ShapeError(f"{name} has strides {tensor.stride()}; expected rows that lie apart")


def check_device(batch: EmbeddingBatch, like: torch.Tensor, like_name: str) -> None:
    """Raises DeviceError."""
    ops.check_runs_here(like_name, like)
    if batch.device != like.device:
        raise DeviceError(f"batch is on {batch.device}; expected {like.device}, where {like_name} is")
