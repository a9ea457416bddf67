"""Along which axis of a block the threads of a warp lie side by side when they write it, as Triton laid them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LAYOUT = re.compile(r"^(#\w+) = #ttg\.blocked<\{.*threadsPerWarp = \[([\d, ]+)\].*order = \[(\d+)", re.MULTILINE)
STORE = re.compile(r"tt\.store .* tensor<(\d+x)+!tt\.ptr<\w+>, (#\w+)>")


def axes(kernels: Sequence[Any]) -> dict[str, list[int]]:
    """By kernel, of each store of a block of two axes: the axis, 0 or 1."""
    return {kernel.name: in_ttgir(kernel.asm["ttgir"]) for kernel in kernels}


def in_ttgir(ttgir: str) -> list[int]:
    """The axis of each store, in their order; a warp of a single thread along it writes nothing side by side: -1."""
    layouts = {}
    for name, threads, first in LAYOUT.findall(ttgir):
        side_by_side = [int(number) for number in threads.split(",")]
        if len(side_by_side) == 2:
            layouts[name] = int(first) if side_by_side[int(first)] > 1 else -1
    return [layouts[name] for _, name in STORE.findall(ttgir)]
