"""What the environment says about the plugin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from csgmv_embed.errors import CsgmvEmbedError
from csgmv_embed.sglang.targets import BASE_GRAPH_HOOKS, LINEAR_HOOKS
from csgmv_embed.storage import Storage

DISABLE = "CSGMV_EMBED_DISABLE"
ANY_VERSION = "CSGMV_EMBED_ANY_VERSION"
STORAGE = "CSGMV_EMBED_STORAGE"
LAYER = "CSGMV_EMBED_LAYER"
LM_HEAD = "CSGMV_EMBED_LM_HEAD"
LINEAR = "CSGMV_EMBED_LINEAR"
BASE_GRAPH = "CSGMV_EMBED_BASE_GRAPH"
COMPILE_AHEAD = "CSGMV_EMBED_COMPILE_AHEAD"
NVTX = "CSGMV_EMBED_NVTX"
_VALUES = {
    DISABLE: ("0", "1"),
    ANY_VERSION: ("0", "1"),
    STORAGE: ("vocab_major", "rank_major"),
    LAYER: ("1", "0"),
    LM_HEAD: ("1", "0"),
    LINEAR: ("1", "0"),
    BASE_GRAPH: ("1", "0"),
    COMPILE_AHEAD: ("1", "0"),
    NVTX: ("", "0", "1"),  # read by ranges.py before anything is hooked; unset: where a profiler is attached
}


class SettingError(CsgmvEmbedError, ValueError):
    """An environment variable of the plugin has a value it does not know."""


@dataclass(frozen=True)
class Settings:
    """How the plugin behaves in this process.

    storage: how the A table lies in SGLang's memory pool.
    layer, lm_head, linear: the whole embedding layer, the LoRA of lm_head and that of the linear layers run on this
    library's kernels; off, SGLang's own functions do them, the embedding layer's with this library's lookup.
    base_graph: decode steps without any adapter have a captured graph of their own, without LoRA's kernels.
    compile_ahead: kernels for prefills of every size are compiled when decode graphs were captured.
    """

    disabled: bool = False
    any_version: bool = False
    storage: Storage = "vocab_major"
    layer: bool = True
    lm_head: bool = True
    linear: bool = True
    base_graph: bool = True
    compile_ahead: bool = True

    def switched_off(self, hook: str) -> str:
        """The variable that keeps a hook from doing its work; empty if none does."""
        if hook in ("layer", "layer_add"):
            return "" if self.layer else f"{LAYER}=0"
        if hook in LINEAR_HOOKS:
            return "" if self.linear else f"{LINEAR}=0"
        if hook in BASE_GRAPH_HOOKS:
            return "" if self.base_graph else f"{BASE_GRAPH}=0"
        return f"{LM_HEAD}=0" if hook == "lm_head" and not self.lm_head else ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read CSGMV_EMBED_*; unset or empty means the default. Raises SettingError."""
        found = {name: environment.get(name) or values[0] for name, values in _VALUES.items()}
        for name, value in found.items():
            if value not in _VALUES[name]:
                raise SettingError(f"{name} is {value!r}; expected {' or '.join(filter(None, _VALUES[name]))}")
        unknown = {name for name in environment if name.startswith("CSGMV_EMBED_")} - _VALUES.keys()
        if unknown:
            raise SettingError(f"{', '.join(sorted(unknown))} is unknown; expected {', '.join(_VALUES)}")
        return cls(
            disabled=found[DISABLE] == "1",
            any_version=found[ANY_VERSION] == "1",
            storage=cast("Storage", found[STORAGE]),
            layer=found[LAYER] == "1",
            lm_head=found[LM_HEAD] == "1",
            linear=found[LINEAR] == "1",
            base_graph=found[BASE_GRAPH] == "1",
            compile_ahead=found[COMPILE_AHEAD] == "1",
        )
