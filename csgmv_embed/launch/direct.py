"""Repeats a launch with new pointers, without the checks and without the JIT front of Triton.

Checking and preparing a launch costs more than the launch itself. Triton's front binds, specialises and hashes every
argument of every call, which costs more host time than the lookup takes on the GPU. So an op makes a key of everything
that its checks and its launch depend on, and `launches` keeps a prepared launch for each key. A `Launch` asks the front
once and keeps the compiled kernel that it returns.

The key also covers everything that Triton bakes into a binary: the dtype of every tensor, which tensors start at a
multiple of 16 bytes, the device, and all strides and sizes that decide a constant (Triton specialises on 1 and on
multiples of 16). It does not contain addresses. If the key missed one of these, another call's binary would run on this
call's data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, reduce
from operator import or_
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from csgmv_embed.launch import launchers
from csgmv_embed.launch.launchers import Grid

ALIGNMENT = 16  # bytes: what Triton specialises pointers on, and the widest load of one thread
MAX_KEPT = 4096  # a serving process has a few hundred; beyond this something varies that should not, and memory counts

Tensors = tuple[torch.Tensor, ...]
Key = tuple[object, ...]

launches: dict[Key, Launch | Nothing] = {}  # of all ops; the first part of a key is the op's name or a kernel's id
# What Triton compiled, which launches of other grids share: the kernel, whose id is in the key, and what launches it;
# None if only the front of Triton can.
_variants: dict[Key, tuple[Any, launchers.Run | None]] = {}


@lru_cache
def gpu_name(device: torch.device) -> str:
    """The GPU model, as the names of tile tables have it. Empty for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


class Nothing:
    """A launch that does nothing."""

    plan = ""

    def __call__(self, tensors: Tensors, pointers: Sequence[int]) -> None:
        """Leaves all as it is."""


NOTHING = Nothing()


class Launch:
    """A prepared and checked launch without its tensors: kernel, grid, counts and the constant `c`.

    The kernel's parameters are tensors, then counts, then `c`. Counts are declared `do_not_specialize`. pdl: the kernel
    may be set up while its predecessor still runs, and waits for it (overlaps_launches); its constant must say so too.
    A call launches on the current stream of the device that the tensors are on.
    """

    __slots__ = ("_bound", "constant", "counts", "grid", "kernel", "num_warps", "pdl", "plan")

    def __init__(
        self,
        kernel: Any,
        grid: Grid,
        counts: tuple[int, ...],
        constant: object,
        num_warps: int,
        *,
        pdl: bool = False,
        plan: str = "",
    ) -> None:
        self.kernel = kernel
        self.grid = grid
        self.counts = counts
        self.constant = constant
        self.num_warps = num_warps
        self.pdl = pdl
        self.plan = plan  # the op's own mark: which tensors the kernel takes
        self._bound: tuple[launchers.Run, Any, int] | None = None  # what runs it, driver, device

    def __call__(self, tensors: Tensors, pointers: Sequence[int]) -> None:
        """Launch on these tensors, which the key of this launch describes and which are at these addresses."""
        if self._bound is not None:
            run, active, device = self._bound
            if active.get_current_device() == device and not _hooked():
                run(self.grid, active.get_current_stream(device), pointers, self.counts)
                return
        self._first(tensors, pointers)

    def _first(self, tensors: Tensors, pointers: Sequence[int]) -> None:
        """A launch whose binary is not known yet, or on whose device another stands, or that someone wants to see."""
        device = tensors[0].device
        if device.type != "cuda" or _hooked():
            self._front(tensors)
            return
        current = driver.active.get_current_device()
        if device.index != current and isinstance(current, int):  # else a stand-in that compiles and launches nothing
            with torch.cuda.device(device):
                self(tensors, pointers)
            return
        key = variant_key(self.kernel, tensors, self.constant, self.num_warps, device.index)
        if key in _variants:
            _, known = _variants[key]
            if known is None:
                self._front(tensors)
                return
            self._bound = known, driver.active, device.index
            self(tensors, pointers)
            return
        # The first call of a variant goes through the front, which launches it and hands over what it compiled.
        compiled = self._front(tensors)
        if isinstance(self.kernel, JITFunction) and isinstance(current, int):
            run = launchers.straight(compiled, self.constant, len(tensors) + len(self.counts) + 1)
            _kept(_variants, key, (self.kernel, run))
            if run is not None:
                self._bound = run, driver.active, device.index

    def _front(self, tensors: Tensors) -> Any:
        """Launch through Triton; returns the compiled kernel."""
        options = {"launch_pdl": True} if self.pdl else {}
        return self.kernel[self.grid](*tensors, *self.counts, self.constant, num_warps=self.num_warps, **options)


