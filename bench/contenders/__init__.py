"""The registry of contenders: names are listed without importing torch, triton or sglang."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from bench.case import Storage

if TYPE_CHECKING:
    from bench.contenders.base import Contender

CHUNK_SIZES = (16, 32, 64, 128)  # the values SGLang's --max-lora-chunk-size accepts

Family = Literal[
    "csgmv_embed",
    "csgmv_embed_segments",
    "csgmv_embed_pdl",
    "csgmv_embed_plugin",
    "csgmv_embed_plugin_steady",
    "sglang_csgmv",
    "sglang_triton",
    "sglang_tokens",
    "sglang_expand",
    "torch_gather",
]
# family -> the axes whose values make its variants: `family-option...` is a contender's name
FAMILIES: dict[Family, tuple[str, ...]] = {
    "csgmv_embed": ("storage",),
    "csgmv_embed_segments": ("storage",),
    "csgmv_embed_pdl": ("storage",),
    "csgmv_embed_plugin": ("chunk_size",),
    "csgmv_embed_plugin_steady": ("chunk_size",),
    "sglang_csgmv": ("chunk_size",),
    "sglang_triton": (),
    "sglang_tokens": (),
    "sglang_expand": (),
    "torch_gather": (),
}

# name -> module below bench.contenders, class, constructor options
_RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"csgmv_embed{suffix}-{storage}": ("csgmv_embed", "CsgmvEmbed", {"storage": storage, "plan": plan, "pdl": pdl})
        for suffix, plan, pdl in (("", "tokens", False), ("_segments", "segments", False), ("_pdl", "tokens", True))
        for storage in get_args(Storage)
    },
    **{
        f"csgmv_embed_plugin{suffix}-chunk{size}": (
            "csgmv_embed_plugin",
            "CsgmvEmbedPlugin",
            {"chunk_size": size, "steady": steady},
        )
        for suffix, steady in (("", False), ("_steady", True))
        for size in CHUNK_SIZES
    },
    **{f"sglang_csgmv-chunk{size}": ("sglang_csgmv", "SglangCsgmv", {"chunk_size": size}) for size in CHUNK_SIZES},
    "sglang_triton": ("sglang_triton", "SglangTriton", {}),
    "sglang_tokens": ("sglang_tokens", "SglangTokens", {}),
    "sglang_expand": ("sglang_expand", "SglangExpand", {}),
    "torch_gather": ("torch_gather", "TorchGather", {}),
}


class UnknownContenderError(KeyError):
    """No contender has this name; the message lists those that exist."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return f"unknown contender {self.name!r}; known: {', '.join(names())}"


def names() -> tuple[str, ...]:
    """Every name `build` accepts."""
    return tuple(_RECIPES)


def build(name: str) -> Contender:
    """The contender called `name`, a `family[-option]`; raises UnknownContenderError. Imports its module only now."""
    if name not in _RECIPES:
        raise UnknownContenderError(name)
    module, class_name, options = _RECIPES[name]
    contender_class = getattr(importlib.import_module(f"bench.contenders.{module}"), class_name)
    return cast("Contender", contender_class(**options))
