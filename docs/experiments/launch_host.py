"""Host time of one launch of the lookup, straight and through Triton's front, without a GPU.

    python docs/experiments/launch_host.py        (half a minute, under the installed Triton)

The kernel is compiled for sm_90 and never run: driver and launch function are stand-ins that take anything and do
nothing. So this is what Python does for a launch, the part that differs between the two ways; what Triton's C function
and the CUDA driver add is not in it. The least of 300 blocks of 200 launches, us a launch, and the Python instructions
of one.
"""

# Kernels are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime.driver import driver

sys.path.insert(0, str(Path(__file__).parents[2]))

from csgmv_embed import EmbeddingBatch
from csgmv_embed.launch import checks, direct, launchers
from csgmv_embed.lookup import embedding_lora_a

BLOCKS, CALLS = 300, 200
NOTHING: Callable[..., object] = "".format  # of C, takes any arguments


class Launcher(nvidia.CudaLauncher):
    """Triton's, but for what it launches with."""

    def __init__(self, source: object, metadata: Any) -> None:
        self.launch = NOTHING
        self.arg_annotations, self.kernel_signature, self.num_ctas, self.gsan_enabled = [], b"", 1, False
        self.global_scratch_size = self.profile_scratch_size = 0
        self.global_scratch_align = self.profile_scratch_align = 1
        self.launch_cooperative_grid, self.launch_pdl = False, metadata.launch_pdl


class Driver:
    """Of a GPU that is not there."""

    launcher_cls = Launcher
    utils = property(lambda self: self)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, *arguments: object) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024


def least_us(call: Callable[[], object]) -> float:
    found = []
    for _ in range(BLOCKS):
        begun = perf_counter()
        for _ in range(CALLS):
            call()
        found.append((perf_counter() - begun) / CALLS * 1e6)
    return min(found)


def instructions(call: Callable[[], object]) -> int:
    """Of Python, in one call."""
    seen = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal seen
        frame.f_trace_opcodes = True
        seen += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return seen


def main() -> None:
    driver.set_active(Driver())
    checks.accept_host_tensors = True
    made: list[tuple[direct.Launch, Any, Any]] = []
    direct.Launch.__call__ = lambda self, tensors, pointers: made.append((self, tensors, pointers))  # type: ignore[method-assign]
    table = torch.zeros(8, 16, 1024, dtype=torch.bfloat16)
    batch = EmbeddingBatch.build([1] * 16, [0] * 16, [16] * 8, device="cpu")
    embedding_lora_a(torch.zeros(16, dtype=torch.int64), table, batch, 1024)
    launch, tensors, pointers = made[0]
    compiled = launch._front(tensors)
    run = launchers.straight(compiled, launch.constant, len(tensors) + len(launch.counts) + 1)
    ways: dict[str, Callable[[], object]] = {"front": lambda: launch._front(tensors)}
    if run is not None:
        ways["straight"] = lambda: run(launch.grid, 0, pointers, launch.counts)
    print(f"Triton {triton.__version__}, Python {sys.version.split()[0]}")
    for name, call in ways.items():
        print(f"{name:9} {least_us(call):6.2f} us {instructions(call):5} instructions of Python")


if __name__ == "__main__":
    main()
