"""Whether SGLang's HTTP server and its bench_serving can be imported here: asked before a GPU is, in other processes.

An environment in which an engine starts may lack what these import beside it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import IO

import msgspec

from bench.engine.processes import COMMON, ending
from bench.model.config import ConfigError

TIMEOUT_S = 300.0  # as long as a server may take to start: a first import reads some 10,000 files


class Wanted(msgspec.Struct, frozen=True):
    """What has to be there: its name for a person, and the code that imports it."""

    name: str
    code: str


SERVER = Wanted("SGLang's HTTP server", "import sglang.launch_server, sglang.srt.entrypoints.http_server")
CLIENT = Wanted("SGLang's bench_serving", "from bench.engine import peer_client; peer_client.imported()")


def require(*wanted: Wanted, timeout_s: float = TIMEOUT_S) -> None:
    """Import each in a process of its own, all at once. Raises ConfigError that says of each what is missing."""
    if problems := [problem for problem in _problems(wanted, timeout_s) if problem]:
        raise ConfigError("; ".join(problems))


def _problems(wanted: tuple[Wanted, ...], timeout_s: float) -> list[str | None]:
    with ExitStack() as stack:
        started = [(item, *_started(item, stack)) for item in wanted]
        return [_problem(item, process, log, timeout_s) for item, process, log in started]


def _started(item: Wanted, stack: ExitStack) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    process = subprocess.Popen(
        [sys.executable, "-c", item.code],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **COMMON, "CSGMV_EMBED_DISABLE": "1"},
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process, log


def _problem(item: Wanted, process: subprocess.Popen[bytes], log: IO[bytes], timeout_s: float) -> str | None:
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"{item.name} was not imported within {timeout_s:g} s"
    if code == 0:
        return None
    log.seek(0)
    why, where = said(log.read().decode(errors="replace"))
    return f"{item.name} cannot be imported: {why or ending(code)}{f' ({where})' if where else ''}"


def said(log: str) -> tuple[str, str]:
    """The last line of a traceback, and the file and line that it is of, from the package on."""
    lines = log.strip().splitlines()
    places = re.findall(r'^  File "(?:.*/(?:site|dist)-packages/)?([^"]+)", line (\d+)', log, re.MULTILINE)
    return lines[-1] if lines else "", f"{places[-1][0]}, line {places[-1][1]}" if places else ""
