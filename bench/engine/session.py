"""A server that is asked under a profiler: `python -m bench.engine.session FILE`, the program that nsys is given.

The server starts and answers some requests; then SGLang opens its capture range (`CUDA_PROFILER`), so many more
requests are answered, and the range is closed. So a capture is as long as was asked, holds neither imports nor
compilation, and its server is one that runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.engine import cross_check, weights
from bench.engine.cross_check import HOST, arguments_of_server, free_port, opener, until_ready
from bench.engine.messages import CrossJob, Prepared, PrepareJob
from bench.engine.processes import COMMON, EngineChild, EngineLost
from bench.engine.requests import Request, requests
from bench.engine.sglang_engine import STOPS, adapter_name
from bench.model.serving import Load, Mode, ModeName, Serving, Setup

END_S = 60.0  # for a server to end by itself
PROFILER = {"activities": ["CUDA_PROFILER"]}  # cudaProfilerStart in the scheduler's process, and no profiler of torch's


class Session(msgspec.Struct, frozen=True):
    """What is asked: `after` requests of a load before the range, `captured` within it, `tokens` new ones each."""

    mode: ModeName
    setup: Setup
    serving: Serving
    load: Load
    cache: str
    after: int
    captured: int
    tokens: int
    server: str = cross_check.SERVER


class SessionError(Exception):
    """The session came to no capture; the message says why."""


def run(session: Session, prepared: Prepared) -> None:
    """Start the server, ask, capture, and end it. Raises SessionError."""
    with tempfile.TemporaryDirectory(prefix="bench-session-") as scratch:
        job = CrossJob(
            session.mode,
            session.setup,
            session.serving,
            (session.load,),
            prepared,
            (),
            session.cache,
            scratch,
            session.server,
            "",
        )
        tokenizer = weights.tokenizer(session.setup.model, Path(prepared.model), Path(session.cache))
        given = arguments_of_server(job, str(tokenizer), free_port())
        environment = {**os.environ, **COMMON, **Mode(session.mode).environment}
        command = [sys.executable, "-m", session.server]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        try:
            assert server.stdin is not None
            server.stdin.write(msgspec.json.encode(given) + b"\n")
            server.stdin.close()
            until_ready(server, given["port"], session.serving.start_timeout_s)
            _captured(session, given["port"], prepared.vocab)
        except (OSError, RuntimeError) as error:
            raise SessionError(str(error)) from None
        finally:
            _end(server)


def batches(session: Session, vocab: int, count: int, part: str) -> Iterator[list[Request]]:
    """So many requests, as many at once as the load says."""
    number = 0
    while count > 0:
        asked = requests(
            session.load,
            seed=session.serving.seed,
            adapters=session.setup.adapters,
            vocab=vocab,
            part=f"{part} {number}",
        )
        yield asked[:count]
        count, number = count - len(asked), number + 1


def _captured(session: Session, port: int, vocab: int) -> None:
    for asked in batches(session, vocab, session.after, "before"):
        _ask(session, port, asked)
    _post(port, "start_profile", PROFILER)
    for asked in batches(session, vocab, session.captured, "captured"):
        _ask(session, port, asked)
    _post(port, "stop_profile", {})


def _ask(session: Session, port: int, asked: list[Request]) -> None:
    body: dict[str, Any] = {"input_ids": [request.ids for request in asked]}
    body["sampling_params"] = {"max_new_tokens": session.tokens, **STOPS}
    if Mode(session.mode).lora:
        names = [None if request.adapter is None else adapter_name(request.adapter) for request in asked]
        body["lora_path"] = names
    _post(port, "generate", body)


def _post(port: int, verb: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"http://{HOST}:{port}/{verb}", msgspec.json.encode(body), {"Content-Type": "application/json"}
    )
    with opener().open(request, timeout=600) as answer:
        answer.read()


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask it to end, so that what watches its processes sees them end."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(END_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(file: Path) -> None:
    """The session of a file. Exit status 1, with a line that says why, if there was no capture."""
    session = msgspec.json.decode(file.read_bytes(), type=Session)
    try:
        with EngineChild({"CSGMV_EMBED_DISABLE": "1"}) as child:
            child.begin(PrepareJob(session.setup, session.cache))
            prepared = child.hear(session.serving.start_timeout_s)
            child.leave()
        assert isinstance(prepared, Prepared)
        run(session, prepared)
    except (SessionError, EngineLost) as error:
        sys.exit(f"no capture: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
