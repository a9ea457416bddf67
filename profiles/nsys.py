"""nsys: the program, its command line for the installed version, and its files. The only module that knows its options.

nsys shows nothing inside a CUDA graph unless told to trace nodes. An NVTX range encloses the replay, not the capture;
`nsys_database` joins the two again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.clocks.markers import DOMAIN
from profiles import capture
from profiles.capture import CaptureFailed, Finished, ProfileError

# Where NVIDIA's packages put it; the last one is the command line that comes with Nsight Compute, without an importer.
PLACES = (
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/usr/local/cuda*/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",
)
IMPORTER = "QdstrmImporter"
INSTALL = "install Nsight Systems, or name it with NSYS=PATH"
RAW, REPORT, DATABASE = ".qdstrm", ".nsys-rep", ".sqlite"


@dataclass(frozen=True)
class Flag:
    """An option, its value, and what a version without it loses. Without a `needed` option there is no capture.

    `mentions` is a value that the option's help must list for the option to be useful.
    """

    name: str
    value: str
    loses: str
    needed: bool = False
    mentions: str = ""


ONE_DOMAIN = "--nvtx-domain-include"
# Without a capture range the whole process is traced, imports and compilation too.
TRACING = (
    Flag("--trace", "cuda,nvtx", "everything", needed=True),
    Flag("--sample", "none", "nothing: the file is larger"),
    Flag("--cpuctxsw", "none", "nothing: the file is larger"),
    Flag("--cuda-graph-trace", "node", "kernels in a CUDA graph are one row a replay, or none", mentions="node"),
    Flag("--cuda-event-trace", "false", "nothing, unless that version traces events unasked and slows the program"),
    Flag(ONE_DOMAIN, DOMAIN, "nothing: ranges of other libraries are in the file too"),
    Flag("--force-overwrite", "true", "nothing"),
)
CAPTURING = (
    Flag("--capture-range", "cudaProfilerApi", "imports and compilation are in the file too"),
    # The default of this one would end the program with the range.
    Flag("--capture-range-end", "stop", "the program is ended with the capture", mentions="stop"),
)


@dataclass(frozen=True)
class Nsys:
    """An installation: the program, its version, its options with their help, and its importer if it has one."""

    path: Path
    version: str
    options: dict[str, str]
    importer: Path | None


@dataclass(frozen=True)
class Command:
    """A command line, and the flags left out for this version, each with what is lost."""

    arguments: list[str]
    dropped: list[str]


def find() -> Nsys | None:
    """The installation, probed. None if there is none."""
    path = capture.find_tool("nsys", PLACES)
    if path is None:
        return None
    return Nsys(path, _version(path), parse_help(capture.ask([str(path), "profile", "--help"])), _importer(path))


def require() -> Nsys:
    """Raises ProfileError if nsys is not installed."""
    found = find()
    if found is None:
        raise ProfileError(f"nsys was not found on the path or where NVIDIA's packages put it: {INSTALL}")
    return found


def parse_version(text: str) -> str | None:
    """`2025.3.1.0` from the output of `nsys --version`."""
    found = re.search(r"version\s+(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def parse_help(text: str) -> dict[str, str]:
    """Option to its help text, from `nsys profile --help`. Empty if the text is not a help.

    An option's line starts with it, after a tag in brackets and a short form. `--x-[a|b]=` are two options.
    """
    options: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        head = re.match(r"\s*(?:\(\w+\)\s*)?(?:-\w, )?(--[a-z][\w-]*(?:\[[\w|]+\])?)(?:[=\s]|$)", line)
        if head and not line.strip().endswith("."):  # prose that mentions an option ends a sentence
            names = _expanded(head[1])
            options.update(dict.fromkeys(names, ""))
        for name in names:
            options[name] += line.strip() + "\n"
    return options


def _expanded(name: str) -> list[str]:
    stem, bracket, choices = name.partition("[")
    return [stem + choice for choice in choices.rstrip("]").split("|")] if bracket else [name]


def profile_command(
    nsys: Nsys | None, program: Sequence[str], output: Path, *, whole: bool = False, any_domain: bool = False
) -> Command:
    """`nsys profile` of a program that opens a capture range, or of a `whole` process.

    any_domain: record ranges of every NVTX domain. Flags that the installed version lacks are left out; without an
    installation (a dry run) none is. Raises ProfileError if it lacks a needed one.
    """
    kept, dropped = [], []
    flags = [flag for flag in TRACING if not (any_domain and flag.name == ONE_DOMAIN)]
    for flag in (*flags, *(() if whole else CAPTURING)):
        if nsys is None or _knows(nsys, flag):
            kept.append(f"{flag.name}={flag.value}")
        elif flag.needed:
            raise ProfileError(f"{nsys.path}: nsys {nsys.version} has no {flag.name}={flag.value}; {INSTALL}")
        else:
            dropped.append(f"{flag.name}={flag.value} (loses: {flag.loses})")
    start = [str(nsys.path) if nsys else "nsys", "profile"]
    return Command([*start, *kept, f"--output={output}", *program], dropped)


def _knows(nsys: Nsys, flag: Flag) -> bool:
    text = nsys.options.get(flag.name)
    return text is not None and (not flag.mentions or f"'{flag.mentions}'" in text)


def collect(command: Command, output: Path, statuses: Sequence[int] = (0,)) -> Path:
    """Run the command, which writes `output` with a suffix. Returns the report, or without an importer the raw file.

    `statuses` are the allowed exit statuses of the program. Raises CaptureFailed for another one, or if nothing was
    captured.
    """
    done = capture.run(command.arguments)
    if done.returncode not in statuses:
        raise CaptureFailed(f"nsys, or the program under it, ended with status {done.returncode}:\n{done.last_lines()}")
    for suffix in (REPORT, RAW):
        if (file := output.with_name(output.name + suffix)).exists():
            return file
    raise CaptureFailed(_why_nothing(done))


def _why_nothing(done: Finished) -> str:
    return f"nsys captured nothing; the program may never have opened its capture range:\n{done.last_lines()}"


def to_report(nsys: Nsys, raw: Path) -> Path | None:
    """The importer's report of a raw file. None without an importer, or if it fails."""
    if raw.suffix == REPORT:
        return raw
    if nsys.importer is None:
        return None
    report = raw.with_suffix(REPORT)
    capture.run([str(nsys.importer), "--input-file", str(raw), "--output-file", str(report)])
    return report if report.exists() else None


def to_database(nsys: Nsys, report: Path) -> Path | None:
    """The report as SQLite. None if this installation cannot make it."""
    database = report.with_suffix(DATABASE)
    options = ["--type=sqlite", "--force-overwrite=true", f"--output={database}"]
    capture.run([str(nsys.path), "export", *options, str(report)])
    return database if database.exists() else None


def how_to_open(file: Path) -> str:
    """How to open the files, in one line for a person."""
    if file.suffix == RAW:
        return (
            f"{file}: raw; this installation has no importer. Where Nsight Systems is installed whole: "
            f"{IMPORTER} --input-file {file.name}, then nsys-ui {file.with_suffix(REPORT).name}"
        )
    return f"{file}: open with nsys-ui {file.name}"


def _version(path: Path) -> str:
    return parse_version(capture.ask([str(path), "--version"])) or "of unknown version"


def _importer(path: Path) -> Path | None:
    """Beside the target folder of a whole installation."""
    home = path.resolve().parent.parent
    for place in (home / "host-linux-x64" / IMPORTER, *sorted(home.glob(f"host-*/{IMPORTER}"))):
        if place.exists():
            return place
    return capture.find_tool(IMPORTER, ("/usr/lib/nsight-systems/host-linux-x64/QdstrmImporter",))
