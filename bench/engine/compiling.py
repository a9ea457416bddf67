"""Times what Triton compiles in an engine's processes, which write the times to files.

`install` is called in every process that an engine spawns. Triton tells its listener of every kernel that it compiles
or finds on disk; the latter are not written down. A request that needs a new kernel waits for it, and the warm-up of a
load would hide that.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic_ns
from types import ModuleType
from typing import Any, NamedTuple

from bench.engine import stamps
from bench.engine.hooks import wrap_to_folder

FOLDER = "BENCH_COMPILE_TIMES"  # the variable that names where to write
MODULE, NAME = "triton.knobs", "compile"


class Compilation(NamedTuple):
    """A kernel that was compiled, by its function's name, and the time it took, in us."""

    kernel: str
    took_us: float


def install() -> None:
    """Time compilations in this process, if an environment variable says where to write."""
    wrap_to_folder(FOLDER, MODULE, _wrap)


def _wrap(folder: Path, module: ModuleType) -> None:
    options: Any = getattr(module, "compilation", None)
    if hasattr(options, "listener"):  # older versions of Triton have none
        options.listener = _Listener(folder, options.listener)


class _Listener:
    """Writes down what is compiled, and tells the listener that was there before."""

    def __init__(self, folder: Path, before: Any) -> None:
        self._log, self._before = Log(folder), before

    def __call__(self, *, src: Any, times: Any, cache_hit: bool, **told: Any) -> None:
        if not cache_hit:
            took_ns = 1000 * times.total
            self._log.add(monotonic_ns() - took_ns, took_ns, str(getattr(src, "name", "unknown")))
        if self._before is not None:
            self._before(src=src, times=times, cache_hit=cache_hit, **told)


class Log:
    """Writes compilations of this process to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, began_ns: int, took_ns: int, kernel: str) -> None:
        """Write one compilation down."""
        stamps.write_named(self._folder, NAME, stamps.Named(kernel, began_ns, took_ns))


def between(folder: Path, began_ns: int, ended_ns: int) -> list[Compilation]:
    """What all processes began to compile between two moments, process by process."""
    return [
        Compilation(call.method, call.took_ns / 1000)
        for calls in stamps.named(folder, NAME)
        for call in calls
        if began_ns <= call.began_ns <= ended_ns and call.took_ns > 0
    ]
