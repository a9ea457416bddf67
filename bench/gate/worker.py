"""One side's worker: `python -m bench.gate.worker READ_FD WRITE_FD`.

It imports everything once and then, for each process of the plan, forks a child that creates its own GPU context:
fresh memory and freshly loaded kernels at a tenth of the cost of a fresh interpreter. The parent process never
touches the GPU.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import TYPE_CHECKING

import msgspec
import torch

import csgmv_embed
from bench import contenders, measure
from bench.contenders.base import Contender, Launch
from bench.environment import collect_environment
from bench.gate.protocol import Begin, Begun, Ended, Finish, Prepare, Prepared, Request, Visit, Visited
from bench.isolate import Hello, Start, WorkerKind

if TYPE_CHECKING:
    from bench.clocks.graph import CapturedGraph

PR_SET_PDEATHSIG = 1
Sample = Callable[[int], list[float]]  # blocks -> time of one call, us, by block


def serve(receiver: Connection, sender: Connection) -> None:
    """Say hello, then run one measuring process after another until the runner closes the pipe."""
    start = msgspec.json.decode(receiver.recv_bytes(), type=Start)
    for name in start.contenders:
        contenders.build(name).unavailable()  # imports what it needs
    _warm_triton()
    gc.freeze()  # its objects stay: a collection before each capture need not walk them, a fork need not copy them
    sender.send_bytes(msgspec.json.encode(Hello(collect_environment("cpu"), [])))
    while True:
        try:
            begin = msgspec.json.decode(receiver.recv_bytes(), type=Request)
        except EOFError:
            return
        if not isinstance(begin, Begin):
            continue  # was meant for a child that died before it could read it
        if begin.fork:
            reason = _in_child(lambda begin=begin: _measure(start, begin, receiver, sender))  # type: ignore[misc]
        else:
            _measure(start, begin, receiver, sender)
            reason = None
        sender.send_bytes(msgspec.json.encode(Ended(reason)))


def _warm_triton() -> None:
    """What Triton does once in a process before its first launch, done here, so that no fork does it again.

    Hashing its compiler and importing its backend take two thirds of the second that a fork's first point takes.
    """
    try:
        from triton.backends import backends
        from triton.runtime.cache import triton_key

        triton_key()
        for backend in backends.values():
            importlib.import_module(backend.compiler.__module__)
            importlib.import_module(backend.driver.__module__)
    except (ImportError, AttributeError, OSError):  # another version: a fork's first point takes a second longer
        return


def _in_child(run: Callable[[], None]) -> str | None:
    """Run in a forked child; how it ended if not by returning."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed worker leaves nobody on the GPU
            run()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)  # skips the parent's clean-up, and CUDA's, which the kernel does anyway
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"measuring process ended by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.waitstatus_to_exitcode(status)
    return f"measuring process ended with exit status {code}" if code else None


def _measure(start: Start, begin: Begin, receiver: Connection, sender: Connection) -> None:
    """Answer until the runner says finish, or the GPU context is lost."""
    session = Session(start, begin.process)
    library = os.path.realpath(csgmv_embed.__file__)
    sender.send_bytes(msgspec.json.encode(Begun(collect_environment(session.bench.device.type), library)))
    while True:
        request = msgspec.json.decode(receiver.recv_bytes(), type=Request)
        if isinstance(request, Finish):
            return
        answer = session.visit(request) if isinstance(request, Visit) else session.prepare(request)
        sender.send_bytes(msgspec.json.encode(answer))
        if isinstance(answer, Prepared) and answer.lost:
            return


@dataclass
class _Ready:
    """A prepared point: `sample` and what to multiply its times by."""

    sample: Sample
    scale: float


