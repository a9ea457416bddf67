"""Replaces how the backend prepares batches, and the modules that it prepares for."""

from __future__ import annotations

from typing import Any

from csgmv_embed.sglang import planner, runtime
from csgmv_embed.sglang.hooks.common import Original
from csgmv_embed.sglang.hooks.pool import check_adapter


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
    """Replaces `prepare_lora_batch`."""
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
    """Replaces the init method of the batch info of captured decode."""
    original(backend, *args, **kwargs)
    state = runtime.state_of(backend)
    if state is not None:
        planner.pack(state, backend.cuda_graph_batch_info)


def prefill_graph(original: Original, backend: Any, *args: Any, **kwargs: Any) -> None:
    """Replaces the init method of the batch info of captured prefill."""
    original(backend, *args, **kwargs)
    state = runtime.state_of(backend)
    if state is not None:
        planner.pack(state, backend.prefill_cuda_graph_batch_info)


def modules(original: Original, manager: Any) -> None:
    """Replaces `update_lora_info`: decides which of the two modules the backend has to prepare for.

    The adapters that a server starts with are read before the pool exists, so they are checked against it here.
    """
    original(manager)
    state = runtime.state_of(manager.lora_backend)
    if state is not None:
        for adapter in manager.loras.values():
            check_adapter(manager.memory_pool, adapter)
        state.embedding_targeted = manager.embed_tokens_module is not None
        state.lm_head_targeted = manager.lm_head_module is not None
        state.last_step = None
