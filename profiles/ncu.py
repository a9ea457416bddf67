"""ncu: the program, its command line, its metrics and its reports. The only module that knows its options and names.

Counters only. ncu replays a kernel once for each pass, serialised and, when cold, with flushed caches, so its times are
not the suite's. `cold` flushes every cache before each pass; `warm` keeps what the pass before left.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clocks.markers import DOMAIN
from bench.model.environment import package_version
from profiles import capture
from profiles.capture import CaptureFailed, Finished, ProfileError
from profiles.records import CacheControl, KernelCounters
from profiles.target import parse_point

PLACES = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu")
INSTALL = "install Nsight Compute, or name it with NCU=PATH"
READER = "pip install 'ncu-report>=2025.3.1'"
REPORT = ".ncu-rep"
SAMPLED = "sample"  # the phase of bench.clocks.markers whose kernels are profiled
CACHE_CONTROL: dict[CacheControl, str] = {"cold": "all", "warm": "none"}

# What each counter is for. `.sum` and the like are ncu's roll-ups; the name before the first dot is what a chip has.
METRICS = {
    "launch__grid_size": "programs",
    "launch__block_size": "threads a program",
    "launch__registers_per_thread": "registers a thread",
    "launch__waves_per_multiprocessor": "waves of programs over all multiprocessors",
    "dram__bytes_read.sum": "bytes read from memory",
    "dram__bytes_write.sum": "bytes written to memory",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "share of the memory bandwidth, percent",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "share of the L2 bandwidth, percent",
    "lts__t_sectors_srcunit_tex_op_read.sum": "32-byte sectors the multiprocessors read from L2",
    "lts__t_sectors_srcunit_tex_op_write.sum": "32-byte sectors they wrote to L2",
    "lts__t_sectors_srcunit_tex_lookup_hit.sum": "of their sectors, those found in L2",
    "lts__t_sectors_srcunit_tex.sum": "their sectors, all",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "sectors that global loads asked L1 for",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld_lookup_hit.sum": "of these, those found in L1",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum": "global load instructions of a warp",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum": "sectors of global stores",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum": "global store instructions of a warp",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "achieved occupancy, percent",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "cycles in which a scheduler issued, percent",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "waiting for memory or L2",
    "smsp__average_warps_issue_stalled_lg_throttle_per_issue_active.ratio": "load/store queue full",
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio": "waiting for shared memory or such",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "fixed latency of the instruction before",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "waiting at a barrier",
    "smsp__average_warps_issue_stalled_membar_per_issue_active.ratio": "waiting for a memory fence",
    "smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio": "no instruction fetched yet",
    "smsp__average_warps_issue_stalled_imc_miss_per_issue_active.ratio": "waiting for a constant",
    "smsp__average_warps_issue_stalled_drain_per_issue_active.ratio": "waiting for stores at the end",
    "gpc__cycles_elapsed.avg.per_second": "clock, as it was",
}
LAUNCH_METRICS = "launch__"  # what the driver knows of a launch: not among a chip's counters
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")


@dataclass(frozen=True)
class Ncu:
    """An installation: the program, its version, its options, and the counters of this machine's GPU.

    `counters` is None if ncu could not list them (no GPU, no driver); then all metrics are requested.
    """

    path: Path
    version: str
    options: frozenset[str]
    counters: frozenset[str] | None


@dataclass(frozen=True)
class Command:
    """A command line, the flags left out for this version, and the metrics left out for this chip."""

    arguments: list[str]
    dropped: list[str]
    missing: list[str]


def find(chip: str | None = None) -> Ncu | None:
    """The installation, probed. None if there is none. `chip`, such as gh100, replaces this machine's GPU."""
    path = capture.find_tool("ncu", PLACES)
    if path is None:
        return None
    program = str(path)
    query = [program, "--query-metrics", *(["--chips", chip] if chip else [])]
    version = parse_version(capture.ask([program, "--version"])) or "of unknown version"
    return Ncu(path, version, parse_help(capture.ask([program, "--help"])), parse_metrics(capture.ask(query)))


def require() -> Ncu:
    """Raises ProfileError if ncu is not installed."""
    found = find()
    if found is None:
        raise ProfileError(f"ncu was not found on the path or where NVIDIA's packages put it: {INSTALL}")
    return found


def parse_version(text: str) -> str | None:
    """`2025.3.1.0` from the output of `ncu --version`."""
    found = re.search(r"^Version\s+(\d+(?:\.\d+)+)", text, re.MULTILINE)
    return found[1] if found else None


def parse_help(text: str) -> frozenset[str]:
    """The long options in `ncu --help`: each at the start of a line, perhaps as `-x [ --long ]`."""
    return frozenset(re.findall(r"^ {2}(?:-\w \[ )?(--[a-z0-9-]+)", text, re.MULTILINE))


def parse_metrics(text: str) -> frozenset[str] | None:
    """Base names in `ncu --query-metrics`. None if it lists none."""
    names = frozenset(re.findall(r"^([a-z0-9]+__\w+)\s", text, re.MULTILINE))
    return names or None