class Session:
    """What a measuring process keeps: the device, the tables of the last case, the prepared point."""

    def __init__(self, start: Start, process: int) -> None:
        self.kind: WorkerKind = start.kind
        device = torch.device("cuda", 0) if start.kind == "gpu" else torch.device("cpu")
        self.bench = measure.Bench(device, start.settings, process)
        if start.kind == "gpu":
            self.bench.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._ready: _Ready | None = None
        self._verified: set[str] = set()

    def prepare(self, ask: Prepare) -> Prepared:
        """Never raises: what a contender raises is its result."""
        self._ready = None
        gc.collect()
        try:
            return self._prepare(ask)
        except measure.NotMeasured as end:
            return Prepared(end.status, end.reason)
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if self.kind != "gpu":
            return Prepared("error", reason)
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            return Prepared("crashed", f"GPU context lost: {reason}; {error}".splitlines()[0], lost=True)
        return Prepared("error", reason)

    def visit(self, ask: Visit) -> Visited:
        """Blocks of the prepared point."""
        assert self._ready is not None, "a visit follows a successful prepare"
        blocks = [value * self._ready.scale for value in self._ready.sample(ask.blocks)]
        return Visited(blocks, *(measure.gpu_state() if self.kind == "gpu" else (None, [])))

    def _prepare(self, ask: Prepare) -> Prepared:
        contender = contenders.build(ask.planned.contender, ask.planned.case.op)
        if reason := contender.unavailable():
            return Prepared("skipped", reason)
        prepare = self._graph if self.kind == "gpu" and ask.planned.clock == "graph" else self._calls
        return prepare(contender, ask)

    def _graph(self, contender: Contender, ask: Prepare) -> Prepared:
        from bench.clocks import graph

        settings, case = self.bench.settings, ask.planned.case
        extra = round(settings.nodes * ask.extra_share)
        cold = case.cache == "cold"
        sets = measure.index_sets(self.bench, case) + (extra if cold else 0)
        workload = self.bench.workload(case, sets)
        workload.relayout(ask.layout_seed)
        launch = contender.setup(workload, static=True)
        captured = graph.capture(launch, index_sets=sets, nodes=settings.nodes + extra, exact=True)
        if self._first_time(ask):
            measure.verify_graph(contender, workload, to_verify(captured, self.bench.process))
        flush = graph.flush_buffer(self.bench.l2_bytes, self.bench.device) if cold else None
        sample: Sample = lambda blocks: graph.sample(  # noqa: E731
            captured, blocks=blocks, block_ms=settings.block_ms, flush=flush
        )
        self._ready = _Ready(sample, captured.nodes / settings.nodes)
        return Prepared("ok", nodes=captured.nodes, minimum_bytes=workload.minimum_bytes())

    def _calls(self, contender: Contender, ask: Prepare) -> Prepared:
        """Eager calls; without a GPU, calls of the interpreter on the host's clock, which only tests ask for."""
        from bench.clocks import eager

        settings, case = self.bench.settings, ask.planned.case
        on_gpu = self.kind == "gpu"
        sets = measure.index_sets(self.bench, case) if on_gpu else 1
        workload = self.bench.workload(case, sets)
        workload.relayout(ask.layout_seed)
        launch = contender.setup(workload, static=False)
        if self._first_time(ask):
            measure.verify_eager(contender, workload, launch)
        calls = settings.eager_calls + round(settings.eager_calls * ask.extra_share)
        if on_gpu:
            sample: Sample = lambda blocks: eager.sample(launch, index_sets=sets, calls=calls, blocks=blocks)[0]  # noqa: E731
        else:
            sample = lambda blocks: [_host_us(launch, calls) for _ in range(blocks)]  # noqa: E731
        self._ready = _Ready(sample, calls / settings.eager_calls)
        return Prepared("ok", nodes=None, minimum_bytes=workload.minimum_bytes())

    def _first_time(self, ask: Prepare) -> bool:
        name = ask.planned.name
        new = name not in self._verified
        self._verified.add(name)
        return new


def to_verify(captured: CapturedGraph, process: int) -> CapturedGraph:
    """What of a point is compared with the oracle: every index set in a run's first process, one in each later one.

    The oracle of twenty sets takes longer than all turns of a round.
    """
    return captured if process == 0 else replace(captured, outputs=captured.outputs[:1])


def _host_us(launch: Launch, calls: int) -> float:
    start = perf_counter_ns()
    for _ in range(calls):
        launch(0)
    return (perf_counter_ns() - start) / 1000 / calls


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
