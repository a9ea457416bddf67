"""Puts the load of an engine on SGLang's own HTTP server with SGLang's own bench_serving, in the same mode.

Both are separate processes. The server takes the engine's arguments and a tokenizer, because without one it streams
nothing that bench_serving counts. The client sends prompts of random ids. bench_serving reports medians and quantiles,
so these are stored as it reports them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from math import inf
from pathlib import Path
from select import select
from time import monotonic_ns
from typing import Any

import msgspec

from bench.engine import preparation, weights
from bench.engine.drive import WARM_TOKENS, WAVES
from bench.engine.messages import Begun, Crossed, CrossJob, Done, Message, Started
from bench.engine.requests import arrivals_s
from bench.engine.server_process import DIRECT, HOST, RequestRefused, Server, ServerDied, free_port
from bench.engine.sglang_engine import STOPS, adapter_name, options
from bench.model.served import CrossName
from bench.model.serving import Load, Mode, Serving

SERVER, CLIENT = "bench.engine.http_server", "bench.engine.peer_client"
# What it says, by our names; the factor makes microseconds of milliseconds.
SAID: dict[CrossName, tuple[str, float]] = {
    "ttft_us": ("median_ttft_ms", 1000.0),
    "ttft_p99_us": ("p99_ttft_ms", 1000.0),
    "itl_us": ("median_itl_ms", 1000.0),
    "itl_p99_us": ("p99_itl_ms", 1000.0),
    "tpot_us": ("median_tpot_ms", 1000.0),
    "output_rate_per_s": ("output_throughput", 1.0),
}


class CrossError(Exception):
    """A load is unusable; the message says why."""


def run(job: CrossJob, tell: Callable[[Message], None]) -> None:
    """Start server and client, and report bench_serving's figures of every load. If one fails, the next still runs."""
    tokenizer = weights.tokenizer(job.setup.model, Path(job.prepared.model), Path(job.cache))
    given = arguments_of_server(job, str(tokenizer), free_port())
    with ExitStack() as stack:
        client = stack.enter_context(_Client(job.client))  # it imports while the server starts
        server = stack.enter_context(Server(job.server, given, job.serving.load_timeout_s))
        server.until_ready(job.serving.start_timeout_s)
        tell(Started({"port": given["port"], "tokenizer": "own" if str(tokenizer) == job.prepared.model else "words"}))
        for load in job.asked:
            began = monotonic_ns()
            tell(Begun(load, began))
            said: dict[CrossName, float] = {}
            problem = None
            try:
                said = _asked(job, load, client, server, tokenizer)
            except CrossError as error:
                server.check_after_failure()
                problem = str(error)
            tell(Crossed(load, began, monotonic_ns(), said, problem))
        mode = Mode(job.mode)
        tell(Done(preparation.plugin_problem(Path(job.scratch), wanted=mode.plugin) if mode.lora else None))


def arguments_of_server(job: CrossJob, tokenizer: str, port: int) -> dict[str, Any]:
    """The arguments of the mode's engine, and those that a server needs in addition."""
    given = options(job)
    return given | {"skip_tokenizer_init": False, "tokenizer_path": tokenizer, "host": HOST, "port": port}


def arguments_of_client(load: Load, mode: Mode, adapters: int, serving: Serving, output: Path) -> list[str]:
    """The arguments by which bench_serving puts this load on the server. A decode sends all requests at once."""
    found = ["--backend", "sglang", "--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1.0"]
    found += ["--random-input-len", str(load.prompt_tokens), "--random-output-len", str(tokens_of(load, serving))]
    found += ["--num-prompts", str(prompts_of(load, serving)), "--seed", str(serving.seed), "--disable-tqdm"]
    found += ["--warmup-requests", "1", "--output-file", str(output)]
    if load.kind == "arrivals":
        found += ["--request-rate", f"{load.rate_rps:g}"]
    else:
        found += ["--max-concurrency", str(load.requests)]
    if names := adapters_of(load, mode, adapters):
        found += ["--lora-name", *names]
        found += ["--lora-request-distribution", "distinct"] if len(names) > 1 else []
    return found