def ready(
    kernel: Any,
    arrays: Tensors,
    operands: Tensors,
    known: object,
    prepare: Callable[..., Launch | Nothing],
    *given: object,
) -> Callable[[], None]:
    """The launch of a product, to be called with kernel(*arrays, *operands, ...). Raises what `prepare` raises.

    arrays: what the kernel reads of the batch. known: everything else that checks and launch depend on.
    prepare(*operands, *given) checks the operands and makes a launch if none is kept yet.
    """
    tensors = (*arrays, *operands)
    pointers, misaligned = addresses(tensors)
    key = (id(kernel), misaligned, known, *[seen(tensor) for tensor in operands])
    launch = launches.get(key)
    if launch is None:
        launch = keep(key, prepare(*operands, *given))
    return partial(launch, tensors, pointers)


def keep(key: Key, found: Launch | Nothing) -> Launch | Nothing:
    """Keep this launch for calls with equal operands."""
    _kept(launches, key, found)
    return found


def _kept(store: dict[Key, Any], key: Key, value: object) -> None:
    if len(store) >= MAX_KEPT:
        store.clear()
    store[key] = value


def seen(tensor: torch.Tensor) -> Key:
    """Everything about a tensor that a check or a launch depends on, except its address."""
    grad = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_neg(), grad


def addresses(tensors: Tensors) -> tuple[list[int], object]:
    """The tensors' addresses, and what a launch depends on of them: their remainder modulo ALIGNMENT."""
    pointers = [tensor.data_ptr() for tensor in tensors]
    if reduce(or_, pointers) % ALIGNMENT == 0:  # tells of all
        return pointers, None
    return pointers, tuple([pointer % ALIGNMENT for pointer in pointers])


def width(tensor: torch.Tensor, *placing: int) -> int:
    """The most elements that may be read as one: a power of two dividing the address and all `placing`, in elements."""
    element_bytes, address = tensor.element_size(), tensor.data_ptr()
    found = math.gcd(ALIGNMENT // element_bytes, *placing)
    while found > 1 and address % (found * element_bytes):
        found //= 2
    return found


def overlaps_launches(device: torch.device) -> bool:
    """Whether kernels on this device can wait for their predecessors: compute capability 9.0 and later.

    On the CPU, where kernels are interpreted or only compiled, the driver's target decides.
    """
    return why_no_overlap(device) is None


def why_no_overlap(device: torch.device) -> str | None:
    """Why programmatic dependent launch (`pdl`) is unavailable on this device; None if it is available."""
    if device.type == "cuda":
        return _why_no_overlap(device.index)
    if knobs.runtime.interpret:
        return "interpreted programs run one after another"
    return None if driver.active.get_current_target().arch >= 90 else _TOO_OLD


_TOO_OLD = "it needs compute capability 9.0"


@lru_cache
def _why_no_overlap(device: int) -> str | None:
    if torch.version.hip is not None:
        return "AMD GPUs have none"
    if not _triton_has_pdl():
        return f"Triton {triton.__version__} has no option launch_pdl"
    return None if torch.cuda.get_device_capability(device)[0] >= 9 else _TOO_OLD


def overlaps_or_warns(device: torch.device) -> bool:
    """Like overlaps_launches, but warns once in a process, with the reason, on a GPU that cannot do it."""
    reason = why_no_overlap(device)
    if reason is not None and device.type == "cuda":
        _warn_once(f"pdl=True has no effect: {reason}")
    return reason is None


@lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)  # at the call of the op


def _triton_has_pdl() -> bool:
    from triton.backends.nvidia.compiler import CUDAOptions

    return "launch_pdl" in CUDAOptions.__dataclass_fields__


def variant_key(kernel: Any, tensors: Tensors, constant: object, num_warps: int, device: int) -> Key:
    """What the compiled binary of a call depends on."""
    misaligned = 0
    for tensor in tensors:
        misaligned = misaligned << 1 | (tensor.data_ptr() % ALIGNMENT != 0)
    return (id(kernel), misaligned, num_warps, device, constant, *[tensor.dtype for tensor in tensors])


def _hooked() -> bool:
    """Whether someone, a profiler say, asked Triton to be told of launches: the front tells them."""
    return bool(knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls)
