"""What may disturb an engine's GPU while it is measured: lowered clocks, other processes. Sampled through NVML."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, monotonic_ns, sleep

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
    processes: int | None


def look(count: int = 1) -> Seen:
    """At the first GPUs, now: the slowest clock, the fullest memory, processes of all."""
    from bench.model.gpus import handles, state_of

    clocks: list[int] = []
    throttle: set[str] = set()
    used: list[int] = []
    processes: list[int] = []
    for nvml, handle in handles()[:count]:
        sm_mhz, reasons = state_of(nvml, handle)
        clocks += [] if sm_mhz is None else [sm_mhz]
        throttle.update(reasons)
        try:
            used.append(int(nvml.nvmlDeviceGetMemoryInfo(handle).used))
            processes.append(len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)))
        except nvml.NVMLError:
            pass
    total = sum(processes) if processes else None
    return Seen(monotonic_ns(), min(clocks, default=None), tuple(sorted(throttle)), max(used, default=None), total)


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

    @property
    def greatest_bytes(self) -> int | None:
        """Most memory in use at any look."""
        return max((item.used_bytes for item in self.seen if item.used_bytes is not None), default=None)


def greatest_processes(seen: list[Seen]) -> int | None:
    """Most processes on the GPU at any of these looks; None if the machine does not say."""
    return max((item.processes for item in seen if item.processes is not None), default=None)


def disturbance(seen: list[Seen], *, processes: int | None) -> str | None:
    """Why a load's samples are worth nothing. `processes`: how many the engine itself has there, if it is known."""
    slowed = sorted({reason for item in seen for reason in item.throttle} - HARMLESS)
    if slowed:
        return f"the GPU's clock was lowered: {', '.join(slowed)}"
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
