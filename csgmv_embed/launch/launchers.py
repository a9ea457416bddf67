"""Launches a compiled kernel without Triton's front, according to the form of its launcher.

The front passes everything to the kernel's launcher, which builds the arguments of one driver function and calls it.
These arguments differ between versions of Triton. To learn them, a copy of the launcher, whose driver function only
records its arguments, is called as the front would call it. If the arguments have one of the forms known here, the
driver function is called directly from then on. Otherwise the front stays in use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

Grid = tuple[int, int, int]
Run = Callable[[Grid, int, Sequence[int], tuple[int, ...]], None]  # grid, stream, pointers, counts


def straight(compiled: Any, constant: object, parameters: int) -> Run | None:
    """A function that launches `compiled` directly, with what its binary fixes; None if only Triton's front can.

    parameters: those of the kernel: pointers, counts and last the constant. The front is needed if the binary wants
    scratch memory (an instrumented one does), if the launcher's form is unknown, and on an AMD GPU.
    """
    launcher = compiled.run
    if _wants_memory(launcher):
        return None
    noted = _noted(launcher, compiled, parameters)
    if noted is None:
        return None
    packed, fixed = noted
    launch, function = launcher.launch, compiled.function

    def spread_out(grid: Grid, stream: int, pointers: Sequence[int], counts: tuple[int, ...]) -> None:
        launch(*grid, stream, function, *fixed, *pointers, *counts, constant)

    def as_a_tuple(grid: Grid, stream: int, pointers: Sequence[int], counts: tuple[int, ...]) -> None:
        launch(*grid, stream, function, *fixed, (*pointers, *counts, constant))

    return as_a_tuple if packed else spread_out


def _wants_memory(launcher: Any) -> bool:
    """Whether the front has to allocate something for each launch; also if the launcher does not say."""
    sizes = [getattr(launcher, f"{kind}_scratch_size", 1) for kind in ("global", "profile")]
    return any(sizes) or bool(getattr(launcher, "gsan_enabled", False))


def _noted(launcher: Any, compiled: Any, parameters: int) -> tuple[bool, tuple[Any, ...]] | None:
    """(whether the kernel's arguments are packed, what stands between function and arguments); None if unknown."""
    grid, stream, function, metadata = [object() for _ in range(3)], object(), object(), compiled.packed_metadata
    arguments = tuple(object() for _ in range(parameters))
    given: list[tuple[Any, ...]] = []
    asked = copy.copy(launcher)
    asked.launch = lambda *noted: given.append(noted)
    try:
        asked(*grid, stream, function, metadata, None, None, None, *arguments)
    except Exception:  # it wants to know more of its arguments than those known here do
        return None
    whole = (*grid, stream, function)
    for packed, fixed in _forms(launcher, metadata):
        if given == [(*whole, *fixed, arguments) if packed else (*whole, *fixed, *arguments)]:
            return packed, fixed
    return None


def _forms(launcher: Any, metadata: object) -> list[tuple[bool, tuple[Any, ...]]]:
    """Those known. Nothing is allocated, and nobody is told of the launch."""
    options = getattr(launcher, "launch_cooperative_grid", None), getattr(launcher, "launch_pdl", None)
    scratch, told = (None, None), (None, None, None)
    described = getattr(launcher, "arg_annotations", None), getattr(launcher, "kernel_signature", None)
    return [
        (False, (*options, *scratch, metadata, *told)),  # Triton 3.6
        (True, (*options, metadata, *told, *scratch, *described)),  # Triton 3.7 to 3.9
    ]
