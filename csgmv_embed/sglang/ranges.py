"""NVTX ranges around the hooks, so that a timeline of a server says which of its work is whose.

They are there if CSGMV_EMBED_NVTX=1 says so, or if it says nothing and a profiler that reads NVTX is attached when the
plugin is imported: such a one names its library in NVTX's own variable. Otherwise a hook is what it was, and costs
nothing more. A range holds what the host does; of a replayed CUDA graph it holds nothing, for hooks run at its capture.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from csgmv_embed.sglang.settings import NVTX

INJECTED = "NVTX_INJECTION64_PATH"  # set by nsys and ncu for the programs that they start
PREFIX = "csgmv_embed."


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether hooks have ranges in this process."""
    said = environment.get(NVTX)
    return said == "1" if said else bool(environment.get(INJECTED))


def ranged(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook within a range of its name; itself where torch was built without NVTX."""
    from torch.cuda import nvtx

    try:
        nvtx.range_push(PREFIX + name)
        nvtx.range_pop()
    except RuntimeError:  # a build of torch without CUDA
        return hook

    @functools.wraps(hook)
    def within(*args: Any, **kwargs: Any) -> Any:
        nvtx.range_push(PREFIX + name)
        try:
            return hook(*args, **kwargs)
        finally:
            nvtx.range_pop()

    return within
