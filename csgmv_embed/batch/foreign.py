"""Checks a batch info of SGLang and makes a view of it. The kernels read its arrays by address."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.batch.capacity import Contents
from csgmv_embed.batch.plan import checked_size
from csgmv_embed.errors import DeviceError, DtypeError, ShapeError
from csgmv_embed.launch.checks import check_memory

NEEDED = ("seg_indptr", "weight_indices", "lora_ranks", "max_len")


def check(batch_info: Any) -> None:
    """Raises ShapeError, DtypeError or DeviceError if the kernels cannot read this batch info."""
    for name in NEEDED:
        if getattr(batch_info, name, None) is None:
            raise ShapeError(f"batch_info.{name} is None or missing; expected SGLang's LoRABatchInfo, prepared")
    device = batch_info.seg_indptr.device
    arrays = {name: getattr(batch_info, name) for name in ("seg_indptr", "weight_indices", "lora_ranks")}
    arrays |= {name: getattr(batch_info, name, None) for name in ("permutation", "scalings")}
    for name, tensor in arrays.items():
        if tensor is None:
            continue
        if tensor.ndim != 1 or not tensor.is_contiguous():
            raise ShapeError(
                f"batch_info.{name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}; "
                "expected 1-D, contiguous"
            )
        dtypes = (torch.float32,) if name == "scalings" else (torch.int32, torch.int64)
        if tensor.dtype not in dtypes:
            raise DtypeError(f"batch_info.{name} is {tensor.dtype}; expected {' or '.join(map(str, dtypes))}")
        if tensor.device != device:
            raise DeviceError(f"batch_info.{name} is on {tensor.device}; expected {device}, where seg_indptr is")
        check_memory(f"batch_info.{name}", tensor)


def described(batch_info: Any) -> dict[str, Any]:
    """The fields of an EmbeddingBatch that views a LoRABatchInfo. Raises ShapeError, DtypeError, DeviceError."""
    check(batch_info)
    permutation = getattr(batch_info, "permutation", None)
    static = bool(batch_info.use_cuda_graph)
    tokens = None if permutation is None else permutation.shape[0]
    # Captured csgmv launches cover every segment the buffers can hold: later replays may need more than now.
    if static and (permutation is not None or batch_info.num_segments is None):
        num_segments = batch_info.weight_indices.shape[0]
    else:
        num_segments = checked_size("batch_info.num_segments", batch_info.num_segments, 0)
    return {
        "token_adapters": None,
        "permutation": permutation,
        "seg_indptr": batch_info.seg_indptr,
        "seg_slots": batch_info.weight_indices,
        "ranks": batch_info.lora_ranks,
        "scalings": getattr(batch_info, "scalings", None),
        "slots": batch_info.lora_ranks.shape[0],
        "chunk_size": checked_size("batch_info.max_len", batch_info.max_len, 0),
        "max_tokens": tokens if static else None,
        "num_segments": num_segments,
        "contents": Contents(None if static else tokens, None),
    }
