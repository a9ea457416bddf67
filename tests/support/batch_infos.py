"""When two of SGLang's LoRABatchInfos are one and the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


def same(ours: Any, theirs: Any, where: str) -> None:
    """Equal in type, dtype, shape, device and every value."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), where
        assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device), where
        assert ours.is_contiguous(), where
        assert torch.equal(ours, theirs), where
    else:
        assert type(ours) is type(theirs) and ours == theirs, where


def same_info(ours: Any, theirs: Any, shared: tuple[str, ...] = ()) -> None:
    """Every field; of captured buffers all that SGLang writes, and neutral values in the tails it leaves alone.

    shared: fields that are those of the captured batch itself, compared there.
    """
    if theirs is None:
        assert ours is None
        return
    assert type(ours) is type(theirs)
    tokens = int(theirs.seg_indptr[theirs.num_segments])
    for field in dataclasses.fields(theirs):
        mine, stock = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in shared:
            continue
        if theirs.use_cuda_graph and isinstance(stock, torch.Tensor):
            live, neutral = {
                "permutation": (tokens, 0),
                "req_seg_indptr": (theirs.bs + 1, tokens),
                "req_weight_indices": (theirs.bs, 0),
                "seg_indptr": (theirs.num_segments + 1, tokens),
                "weight_indices": (theirs.num_segments, 0),
            }.get(field.name, (len(stock), 0))
            assert mine.shape == stock.shape and bool((mine[live:] == neutral).all()), field.name
            mine, stock = mine[:live], stock[:live]
        same(mine, stock, field.name)
