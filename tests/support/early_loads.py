"""Loads from memory that a compiled kernel starts before its first exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def counts(kernels: Sequence[Any]) -> dict[str, int]:
    """By kernel: load instructions before the first exit, which programs without work take."""
    from bench.clocks.work import compiled

    def before_exit(cubin: bytes) -> int:
        instructions = [name.split(".")[0] for name in compiled._INSTRUCTION.findall(compiled._cuobjdump(cubin))]
        return instructions[: instructions.index("EXIT")].count("LDG")

    return {kernel.name: before_exit(kernel.asm["cubin"]) for kernel in kernels}
