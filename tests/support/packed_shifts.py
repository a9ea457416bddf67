"""Shifts in which Triton 3.6's LLVM lets one half of a packed vector run over into the other (tiles.block_k)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MOST = 8  # of the index of a thread or of a rank, which have up to 11 bits


def distances(kernels: Sequence[Any]) -> list[int]:
    """Of the left shifts of vectors of 32-bit integers that are said to lose no bits."""
    return [found for kernel in kernels for found in in_llir(kernel.asm["llir"])]


def in_llir(llir: str) -> list[int]:
    lines = re.findall(r"shl nu?s?w.* <\d x i32> .*<(i32 .*)>", llir)
    return [int(distance) for line in lines for distance in re.findall(r"i32 (\d+)", line)]
