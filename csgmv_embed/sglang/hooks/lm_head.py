"""Replaces lm_head's own method: adds LoRA to the logits in place.

It falls back to SGLang's own function whenever it cannot do everything that function does, and passes its arguments on
unchanged.
"""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.launch.checks import FLOAT_DTYPES
from csgmv_embed.linear import lora_linear
from csgmv_embed.sglang.hooks.common import Original, alike, batch_info_of, is_idle, planned_rows, serving_state
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import HEAD

NOT_PLANNED: Any = object()


def apply(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `ParallelLMHeadWithLoRA.apply_lora`: adds the LoRA part to the logits in place."""
    state = serving_state("lm_head", layer)
    found = None if state is None else _lm_head(state, layer, *args, **kwargs)
    return original(layer, *args, **kwargs) if found is None else found


def _lm_head(state: State, layer: Any, base_output: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor | None:
    if is_idle(base_output):
        return base_output  # SGLang's checks are for the rows of the batch
    if batch_info_of(state) is None:
        return None
    info = layer._get_lm_head_batch_info(hidden_states.shape[0])  # SGLang's choice and SGLang's checks
    if info is None:
        info = state.backend.batch_info
    a_table, b_table = layer.lm_head_A_buffer, layer.lm_head_B_buffer
    if not alike(hidden_states, a_table, b_table) or not _can_hold(base_output, b_table):
        return None
    batch = getattr(info, HEAD, NOT_PLANNED)
    if batch is NOT_PLANNED:
        return None  # an info of SGLang's own
    if batch is not None:
        rows = planned_rows(batch, hidden_states.shape[0])
        lora_linear(hidden_states[:rows], a_table, b_table, base_output[:rows], batch)
    return base_output


def _can_hold(logits: torch.Tensor, b_table: torch.Tensor) -> bool:
    """Whether the logits have a column for every row of B; they may have more, of a padded vocabulary."""
    fits = logits.dim() == 2 and logits.stride(1) == 1 and logits.shape[1] >= b_table.shape[1]
    return fits and logits.dtype in FLOAT_DTYPES
