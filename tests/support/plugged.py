"""SGLang's csgmv backend on a GPU with the plugin's methods bound to the one object."""

from __future__ import annotations

from functools import partial
from typing import Any

from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks.registry import HOOKS
from tests.support import real_sglang

SLOTS, CAPACITY = 8, 64
RANKS = [0, 64, 16, 8, 64, 32, 1, 40]


def plugged() -> Any:
    """A stock backend whose methods are the plugin's."""
    backend = real_sglang.backend(SLOTS, 128, "cuda")
    release = runtime.active.release  # type: ignore[union-attr]
    kind = type(backend)
    backend.prepare_lora_batch = partial(HOOKS["prepare"], kind.prepare_lora_batch, backend)
    backend.run_lora_a_embedding = partial(HOOKS["lookup"], kind.run_lora_a_embedding, backend)
    setattr(backend, release.decode_graph, partial(HOOKS["decode_graph"], getattr(kind, release.decode_graph), backend))
    return backend
