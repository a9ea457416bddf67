"""Launching a Triton kernel without the JIT front, once the JIT has compiled it.

Triton's front binds, specialises and hashes every argument of every call: more host time than the lookup takes on the
GPU. `launch` asks the front once for each *variant* of a kernel and keeps the compiled kernel that it answers with.

A variant is everything Triton bakes into a binary, and its key says all of it: the dtype of every tensor, which of
them start on 16 bytes, the value of every constant (strides and sizes too, which Triton specialises on being 1 or a
multiple of 16), the warps and the device. What the key leaves out are the addresses and the counts, which the kernels
declare `do_not_specialize`. A key that forgot one would run another variant's binary on this call's data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

# The versions whose launcher takes what `_direct` passes; others go through the JIT front, which is slower.
DIRECT_VERSIONS = ("3.6",)
DIRECT = ".".join(triton.__version__.split(".")[:2]) in DIRECT_VERSIONS
ALIGNMENT = 16  # bytes: what Triton specialises pointers on
MAX_VARIANTS = 4096  # a serving process has a few; beyond this something varies that should not, and memory counts

Grid = tuple[int, int, int]
Tensors = tuple[torch.Tensor, ...]
Constants = tuple[object, ...]
Key = tuple[object, ...]
# Launches once more what a call launched, on tensors at these addresses that are equal modulo ALIGNMENT to that call's.
# False: not now, for another device is current or someone wants to be told; then `launch` is the way.
Again = Callable[[Sequence[int]], bool]

_variants: dict[Key, Callable[..., None]] = {}


def launch(
    kernel: Any,
    grid: Grid,
    tensors: Tensors,
    counts: tuple[int, ...],
    constants: Constants,
    num_warps: int,
    pdl: bool = False,
) -> Again | None:
    """Launch `kernel` on the current stream of the device where all its tensors are.

    The kernel's parameters are tensors, then counts, then constants. Counts change from call to call and are declared
    `do_not_specialize`; constants are all others, tl.constexpr ones included. pdl: let it be set up while the kernel
    before it still runs, for a kernel that waits (overlaps_launches); the constants must say so too.

    Returns how to launch exactly this again without any of the checks, once the variant is known.
    """
    device = tensors[0].device
    if not DIRECT or device.type != "cuda" or _hooked():
        _front(kernel, grid, tensors, counts, constants, num_warps, pdl)
        return None
    current = driver.active.get_current_device()
    if device.index != current:
        if not isinstance(current, int):  # a stand-in that compiles and launches nothing
            _front(kernel, grid, tensors, counts, constants, num_warps, pdl)
            return None
        with torch.cuda.device(device):
            return launch(kernel, grid, tensors, counts, constants, num_warps, pdl)
    pointers = [tensor.data_ptr() for tensor in tensors]
    key = variant_key(kernel, tensors, pointers, constants, num_warps, current)
    run = _variants.get(key)
    if run is None:
        # The first call of a variant goes through the front, which launches it and hands over what it compiled.
        compiled = _front(kernel, grid, tensors, counts, constants, num_warps, pdl)
        direct = _direct(kernel, compiled, constants) if isinstance(kernel, JITFunction) else None
        if direct is not None:
            if len(_variants) >= MAX_VARIANTS:
                _variants.clear()
            _variants[key] = direct
        return None
    run(grid, driver.active.get_current_stream(current), pointers, counts)
    return _again(run, grid, counts, current)


def _again(run: Callable[..., None], grid: Grid, counts: tuple[int, ...], device: int) -> Again:
    active = driver.active

    def again(pointers: Sequence[int]) -> bool:
        if active.get_current_device() != device or _hooked():
            return False
        run(grid, active.get_current_stream(device), pointers, counts)
        return True

    return again


def _front(
    kernel: Any,
    grid: Grid,
    tensors: Tensors,
    counts: tuple[int, ...],
    constants: Constants,
    num_warps: int,
    pdl: bool,
) -> Any:
    """Launch through Triton; returns the compiled kernel."""
    options = {"launch_pdl": True} if pdl else {}
    return kernel[grid](*tensors, *counts, *constants, num_warps=num_warps, **options)


def overlaps_launches(device: torch.device) -> bool:
    """Whether kernels for this device may wait for their predecessors themselves: compute capability 9.0 and later.

    On the CPU, where kernels are interpreted or only compiled, the driver's target decides.
    """
    if not DIRECT:
        return False
    if device.type == "cuda":
        return _capability(device.index) >= 9
    return not knobs.runtime.interpret and bool(driver.active.get_current_target().arch >= 90)


@lru_cache
def _capability(device: int) -> int:
    return torch.cuda.get_device_capability(device)[0]


def variant_key(
    kernel: Any, tensors: Tensors, pointers: Sequence[int], constants: Constants, num_warps: int, device: int
) -> Key:
    """What the binary of a call depends on."""
    misaligned = 0
    for pointer in pointers:
        misaligned = misaligned << 1 | (pointer % ALIGNMENT != 0)
    return (id(kernel), misaligned, num_warps, device, constants, *[tensor.dtype for tensor in tensors])


def _direct(kernel: Any, compiled: Any, constants: Constants) -> Callable[..., None] | None:
    """Launches `compiled` with what its variant fixes; keeps `kernel` alive, whose id is in the key.

    None if the binary wants scratch memory, an instrumented one for example: the front provides it.
    """
    launcher = compiled.run
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None
    run, function, metadata = launcher.launch, compiled.function, compiled.packed_metadata
    fixed = (function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None, metadata, None, None, None)

    def launch_compiled(
        grid: Grid, stream: int, pointers: Sequence[int], counts: tuple[int, ...], _kept: Any = kernel
    ) -> None:
        run(*grid, stream, *fixed, *pointers, *counts, *constants)

    return launch_compiled


def _hooked() -> bool:
    """Whether someone, a profiler say, asked Triton to be told of launches: the front tells them."""
    return bool(knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls)
