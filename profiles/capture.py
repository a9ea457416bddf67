"""Runs a profiler as a child process. It keeps all of its files or none, and reports how it ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.model.config import ConfigError
from bench.model.environment import ROOT
from bench.model.records import ResultsError
from profiles.target import Target

RUNNER = "profiles.runner"
PROFILED = "CSGMV_BENCH_PROFILED"  # set for every process that a capture starts under a tool
GRACE_S = 10.0
PROBE_TIMEOUT_S = 60.0
LAST_LINES = 12  # of a failed tool's output


class ProfileError(ConfigError):
    """A capture cannot begin, because a tool is missing or a name is wrong. Exit status 2."""


class CaptureFailed(Exception):
    """A capture began and gave nothing usable. Exit status 3."""


@dataclass(frozen=True)
class Finished:
    """How a tool ended, and its whole output."""

    returncode: int
    output: str

    def last_lines(self) -> str:
        return "\n".join(self.output.strip().splitlines()[-LAST_LINES:])


def find_tool(name: str, places: Sequence[str]) -> Path | None:
    """The program with this name: from the variable NAME (in capitals), on the path, or in `places`, which are globs.

    Of several in one place, the newest version. Raises ProfileError if the variable does not name a program.
    """
    variable = name.upper()
    if told := os.environ.get(variable):
        if not os.access(told, os.X_OK):
            raise ProfileError(f"{variable}={told}: does not exist; expected the path of the program {name}")
        return Path(told)
    if found := shutil.which(name):
        return Path(found)
    for place in places:
        fitting = list(Path("/").glob(place.removeprefix("/")))
        if fitting:  # 2024.10 is newer than 2024.9
            return max(fitting, key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))])
    return None


def runner_command(target: Target) -> list[str]:
    """The profiled program: this interpreter, running the target's points."""
    numbers = {"--launches": target.launches, "--replays": target.replays, "--seed": target.seed}
    options = [part for name, value in numbers.items() for part in (name, str(value))]
    return [sys.executable, "-m", RUNNER, *options, *(point.name for point in target.points)]


def ask(command: Sequence[str]) -> str:
    """The output of a tool, for probing it. Empty if it fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run to the end in the checkout. An interrupt ends the child and its children before it is raised."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {PROFILED: "1"} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # one group, so that the tool, its helpers and the program end together
        )
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        log.seek(0)
        return Finished(code, log.read().decode(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context, SIGTERM acts as an interrupt. Only the main thread can set that."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def scratch(stem: Path) -> Iterator[Path]:
    """A folder beside `stem` for a tool to write in, deleted at the end. Raises ResultsError."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".profile-", dir=stem.parent)
    except OSError as error:
        raise ResultsError(f"{stem.parent}: cannot be written: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def publish(files: Sequence[Path], folder: Path) -> list[Path]:
    """Move finished files to `folder`, each in one step."""
    return [file.replace(folder / file.name) for file in files]
