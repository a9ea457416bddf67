"""GPUs of this host by nvidia-smi's number: which there are, and which were asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.model.toml import ConfigError

ALL = "all"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Gpu(msgspec.Struct, frozen=True):
    """One GPU. `index` is its place among those that this process may see. `mig`: it is split into MIG instances."""

    index: int
    uuid: str
    name: str
    mig: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process that is to see only this GPU."""
        return {VISIBLE: self.uuid}


def chosen(text: str, present: Sequence[Gpu] | None = None, *, option: str | None = None) -> tuple[Gpu, ...]:
    """The GPUs of `--gpus`: `all`, or numbers joined by commas. `present` defaults to those of this host.

    option: the option that asks for them, for error messages. Raises ConfigError for a number that no GPU has, or that
    is given twice, for GPUs of several models, and for a GPU that is split into MIG instances.
    """
    found = visible() if present is None else tuple(present)
    option = option or f"--gpus {text}"
    known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found) or "none"
    if not found:
        raise ConfigError(f"{option}: no NVIDIA GPU was found; expected to run without this option")
    wanted = found if text == ALL else tuple(_by_index(option, word, found, known) for word in text.split(","))
    for gpu in wanted:
        if wanted.count(gpu) > 1:
            raise ConfigError(f"{option}: names GPU {gpu.index} twice; expected each once")
        if gpu.mig:
            raise ConfigError(f"{option}: GPU {gpu.index} is split into MIG instances; expected whole GPUs")
    if len({gpu.name for gpu in wanted}) > 1:
        models = ", ".join(f"GPU {gpu.index} is {gpu.name}" for gpu in wanted)
        raise ConfigError(
            f"{option}: {models}; expected GPUs of one model, because a file holds one model: one run for each model"
        )
    return wanted


def _by_index(option: str, word: str, found: Sequence[Gpu], known: str) -> Gpu:
    for gpu in found:
        if word.strip() == str(gpu.index):
            return gpu
    raise ConfigError(f"{option}: there is no GPU {word.strip() or '(nothing)'}; expected {ALL}, or some of {known}")


def visible() -> tuple[Gpu, ...]:
    """The GPUs that this process may see, in its order. Empty without the driver or its library."""
    return tuple(_described(nvml, index, handle) for index, (nvml, handle) in enumerate(handles()))


def handles() -> list[tuple[Any, Any]]:
    """(NVML, its handle) of each GPU that this process may see."""
    nvml = library()
    if nvml is None:
        return []
    places = named()
    numbers = map(str, range(nvml.nvmlDeviceGetCount())) if places is None else places
    found = [handle_of(nvml, place) for place in numbers]
    return [(nvml, handle) for handle in found if handle is not None]


def first_gpu() -> tuple[Gpu, ...]:
    """CUDA's first GPU in this process, if there is one."""
    return visible()[:1]


def named() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names, in order. None if it is not set.

    It is read as CUDA reads it: up to the first entry that is not a GPU.
    """
    listed = os.environ.get(VISIBLE)
    if listed is None:
        return None
    found: list[str] = []
    for word in listed.split(","):
        if not word.strip() or word.strip().startswith("-"):
            break
        found.append(word.strip())
    return found


def handle_of(nvml: Any, place: str) -> Any | None:
    """NVML's handle of a GPU by number or UUID. None if there is no such GPU."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(int(place)) if place.isdigit() else nvml.nvmlDeviceGetHandleByUUID(place)
    except nvml.NVMLError:
        return None


def state_of(nvml: Any, handle: Any) -> tuple[int | None, list[str]]:
    """SM clock in MHz now, and the active reasons for a lowered clock."""
    reasons = {
        "power_cap": nvml.nvmlClocksThrottleReasonSwPowerCap,
        "hw_slowdown": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "thermal": nvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "hw_thermal": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "power_brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
    try:
        active = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        clock = int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    except nvml.NVMLError:
        return None, []
    return clock, [name for name, bit in reasons.items() if active & bit]


def _described(nvml: Any, index: int, handle: Any) -> Gpu:
    try:
        mig = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:  # one that cannot be cut
        mig = False
    return Gpu(index, text(nvml.nvmlDeviceGetUUID(handle)), text(nvml.nvmlDeviceGetName(handle)), mig)


def library() -> Any | None:
    """NVML, initialised. None without the module or the driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no module, no driver, no permission
        return None
    return pynvml


def text(value: str | bytes) -> str:
    """A text from NVML, which is bytes in some versions of its module."""
    return value.decode() if isinstance(value, bytes) else value
