"""The checks that every op makes of its tensors. Each raises an error that says what is wrong and what was expected.

None of this runs for operands that were seen before (direct.py).
"""

from __future__ import annotations

import torch

from csgmv_embed.errors import DeviceError, DtypeError, GradError, ShapeError
from csgmv_embed.kernels.common import INTERPRETED as INTERPRETED

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ID_DTYPES = (torch.int32, torch.int64)

# Host tensors make sense where nothing is launched on a GPU: in the interpreter, or in a tool that only compiles.
accept_host_tensors = INTERPRETED


def check_axes(name: str, tensor: torch.Tensor, axes: int, described: str) -> None:
    """Raises ShapeError unless the tensor has `axes` axes. described: names of the axes, for the message."""
    if tensor.ndim != axes:
        raise wrong_shape(name, tensor, described)


def wrong_shape(name: str, tensor: torch.Tensor, described: str) -> ShapeError:
    """The ShapeError to raise for a tensor of the wrong shape."""
    return ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected {described}")


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Raises DtypeError if the tensor's memory holds other values than the tensor: kernels read and write memory.

    A conjugated tensor is complex, which no op takes.
    """
    if tensor.is_neg():
        raise DtypeError(f"{name} has the negative bit; expected what resolve_neg() gives: its values in memory")


def check_autograd(name: str, tensor: torch.Tensor) -> None:
    """Raises GradError if autograd expects a gradient of the tensor, because no op computes one."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise GradError(f"{name} requires grad; expected a tensor that does not, or a call under torch.no_grad()")


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
    """Raises ShapeError, DtypeError, DeviceError.

    shape: None where any extent is allowed. described: the shape in words.
    """
    fits = tensor.ndim == len(shape) and all(
        wanted is None or have == wanted for have, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise wrong_shape(name, tensor, described)
    if contiguous_last and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ShapeError(f"{name} has strides {tensor.stride()}; expected its last axis contiguous")
    if tensor.dtype not in FLOAT_DTYPES:
        raise DtypeError(f"{name} is {tensor.dtype}; expected one of {', '.join(map(str, FLOAT_DTYPES))}")
    if not any_dtype and tensor.dtype != like.dtype:
        raise DtypeError(f"{name} is {tensor.dtype}; expected {like.dtype}, as {like_name}")
    check_memory(name, tensor)
    check_autograd(name, tensor)
    if tensor.device != like.device:
        raise DeviceError(f"{name} is on {tensor.device}; expected {like.device}, where {like_name} is")


def check_rows_apart(name: str, tensor: torch.Tensor) -> None:
    """Raises ShapeError if rows that are written share memory."""
    if tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]:
        raise ShapeError(f"{name} has strides {tensor.stride()}; expected rows that lie apart")


def check_ids(input_ids: torch.Tensor, like: torch.Tensor, like_name: str) -> None:
    """Raises ShapeError, DtypeError or DeviceError for unusable input ids."""
    if input_ids.ndim != 1 or not input_ids.is_contiguous():
        raise ShapeError(
            f"input_ids has shape {tuple(input_ids.shape)}, strides {input_ids.stride()}; expected contiguous (tokens,)"
        )
    if input_ids.dtype not in ID_DTYPES:
        raise DtypeError(f"input_ids is {input_ids.dtype}; expected torch.int32 or torch.int64")
    check_memory("input_ids", input_ids)
    if input_ids.device != like.device:
        raise DeviceError(f"input_ids is on {input_ids.device}; expected {like.device}, where {like_name} is")


def check_a_table(
    a_table: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None
) -> tuple[int, int, int]:
    """Check the A table of an embedding layer.

    Returns (slots, max_rank, columns). Raises ShapeError, DtypeError, DeviceError.
    """
    check_tensor("a_table", a_table, (None,) * 3, "(slots, max_rank, vocab)", a_table, "a_table", contiguous_last=False)
    slots, max_rank, columns = a_table.shape
    if not 0 <= vocab_size <= columns:
        raise ShapeError(f"vocab_size is {vocab_size}; expected 0 to {columns}, the last extent of a_table")
    if extra_embeddings is not None:
        described = f"({slots}, extra, {max_rank})"
        shape = (max([slots, *extra_embeddings.shape[:1]]), None, max_rank)  # more slots do no harm
        check_tensor("extra_embeddings", extra_embeddings, shape, described, a_table, "a_table", contiguous_last=False)
    return slots, max_rank, columns


def check_device(batch_device: torch.device, like: torch.Tensor, like_name: str) -> None:
    """Check that kernels can be launched, or interpreted, where the tensor is, and that the batch is there too.

    Raises DeviceError.
    """
    device = like.device
    if device.type != "cuda" and not (accept_host_tensors and device.type == "cpu"):
        raise DeviceError(
            f"{like_name} is on {device}; expected a CUDA device, or TRITON_INTERPRET=1 set before the import"
        )
    if batch_device != device:
        raise DeviceError(f"batch is on {batch_device}; expected {device}, where {like_name} is")
