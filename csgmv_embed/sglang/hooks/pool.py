"""The memory pool: keeps the A table vocab-major in SGLang's own buffer, and checks adapters before a slot is taken."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from csgmv_embed.adapters.rules import EMBEDDING, HEAD, AdapterError
from csgmv_embed.errors import ShapeError
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks.common import Original
from csgmv_embed.sglang.planner.state import State

SIDES = {"A": ("lora_embedding_A", "lora_A"), "B": ("lora_embedding_B", "lora_B")}  # as SGLang tells them apart


def init_buffers(original: Original, pool: Any, base_model: torch.nn.Module) -> None:
    """Replaces `LoRAMemoryPool.init_buffers`: makes the embedding layer's A table vocab-major in the same memory."""
    original(pool, base_model)
    if runtime.active is None or runtime.active.settings.storage != "vocab_major":
        return
    table = pool.embedding_A_buffer.get(EMBEDDING)
    if table is None or not _read_by_csgmv(base_model):
        return
    slots, rank, vocab = table.shape
    # The buffer was made of zeros a moment ago, so its bytes mean the same table in either order.
    pool.embedding_A_buffer[EMBEDDING] = table.view(slots, vocab, rank).transpose(1, 2)


def _read_by_csgmv(base_model: torch.nn.Module) -> bool:
    """Whether the wrapped embedding layer looks its A table up through a backend that this plugin serves."""
    layer = importlib.import_module("sglang.srt.lora.layers").VocabParallelEmbeddingWithLoRA
    found = [module for module in base_model.modules() if isinstance(module, layer)]
    return bool(found) and all(runtime.state_of(module.lora_backend) is not None for module in found)


def load(
    original: Original,
    pool: Any,
    uid: str | None,
    buffer_id: int,
    lora_adapter: Any,
    lora_modules: Any,
    lora_embed_tokens_module: Any,
    lora_lm_head_module: Any,
) -> None:
    """Replaces `load_lora_weight_to_buffer`: checks the adapter, loads it and clears the rest of its slot."""
    state = _state(lora_embed_tokens_module, lora_lm_head_module)
    if state is None:
        original(pool, uid, buffer_id, lora_adapter, lora_modules, lora_embed_tokens_module, lora_lm_head_module)
        return
    if uid is not None:
        check_adapter(pool, lora_adapter)
    original(pool, uid, buffer_id, lora_adapter, lora_modules, lora_embed_tokens_module, lora_lm_head_module)
    present = set() if uid is None else {(module, side) for module, side, _ in _weights(lora_adapter)}
    if uid is not None and lora_adapter.embedding_layers:
        # SGLang clears these tables only if the adapter has neither module: with one of the two, the other keeps the
        # weights of the adapter that was evicted, and its requests would get them.
        for (module, side), table in _tables(pool).items():
            if (module, side) not in present:
                table[buffer_id].zero_()
    state.set_slot(buffer_id, has_embedding=(EMBEDDING, "A") in present, has_head=(HEAD, "A") in present)


def admit(
    original: Original,
    pool: Any,
    cur_uids: Any,
    lora_adapters: Any,
    lora_modules: Any,
    lora_refs: Any,
    lora_embed_tokens_module: Any,
    lora_lm_head_module: Any,
) -> None:
    """Replaces `LoRAMemoryPool.prepare_lora_batch`: checks new adapters before any of them takes a slot."""
    if _state(lora_embed_tokens_module, lora_lm_head_module) is not None:
        for uid in cur_uids:
            if uid is not None and uid not in pool.uid_to_buffer_id and uid in lora_adapters:
                check_adapter(pool, lora_adapters[uid])
    original(pool, cur_uids, lora_adapters, lora_modules, lora_refs, lora_embed_tokens_module, lora_lm_head_module)


def check_adapter(pool: Any, adapter: Any) -> None:
    """Check an adapter's weights of the embedding layer and lm_head against the pool's buffers.

    Raises ShapeError if they do not fit, AdapterError if the pool has no buffers for them. A is (rank, vocab + added)
    for the embedding layer and (rank, hidden) for lm_head. B is (hidden, rank) and (vocab, rank). rank is the one in
    the adapter's configuration.
    """
    rank, tables = adapter.config.r, _tables(pool)
    if rank > pool.max_lora_rank:
        raise ShapeError(f"adapter {adapter.uid} has rank {rank}; expected at most {pool.max_lora_rank}, the pool's")
    added = adapter.config.lora_added_tokens_size
    vocab = pool.base_hf_config.vocab_size
    for module, side, weight in _weights(adapter):
        table = tables.get((module, side))
        if table is None:
            raise AdapterError(
                f"adapter {adapter.uid} has LoRA on {module}, which this server does not target; expected {module} "
                "among --lora-target-modules"
            )
        columns = vocab + added if module == EMBEDDING else table.shape[2]
        rows = table.shape[1] if module == EMBEDDING else vocab + added
        expected = (rank, columns) if side == "A" else (rows, rank)
        if tuple(weight.shape) != expected:
            raise ShapeError(
                f"adapter {adapter.uid} has {module} LoRA {side} of shape {tuple(weight.shape)}; expected {expected} "
                f"for rank {rank}, vocabulary {vocab}"
            )


def _state(*layers: Any) -> State | None:
    """The plugin's state of the backend of these layers, of which some may be None."""
    states = [runtime.state_of(getattr(layer, "lora_backend", None)) for layer in layers]
    return next((state for state in states if state is not None), None)


def _weights(adapter: Any) -> list[tuple[str, str, torch.Tensor]]:
    """The LoRA weights of the two modules: (module, side, weight)."""
    found = []
    for name, weight in adapter.embedding_layers.items():
        module = EMBEDDING if EMBEDDING in name else HEAD
        found += [(module, side, weight) for side, keys in SIDES.items() if any(key in name for key in keys)]
    return found


def _tables(pool: Any) -> dict[tuple[str, str], torch.Tensor]:
    """The pool's buffers of the two modules that SGLang reads."""
    buffers = {
        (EMBEDDING, "A"): pool.embedding_A_buffer,
        (EMBEDDING, "B"): pool.embedding_B_buffer,
        (HEAD, "A"): pool.lm_head_A_buffer,
        (HEAD, "B"): pool.lm_head_B_buffer,
    }
    return {key: buffer[key[0]] for key, buffer in buffers.items() if key[0] in buffer}


def demand_rank_major(
    original: Original, input_ids: torch.Tensor, weights: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Replaces SGLang's own lookup launchers, which read contiguous tables: raises if this table is vocab-major."""
    if weights.dim() == 3 and not weights.is_contiguous():
        raise ShapeError(
            f"the A table has strides {weights.stride()}: csgmv-embed stores it vocab-major, and SGLang's own lookup "
            "reads a contiguous one; expected CSGMV_EMBED_STORAGE=rank_major for a reader of that kind"
        )
    found: torch.Tensor = original(input_ids, weights, *args, **kwargs)
    return found
