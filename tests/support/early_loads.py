"""Loads from memory that a compiled kernel starts before its first exit."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.support.compiled_worker import kernels_of

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)


def counts(launch: Callable[[], object]) -> dict[str, int]:
    """By kernel of a launch: load instructions before the first exit, which programs without work take."""
    from bench.clocks.work import compiled

    return {kernel.name: in_sass(compiled._cuobjdump(kernel.asm["cubin"])) for kernel in kernels_of(launch)}


def in_sass(sass: str) -> int:
    """Load instructions before the first exit."""
    instructions = INSTRUCTION.findall(sass)
    return instructions[: instructions.index("EXIT")].count("LDG")
