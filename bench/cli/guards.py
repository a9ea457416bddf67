"""Checks before a verb begins: a GPU is there, no profiler runs, clocks are known, the tree is committed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from bench.model import gpus
from bench.model.config import CLOCKS, ConfigError
from bench.model.environment import attached_profiler, collect_code, has_gpu
from bench.model.gpus import Gpu
from bench.model.records import Code
from bench.model.verdict import GateError
from bench.show.rows import FORMATS


def require_measuring() -> None:
    """Raises ModuleNotFoundError in a light install, before a worker would. entry.py says what to install."""
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def require_gpu(verb: str, instead: str = "") -> None:
    """Raises ConfigError where there is no GPU. `instead`: what works without one."""
    if not has_gpu():
        raise ConfigError(f"{verb}: needs an NVIDIA GPU and none was found{f'; expected {instead}' if instead else ''}")


def require_gpus(count: int) -> None:
    """Raises ConfigError unless this process sees `count` GPUs of the same model."""
    if count > 1:
        gpus.chosen(",".join(map(str, range(count))), option=f"tp {count}")


def require_timing(verb: str, instead: str = "") -> None:
    """Raises ConfigError where times cannot be taken."""
    require_gpu(verb, instead)
    if profiler := attached_profiler():
        raise ConfigError(f"{verb}: runs under {profiler}; a profiled run yields no timing")


def chosen_gpus(text: str | None, one_at_a_time: bool, *, counted: bool = False) -> tuple[Gpu, ...]:
    """The GPUs of --gpus. An empty tuple means CUDA's first GPU. Raises ConfigError."""
    if text is None:
        if one_at_a_time:
            raise ConfigError("--one-at-a-time: only one GPU measures anyway; expected --gpus with it")
        return ()
    found = gpus.chosen(text)
    if counted:
        raise ConfigError(
            f"--gpus {text}: counts need no GPU; expected a clock that needs a GPU; work_lanes in bench.toml sets "
            "how many processes count"
        )
    return found


def refuse_unknown_clocks(names: Sequence[str], known: Sequence[str] = CLOCKS) -> None:
    """Raises ConfigError for a clock that the verb does not take."""
    for name in names:
        if name not in known:
            raise ConfigError(f"--clock {name}: expected one of {', '.join(known)}")


def refuse_mixed_clocks(names: Sequence[str]) -> None:
    """Raises ConfigError if both counts and times are asked for."""
    if "work" in names and len(names) > 1:
        raise ConfigError("--clock work counts instead of timing; expected no other clock with it")


def refuse_unknown_format(name: str) -> None:
    """Raises ConfigError for an unknown output format."""
    if name not in ("table", *FORMATS):
        raise ConfigError(f"--format {name}: expected one of table, {', '.join(FORMATS)}")


def refuse_dirty(code: Code | None = None) -> None:
    """Raises GateError unless this checkout is exactly a commit."""
    code = code or collect_code()
    if code.dirty is None:
        raise GateError(
            "this is not a git checkout, so the baseline could not name its commit; expected to run in a checkout"
        )
    if code.dirty:
        raise GateError(
            "the tree has uncommitted changes, and a baseline must name its commit; expected a committed tree"
        )
