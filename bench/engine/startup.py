"""Times the parts of an engine's start in the scheduler's process, which writes them to a file.

`install` is called in every process that an engine spawns. If SGLang lacks a method, its part is left out. Time that
belongs to no part is reported as the rest of the start.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from types import ModuleType
from typing import Any

from bench.engine import stamps
from bench.engine.hooks import wrap_to_folder
from bench.model.served import SampleName

FOLDER = "BENCH_START_TIMES"  # the variable that names where to write
MODULE, CLASS = "sglang.srt.model_executor.model_runner", "ModelRunner"
NAME = "start"
PARTS: dict[str, SampleName] = {
    "load_model": "weights_us",
    "init_lora_manager": "adapters_us",
    "alloc_memory_pool": "pools_us",
    "init_cuda_graphs": "graphs_us",
}
FIRST = "load_model"  # what goes before it, from the engine's call on, is spawning and imports


def install() -> None:
    """Time the parts of a start in this process, if an environment variable says where to write."""
    wrap_to_folder(FOLDER, MODULE, _wrap)


def _wrap(folder: Path, module: ModuleType) -> None:
    kind = getattr(module, CLASS, None)
    for name in PARTS:
        method = getattr(kind, name, None)
        if method is not None:
            setattr(kind, name, timed(method, name, folder))


def timed(method: Callable[..., Any], name: str, folder: Path) -> Callable[..., Any]:
    """The method with timing: each call adds a line to a file of this process."""

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = monotonic_ns()
        found = method(*args, **kwargs)
        stamps.write_named(folder, NAME, stamps.Named(name, began, monotonic_ns() - began))
        return found

    return wrapper


def parts(folder: Path, called_ns: int) -> dict[SampleName, list[float]]:
    """The parts of a start in us, each from the process that took longest. `called_ns`: when the engine was called."""
    found: dict[SampleName, float] = {}
    for calls in stamps.named(folder, NAME):
        sums: dict[SampleName, float] = {}
        for part in calls:
            if part.method == FIRST:
                sums.setdefault("processes_us", (part.began_ns - called_ns) / 1000)
            if part.method in PARTS:
                name = PARTS[part.method]
                sums[name] = sums.get(name, 0.0) + part.took_ns / 1000
        for name, took in sums.items():
            found[name] = max(took, found.get(name, 0.0))
    return {name: [took] for name, took in found.items() if took > 0}
