"""One transfer of newly planned arrays to the device, and SGLang's own helpers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from csgmv_embed.batch.plan import Int32Array, Ints
from csgmv_embed.batch.staging import Packing, Staging
from csgmv_embed.sglang.planner.state import State


def staging_of(state: State) -> Staging:
    """The host buffers of eager batches, made on first use."""
    if state.staging is None:
        state.staging = Staging(torch.device(state.backend.device))
    return state.staging


def write_all(views: list[Int32Array], arrays: list[Ints]) -> None:
    """Write each array into its view, which has the same size."""
    for view, array in zip(views, arrays, strict=True):
        view[:] = array


def send_new(state: State, packing: Packing, used: Sequence[int] = ()) -> list[torch.Tensor]:
    """Send what was written last to a new device buffer and return its arrays. used: see Packing.device."""
    buffer = torch.empty(packing.total, dtype=torch.int32, device=state.backend.device)
    staging_of(state).send(buffer)
    return packing.device(buffer, used)


@cache
def lora_utils() -> Any:
    """SGLang's module of these, imported when a batch first needs it."""
    return importlib.import_module("sglang.srt.lora.utils")
