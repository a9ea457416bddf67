"""GPUs of this host by the number that nvidia-smi gives them: which there are, and which were asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.model.toml import ConfigError

ALL = "all"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Gpu(msgspec.Struct, frozen=True):
    """One GPU. `index` is its place among those that this process may see; `mig`: it is cut into instances."""

    index: int
    uuid: str
    name: str
    mig: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to see this GPU alone."""
        return {VISIBLE: self.uuid}


def chosen(text: str, present: Sequence[Gpu] | None = None, *, option: str | None = None) -> tuple[Gpu, ...]:
    """The GPUs of `--gpus`: `all`, or numbers joined by commas. `present`: those of this host, unless given.

    option: what asks for them, for errors.

    Raises ConfigError for a number that no GPU has, or twice, for GPUs of several models, and for one cut into
    instances.
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
    """The GPUs that this process may see, in its order; none where the driver or its library is absent."""
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
    """The one that CUDA calls the first in this process, if there is one."""
    return visible()[:1]


def named() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names, in order; None if it is not set. As CUDA reads it: up to the first of no GPU."""
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
    """NVML's handle of a GPU by its number or UUID; None if there is none."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(int(place)) if place.isdigit() else nvml.nvmlDeviceGetHandleByUUID(place)
    except nvml.NVMLError:
        return None


def state_of(nvml: Any, handle: Any) -> tuple[int | None, list[str]]:
    """SM clock, MHz, and the active reasons for a lowered clock, now."""
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
    """NVML, ready; None where the module or the driver is absent."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no module, no driver, no permission
        return None
    return pynvml


def text(value: str | bytes) -> str:
    """NVML's texts are bytes in some versions of its module."""
    return value.decode() if isinstance(value, bytes) else value
