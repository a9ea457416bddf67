"""Replaces how SGLang reads an adapter: uses each tensor as PEFT uses it, or refuses the adapter.

SGLang takes one scale for all modules, alpha / r, and drops tensors that it has no place for. Here the scale of a
module of its own is multiplied into B before SGLang sees it, in every module: at that point q, k and v are not merged
yet, and experts not sorted.
"""

from __future__ import annotations

from typing import Any

import torch

from csgmv_embed.adapters import rules
from csgmv_embed.adapters.reading import Reading, differs
from csgmv_embed.adapters.rules import FullWeight
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks.common import Original
from csgmv_embed.sglang.hooks.pool import check_adapter

READING = "csgmv_embed_reading"  # attribute of a LoRAConfig while its adapter is being read


def read_weights(original: Original, manager: Any, lora_ref: Any, *args: Any, **kwargs: Any) -> None:
    """Replaces `load_lora_weights` and `..._from_tensors`: an adapter that is refused is forgotten, not half loaded."""
    if runtime.state_of(manager.lora_backend) is None:
        original(manager, lora_ref, *args, **kwargs)
        return
    known = lora_ref.lora_id in manager.loras
    config = manager.configs[lora_ref.lora_id]
    try:
        reading = _begin(manager, lora_ref, config)
        setattr(config, READING, reading)
        original(manager, lora_ref, *args, **kwargs)
        reading.finish()
        adapter = manager.loras[lora_ref.lora_id]
        adapter.scaling = reading.scale
        pool = getattr(manager, "memory_pool", None)
        if pool is not None:
            check_adapter(pool, adapter)
    except Exception:
        if not known:
            manager.loras.pop(lora_ref.lora_id, None)
            manager.configs.pop(lora_ref.lora_id, None)
        raise
    finally:
        vars(config).pop(READING, None)


def read_tensor(original: Original, adapter: Any, name: str, loaded_weight: torch.Tensor) -> None:
    """Replaces `LoRAAdapter._process_weight`: reads one tensor of the file, by its name there."""
    reading: Reading | None = getattr(adapter.config, READING, None)
    if reading is None:
        original(adapter, name, loaded_weight)
        return
    weight = reading.take(name, loaded_weight)
    if weight is None:
        return
    _target_tied_partner(adapter.config, name)
    before = _kept(adapter)
    original(adapter, name, weight)
    if _kept(adapter) == before:
        targets = adapter.config.target_modules
        raise reading.error(f"SGLang has no place for {name}; its target_modules are {targets}; {rules.MERGE}")


def _begin(manager: Any, lora_ref: Any, config: Any) -> Reading:
    def difference(weight: FullWeight, tensor: torch.Tensor) -> str:
        return _difference(manager.base_model, weight.last, tensor)

    tied = bool(getattr(manager.base_hf_config, "tie_word_embeddings", False))
    return Reading(lora_ref.lora_name, config.hf_config, difference, tied=tied)


def _target_tied_partner(config: Any, name: str) -> None:
    """PEFT's ensure_weight_tying trains both modules and names one of them; SGLang would drop the other."""
    found = rules.lora_tensor(name)
    targets = config.target_modules
    if found is None or found.last not in (rules.EMBEDDING, rules.HEAD) or isinstance(targets, str):
        return
    if config.hf_config.get("ensure_weight_tying") and found.last not in {key.rpartition(".")[2] for key in targets}:
        config.target_modules = [*targets, found.last]


def _kept(adapter: Any) -> int:
    """How many tensors SGLang has taken so far."""
    layers = sum(len(layer.weights) for layer in adapter.layers)
    return layers + len(adapter.embedding_layers) + len(adapter.added_tokens_embeddings)


def _difference(model: torch.nn.Module, module: str, tensor: torch.Tensor) -> str:
    """How a whole weight of the file differs from the rows of it that this rank has; empty if in nothing."""
    layer = _layer(model, module)
    if layer is None:
        return ""  # another rank of a pipeline has it
    own, shard = layer.weight.detach(), getattr(layer, "shard_indices", None)
    if shard is None:
        return differs(tensor, own)
    if tensor.shape[0] != layer.org_vocab_size:
        return f"it has {tensor.shape[0]} rows, the model {layer.org_vocab_size}"
    first, end = shard.org_vocab_start_index, shard.org_vocab_end_index
    return differs(tensor[first:end], own[: end - first])


def _layer(model: torch.nn.Module, module: str) -> Any:
    """SGLang's own layer of the embedding or lm_head, below its LoRA; a tied lm_head is the embedding."""
    for name, found in model.named_modules(remove_duplicate=False):
        layer = getattr(found, "base_layer", found)
        if name.rpartition(".")[2] == module and isinstance(getattr(layer, "weight", None), torch.Tensor):
            return layer
    return None
