"""Every hook, by its name in targets.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from csgmv_embed.sglang.hooks import backend, embedding, graphs, linear, lm_head, lookup, pool, reading

HOOKS: dict[str, Callable[..., Any]] = {
    "lookup": lookup.lookup,
    "prepare": backend.prepare,
    "decode_graph": backend.decode_graph,
    "prefill_graph": backend.prefill_graph,
    "modules": backend.modules,
    "storage": pool.init_buffers,
    "load": pool.load,
    "admit": pool.admit,
    "weights": reading.read_weights,
    "tensors": reading.read_weights,
    "tensor": reading.read_tensor,
    "csgmv_launcher": pool.demand_rank_major,
    "fallback_launcher": pool.demand_rank_major,
    "layer": embedding.forward,
    "layer_add": embedding.apply,
    "lm_head": lm_head.apply,
    "qkv": linear.qkv,
    "gate_up": linear.gate_up,
    "column": linear.column,
    "row": linear.row,
    "replicated": linear.replicated,
    "row_forward": linear.row_forward,
    "shrink": linear.shrink,
    "expand": linear.expand,
    "base_graph": graphs.capture_all,
    "base_capture": graphs.capture_one,
}
# The guards of SGLang's launchers are for tables that outlive the plugin: they do their work while it is off, too.
NEVER_INERT = ("csgmv_launcher", "fallback_launcher")