def adapters_of(load: Load, mode: Mode, adapters: int) -> list[str]:
    """The adapters that the requests use; empty if no request has one."""
    if not mode.lora or load.base_fraction == 1:
        return []
    return [adapter_name(index) for index in range(1 if load.mix == "one" else adapters)]


def tokens_of(load: Load, serving: Serving) -> int:
    """Number of tokens in each answer."""
    return serving.long_tokens if load.kind == "decode" else serving.stream_tokens


def prompts_of(load: Load, serving: Serving) -> int:
    """Number of prompts that are sent: as many as an engine gets."""
    if load.kind == "arrivals":
        return len(arrivals_s(load, seed=serving.seed, duration_s=serving.arrivals_s))
    return load.requests * (WAVES if load.kind == "stream" else 1)


def said_of(line: bytes, *, prompts: int, tokens: int) -> dict[CrossName, float]:
    """bench_serving's record of a run. Raises CrossError if the record is incomplete or not a record of the load."""
    try:
        record = json.loads(line)  # it writes Infinity for a rate, which is no JSON
    except ValueError as error:
        raise CrossError(f"bench_serving wrote no record: {error}") from None
    if not isinstance(record, dict):
        raise CrossError("bench_serving wrote no record: its output is not a JSON object")
    done, got = record.get("completed"), record.get("total_output_tokens")
    if done != prompts:
        raise CrossError(f"a request failed: bench_serving got answers to {done} of {prompts} prompts")
    if got != prompts * tokens:
        raise CrossError(f"a request failed: {got} of {prompts * tokens} tokens arrived")
    found: dict[CrossName, float] = {}
    for name, (theirs, factor) in SAID.items():
        value = record.get(theirs)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
            raise CrossError(f"bench_serving's record has {theirs}: {value!r}; expected a number above 0")
        found[name] = value * factor
    return found


def _asked(
    job: CrossJob, load: Load, client: subprocess.Popen[bytes], server: Server, tokenizer: Path
) -> dict[CrossName, float]:
    mode, output = Mode(job.mode), Path(job.scratch) / f"cross-{job.asked.index(load)}.jsonl"
    _warm(server, load, mode, job.setup.adapters)
    asked = arguments_of_client(load, mode, job.setup.adapters, job.serving, output)
    where = ["--host", HOST, "--port", str(server.port), "--model", str(tokenizer), "--tokenizer", str(tokenizer)]
    assert client.stdin is not None and client.stdout is not None
    try:
        client.stdin.write(msgspec.json.encode([*asked, *where]) + b"\n")
        client.stdin.flush()
    except OSError:
        raise CrossError("bench_serving's process has ended") from None
    if not select([client.stdout], [], [], job.serving.load_timeout_s)[0]:
        raise ServerDied(f"bench_serving did not end within {job.serving.load_timeout_s:g} s{server.words()}")
    answer = client.stdout.readline()
    if not answer:
        raise CrossError("bench_serving's process has ended")
    problem = msgspec.json.decode(answer)
    if problem is not None:
        raise CrossError(str(problem))
    try:
        lines = output.read_bytes().splitlines()
    except OSError as error:
        raise CrossError(f"bench_serving wrote no file: {error.strerror}") from None
    if not lines:
        raise CrossError("bench_serving wrote an empty file")
    return said_of(lines[-1], prompts=prompts_of(load, job.serving), tokens=tokens_of(load, job.serving))


def _warm(server: Server, load: Load, mode: Mode, adapters: int) -> None:
    """An answer of each adapter, all at once: none is put on the GPU for the first time while it is measured."""
    names = adapters_of(load, mode, adapters)
    ids = [[3] * load.prompt_tokens] * max(1, len(names))
    body: dict[str, Any] = {"input_ids": ids, "sampling_params": {"max_new_tokens": WARM_TOKENS, **STOPS}}
    body |= {"lora_path": names} if names else {}
    try:
        server.post("generate", body)
    except RequestRefused as error:
        raise CrossError(f"a request failed: {error}") from None


class _Client(subprocess.Popen[bytes]):
    """bench_serving's module, in the group of this process, whose end ends it; what it says beside goes to the log."""

    def __init__(self, module: str) -> None:
        super().__init__(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **DIRECT},
        )

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
