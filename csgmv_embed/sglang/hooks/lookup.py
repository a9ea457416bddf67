"""Replaces the backend's lookup, the A side of the embedding layer's LoRA."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from csgmv_embed.launch.checks import check_axes
from csgmv_embed.lookup import embedding_lora_a
from csgmv_embed.sglang import rehearsal, runtime
from csgmv_embed.sglang.hooks.common import Original, added_tokens, planned_rows
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import BATCH, current_batch


def lookup(
    original: Original,
    backend: Any,
    input_ids: torch.Tensor,
    weights: torch.Tensor,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Replaces `run_lora_a_embedding`: (tokens,) ids to (tokens, max_rank), in the dtype of the weights."""
    state = runtime.state_of(backend)
    if state is None:
        result: torch.Tensor = original(backend, input_ids, weights, vocab_size, extra_embeddings, *args, **kwargs)
        return result
    return run_lookup(state, input_ids, weights, vocab_size, extra_embeddings)


def run_lookup(
    state: State,
    input_ids: torch.Tensor,
    weights: torch.Tensor,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the lookup of the backend's current batch.

    input_ids (tokens,); weights (slots, max_rank, vocab_size [+ added]), in either storage. Ids from vocab_size on are
    added tokens. They read extra_embeddings (slots, added, max_rank) if given, otherwise the columns of weights beyond
    vocab_size. Any other id gives a zero row. Zero ids give zero rows, whatever batch is planned: a rank that idles
    under data-parallel attention calls it so. Raises what embedding_lora_a raises.
    """
    check_axes("input_ids", input_ids, 1, "(tokens,)")
    vocab_size, extra_embeddings = added_tokens(weights, vocab_size, extra_embeddings)
    tokens, max_rank = input_ids.shape[0], weights.shape[1]
    if tokens == 0:
        return weights.new_empty(0, max_rank)
    batch_info = state.backend.batch_info
    if getattr(batch_info, BATCH, BATCH) is None:  # planned: nobody has LoRA on the embedding layer
        return weights.new_zeros(tokens, max_rank)
    batch = current_batch(batch_info)
    assert batch is not None
    if rehearsal.noted is not None:
        rehearsal.note(partial(_again, input_ids, weights, vocab_size, extra_embeddings), "lookup", weights.shape)
    rows = planned_rows(batch, tokens)
    if rows == tokens:
        return embedding_lora_a(input_ids, weights, batch, vocab_size, extra_embeddings)
    out = weights.new_zeros(tokens, max_rank)
    embedding_lora_a(input_ids[:rows], weights, batch, vocab_size, extra_embeddings, out=out[:rows])
    return out


def _again(
    ids: torch.Tensor, weights: torch.Tensor, vocab_size: int, extra: torch.Tensor | None, info: Any, tokens: int
) -> None:
    batch = current_batch(info)
    if batch is not None:
        embedding_lora_a(ids.new_zeros(tokens), weights, batch, vocab_size, extra)
