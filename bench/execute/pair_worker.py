"""One side's worker, which bench/execute/pair_start.py starts.

It imports everything once and then, for each process of the plan, forks a child that creates its own GPU context:
fresh memory and freshly loaded kernels at a tenth of the cost of a fresh interpreter. The parent process never
touches the GPU, for CUDA cannot be used in a fork of a process that has. So each child itself imports what may touch it
while it is imported: SGLang and vLLM. Several children are opened side by side before any of them is timed.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import TYPE_CHECKING

import msgspec
import torch

from bench import contenders
from bench.contenders.base import Contender, Launch
from bench.execute import measure
from bench.execute.children import Child
from bench.execute.isolate import Hello, Start, WorkerKind
from bench.execute.protocol import Begin, Begun, Ended, Finish, Prepare, Prepared, Request, SideLost, Visit, Visited
from bench.model.case import Case
from bench.model.config import PlannedPoint
from bench.model.environment import collect_environment
from bench.model.registry import imports_a_server
from bench.model.sources import library_folder
from bench.workload.tensors import Workload

if TYPE_CHECKING:
    from bench.clocks.graph import CapturedGraph

REHEARSED_VOCAB = 1024  # divides by what Triton specialises on, as real vocabularies do: the same kernels are loaded
Sample = Callable[[int], list[float]]  # blocks -> time of one call, us, by block


def serve(receiver: Connection, sender: Connection) -> None:
    """Say hello, then run one measuring process after another until the runner closes the pipe."""
    start = msgspec.json.decode(receiver.recv_bytes(), type=Start)
    contenders.load(name for name in start.contenders if start.kind != "gpu" or not imports_a_server(name))
    gc.freeze()  # its objects stay: a collection before each capture need not walk them, a fork need not copy them
    sender.send_bytes(msgspec.json.encode(Hello(collect_environment("cpu"), [])))
    children = Children(start, receiver, sender)
    while True:
        try:
            begin = msgspec.json.decode(receiver.recv_bytes(), type=Request)
        except EOFError:
            children.end()
            return
        if isinstance(begin, Begin):  # anything else was meant for a child that died before it could read it
            sender.send_bytes(msgspec.json.encode(Ended(children.run(begin))))


class Children:
    """The measuring processes of this worker: one runs, and those opened ahead wait."""

    def __init__(self, start: Start, receiver: Connection, sender: Connection) -> None:
        self._start, self._receiver, self._sender = start, receiver, sender
        self._waiting: dict[int, Child] = {}

    def run(self, begin: Begin) -> str | None:
        """Open what is to be opened, then let the process measure.

        Returns how it ended, if it did not return normally.
        """
        numbers = range(begin.process, begin.process + begin.ahead + 1)
        for number in numbers:
            if number not in self._waiting:
                self._waiting[number] = self._open(number, begin.rehearse)
        for number in [number for number in numbers if not self._waiting[number].is_ready()]:
            self._waiting.pop(number).end()
        if begin.process not in self._waiting:  # what kills a rehearsal is the point's result, once it is its turn
            self._waiting[begin.process] = self._open(begin.process, None)
        child = self._waiting.pop(begin.process)
        child.is_ready()
        return child.finish()

    def end(self) -> None:
        """End the waiting processes."""
        for child in self._waiting.values():
            child.end()
        self._waiting.clear()

    def _open(self, process: int, rehearse: PlannedPoint | None) -> Child:
        def ready() -> Sampler:
            if self._start.kind == "gpu":
                contenders.load(self._start.contenders)
            sampler = Sampler(self._start, process)
            if rehearse is not None and self._start.kind == "gpu":
                sampler.rehearse(rehearse)
            return sampler

        return Child(ready, self._measure)

    def _measure(self, sampler: Sampler) -> None:
        """Answer until the runner says finish, or the GPU context is lost."""
        found = library_folder()
        library = os.path.realpath(found / "__init__.py") if found else ""
        self._send(Begun(collect_environment(sampler.bench.device.type), library))
        while True:
            request = msgspec.json.decode(self._receiver.recv_bytes(), type=Request)
            if isinstance(request, Finish):
                return
            if isinstance(request, Begin):
                raise TypeError("a child that measures was sent Begin; expected Prepare, Visit or Finish")
            answer = sampler.visit(request) if isinstance(request, Visit) else sampler.prepare(request)
            self._send(answer)
            if isinstance(answer, Prepared) and answer.lost:
                return

    def _send(self, answer: Begun | Prepared | Visited) -> None:
        self._sender.send_bytes(msgspec.json.encode(answer))


@dataclass
class _Ready:
    """A prepared point: `sample` and what to multiply its times by."""

    sample: Sample
    scale: float


class Sampler:
    """What a measuring process keeps: the device, the tables of the last case, the prepared point."""

    def __init__(self, start: Start, process: int) -> None:
        self.kind: WorkerKind = start.kind
        device = torch.device("cuda", 0) if start.kind == "gpu" else torch.device("cpu")
        self.bench = measure.Bench(device, start.settings, process)
        if start.kind == "gpu":
            self.bench.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._ready: _Ready | None = None
        self._verified: set[str] = set()
        self._sets: dict[Case, int] = {}
        self._of: tuple[Case, int] | None = None
        self._workload: Workload | None = None

    def rehearse(self, planned: PlannedPoint) -> None:
        """Load on a small table what a first point needs (kernels, streams, NVML); no result is kept.

        Raises SideLost if the GPU context is lost, because a process in that state must not wait for its turn.
        """
        case = msgspec.structs.replace(planned.case, vocab=min(planned.case.vocab, REHEARSED_VOCAB), cache="warm")
        prepared = self.prepare(Prepare(PlannedPoint(case, planned.contender, planned.clock), 0))
        if prepared.lost:
            raise SideLost(prepared.reason or "the GPU context was lost")
        if prepared.status == "ok":
            self.visit(Visit(1))
        self._ready = self._workload = self._of = None
        self._verified.clear()
        gc.collect()
        gc.freeze()  # what was loaded stays

    def prepare(self, ask: Prepare) -> Prepared:
        """Prepare a point. Never raises: an exception of a contender becomes its result."""
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
        """Take blocks of the prepared point."""
        assert self._ready is not None, "a visit follows a successful prepare"
        blocks = [value * self._ready.scale for value in self._ready.sample(ask.blocks)]
        return Visited(blocks, *(measure.gpu_state() if self.kind == "gpu" else (None, [])))

    def _prepare(self, ask: Prepare) -> Prepared:
        contender = contenders.build(ask.planned.contender, ask.planned.case.op, ask.planned.case.site)
        if reason := contenders.unavailable(contender):
            return Prepared("skipped", reason)
        prepare = self._graph if self.kind == "gpu" and ask.planned.clock == "graph" else self._calls
        return prepare(contender, ask)

    def _graph(self, contender: Contender, ask: Prepare) -> Prepared:
        from bench.clocks import graph

        settings, case = self.bench.settings, ask.planned.case
        extra = round(settings.nodes * ask.extra_share)
        cold = case.cache == "cold"
        sets = self._index_sets(case) + (extra if cold else 0)
        workload = self._workload_of(case, sets)
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
        return Prepared("ok", nodes=captured.nodes)

    def _calls(self, contender: Contender, ask: Prepare) -> Prepared:
        """Eager calls; without a GPU, calls of the interpreter on the host's clock, which only tests ask for."""
        from bench.clocks import eager

        settings, case = self.bench.settings, ask.planned.case
        on_gpu = self.kind == "gpu"
        sets = self._index_sets(case) if on_gpu else 1
        workload = self._workload_of(case, sets)
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
        return Prepared("ok")

    def _index_sets(self, case: Case) -> int:
        """Of the case; counted once, for it takes a workload to count them."""
        if case not in self._sets:
            self._sets[case] = measure.index_sets(self.bench, case)
        return self._sets[case]

    def _workload_of(self, case: Case, sets: int) -> Workload:
        """The case's tensors; those of the last case are moved again, not made again."""
        if self._workload is None or self._of != (case, sets):
            self._workload = None  # its tables must be free before others are made
            self._workload, self._of = self.bench.workload(case, sets), (case, sets)
        return self._workload

    def _first_time(self, ask: Prepare) -> bool:
        name = ask.planned.name
        new = name not in self._verified
        self._verified.add(name)
        return new


def to_verify(captured: CapturedGraph, process: int) -> CapturedGraph:
    """What to compare with the oracle: every index set in a run's first process, one in each later process.

    The oracle of twenty sets takes longer than all turns of a round.
    """
    return captured if process == 0 else replace(captured, outputs=captured.outputs[:1])


def _host_us(launch: Launch, calls: int) -> float:
    start = perf_counter_ns()
    for _ in range(calls):
        launch(0)
    return (perf_counter_ns() - start) / 1000 / calls
