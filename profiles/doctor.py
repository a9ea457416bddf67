"""Finds out what of profiling works here: the tools, whether they see our ranges, known traps of versions."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.model.environment import attached_profiler, package_version
from profiles import ncu, nsys, nsys_database
from profiles.capture import CaptureFailed

# A program that opens registered ranges in our domain and nothing else: neither torch nor a GPU is needed.
# Their name is not in the program's text, which a capture quotes.
RANGES, NAME = 3, "round-trip"
ROUND_TRIP = f"""
from bench.clocks.markers import span
for _ in range({RANGES}):
    with span("{NAME[::-1]}"[::-1]):
        pass
"""
DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")
NSIGHT_PYTHON_NEEDS = (2026, 2, 1)  # of ncu, says nsight-python 1.1.0
OLD_NSYS = (2022, 4, 2)  # python's nvtx 0.2.12 and later gives it domains and no ranges, and says nothing


def findings() -> Iterator[str]:
    """One line for each finding, the slow ones last."""
    yield from _injected()
    counters = ncu.find()
    yield from _ncu(counters)
    yield _reader(counters)
    yield from _permission()
    yield from _cupti()
    yield from _nsys(nsys.find())


def _injected() -> Iterator[str]:
    if profiler := attached_profiler():
        yield f"profiler      this process runs under {profiler}: no timing verb works, and no other profiler"


def _ncu(found: ncu.Ncu | None) -> Iterator[str]:
    if found is None:
        yield f"ncu           not found: {ncu.INSTALL}"
        return
    counters = "counters of this GPU unknown" if found.counters is None else f"{len(found.counters)} counters"
    missing = [] if found.counters is None else ncu.profile_command(found, [], Path("x"), "cold").missing
    lacking = f", lacks {', '.join(missing)}" if missing else ""
    yield f"ncu           {found.version}, {counters}{lacking}"
    theirs = package_version("nsight-python")
    if theirs and _numbers(found.version) < NSIGHT_PYTHON_NEEDS:
        wanted = ".".join(map(str, NSIGHT_PYTHON_NEEDS))
        yield f"trap          nsight-python {theirs} needs ncu {wanted} or newer; `bench profile ncu` does not need it"


def _reader(found: ncu.Ncu | None) -> str:
    version = package_version("ncu-report")
    if version is None:
        return f"ncu-report    missing (reading ncu's files): {ncu.READER}"
    if found is not None and _numbers(version) < _numbers(found.version)[:3]:
        return f"ncu-report    {version}: older than ncu {found.version}, cannot read its files: {ncu.READER} --upgrade"
    return f"ncu-report    {version}"


def _permission() -> Iterator[str]:
    try:
        text = DRIVER_PARAMETERS.read_text(encoding="utf-8")
    except OSError:
        return
    restricted = re.search(r"RmProfilingAdminOnly:\s*1", text) is not None
    allowed = not restricted or os.geteuid() == 0
    yield "GPU counters  " + (
        "readable by this user"
        if allowed
        else "for root alone: run as root, or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
    )


def _cupti() -> Iterator[str]:
    """cupti-python brings a CUPTI of its own; two in one process are one too many."""
    theirs, torchs = package_version("cupti-python"), package_version("nvidia-cuda-cupti")
    if theirs and torchs and _numbers(theirs)[:2] != _numbers(torchs)[:2]:
        yield f"trap          cupti-python {theirs} beside torch's CUPTI {torchs}: `profile trace` may see no kernel"


def _nsys(found: nsys.Nsys | None) -> Iterator[str]:
    if found is None:
        yield f"nsys          not found: {nsys.INSTALL}"
        return
    importer = "with its importer" if found.importer else "without an importer: captures stay raw (.qdstrm)"
    yield f"nsys          {found.version}, {importer}"
    dropped = nsys.profile_command(found, [], Path("x")).dropped
    yield from (f"              has no {flag}" for flag in dropped)
    yield f"NVTX          {round_trip(found)}"
    nvtx = package_version("nvtx")
    if nvtx and _numbers(found.version)[:3] <= OLD_NSYS:
        yield f"trap          nsys {found.version} loses the ranges of python's nvtx {nvtx}; use a newer nsys"


def round_trip(tool: nsys.Nsys) -> str:
    """Capture a program that opens our ranges, and count the ranges in the capture."""
    if importlib.util.find_spec("nvtx") is None:
        return "the nvtx package is missing: there are no ranges to see"
    with tempfile.TemporaryDirectory(prefix="bench-nvtx-") as folder:
        output = Path(folder) / "ranges"
        command = nsys.profile_command(tool, [sys.executable, "-c", ROUND_TRIP], output, whole=True)
        try:
            raw = nsys.collect(command, output)
        except CaptureFailed as error:
            return f"the capture of {RANGES} ranges failed: {str(error).splitlines()[0]}"
        return _counted(tool, raw)


def _counted(tool: nsys.Nsys, raw: Path) -> str:
    report = nsys.to_report(tool, raw)
    database = nsys.to_database(tool, report) if report else None
    if database is None:
        # Parts of it are compressed: a name that is there proves more than one that is not.
        named = "names them" if NAME.encode() in raw.read_bytes() else "does not name them: probably lost"
        return f"{RANGES} ranges cannot be counted here; the raw file {named}"
    found = nsys_database.count_ranges(database)
    return f"{found} of {RANGES} ranges seen" + ("" if found == RANGES else ": its captures cannot be attributed")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
