"""Results of other tools, as series of their own: NVBench's (`--json`) and pytest-benchmark's (`--benchmark-json`).

They are compared and followed, never judged: nothing of them was verified, and one file is one process, so that no
interval can be given. Times are in seconds in both files and in us here.

History of the format of what the store keeps (semver, as in bench/model/store.py)
1.0.0  first version
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.model import store
from bench.model.faults import twice
from bench.model.fields import LARGEST, SMALLEST, Positive
from bench.model.history import FOREIGN, Commit
from bench.model.records import ResultsError

Tool = Literal["nvbench", "pytest-benchmark"]
TOOLS: tuple[Tool, ...] = ("nvbench", "pytest-benchmark")
NAME, VERSION = "csgmv-bench-foreign-history", "1.0.0"
FIGURES: dict[Tool, str] = {"nvbench": "mean GPU time", "pytest-benchmark": "median"}
GPU_MEAN = "nv/cold/time/gpu/mean"
SECONDS = 1e6  # us


class ForeignSchema(msgspec.Struct):
    """Name and version of the format."""

    name: str = NAME
    version: str = VERSION


class ForeignPoint(msgspec.Struct):
    """A benchmark with its parameters: its time, or why it has none."""

    name: str
    machine: str  # the GPU, or the CPU
    value_us: Positive | None
    reason: str | None = None


class ForeignResults(msgspec.Struct):
    """One file. `sha`: the commit that it says it measured. `dirty`: with uncommitted changes."""

    tool: Tool
    points: list[ForeignPoint]
    sha: str | None = None
    dirty: bool = False
    time: str | None = None


class ForeignEntry(msgspec.Struct):
    """What the store keeps of a file: its points at a commit."""

    commit: Commit
    tool: Tool
    points: list[ForeignPoint]
    content: str  # a hash of the file: the same one twice is one entry
    schema: ForeignSchema = msgspec.field(default_factory=ForeignSchema)


def tool_of(path: Path) -> Tool | None:
    """The tool that wrote this file, told by its top-level keys. None for any other file. Raises ResultsError."""

    class Head(msgspec.Struct):
        benchmarks: list[dict[str, Any]] | None = None
        machine_info: dict[str, Any] | None = None
        schema: Any = None

    try:
        head = msgspec.json.decode(store.read_bytes(path), type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if head.benchmarks is None or head.schema is not None:
        return None
    if head.machine_info is not None:
        return "pytest-benchmark"
    return "nvbench" if all("states" in item for item in head.benchmarks) else None


def read(path: Path) -> ForeignResults:
    """Read a file of one of the tools. Raises ResultsError with file and place if it is not as the tool writes it."""
    tool = tool_of(path)
    if tool is None:
        raise ResultsError(
            f"{path}: was not written by {' or '.join(TOOLS)}; expected the JSON that one of them writes"
        )
    readers: dict[Tool, Callable[[Any], ForeignResults]] = {"nvbench": _nvbench, "pytest-benchmark": _pytest}
    try:
        found = readers[tool](msgspec.json.decode(store.read_bytes(path)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{path}: differs from what {tool} writes: {type(error).__name__}: {error}") from error
    for fault in twice("the benchmark", [(point.name, (point.name, point.machine)) for point in found.points]):
        raise ResultsError(f"{path}: {fault}")
    if not found.points:
        raise ResultsError(f"{path}: holds no benchmark; expected a run that measured something")
    return found


def _nvbench(data: dict[str, Any]) -> ForeignResults:
    """A point for each state of each benchmark: its axes are in its name, its device is its machine."""
    devices = {int(device["id"]): str(device["name"]) for device in data.get("devices") or []}
    points = []
    for bench in data["benchmarks"]:
        for state in bench["states"] or []:
            name = re.sub(r"^Device=\d+ ?", "", str(state["name"]))
            machine = devices.get(int(state.get("device") or 0), "unknown GPU")
            means = [_value(item) for item in state.get("summaries") or [] if item["tag"] == GPU_MEAN]
            reason = None if means else str(state.get("skip_reason") or f"no summary {GPU_MEAN}")
            points.append(ForeignPoint(f"{bench['name']} {name}".strip(), machine, means[0] if means else None, reason))
    return ForeignResults("nvbench", points)


def _value(summary: dict[str, Any]) -> float:
    """Of a time's summary, us. Numbers are texts in this file."""
    return _us(next(float(item["value"]) for item in summary["data"] if item["name"] == "value"))


def _pytest(data: dict[str, Any]) -> ForeignResults:
    info, code = data["machine_info"], data.get("commit_info") or {}
    cpu = info.get("cpu") or {}
    machine = str(cpu.get("brand_raw") or info.get("processor") or info.get("machine") or "unknown CPU")
    points = [
        ForeignPoint(str(item["fullname"]), machine, _us(float(item["stats"]["median"]))) for item in data["benchmarks"]
    ]
    sha = code.get("id") if code.get("id") != "unknown" else None
    return ForeignResults("pytest-benchmark", points, sha, bool(code.get("dirty")), data.get("datetime"))


def _us(seconds: float) -> float:
    if not SMALLEST <= seconds * SECONDS <= LARGEST:
        raise ValueError(f"{seconds} s is not a valid time of a benchmark")
    return seconds * SECONDS


def entry(path: Path, results: ForeignResults, commit: Commit) -> ForeignEntry:
    """The store's entry for a file that was read."""
    content = hashlib.sha256(store.read_bytes(path)).hexdigest()[:16]
    return ForeignEntry(commit, results.tool, results.points, content)


def write(folder: Path, item: ForeignEntry) -> Path:
    """Write the entry in one step. Returns the file. Raises ResultsError."""
    path = folder / item.tool / f"{item.commit.short}-{item.content[:8]}{FOREIGN}"
    store.write(path, item)
    return path


def read_all(folder: Path, tool: Tool) -> list[ForeignEntry]:
    """Every entry of the tool below a folder, in the order of their commits. Raises ResultsError."""
    found = [store.read_document(path, ForeignEntry, NAME, VERSION, faults) for path in folder.rglob(f"*{FOREIGN}")]
    own = [item for item in found if item.tool == tool]
    return sorted(own, key=lambda item: (item.commit.time or "", item.commit.depth, item.content))


def faults(item: ForeignEntry) -> Iterator[str]:
    """Faults of an entry."""
    for index, point in enumerate(item.points):
        if (point.value_us is None) == (point.reason is None):
            yield f"points[{index}] ({point.name}): expected a value_us or a reason, one of them"
