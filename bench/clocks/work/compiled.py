"""What the compiler made of the kernels of one launch, read from the binaries without a GPU and without launching."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from msgspec.structs import replace

from bench.model.records import CompiledFigures, WorkLaunch

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_WIDTH = re.compile(r"[US]?(\d+)")
_GLOBAL_LOADS = ("LDG", "LDGSTS")
_GLOBAL_STORES = ("STG",)
_DEFAULT_BITS = 32  # an LDG or STG without a width moves one register


@dataclass(frozen=True)
class Launched:
    """One launch as the compiler saw it: name of the kernel function, number of programs, index of the binary."""

    kernel: str
    programs: int
    compiled: int


@dataclass(frozen=True)
class Compiled:
    """The distinct binaries of a call, in the order of their first launch, and all its launches."""

    kernels: list[CompiledFigures]
    launches: list[Launched]


def compile_launch(launch: Callable[[], object], capability: int = 90) -> Compiled:
    """Run `launch`, compiling its kernels instead of launching them.

    The tensors that `launch` passes to kernels stay untouched. They may be on the CPU, because only dtypes and
    alignment shape a kernel. CUDA is neither needed nor initialised, and a real driver is active again afterwards. The
    kernels must come from triton.jit with a fixed configuration.

    Raises RuntimeError under TRITON_INTERPRET=1, for autotuned kernels, and if cuobjdump is missing.
    """
    knobs = importlib.import_module("triton.knobs")
    if knobs.runtime.interpret:
        raise RuntimeError("interpreted kernels are never compiled: unset TRITON_INTERPRET before triton is imported")
    with _compile_only(capability) as asked:
        launch()
    kernels = {kernel.hash: kernel for kernel, _, _ in asked}
    position = {key: index for index, key in enumerate(kernels)}
    launches = [Launched(name, programs, position[kernel.hash]) for kernel, name, programs in asked]
    return Compiled([_figures(kernel) for kernel in kernels.values()], launches)


def with_binaries(counted: Sequence[WorkLaunch], compiled: Sequence[Launched]) -> list[WorkLaunch]:
    """The counted launches, each with the index of the binary that a GPU would run.

    Raises RuntimeError if the counted and the compiled launches differ: then one of the two missed a launch.
    """
    seen = [(item.kernel, item.programs) for item in counted]
    made = [(item.kernel, item.programs) for item in compiled]
    if seen != made:
        raise RuntimeError(f"the interpreter counted the launches {_spelled(seen)}, a GPU would run {_spelled(made)}")
    return [replace(launch, compiled=item.compiled) for launch, item in zip(counted, compiled, strict=True)]


def _spelled(launches: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{kernel} of {programs} programs" for kernel, programs in launches) or "none"


class _StandInDriver:
    """Answers what compiling asks of a Triton driver; everything else would need a GPU and is refused."""

    def __init__(self, capability: int) -> None:
        compiler = importlib.import_module("triton.backends.compiler")
        self._target = compiler.GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> _StandInDriver:
        return self  # its own device, so that its entries in a kernel's caches are told from those of a GPU

    def get_current_stream(self, device: object) -> int:
        return 0

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"a launch that is only compiled asked the Triton driver for {name}, which needs a GPU")


@contextmanager
def _compile_only(capability: int) -> Iterator[list[tuple[Any, str, int]]]:
    """Within, jitted kernels compile for `capability` and do not run.

    Yields the launches asked for: the compiled kernel, its function's name, the number of programs.
    """
    active = importlib.import_module("triton.runtime.driver").driver
    jit_function = importlib.import_module("triton.runtime.jit").JITFunction
    stand_in, run, previous = _StandInDriver(capability), jit_function.run, dict(vars(active))
    asked: list[tuple[Any, str, int]] = []
    used: list[Any] = []

    def compile_instead(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(self)
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        asked.append((kernel, self.fn.__name__, _programs(self, args, kwargs)))
        return kernel

    try:
        active.set_active(stand_in)
        jit_function.run = compile_instead
        yield asked
    finally:
        jit_function.run = run
        vars(active).update(previous)  # not reset_active, which would create the real driver
        for function in used:
            function.device_caches.pop(stand_in, None)


def _programs(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Of a launch. A grid may be a function of the kernel's arguments."""
    grid = kwargs["grid"]
    if callable(grid):
        given = {name: value for name, value in kwargs.items() if name in function.arg_names}
        bound = inspect.signature(function.fn).bind(*args, **given)
        bound.apply_defaults()
        grid = grid(dict(bound.arguments))
    return prod(grid)


def _figures(kernel: Any) -> CompiledFigures:
    report = _cuobjdump(kernel.asm["cubin"])
    resources = _RESOURCES.findall(report)
    if not resources:
        raise RuntimeError(f"cuobjdump reported no resource usage for {kernel.name}")
    registers, stack, local = (max(values) for values in zip(*(map(int, found) for found in resources), strict=True))
    instructions = [name for name in _INSTRUCTION.findall(report) if name != "NOP"]
    return CompiledFigures(
        kernel=kernel.name,
        capability=kernel.metadata.target.arch,
        num_warps=kernel.metadata.num_warps,
        registers=registers,
        spill_bytes=stack + local,
        shared_bytes=kernel.metadata.shared,
        widest_load_bits=_widest_bits(instructions, _GLOBAL_LOADS),
        widest_store_bits=_widest_bits(instructions, _GLOBAL_STORES),
        instructions=len(instructions),
    )


def _cuobjdump(cubin: bytes) -> str:
    """Resource usage and SASS of a binary, as text."""
    tool = importlib.import_module("triton.knobs").nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [tool, "-res-usage", "-sass", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _widest_bits(instructions: list[str], opcodes: tuple[str, ...]) -> int:
    """Widest access among the SASS mnemonics of these opcodes: LDG.E.128 moves 128 bits, LDG.E.U16 16, LDG.E 32."""
    widest = 0
    for opcode, *modifiers in (name.split(".") for name in instructions):
        if opcode in opcodes:
            widths = [int(match[1]) for modifier in modifiers if (match := _WIDTH.fullmatch(modifier))]
            widest = max(widest, *widths) if widths else max(widest, _DEFAULT_BITS)
    return widest
