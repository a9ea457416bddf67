"""What a batch info of SGLang has to be for the kernels, which read its arrays by their addresses."""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.errors import DeviceError, DtypeError, ShapeError
from csgmv_embed.launch.checks import check_memory

NEEDED = ("seg_indptr", "weight_indices", "lora_ranks", "max_len")


def check(batch_info: Any) -> None:
    """Raises ShapeError, DtypeError, DeviceError."""
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
