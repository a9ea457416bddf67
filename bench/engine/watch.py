"""What may disturb an engine's GPU while it is measured: lowered clocks, other processes. Sampled through NVML."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, monotonic_ns, sleep
from typing import NamedTuple

PERIOD_S = 0.2
FREE_S = 20.0  # for a GPU to be left by the engine before
HARMLESS = {"power_cap"}  # how a GPU at full load runs: kept in the record, voids nothing
# Memory that is in use before an engine starts and belongs to nobody that NVML names: the driver's own.
DRIVERS_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Seen:
    """One look. None: the machine does not say."""

    at_ns: int
    sm_mhz: int | None
    throttle: tuple[str, ...]
    used_bytes: int | None
    pids: tuple[int, ...] | None

    @property
    def processes(self) -> int | None:
        """How many are on the GPU."""
        return None if self.pids is None else len(self.pids)


def look() -> Seen:
    """At the first GPU, now."""
    from bench.execute.measure import gpu_state
    from bench.model.environment import nvml_device

    found = nvml_device()
    if found is None:
        return Seen(monotonic_ns(), None, (), None, None)
    nvml, handle = found
    sm_mhz, throttle = gpu_state()
    used = pids = None
    try:
        used = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        pids = tuple(item.pid for item in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError:
        pass
    return Seen(monotonic_ns(), sm_mhz, tuple(throttle), used, pids)


class Watcher:
    """Looks again and again, from another thread, until it is closed."""

    def __init__(self, look: Callable[[], Seen] = look, period_s: float = PERIOD_S) -> None:
        self._look, self._period_s = look, period_s
        self.seen: list[Seen] = [look()]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.seen.append(self._look())

    def close(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def during(self, began_ns: int, ended_ns: int) -> list[Seen]:
        """What was seen in between; the last look before it, if there was none."""
        seen = list(self.seen)
        inside = [item for item in seen if began_ns <= item.at_ns <= ended_ns]
        return inside or [item for item in seen if item.at_ns <= ended_ns][-1:]


class Conditions(NamedTuple):
    """How the GPU was during a load: least and most of its clock, why that was lowered, and what voids the load."""

    sm_mhz: list[int]
    throttle: list[str]
    disturbance: str | None


class Guard:
    """Tells an engine's own processes on the GPU from others. `group`: the process group that it runs in."""

    def __init__(self, watcher: Watcher, group: int) -> None:
        self._watcher, self._group = watcher, group
        self._began_ns = monotonic_ns()
        self._own: int | None = None

    def started(self) -> None:
        """The engine is there: what it has on the GPU now it will have.

        Where NVML's ids are those of this machine, its own are those of its group. In a container they may be another
        namespace's: then all that came since nobody was there count as its own.
        """
        seen = self._watcher.during(self._began_ns, monotonic_ns())
        pids = {pid for item in seen for pid in item.pids or ()}
        self._own = sum(in_group(pid, self._group) for pid in pids) or greatest_processes(seen)

    def during(self, began_ns: int, ended_ns: int) -> Conditions:
        """How it was in between."""
        seen = self._watcher.during(began_ns, ended_ns)
        clocks = [item.sm_mhz for item in seen if item.sm_mhz is not None]
        throttle = sorted({reason for item in seen for reason in item.throttle})
        span = [min(clocks), max(clocks)] if clocks else []
        return Conditions(span, throttle, disturbance(seen, processes=self._own))

    @property
    def greatest_bytes(self) -> int | None:
        """Most memory in use at any look; None if some of it may have been another's."""
        seen = [*self._watcher.seen]
        if others(seen, processes=self._own):
            return None
        return max((item.used_bytes for item in seen if item.used_bytes is not None), default=None)


def in_group(pid: int, group: int) -> bool:
    """Whether a process of this machine is in a group."""
    try:
        return os.getpgid(pid) == group
    except OSError:
        return False


def greatest_processes(seen: list[Seen]) -> int | None:
    """Most processes on the GPU at any of these looks; None if the machine does not say."""
    return max((item.processes for item in seen if item.processes is not None), default=None)


def disturbance(seen: list[Seen], *, processes: int | None) -> str | None:
    """Why a load's samples are worth nothing. `processes`: how many the engine itself has there, if it is known."""
    slowed = sorted({reason for item in seen for reason in item.throttle} - HARMLESS)
    if slowed:
        return f"the GPU's clock was lowered: {', '.join(slowed)}"
    return others(seen, processes=processes)


def others(seen: list[Seen], *, processes: int | None) -> str | None:
    """Who was on the GPU beside the engine's own processes, if somebody was."""
    most = greatest_processes(seen)
    if most is not None and processes is not None and most > processes:
        return f"another process was on the GPU: {most} where the engine has {processes}"
    return None


def occupied(seen: Seen) -> str | None:
    """Why no engine is to start: the GPU is another's."""
    if seen.processes:
        return f"another process is on the GPU: {seen.processes} before the engine was started"
    if seen.used_bytes is not None and seen.used_bytes > DRIVERS_BYTES:
        return f"another process is on the GPU: {seen.used_bytes / 2**30:.1f} GiB in use before the engine was started"
    return None


def until_free(look: Callable[[], Seen]) -> str | None:
    """Wait for the GPU to be nobody's; why it is not."""
    end = monotonic() + FREE_S
    while reason := occupied(look()):
        if monotonic() > end:
            return reason
        sleep(0.5)
    return None
