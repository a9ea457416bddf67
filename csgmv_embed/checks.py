"""What every op asks of its tensors, whatever they mean."""

from __future__ import annotations

import torch

from csgmv_embed.errors import DtypeError, ShapeError


def check_axes(name: str, tensor: torch.Tensor, axes: int, described: str) -> None:
    """Raises ShapeError unless the tensor has so many axes; described: what they are."""
    if tensor.ndim != axes:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected {described}")


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Raises DtypeError if the memory holds other values than the tensor: kernels read and write memory.

    A conjugated tensor is complex, which no op takes.
    """
    if tensor.is_neg():
        raise DtypeError(f"{name} has the negative bit; expected what resolve_neg() gives: its values in memory")
