"""What runs in place of the backend's methods; while the plugin is off, every hook passes through to SGLang's own.

The signatures are `hook(original, *arguments of the original)`, SGLang's around hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.errors import ShapeError
from csgmv_embed.launch.checks import check_axes
from csgmv_embed.lookup import embedding_lora_a
from csgmv_embed.sglang import planner, runtime
from csgmv_embed.sglang.views import BATCH, current_batch

Original = Callable[..., Any]


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
    """`run_lora_a_embedding`: (tokens,) ids to (tokens, max_rank), dtype of weights."""
    state = runtime.state_of(backend)
    if state is None:
        result: torch.Tensor = original(backend, input_ids, weights, vocab_size, extra_embeddings, *args, **kwargs)
        return result
    return run_lookup(state, input_ids, weights, vocab_size, extra_embeddings)


def run_lookup(
    state: planner.State,
    input_ids: torch.Tensor,
    weights: torch.Tensor,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """The lookup of the backend's current batch.

    input_ids (tokens,); weights (slots, max_rank, vocab_size [+ added]), in either storage. Ids from vocab_size on are
    added tokens: extra_embeddings (slots, added, max_rank) serves them, else the columns of weights beyond vocab_size.
    Any other id gives a zero row. No ids give no rows, whatever batch is planned: a rank that idles under data-parallel
    attention calls so. Raises what embedding_lora_a raises.
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
    rows = planned_rows(batch, tokens)
    if rows == tokens:
        return embedding_lora_a(input_ids, weights, batch, vocab_size, extra_embeddings)
    out = weights.new_zeros(tokens, max_rank)
    embedding_lora_a(input_ids[:rows], weights, batch, vocab_size, extra_embeddings, out=out[:rows])
    return out


def added_tokens(
    weights: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None
) -> tuple[int, torch.Tensor | None]:
    """vocab_size and extra_embeddings as the ops take them: the columns beyond the vocabulary are added tokens too.

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
    """How many of a layer's rows are the batch's: those that SGLang pads an eager batch with have no adapter."""
    planned = batch.num_tokens
    return rows if batch.static or planned is None else min(rows, planned)


def prepare(
    original: Original,
    backend: Any,
    forward_batch: Any,
    weight_indices: list[int],
    lora_ranks: list[int],
    scalings: list[float],
    use_cuda_graph: bool,
    use_prefill_cuda_graph: bool = False,
) -> None:
    """`prepare_lora_batch`."""
    state = runtime.state_of(backend)
    static_info = None
    if state is not None and use_prefill_cuda_graph:
        static_info = backend.prefill_cuda_graph_batch_info
    elif state is not None and use_cuda_graph:
        static_info = backend.cuda_graph_batch_info
    if state is None or (static_info is not None and not hasattr(static_info, planner.STATIC)):
        prefill = {"use_prefill_cuda_graph": True} if use_prefill_cuda_graph else {}
        original(backend, forward_batch, weight_indices, lora_ranks, scalings, use_cuda_graph, **prefill)
        return
    planner.prepare(state, forward_batch, weight_indices, lora_ranks, scalings, static_info)


def decode_graph(original: Original, backend: Any, *args: Any, **kwargs: Any) -> None:
    """The init method of the batch info of captured decode."""
    original(backend, *args, **kwargs)
    state = runtime.state_of(backend)
    if state is not None:
        planner.pack(state, backend.cuda_graph_batch_info)


def prefill_graph(original: Original, backend: Any, *args: Any, **kwargs: Any) -> None:
    """The init method of the batch info of captured prefill."""
    original(backend, *args, **kwargs)
    state = runtime.state_of(backend)
    if state is not None:
        planner.pack(state, backend.prefill_cuda_graph_batch_info)


def modules(original: Original, manager: Any) -> None:
    """`update_lora_info`: which of the two modules the backend has to prepare for."""
    original(manager)
    state = runtime.state_of(manager.lora_backend)
    if state is not None:
        state.embedding_targeted = manager.embed_tokens_module is not None
        state.lm_head_targeted = manager.lm_head_module is not None
        state.last_step = None
