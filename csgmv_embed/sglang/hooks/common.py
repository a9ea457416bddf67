"""Functions that several hooks share.

A hook is `hook(original, *arguments of the original)`, as SGLang's registry calls its around hooks. While the plugin is
off, each hook calls SGLang's own function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.errors import ShapeError
from csgmv_embed.launch.checks import check_axes
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.planner.state import State

Original = Callable[..., Any]


def serving_state(hook: str, layer: Any) -> State | None:
    """The plugin's state of the layer's backend. None if SGLang's own function is to run."""
    if not runtime.serves(hook):
        return None
    return runtime.state_of(layer.lora_backend)


def batch_info_of(state: State) -> Any:
    """The backend's batch info; None if no batch was prepared."""
    return getattr(state.backend, "batch_info", None)  # SGLang before 0.5.18 makes it with the first batch


def added_tokens(
    weights: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None
) -> tuple[int, torch.Tensor | None]:
    """vocab_size and extra_embeddings for the ops. Columns beyond the vocabulary are added tokens too.

    weights (slots, max_rank, vocab_size [+ added]). Raises ShapeError.
    """
    check_axes("weights", weights, 3, "(slots, max_rank, vocab)")
    _, max_rank, columns = weights.shape
    if vocab_size > columns:
        raise ShapeError(f"the vocabulary has {vocab_size} ids; expected at most {columns}, the columns of the A table")
    if extra_embeddings is not None and extra_embeddings.shape[-1:] == (max_rank,):
        return vocab_size, extra_embeddings
    return columns, None  # else SGLang's rows of the base embedding, hidden_size wide: not the A side's


def planned_rows(batch: EmbeddingBatch, rows: int) -> int:
    """How many of a layer's rows belong to the batch. SGLang pads eager batches with rows that have no adapter."""
    planned = batch.num_tokens
    return rows if batch.static or planned is None else min(rows, planned)


def is_idle(base_output: torch.Tensor) -> bool:
    """Whether there are no rows to add to, as on a rank that idles under data-parallel attention.

    Such a rank runs its layers while its last batch is still planned, or before it had one.
    """
    return base_output.numel() == 0


def alike(first: torch.Tensor, *tables: torch.Tensor) -> bool:
    """Whether a (rows, columns) tensor can be used with the tables without a conversion."""
    return first.dim() == 2 and first.stride(1) == 1 and all(table.dtype == first.dtype for table in tables)
