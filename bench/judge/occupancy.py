"""How much of a GPU a launch can fill: warps that are resident at once, from its programs and its binary. Pure.

Limits: the table of technical specifications by compute capability in NVIDIA's CUDA C++ Programming Guide; the SMs are
those of the capability's data-centre GPU. A program takes registers by the warp, in steps of 256, and shared memory in
steps of 128 bytes, of which 1 KiB is the system's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.model.records import CompiledFigures, Work, WorkLaunch

WARP = 32
REGISTERS = 65536  # of an SM
REGISTER_STEP, WARP_STEP = 256, 4  # a warp's registers; warps in registers, one for each of an SM's four schedulers
SHARED_STEP, SHARED_OF_SYSTEM = 128, 1024


@dataclass(frozen=True)
class Gpu:
    """What a GPU can hold at once. All fields except `sms` are per SM."""

    name: str
    sms: int
    warps: int
    programs: int
    shared_bytes: int


GPUS = {
    80: Gpu("A100", 108, 64, 32, 164 << 10),
    90: Gpu("H100", 132, 64, 32, 228 << 10),
    100: Gpu("B200", 148, 64, 32, 228 << 10),
}


def resident_programs(gpu: Gpu, binary: CompiledFigures) -> int:
    """Programs of a binary that one SM holds at once."""
    registers = _up(binary.registers * WARP, REGISTER_STEP)
    warps_in_registers = REGISTERS // max(registers, 1) // WARP_STEP * WARP_STEP
    shared = _up(binary.shared_bytes + SHARED_OF_SYSTEM, SHARED_STEP)
    warps = max(binary.num_warps, 1)
    return min(gpu.programs, gpu.warps // warps, warps_in_registers // warps, gpu.shared_bytes // shared)


def resident_warps(launch: WorkLaunch, binary: CompiledFigures) -> int | None:
    """Warps of a launch's active programs that the GPU holds at once. None for a capability without a table."""
    gpu = GPUS.get(binary.capability)
    if gpu is None:
        return None
    return min(launch.active_programs, gpu.sms * resident_programs(gpu, binary)) * binary.num_warps


def least_resident_warps(work: Work) -> int | None:
    """Resident warps of the launch that fills the GPU least.

    None without the launches, which records have since 1.2.0.
    """
    found = []
    for launch in work.launches:
        if launch.compiled is None or not 0 <= launch.compiled < len(work.compiled):
            return None
        found.append(resident_warps(launch, work.compiled[launch.compiled]))
    known = [value for value in found if value is not None]
    return min(known) if known and len(known) == len(found) else None


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
