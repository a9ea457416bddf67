"""What the compiler made of the kernels of one launch: read from the binaries, without a GPU and without launching."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bench.results import CompiledFigures

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_WIDTH = re.compile(r"[US]?(\d+)")
_GLOBAL_LOADS = ("LDG", "LDGSTS")
_GLOBAL_STORES = ("STG",)
_DEFAULT_BITS = 32  # an LDG or STG without a width moves one register


def compile_launch(launch: Callable[[], object], capability: int = 90) -> list[CompiledFigures]:
    """Run `launch` with kernels compiled instead of launched; figures of each distinct kernel, in launch order.

    The tensors that `launch` hands to kernels stay untouched; on the CPU they will do, for only dtypes and
    alignment shape a kernel. CUDA is neither needed nor initialised, and a real driver is active again
    afterwards. The kernels must come from triton.jit with a fixed configuration.

    Raises RuntimeError under TRITON_INTERPRET=1, for autotuning, and where cuobjdump is missing.
    """
    knobs = importlib.import_module("triton.knobs")
    if knobs.runtime.interpret:
        raise RuntimeError("interpreted kernels are never compiled: unset TRITON_INTERPRET before triton is imported")
    with _compile_only(capability) as kernels:
        launch()
    return [_figures(kernel) for kernel in kernels.values()]


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
def _compile_only(capability: int) -> Iterator[dict[str, Any]]:
    """Within, jitted kernels compile for `capability` and do not run; yields the compiled ones by their hash."""
    active = importlib.import_module("triton.runtime.driver").driver
    jit_function = importlib.import_module("triton.runtime.jit").JITFunction
    stand_in, run, previous = _StandInDriver(capability), jit_function.run, dict(vars(active))
    kernels: dict[str, Any] = {}
    used: list[Any] = []

    def compile_instead(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(self)
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        return kernels.setdefault(kernel.hash, kernel)

    try:
        active.set_active(stand_in)
        jit_function.run = compile_instead
        yield kernels
    finally:
        jit_function.run = run
        vars(active).update(previous)  # not reset_active, which would create the real driver
        for function in used:
            function.device_caches.pop(stand_in, None)


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
