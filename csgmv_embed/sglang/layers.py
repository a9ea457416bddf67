"""What runs in place of the two layers' own methods: the whole embedding layer, and LoRA on lm_head.

Each falls back to SGLang's own function wherever it cannot do all of what that does; the lookup is hooked on its own
(hooks.py). Signatures as there; the hooks are optional, so what SGLang calls them with is passed on as it came.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from csgmv_embed.embedding import embedding_lora, embedding_lora_add
from csgmv_embed.launch.checks import FLOAT_DTYPES, ID_DTYPES
from csgmv_embed.lm_head import lm_head_lora
from csgmv_embed.sglang import hooks, runtime
from csgmv_embed.sglang.state import State
from csgmv_embed.sglang.views import current_batch, current_head

Original = Callable[..., Any]

PLAIN = "csgmv_embed_plain"  # attribute of a layer: its base layer, the weight's address, and what _plain said of them
PROBES = "SGLANG_ENABLE_ASYNC_ASSERT"  # SGLang's base layer then looks at every id
MISSING_ROW = 0  # SGLang's base layer reads this row for an id that is not in the vocabulary


def forward(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """`VocabParallelEmbeddingWithLoRA.forward`: (tokens,) ids to (tokens, hidden), one kernel for all of it."""
    state = _serving("layer", layer)
    found = None if state is None else _embedding(state, layer, *args, **kwargs)
    return original(layer, *args, **kwargs) if found is None else found


def apply(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """`VocabParallelEmbeddingWithLoRA.apply_lora`: the LoRA part, added to what the base layer gave."""
    state = _serving("layer_add", layer)
    found = None if state is None else _embedding_add(state, layer, *args, **kwargs)
    return original(layer, *args, **kwargs) if found is None else found


def head(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """`ParallelLMHeadWithLoRA.apply_lora`: the LoRA part, added to the logits in place."""
    state = _serving("lm_head", layer)
    found = None if state is None else _lm_head(state, layer, *args, **kwargs)
    return original(layer, *args, **kwargs) if found is None else found


BY_NAME: dict[str, Callable[..., Any]] = {"layer": forward, "layer_add": apply, "lm_head": head}


def _serving(hook: str, layer: Any) -> State | None:
    """The plugin's state of the layer's backend; None where SGLang's own function is to run."""
    if not runtime.serves(hook):
        return None
    return runtime.state_of(layer.lora_backend)


def _batch_info(state: State) -> Any:
    """The backend's batch info; None if no batch was prepared."""
    return getattr(state.backend, "batch_info", None)  # SGLang before 0.5.18 makes it with the first batch


def _embedding(state: State, layer: Any, input_: torch.Tensor) -> torch.Tensor | None:
    info = _batch_info(state)
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
    if weight is None or not _alike(weight, a_table, b_table):
        return None
    return embedding_lora(input_, weight, a_table, b_table, batch, a_table.shape[2], missing_row=MISSING_ROW)


def _embedding_add(
    state: State, layer: Any, base_output: torch.Tensor, input_: torch.Tensor, batch_info: Any = None
) -> torch.Tensor | None:
    if _idle(base_output):
        return base_output
    a_table, b_table = layer.embedding_A_buffer, layer.embedding_B_buffer
    info = _batch_info(state)
    if info is None or not _alike(base_output, a_table, b_table) or not _are_ids(input_):
        return None
    batch = current_batch(info)
    if batch is None:
        return base_output
    extra = getattr(layer, "new_embeddings_buffer", None)
    vocab_size, extra = hooks.added_tokens(a_table, layer.vocab_size, extra)
    rows = hooks.planned_rows(batch, input_.shape[0])
    embedding_lora_add(base_output[:rows], input_[:rows], a_table, b_table, batch, vocab_size, extra)
    return base_output


def _lm_head(state: State, layer: Any, base_output: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor | None:
    if _idle(base_output):
        return base_output  # SGLang's checks are for the rows of the batch
    if _batch_info(state) is None:
        return None
    info = layer._get_lm_head_batch_info(hidden_states.shape[0])  # SGLang's choice and SGLang's checks
    if info is None:
        info = state.backend.batch_info
    a_table, b_table = layer.lm_head_A_buffer, layer.lm_head_B_buffer
    if not _alike(hidden_states, a_table, b_table) or not _can_hold(base_output, b_table):
        return None
    batch = current_head(info)
    rows = hooks.planned_rows(batch, hidden_states.shape[0])
    lm_head_lora(hidden_states[:rows], a_table, b_table, base_output[:rows], batch)
    return base_output


def _idle(base_output: torch.Tensor) -> bool:
    """Whether there is nothing to add to: a rank that idles under data-parallel attention has no rows.

    It runs its layers while the last batch that it worked on is still planned, or before there was one.
    """
    return base_output.numel() == 0


def _alike(first: torch.Tensor, *tables: torch.Tensor) -> bool:
    """Whether a (rows, columns) tensor goes with the tables without a conversion."""
    return first.dim() == 2 and first.stride(1) == 1 and all(table.dtype == first.dtype for table in tables)


def _are_ids(input_: torch.Tensor) -> bool:
    return input_.dim() == 1 and input_.is_contiguous() and input_.dtype in ID_DTYPES


def _can_hold(logits: torch.Tensor, b_table: torch.Tensor) -> bool:
    """Whether the logits have a column for every row of B; they may have more, of a padded vocabulary."""
    fits = logits.dim() == 2 and logits.stride(1) == 1 and logits.shape[1] >= b_table.shape[1]
    return fits and logits.dtype in FLOAT_DTYPES


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
