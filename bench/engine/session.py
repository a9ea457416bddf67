"""A server under a profiler: `python -m bench.engine.session FILE`, the program that nsys runs.

The server starts and answers some requests. Then SGLang opens its capture range (`CUDA_PROFILER`), the server answers
the requests to be captured, and the range is closed. So a capture is as long as was asked, it contains neither imports
nor compilation, and its server is warm.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.engine import cross_check, preparation, weights
from bench.engine.cross_check import arguments_of_server
from bench.engine.drive import RequestFailed
from bench.engine.messages import CrossJob, Prepared, PrepareJob
from bench.engine.processes import EngineChild, EngineLost
from bench.engine.requests import Request, requests
from bench.engine.server_process import RequestRefused, Server, ServerDied, free_port
from bench.engine.sglang_engine import STOPS, adapter_name, check
from bench.model.serving import Load, Mode, ModeName, Serving, Setup

PROFILER = {"activities": ["CUDA_PROFILER"]}  # cudaProfilerStart in the scheduler's process, and no profiler of torch's


class Session(msgspec.Struct, frozen=True):
    """What to do: answer `after` requests of a load before the range and `captured` within it.

    Each request generates `tokens` tokens.
    """

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
    """The session made no capture; the message says why."""


def run(session: Session, prepared: Prepared) -> None:
    """Start the server, ask, capture, and end it. Raises SessionError."""
    mode = Mode(session.mode)
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
        environment = mode.environment | ({preparation.FOLDER: scratch} if mode.lora else {})
        with Server(session.server, given, session.serving.start_timeout_s, environment) as server:
            try:
                server.until_ready(session.serving.start_timeout_s)
                _captured(session, server, prepared.vocab)
                problem = preparation.plugin_problem(Path(scratch), wanted=mode.plugin) if mode.lora else None
            except (RequestFailed, RequestRefused, ServerDied) as error:
                raise SessionError(str(error)) from None
            finally:
                server.end()
        if problem is not None:
            raise SessionError(problem)


def batches(session: Session, vocab: int, count: int, part: str) -> Iterator[list[Request]]:
    """This many requests, in batches of as many as the load has in flight."""
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


def _captured(session: Session, server: Server, vocab: int) -> None:
    for asked in batches(session, vocab, session.after, "before"):
        _ask(session, server, asked)
    server.post("start_profile", PROFILER)
    for asked in batches(session, vocab, session.captured, "captured"):
        _ask(session, server, asked)
    server.post("stop_profile", {})


def _ask(session: Session, server: Server, asked: list[Request]) -> None:
    """Ask them all at once. Raises RequestFailed unless each has its tokens: a capture of less is not what it says."""
    body: dict[str, Any] = {"input_ids": [request.ids for request in asked]}
    body["sampling_params"] = {"max_new_tokens": session.tokens, **STOPS}
    if Mode(session.mode).lora:
        names = [None if request.adapter is None else adapter_name(request.adapter) for request in asked]
        body["lora_path"] = names
    answers = msgspec.json.decode(server.post("generate", body), type=list[dict[str, Any]])
    if len(answers) != len(asked):
        raise RequestFailed(f"{len(answers)} answers to {len(asked)} requests came")
    for answer in answers:
        check(answer, session.tokens)


def main(file: Path) -> None:
    """Run the session of a file. Exit status 1, with a line that says why, if there was no capture."""
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
