"""Times SGLang's batch preparation on the host, in the scheduler's process, which writes the times to a file.

`install` is called in every process that an engine spawns. It wraps `LoRAManager.prepare_lora_batch` at the moment
SGLang imports it, so that the order of SGLang's imports stays. A call costs two clock readings, and a write of 16 bytes
after its time is taken.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from types import ModuleType
from typing import Any

from bench.engine import stamps
from bench.engine.hooks import wrap_to_folder

FOLDER = "BENCH_PREPARE_TIMES"  # the variable that names where to write
MODULE, CLASS, METHOD = "sglang.srt.lora.lora_manager", "LoRAManager", "prepare_lora_batch"
NAME = "prepare"


def install() -> None:
    """Time batch preparation in this process, if an environment variable says where to write."""
    wrap_to_folder(FOLDER, MODULE, _wrap)


def _wrap(folder: Path, module: ModuleType) -> None:
    kind = getattr(module, CLASS)
    setattr(kind, METHOD, timed(getattr(kind, METHOD), folder))


def timed(method: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The method with timing: every call adds a record to a file of this process.

    The first also records the plugin's state.
    """
    times = stamps.Stamps(folder, NAME)

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = monotonic_ns()
        found = method(*args, **kwargs)
        took = monotonic_ns() - began
        if times.add(began, took):
            _write_plugin(folder)
        return found

    return wrapper


def _write_plugin(folder: Path) -> None:
    plugin = sys.modules.get("csgmv_embed.sglang")
    status = plugin.status() if plugin is not None else None
    off = [hook.name for hook in status.hooks if hook.off] if status else []
    said = {"active": bool(status and status.active), "reason": status.reason if status else "not imported", "off": off}
    (folder / f"plugin-{os.getpid()}.json").write_text(json.dumps(said), encoding="utf-8")


def between(folder: Path, began_ns: int, ended_ns: int) -> list[float]:
    """Times, in us, of the calls that began between two moments."""
    return stamps.between(folder, NAME, began_ns, ended_ns)


def plugin_problem(folder: Path, *, wanted: bool) -> str | None:
    """Why a process is not in its mode: its scheduler lacks the plugin, or has one that it should not have."""
    said = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("plugin-*.json"))]
    if wanted and not said:
        return "no scheduler prepared a batch with LoRA, so nothing says whether the plugin was on"
    for item in said:
        if item["active"] != wanted:
            return f"the plugin is off: {item['reason']}" if wanted else "the plugin is on in a mode without it"
    return None
