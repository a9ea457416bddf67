"""Replaces the embedding layer's own methods.

If SGLang's base layer only looks rows up, it runs in the same kernel. Each hook falls back to SGLang's own function
whenever it cannot do everything that function does, and passes its arguments on unchanged.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from typing import Any

import torch

from csgmv_embed.embedding import embedding_lora, embedding_lora_add
from csgmv_embed.launch.checks import ID_DTYPES
from csgmv_embed.sglang import rehearsal
from csgmv_embed.sglang.hooks.common import (
    Original,
    added_tokens,
    alike,
    batch_info_of,
    is_idle,
    planned_rows,
    serving_state,
)
from csgmv_embed.sglang.planner.state import State
from csgmv_embed.sglang.planner.views import current_batch

PLAIN = "csgmv_embed_plain"  # attribute of a layer: its base layer, the weight's address, and what _plain said of them
PROBES = "SGLANG_ENABLE_ASYNC_ASSERT"  # SGLang's base layer then looks at every id
MISSING_ROW = 0  # SGLang's base layer reads this row for an id that is not in the vocabulary


def forward(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `VocabParallelEmbeddingWithLoRA.forward`: (tokens,) ids to (tokens, hidden), in one kernel."""
    state = serving_state("layer", layer)
    found = None if state is None else _embedding(state, layer, *args, **kwargs)
    return original(layer, *args, **kwargs) if found is None else found


def apply(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `VocabParallelEmbeddingWithLoRA.apply_lora`: adds the LoRA part to the base layer's output."""
    state = serving_state("layer_add", layer)
    found = None if state is None else _embedding_add(state, layer, *args, **kwargs)
    return original(layer, *args, **kwargs) if found is None else found


def _embedding(state: State, layer: Any, input_: torch.Tensor) -> torch.Tensor | None:
    info = batch_info_of(state)
    # SGLang from 0.5.18 on says more exactly than set_lora whether this forward has LoRA.
    if info is None or not getattr(layer, "lora_active", layer.set_lora):
        return None
    if getattr(layer, "new_embeddings_buffer", None) is not None:
        return None  # SGLang's own path says what it does not support
    batch = current_batch(info)
    if batch is None:
        return None  # nobody here has LoRA on this layer: the base layer alone, and `apply` leaves it as it is
    if not _are_ids(input_):
        return None
    if not batch.static and input_.shape[0] not in (batch.num_tokens, 0):
        return None  # rows that pad an eager batch: `apply` takes them off
    weight = _plain_weight(layer)
    a_table, b_table = layer.embedding_A_buffer, layer.embedding_B_buffer
    if weight is None or not alike(weight, a_table, b_table):
        return None
    if rehearsal.noted is not None:
        rehearsal.note(partial(_again, input_, weight, a_table, b_table), "layer", a_table.shape, input_.dtype)
    return embedding_lora(input_, weight, a_table, b_table, batch, a_table.shape[2], missing_row=MISSING_ROW)


def _again(
    ids: torch.Tensor, weight: torch.Tensor, a_table: torch.Tensor, b_table: torch.Tensor, info: Any, tokens: int
) -> None:
    batch = current_batch(info)
    if batch is not None:
        rows = ids.new_zeros(tokens)
        embedding_lora(rows, weight, a_table, b_table, batch, a_table.shape[2], missing_row=MISSING_ROW)


def _embedding_add(
    state: State, layer: Any, base_output: torch.Tensor, input_: torch.Tensor, batch_info: Any = None
) -> torch.Tensor | None:
    if is_idle(base_output):
        return base_output
    a_table, b_table = layer.embedding_A_buffer, layer.embedding_B_buffer
    info = batch_info_of(state)
    if info is None or not alike(base_output, a_table, b_table) or not _are_ids(input_):
        return None
    batch = current_batch(info)
    if batch is None:
        return base_output
    extra = getattr(layer, "new_embeddings_buffer", None)
    vocab_size, extra = added_tokens(a_table, layer.vocab_size, extra)
    rows = planned_rows(batch, input_.shape[0])
    embedding_lora_add(base_output[:rows], input_[:rows], a_table, b_table, batch, vocab_size, extra)
    if rehearsal.noted is not None:
        again = partial(_add_again, base_output, input_, a_table, b_table, vocab_size, extra)
        rehearsal.note(again, "layer_add", a_table.shape, base_output.stride(), input_.dtype)
    return base_output


def _add_again(
    out: torch.Tensor,
    ids: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    vocab_size: int,
    extra: torch.Tensor | None,
    info: Any,
    tokens: int,
) -> None:
    batch = current_batch(info)
    if batch is not None:
        rows = rehearsal.rows_like(out, tokens)
        embedding_lora_add(rows, ids.new_zeros(tokens), a_table, b_table, batch, vocab_size, extra)


def _are_ids(input_: torch.Tensor) -> bool:
    return input_.dim() == 1 and input_.is_contiguous() and input_.dtype in ID_DTYPES


def _plain_weight(layer: Any) -> torch.Tensor | None:
    """The base layer's rows of the vocabulary, (vocab, hidden), if all that layer does is to read them; else None."""
    base = layer.base_layer
    weight = getattr(base, "weight", None)
    if weight is None:
        return None
    known = layer.__dict__.get(PLAIN)
    if known is None or known[0] is not base or known[1] != weight.data_ptr():
        found = weight.detach()[: layer.vocab_size] if _plain(base, weight, layer.vocab_size) else None
        known = layer.__dict__[PLAIN] = (base, weight.data_ptr(), found)
    rows: torch.Tensor | None = known[2]
    return rows


def _plain(base: Any, weight: torch.Tensor, vocab_size: int) -> bool:
    """Whether a base layer is SGLang's own, of one rank, unquantised, and does nothing but look rows up."""
    kind = importlib.import_module("sglang.srt.layers.vocab_parallel_embedding").VocabParallelEmbedding
    if type(base) is not kind:
        return False
    method = base.quant_method
    return (
        type(method).__name__ == "UnquantizedEmbeddingMethod"
        and not any(_altered(owner, name) for owner, name in ((base, "forward"), (method, "embedding")))
        # The ranks that the layer is split over are those of the whole group, and that is one: no all-reduce, and no
        # memory that another rank reads.
        and base.tp_size == 1
        and getattr(base, "enable_tp", True)
        and not base.use_attn_tp_group
        and getattr(base, "output_dtype", None) is None  # from 0.5.20 on
        and weight.dim() == 2
        and weight.shape[0] >= vocab_size
        and os.environ.get(PROBES, "0").lower() in ("", "0", "false", "no", "n", "off")
    )


def _altered(owner: Any, name: str) -> bool:
    """Whether a method is not the one its class was written with: replaced on the object, or wrapped in the class."""
    return name in vars(owner) or hasattr(getattr(type(owner), name), "__wrapped__")
