"""Computes the figures that explain a time from profile records.

Pure. Names of ncu's counters come only from ncu.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.model.case import Case
from profiles import ncu
from profiles.records import CacheControl, KernelCounters, NcuBody, TraceBody, TracedPoint, UsefulBytes

SECTOR_BYTES = 32
DISTURBED = 1.10  # traced / untraced above which gaps of the trace say little of the untraced run
COMPARED_US = 5.0  # calls shorter than this are mostly floor: their device time is not compared


@dataclass(frozen=True)
class Counters:
    """The kernels of one launch together; None where a counter is missing.

    Sums over the kernels: programs, sectors, bytes. Of the busiest kernel (most sectors read from L2): the rest.

    overfetch            32 x sectors read from L2 / bytes a lookup has to read
    sectors_per_request  sectors a warp's load instruction touches: 4 is contiguous 4-byte lanes, 32 all apart
    """

    case: Case
    contender: str
    clock: str
    cache: CacheControl
    kernels: int
    programs: int | None
    load_sectors: int | None
    store_sectors: int | None
    l1_load_sectors: int | None
    l1_load_requests: int | None
    dram_read_bytes: int | None
    dram_write_bytes: int | None
    useful_read_bytes: int | None
    l1_hit_pct: float | None
    l2_hit_pct: float | None
    dram_pct: float | None
    l2_pct: float | None
    occupancy_pct: float | None
    issue_pct: float | None
    registers: int | None
    stalls: tuple[tuple[str, float], ...]

    @property
    def overfetch(self) -> float | None:
        if self.load_sectors is None or not self.useful_read_bytes:
            return None
        return SECTOR_BYTES * self.load_sectors / self.useful_read_bytes

    @property
    def sectors_per_request(self) -> float | None:
        return _over(self.l1_load_sectors, self.l1_load_requests)


@dataclass(frozen=True)
class Agreement:
    """ncu beside the work clock: GPU, interpreter, and GPU / counted. None where one is missing."""

    case: Case
    contender: str
    what: str
    ncu: int | None
    counted: int

    @property
    def ratio(self) -> float | None:
        return _over(self.ncu, self.counted)


@dataclass(frozen=True)
class DeviceTime:
    """A traced point: the kernels of a call in us, beside the clock's time of a call less the floor, or less the gaps.

    A floor is an empty kernel and the gap behind it. Most of it may be the kernel's own time on the device. A call of
    several kernels has as many gaps.
    """

    point: TracedPoint
    device_us: float | None
    above_floor_us: float
    floor_us: float
    without_gaps_us: float | None

    @property
    def ratio(self) -> float | None:
        """Device time over time above the floor, for calls long enough to tell."""
        if self.device_us is None or self.point.clock != "graph" or self.point.untraced_us <= COMPARED_US:
            return None
        return self.device_us / self.above_floor_us

    @property
    def gap_ratio(self) -> float | None:
        """Device time over the clock's time less the gaps, for calls in a graph."""
        if self.device_us is None or self.without_gaps_us is None or self.point.clock != "graph":
            return None
        return self.device_us / self.without_gaps_us

    @property
    def slowed(self) -> float:
        """Traced / untraced time of a call."""
        return self.point.traced_us / self.point.untraced_us

    @property
    def disturbed(self) -> bool:
        return self.slowed > DISTURBED


def counters(body: NcuBody) -> list[Counters]:
    """One row for each (case, contender, clock, cache), in the order of the file."""
    groups: dict[tuple[Case, str, str, CacheControl], list[KernelCounters]] = {}
    for kernel in body.kernels:
        groups.setdefault((kernel.case, kernel.contender, kernel.clock, kernel.cache), []).append(kernel)
    useful = {item.case: item for item in body.useful}
    return [_together(group, useful.get(key[0])) for key, group in groups.items()]


def _together(group: Sequence[KernelCounters], useful: UsefulBytes | None) -> Counters:
    def total(name: str) -> int | None:
        found = [item.metrics[name] for item in group if name in item.metrics]
        return round(sum(found)) if found else None

    read = "lts__t_sectors_srcunit_tex_op_read.sum"
    loaded, hits = total("l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"), "lsu_mem_global_op_ld_lookup_hit.sum"
    main = max(group, key=lambda item: item.metrics.get(read, 0.0)).metrics
    registers = main.get("launch__registers_per_thread")
    waits = sorted(ncu.stalls(main).items(), key=lambda item: -item[1])
    first = group[0]
    return Counters(
        case=first.case,
        contender=first.contender,
        clock=first.clock,
        cache=first.cache,
        kernels=len(group),
        programs=total("launch__grid_size"),
        load_sectors=total(read),
        store_sectors=total("lts__t_sectors_srcunit_tex_op_write.sum"),
        l1_load_sectors=loaded,
        l1_load_requests=total("l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum"),
        dram_read_bytes=total("dram__bytes_read.sum"),
        dram_write_bytes=total("dram__bytes_write.sum"),
        useful_read_bytes=useful.read_bytes if useful else None,
        l1_hit_pct=_percent(total(f"l1tex__t_sectors_pipe_{hits}"), loaded),
        l2_hit_pct=_percent(
            total("lts__t_sectors_srcunit_tex_lookup_hit.sum"), total("lts__t_sectors_srcunit_tex.sum")
        ),
        dram_pct=main.get("dram__throughput.avg.pct_of_peak_sustained_elapsed"),
        l2_pct=main.get("lts__throughput.avg.pct_of_peak_sustained_elapsed"),
        occupancy_pct=main.get("sm__warps_active.avg.pct_of_peak_sustained_active"),
        issue_pct=main.get("smsp__issue_active.avg.pct_of_peak_sustained_active"),
        registers=None if registers is None else round(registers),
        stalls=tuple(waits),
    )


def agreements(body: NcuBody) -> list[Agreement]:
    """Programs and sectors of the cold run beside the work clock's counts.

    The work clock counts only Triton kernels, and torch's fill before a peer's kernel is none, so rows of several
    kernels are compared by the last one. It counts the launch on a graph's buffers, so eager rows are left out.
    """
    found = []
    cold: dict[tuple[Case, str], KernelCounters] = {
        (item.case, item.contender): item for item in body.kernels if item.cache == "cold" and item.clock == "graph"
    }
    for item in body.counted:
        kernel = cold.get((item.case, item.contender))
        if kernel is None:
            continue
        for what, metric, counted in (
            ("programs", "launch__grid_size", item.counts.programs),
            ("sectors read", "lts__t_sectors_srcunit_tex_op_read.sum", item.counts.load_sectors),
            ("sectors written", "lts__t_sectors_srcunit_tex_op_write.sum", item.counts.store_sectors),
        ):
            seen = kernel.metrics.get(metric)
            found.append(Agreement(item.case, item.contender, what, None if seen is None else round(seen), counted))
    return found


def device_times(body: TraceBody) -> list[DeviceTime]:
    """The traced points, with the floor of their clock."""
    found = []
    for point in body.points:
        floor_us = body.floor_us[point.clock]
        device_us = sum(kernel.per_call * kernel.device_us for kernel in point.kernels)
        without_gaps_us = None
        if body.floor_device_us is not None:
            gaps = sum(kernel.per_call for kernel in point.kernels)
            without_gaps_us = point.untraced_us - gaps * (floor_us - body.floor_device_us)
        above_floor_us = point.untraced_us - floor_us
        found.append(DeviceTime(point, device_us or None, above_floor_us, floor_us, without_gaps_us))
    return found


def _over(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _percent(part: int | None, whole: int | None) -> float | None:
    share = _over(part, whole)
    return None if share is None else 100 * share
