"""An engine that answers at once, for the driver and the loop around it; what it is to do wrong stands in a variable.

FAKE_ENGINE holds words with commas between them, each `MODE:FAULT` or `MODE:FAULT:LOAD`'s number of requests.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.engine import compiling, preparation, startup
from bench.engine.drive import RequestFailed
from bench.engine.messages import ServeJob
from bench.engine.requests import Request
from bench.model.served import ServedAnswer
from bench.model.serving import Mode

FAULTS, WARM = "FAKE_ENGINE", "FAKE_ENGINE_WARM_S"
OPENER = "tests.support.fake_engine:open_engine"
SLOW_S = 1.5  # of a start
STEP_S = {"none": 0.0003, "triton": 0.0003, "csgmv": 0.0004, "plugin": 0.0003}  # much more than a busy host adds


def kernel(name: str, start: float, took: float) -> dict[str, object]:
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": took, "args": {"stream": 7}}


def spawned() -> None:
    """What a scheduler would find: whether its process was made ready for it."""
    waits = any(getattr(finder, "module", None) == preparation.MODULE for finder in sys.meta_path)
    if not waits or sys.modules["__mp_main__"].__spec__.name != "bench.engine.child":
        os._exit(3)


class FakeEngine:
    """Takes a little time a token, and leaves the files that a scheduler would."""

    def __init__(self, job: ServeJob) -> None:
        self.job, self.mode = job, Mode(job.mode)
        self.described: dict[str, Any] = {"fake": True}
        found = (word.split(":") for word in os.environ.get(FAULTS, "").split(",") if word)
        self.faults = [(fault, int(more[0]) if more else None) for mode, fault, *more in found if mode == job.mode]
        self._loop = asyncio.new_event_loop()
        self._trace: Path | None = None
        if ("start", None) in self.faults:
            raise RuntimeError("no kernel image is available")
        if ("slow", None) in self.faults:
            time.sleep(SLOW_S)
        if ("parts", None) in self.faults:
            folder = Path(job.scratch)
            for name, took in (("load_model", 0.02), ("init_cuda_graphs", 0.01), ("unknown", 0.01)):
                startup.timed(time.sleep, name, folder)(took)
        if ("spawn", None) in self.faults:
            process = multiprocessing.get_context("spawn").Process(target=spawned)
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError("a spawned process is not made ready")
        # A listener is told once a kernel is compiled: here after none of its time has passed.
        self._compiled = compiling.Log(Path(job.scratch))
        self._compiled.add(time.monotonic_ns(), 2_000_000, "attention")
        self._known: set[int] = set()
        self._prepare = preparation.timed(lambda: None, Path(job.scratch))
        self._prepare()
        (Path(job.scratch) / f"plugin-{os.getpid()}.json").write_text(
            json.dumps({"active": self.mode.plugin and ("off", None) not in self.faults, "reason": "told so"})
        )

    def _work(self, asked: list[Request], tokens: int) -> None:
        for fault, requests in self.faults:
            if requests in (None, len(asked)):
                self._go_wrong(fault)
        if self.mode.lora and len(asked) not in self._known:  # a batch of another size takes another kernel
            self._known.add(len(asked))
            self._compiled.add(time.monotonic_ns(), 5_000_000, "lora")
        for _ in range(tokens):
            if self.mode.lora:
                self._prepare()
        time.sleep(STEP_S[self.mode.base] * tokens)

    def _go_wrong(self, fault: str) -> None:
        if fault == "die":
            sys.stderr.write("CUDA error: an illegal memory access\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(600)
        if fault == "fail":
            raise RequestFailed("out of slots")
        if fault == "raise":
            raise RuntimeError("shapes differ")

    def ask(self, asked: list[Request], new_tokens: int) -> None:
        self._work(asked, new_tokens)

    def answers(self, asked: list[Request], new_tokens: int) -> list[ServedAnswer]:
        shift = 2.0 if ("wrong", None) in self.faults else 0.001 if self.mode.plugin else 0.0
        shift += 3.0 * (not self.mode.lora)
        found = []
        for request in asked:
            tokens = [*range(new_tokens)]
            values = [-1.0 - shift - token / 100 for token in tokens]
            digest = sha256(repr([request, values]).encode()).hexdigest()[:16]
            found.append(ServedAnswer(tokens, values, [-2.0 - shift] * (len(request.ids) - 1), digest))
        return found

    async def stream(self, request: Request, new_tokens: int) -> AsyncIterator[int]:
        for token in range(1, new_tokens + 1):
            await asyncio.sleep(STEP_S[self.mode.base])
            yield token

    def run(self, task: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(task)

    async def begin_trace(self, folder: Path) -> None:
        self._trace = folder

    async def end_trace(self) -> None:
        assert self._trace is not None
        names = ["_fwd_grouped_kernel_stage1", "nvjet_sm90", "_chunked_lora_shrink_kernel"]
        events = [kernel(name, 10.0 * place, 5.0) for place, name in enumerate(names)]
        data = gzip.compress(json.dumps({"traceEvents": [*events, {"ph": "X", "cat": "kernel", "ts": 1}]}).encode())
        (self._trace / "1-TP-0.trace.json.gz").write_bytes(data)

    def close(self) -> None:
        self._loop.close()


def warm() -> None:
    """Nothing is to be imported; FAKE_ENGINE_WARM_S: seconds that it takes where the plugin serves, or `die`."""
    said = os.environ.get(WARM, "0")
    if said == "die":
        sys.exit("ImportError: no module named sgl_kernel")
    if os.environ["CSGMV_EMBED_DISABLE"] == "0":
        time.sleep(float(said))


def open_engine(job: ServeJob) -> FakeEngine:
    """As bench.engine.sglang_engine has it."""
    return FakeEngine(job)
