"""Compiled figures from a worker process: this one interprets its kernels, and an interpreted one is never compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def figures_from(module: str, cache: Path) -> dict[str, dict[str, Any]]:
    """What the module, a test file run as the worker, writes: by kernel, the figures of each compute capability."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    worker = [sys.executable, "-m", module]
    done = subprocess.run(worker, env=environment, capture_output=True, check=False, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    decoded: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return decoded


def kernels_of(launch: Callable[[], object]) -> list[Any]:
    """Each kernel of a launch once, compiled for compute capability 9.0. For the worker, which interprets nothing."""
    from bench.clocks.work import compiled

    with compiled._compile_only(90) as asked:
        launch()
    return list({kernel.hash: kernel for kernel, _, _ in asked}.values())
