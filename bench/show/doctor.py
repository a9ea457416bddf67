"""Finds out what this machine can measure, and what to install for the rest."""

from __future__ import annotations

import importlib.util

from rich.console import Group, RenderableType
from rich.text import Text

from bench.model.environment import nvml_device, package_version
from bench.model.registry import SUGGESTED_SGLANG
from profiles.doctor import findings

# package -> (module, what it is for, how to get it)
PARTS = {
    "torch": ("torch", "everything that runs", "pip install -e '.[bench]'"),
    "triton": ("triton", "the kernels", "pip install -e '.[bench]'"),
    "sglang": ("sglang", "the SGLang contenders", f"pip install 'sglang=={SUGGESTED_SGLANG}'"),
    "nvtx": ("nvtx", "ranges for Nsight; silent without", "pip install nvtx"),
    "nvidia-ml-py": ("pynvml", "GPU clocks and fingerprint", "pip install nvidia-ml-py"),
}
NEEDED = ("torch", "triton")


def diagnose() -> tuple[RenderableType, bool]:
    """The findings as text, and whether a sweep can run at all."""
    found = {name: importlib.util.find_spec(module) is not None for name, (module, _, _) in PARTS.items()}
    lines = []
    for name, (_, purpose, remedy) in PARTS.items():
        state = package_version(name) or "unknown version" if found[name] else f"missing ({purpose}): {remedy}"
        lines.append(f"{name:13} {state}")
    lines += _contender_lines() if all(found[name] for name in NEEDED) else []
    lines.append(_gpu_line())
    lines += findings()
    return Group(*(Text(line) for line in lines)), all(found[name] for name in NEEDED)


def _contender_lines() -> list[str]:
    from bench import contenders
    from bench.model import registry

    reasons = {name: contenders.unavailable(contenders.build(name)) for name in registry.names()}
    return [f"{name:35} {'ready' if reason is None else f'skipped: {reason}'}" for name, reason in reasons.items()]


def _gpu_line() -> str:
    device = nvml_device()
    if device is None:
        return "GPU           none found: `sweep` counts work instead of taking times"
    module, handle = device
    return f"GPU           {module.nvmlDeviceGetName(handle)}, driver {module.nvmlSystemGetDriverVersion()}"
