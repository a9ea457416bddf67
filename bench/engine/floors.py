"""The least bytes that each site has to move in a pass, from the model's shape and the requests only.

Counted as bench/workload/traffic.py counts a call: input, A and B of the adapters in use, each to its rank, and the
output of tokens with an adapter, read and written. Base products read every weight. Attention has no figure here,
because what it reads grows with every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.engine.requests import Request
from bench.engine.weights import linear_shapes
from bench.model.served import Site
from bench.model.serving import LAYER_SITES, Load, Setup

ELEMENT_BYTES, ID_BYTES = 2, 8  # of bfloat16, in which engines run here; of a token's id
SITE_LAYERS: dict[Site, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def least_bytes(
    config: dict[str, Any], setup: Setup, load: Load, asked: Sequence[Request], *, lora: bool
) -> dict[Site, int]:
    """The least bytes of each site in one pass of a decode or a prefill. Empty for a model that is spread over GPUs."""
    if setup.tp > 1:
        return {}
    tokens = [len(request.ids) if load.kind == "prefill" else 1 for request in asked]
    found = _of_sites(config, setup, asked, tokens) if lora else {}
    return {**found, "base": _base(config, sum(tokens), len(asked))}


def _of_sites(config: dict[str, Any], setup: Setup, asked: Sequence[Request], tokens: Sequence[int]) -> dict[Site, int]:
    def rank(adapter: int) -> int:
        return setup.ranks[adapter % len(setup.ranks)]

    used = {request.adapter for request in asked if request.adapter is not None}
    ranks = sum(rank(adapter) for adapter in used)
    rows = [(request.adapter, count) for request, count in zip(asked, tokens, strict=True)]
    live = sum(count for adapter, count in rows if adapter is not None)
    live_ranks = sum(count * rank(adapter) for adapter, count in rows if adapter is not None)
    ends = sum(adapter is not None for adapter, _ in rows)  # lm_head sees the last token of each request

    def linear(inputs: int, widths: Sequence[int], tokens_here: int) -> int:
        tables = ranks * (len(widths) * inputs + sum(widths))
        return ELEMENT_BYTES * (tokens_here * inputs + tables + 2 * tokens_here * sum(widths))

    shapes, layers = linear_shapes(config), config["num_hidden_layers"]
    found: dict[Site, int] = {}
    for site in LAYER_SITES[setup.targets]:
        names = SITE_LAYERS[site]
        inputs = shapes[names[0]][1]
        found[site] = layers * linear(inputs, [shapes[name][0] for name in names], live)
    if setup.targets != "attention":
        hidden = config["hidden_size"]
        found["embedding"] = live * ID_BYTES + ELEMENT_BYTES * (live_ranks + ranks * hidden + 2 * live * hidden)
        found["lm_head"] = linear(hidden, [config["vocab_size"]], ends)
    return {site: count for site, count in found.items() if count}


def _base(config: dict[str, Any], tokens: int, requests: int) -> int:
    """Weights of every linear layer and of lm_head, their inputs and their outputs."""
    hidden, vocab, layers = (int(config[name]) for name in ("hidden_size", "vocab_size", "num_hidden_layers"))
    layer = sum(
        outputs * inputs + tokens * (outputs + inputs / stacked)
        for (outputs, inputs), stacked in (
            (linear_shapes(config)[name], len(names)) for names in SITE_LAYERS.values() for name in names
        )
    )
    head = vocab * hidden + requests * (hidden + vocab)
    return round(ELEMENT_BYTES * (layers * layer + head))
