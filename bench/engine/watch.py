"""Watches an engine's GPU through NVML for what may disturb a measurement: lowered clocks, other processes."""

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
    """One reading. None: the machine does not report the value."""

    at_ns: int
    sm_mhz: int | None
    throttle: tuple[str, ...]
    used_bytes: int | None
    pids: tuple[int, ...] | None

    @property
    def processes(self) -> int | None:
        """How many processes are on the GPU."""
        return None if self.pids is None else len(self.pids)


def look(count: int = 1) -> Seen:
    """A reading of the first GPUs now: the slowest clock, the fullest memory, the processes of all."""
    from bench.model.gpus import handles, state_of

    clocks: list[int] = []
    throttle: set[str] = set()
    used: list[int] = []
    pids: list[int] | None = None
    for nvml, handle in handles()[:count]:
        sm_mhz, reasons = state_of(nvml, handle)
        clocks += [] if sm_mhz is None else [sm_mhz]
        throttle.update(reasons)
        try:
            used.append(int(nvml.nvmlDeviceGetMemoryInfo(handle).used))
            pids = [*(pids or []), *(item.pid for item in nvml.nvmlDeviceGetComputeRunningProcesses(handle))]
        except nvml.NVMLError:
            pass
    on_all = None if pids is None else tuple(dict.fromkeys(pids))
    return Seen(monotonic_ns(), min(clocks, default=None), tuple(sorted(throttle)), max(used, default=None), on_all)


class Watcher:
    """Takes readings repeatedly, in another thread, until it is closed."""

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
        """Stop taking readings."""
        self._stopping.set()
        self._thread.join()

    def during(self, began_ns: int, ended_ns: int) -> list[Seen]:
        """The readings between two times; the last one before them if there was none."""
        seen = list(self.seen)
        inside = [item for item in seen if began_ns <= item.at_ns <= ended_ns]
        return inside or [item for item in seen if item.at_ns <= ended_ns][-1:]


class Conditions(NamedTuple):
    """The GPU's state during a load: lowest and highest clock, why it was lowered, and what voids the load."""

    sm_mhz: list[int]
    throttle: list[str]
    disturbance: str | None


class Guard:
    """Tells an engine's own processes on the GPU from others. `group`: the engine's process group."""

    def __init__(self, watcher: Watcher, group: int) -> None:
        self._watcher, self._group = watcher, group
        self._began_ns = monotonic_ns()
        self._own: int | None = None

    def started(self) -> None:
        """The engine has started, and all of its processes are on the GPU now.

        If NVML's process ids are those of this machine, the engine's own processes are those of its group. In a
        container NVML may report ids of another namespace. Then all processes that came since the GPU was free count as
        the engine's.
        """
        seen = self._watcher.during(self._began_ns, monotonic_ns())
        pids = {pid for item in seen for pid in item.pids or ()}
        self._own = sum(in_group(pid, self._group) for pid in pids) or greatest_processes(seen)

    def during(self, began_ns: int, ended_ns: int) -> Conditions:
        """The conditions between two times."""
        seen = self._watcher.during(began_ns, ended_ns)
        clocks = [item.sm_mhz for item in seen if item.sm_mhz is not None]
        throttle = sorted({reason for item in seen for reason in item.throttle})
        span = [min(clocks), max(clocks)] if clocks else []
        return Conditions(span, throttle, disturbance(seen, processes=self._own))

    @property
    def greatest_bytes(self) -> int | None:
        """Most memory in use in any reading; None if some of it may have been another process's."""
        seen = [*self._watcher.seen]
        if others(seen, processes=self._own):
            return None
        return max((item.used_bytes for item in seen if item.used_bytes is not None), default=None)


def in_group(pid: int, group: int) -> bool:
    """Whether a process of this machine is in a process group."""
    try:
        return os.getpgid(pid) == group
    except OSError:
        return False


def greatest_processes(seen: list[Seen]) -> int | None:
    """Most processes on the GPU in any reading; None if the machine does not report them."""
    return max((item.processes for item in seen if item.processes is not None), default=None)


def disturbance(seen: list[Seen], *, processes: int | None) -> str | None:
    """Why a load's samples are unusable. `processes`: how many the engine itself has on the GPU, if known."""
    slowed = sorted({reason for item in seen for reason in item.throttle} - HARMLESS)
    if slowed:
        return f"the GPU's clock was lowered: {', '.join(slowed)}"
    return others(seen, processes=processes)


def others(seen: list[Seen], *, processes: int | None) -> str | None:
    """Which other processes were on the GPU beside the engine's own, if any."""
    most = greatest_processes(seen)
    if most is not None and processes is not None and most > processes:
        return f"another process was on the GPU: {most} where the engine has {processes}"
    return None


def occupied(seen: Seen) -> str | None:
    """Why no engine may start: another process uses the GPU. Empty if it is free."""
    if seen.processes:
        return f"another process is on the GPU: {seen.processes} before the engine was started"
    if seen.used_bytes is not None and seen.used_bytes > DRIVERS_BYTES:
        return f"another process is on the GPU: {seen.used_bytes / 2**30:.1f} GiB in use before the engine was started"
    return None


def until_free(look: Callable[[], Seen]) -> str | None:
    """Wait until no process uses the GPU. Returns the reason if one still does."""
    end = monotonic() + FREE_S
    while reason := occupied(look()):
        if monotonic() > end:
            return reason
        sleep(0.5)
    return None