def profile_command(
    ncu: Ncu | None, program: Sequence[str], output: Path, cache: CacheControl, metrics: Sequence[str] = tuple(METRICS)
) -> Command:
    """`ncu` on the sampled kernels of a program that opens a capture range and our NVTX ranges."""
    asked, missing = _available(ncu, metrics)
    wanted = (
        ("--target-processes", "application-only"),  # ptxas and the like are children, too
        ("--profile-from-start", "off"),
        ("--nvtx", None),
        ("--nvtx-include", f"{DOMAIN}@{SAMPLED}/"),  # with the slash: a push/pop range; without, nothing would match
        ("--graph-profiling", "node"),
        ("--replay-mode", "kernel"),
        ("--clock-control", "none"),  # its default locks the clocks
        ("--cache-control", CACHE_CONTROL[cache]),
        ("--import-sass", "no"),
        ("--metrics", ",".join(asked)),
        ("--force-overwrite", None),
        ("--export", str(output)),
    )
    known = [(name, value) for name, value in wanted if ncu is None or name in ncu.options]
    dropped = [name for name, value in wanted if (name, value) not in known]
    options = [part for name, value in known for part in (name, value) if part is not None]
    return Command([str(ncu.path) if ncu else "ncu", *options, *program], dropped, missing)


def _available(ncu: Ncu | None, metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    if ncu is None or ncu.counters is None:
        return list(metrics), []
    found = [name for name in metrics if name.startswith(LAUNCH_METRICS) or name.split(".")[0] in ncu.counters]
    return found, [name for name in metrics if name not in found]


def collect(command: Command, output: Path) -> Path:
    """Run the command. Returns its report. Raises CaptureFailed with a remedy."""
    done = capture.run(command.arguments)
    report = output.with_name(output.name + REPORT)
    if reason := _failure(done):
        raise CaptureFailed(reason)
    if not report.exists():
        raise CaptureFailed(f"ncu ended with status {done.returncode} and wrote no report:\n{done.last_lines()}")
    return report


def _failure(done: Finished) -> str | None:
    known = {
        "ERR_NVGPUCTRPERM": "no permission to read the GPU's counters: run as root, or load the driver with "
        "NVreg_RestrictProfilingToAdminUsers=0",
        "resource was unavailable": "another profiler holds the GPU's counters: end it (DCGM, nsys, a second ncu)",
        "The application returned an error code": "the program under ncu failed:",
        "No kernels were profiled": f"ncu profiled no kernel: none was launched in a range {DOMAIN}@{SAMPLED}, or "
        "nvtx is missing",
    }
    for words, meaning in known.items():
        if words in done.output:
            return f"{meaning}\n{done.last_lines()}"
    if done.returncode:
        return f"ncu, or the program under it, ended with status {done.returncode}:\n{done.last_lines()}"
    return None


def read(report: Path, cache: CacheControl) -> list[KernelCounters]:
    """The counters of a report, by point. Needs no GPU. Raises ProfileError or CaptureFailed."""
    kernels = [_counters(action, cache) for action in _actions(report)]
    if not kernels:
        version = package_version("ncu-report")
        raise CaptureFailed(
            f"{report}: ncu-report {version} finds no kernel in it; is it damaged, or written by a newer ncu?"
        )
    return kernels


def _actions(report: Path) -> Iterator[Any]:
    reader = load_reader()
    if not report.exists():
        raise ProfileError(f"{report}: does not exist; expected a report of ncu")
    try:
        context = reader.load_report(str(report))
    except Exception as error:  # the reader's own exceptions derive from nothing in common
        version = package_version("ncu-report")
        raise ProfileError(
            f"{report}: ncu-report {version} cannot read it: {error}; expected a report of an ncu that is not newer"
        ) from error
    for section in context:
        yield from section


def load_reader() -> Any:
    """NVIDIA's reader of reports. Raises ProfileError with the install line."""
    try:
        return importlib.import_module("ncu_report")
    except ImportError as error:
        raise ProfileError(f"reading a report of ncu needs the package ncu-report ({error}): {READER}") from error


def _counters(action: Any, cache: CacheControl) -> KernelCounters:
    stack = _stack(action)
    if not stack:
        raise CaptureFailed(f"{action.name()}: has no range of the domain {DOMAIN}; expected a report of this suite")
    point = parse_point(stack[0])
    values: dict[str, float] = {}
    for name in METRICS:
        metric = action.metric_by_name(name)
        if metric is not None and metric.has_value():
            values[name] = float(metric.as_double())
    return KernelCounters(point.case, point.contender, point.clock, cache, action.name(), values)


def _stack(action: Any) -> list[str]:
    """Names of our push/pop ranges around the kernel's launch, outermost first."""
    state = action.nvtx_state()
    if state is None:
        return []
    for number in state.domains():
        domain = state.domain_by_id(number)
        if domain.name() == DOMAIN:
            return list(domain.push_pop_ranges())
    return []


def stalls(metrics: dict[str, float]) -> dict[str, float]:
    """Stall reason to the number of warps that wait for it in each cycle in which an instruction is issued."""
    return {found[1]: value for name, value in metrics.items() if (found := _STALL.fullmatch(name))}
