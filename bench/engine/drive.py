"""The engine's side: starts it, puts every load on it in turn, and reports the result of each."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any, Protocol

import msgspec

from bench.engine import compiling, preparation, startup
from bench.engine.floors import least_bytes
from bench.engine.messages import Begun, Done, Loaded, Message, ServeJob, Started, Traced
from bench.engine.requests import Request, arrivals_s, requests
from bench.engine.trace import TraceError, attributed, newest
from bench.engine.weights import model_config
from bench.model.records import Scalar
from bench.model.served import SampleName, ServedAnswer
from bench.model.serving import Load, Mode

Tell = Callable[[Message], None]
Samples = dict[SampleName, list[float]]
# Prompts of a client of a stream. Clients stay in step: the first tokens of a wave come after one prefill, at once.
WAVES = 6
WARM_TOKENS = 4
SETTLED_TOKENS, TRACED_TOKENS, TRACED_ANSWER = 8, 40, 256  # a decode is traced once it has settled, for so many steps
POLL_S = 0.002


class RequestFailed(Exception):
    """An answer is not what was asked for, so the load is unusable."""


class Answering(Protocol):
    """What every engine can do. `answers` raises RequestFailed for an incomplete answer."""

    described: dict[str, Scalar]

    def answers(self, asked: list[Request], new_tokens: int) -> list[ServedAnswer]:
        """Generate so many tokens of each request, greedily, with log-probabilities, those of the prompts too."""

    def close(self) -> None:
        """End the engine and all of its processes."""


class Engine(Answering, Protocol):
    """What an engine that is measured can do. `ask` and `stream` raise RequestFailed for an incomplete answer."""

    def ask(self, asked: list[Request], new_tokens: int) -> None:
        """Answer all requests at once, with so many tokens each, whatever the tokens are."""

    def stream(self, request: Request, new_tokens: int) -> AsyncIterator[int]:
        """Number of tokens so far, at each piece of one answer."""

    def run(self, task: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine that streams."""

    async def begin_trace(self, folder: Path) -> None:
        """Begin to write kernels to a trace."""

    async def end_trace(self) -> None:
        """End the trace."""


Opener = Callable[[ServeJob], Engine]


def drive(job: ServeJob, opener: Opener, tell: Tell) -> None:
    """Start an engine and put every load on it. If a load fails, the next still runs."""
    called_ns = monotonic_ns()
    engine = opener(job)
    started_us = (monotonic_ns() - called_ns) / 1000
    tell(Started(engine.described))
    start: Samples = {"start_us": [job.imported_us + started_us], "import_us": [job.imported_us]}
    driver = _Driver(job, engine, start | startup.parts(Path(job.scratch), called_ns), called_ns)
    try:
        for load in job.loads:
            driver.measured(load, tell)
        for load in job.trace:  # last: no figure is taken after a profiler has run
            driver.traced(load, tell)
        mode = Mode(job.mode)
        problem = preparation.plugin_problem(Path(job.scratch), wanted=mode.plugin) if mode.lora else None
        tell(Done(problem))
    finally:
        engine.close()


def agree(samples: Sequence[float], agreement: float) -> bool:
    """Whether two or more samples differ by at most a share of the smallest, so that another one would tell nothing."""
    return len(samples) > 1 and max(samples) - min(samples) <= agreement * min(samples)


class _Driver:
    """Asks one engine."""

    def __init__(self, job: ServeJob, engine: Engine, start: Samples, called_ns: int) -> None:
        self._job, self._engine, self._started, self._called_ns = job, engine, start, called_ns
        self._serving = job.serving
        self._counted_ns = 0  # when the samples of a load began, after its warm-up

    def measured(self, load: Load, tell: Tell) -> None:
        """Put a load on the engine, and report its samples."""
        kinds: dict[str, Callable[[Load], Samples]] = {
            "start": self._start,
            "decode": self._decode,
            "prefill": self._prefill,
            "stream": self._stream,
            "arrivals": self._arrivals,
        }
        began = monotonic_ns()
        tell(Begun(load, began))
        samples: Samples = {}
        answers: list[ServedAnswer] = []
        problem = None
        try:
            if load.kind == "answers":
                answers = self._engine.answers(self._requests(load), self._serving.answer_tokens)
            else:
                samples = kinds[load.kind](load)
        except RequestFailed as error:
            problem = f"a request failed: {error}"
        except Exception as error:  # whatever an engine raises is the load's result
            problem = _said(error)
        ended = monotonic_ns()
        scratch, compiled = Path(self._job.scratch), list[compiling.Compilation]()
        if problem is None:  # what the engine's own processes timed
            if load.kind in ("decode", "prefill") and (
                prepared := preparation.between(scratch, self._counted_ns, ended)
            ):
                samples["prepare_us"] = prepared
            compiled = compiling.between(scratch, self._called_ns if load.kind == "start" else began, ended)
            if compiled:
                samples["compile_us"] = [item.took_us for item in compiled]
        names = [item.kernel for item in compiled]
        tell(Loaded(load, began, ended, samples, answers, problem, names))

    def traced(self, load: Load, tell: Tell) -> None:
        """Trace a load, and report where its time goes."""
        folder = Path(self._job.scratch) / f"trace-{self._job.trace.index(load)}"
        tell(Begun(load, monotonic_ns()))
        try:
            folder.mkdir(parents=True)
            asked = self._requests(load)
            if load.kind == "decode":
                self._engine.run(self._traced_decode(asked, folder))
            else:
                self._traced_prefill(asked, folder)
            prepared, setup = self._job.prepared, self._job.setup
            config, _ = model_config(setup.model)
            least = least_bytes(config, setup, load, asked, lora=Mode(self._job.mode).lora)
            found = attributed(newest(folder), load, targets=setup.targets, layers=prepared.layers, least_bytes=least)
            tell(Traced(load, found))
        except (RequestFailed, TraceError) as error:
            tell(Traced(load, None, str(error)))
        except Exception as error:
            tell(Traced(load, None, _said(error)))

    def _requests(self, load: Load, part: str = "") -> list[Request]:
        prepared, adapters = self._job.prepared, self._job.setup.adapters
        return requests(load, seed=self._serving.seed, adapters=adapters, vocab=prepared.vocab, part=part)

    def _took_us(self, asked: list[Request], new_tokens: int) -> float:
        began = monotonic_ns()
        self._engine.ask(asked, new_tokens)
        return (monotonic_ns() - began) / 1000

    def _start(self, load: Load) -> Samples:
        """Nothing was asked before: what the first request takes longer than the second goes into compilation."""
        asked = self._requests(load)
        first, second = (self._took_us(asked, self._serving.short_tokens) for _ in range(2))
        return self._started | {"first_request_us": [first], "second_request_us": [second]}

    def _decode(self, load: Load) -> Samples:
        asked, short, long = self._requests(load), self._serving.short_tokens, self._serving.long_tokens
        self._engine.ask(asked, WARM_TOKENS)
        self._counted_ns = monotonic_ns()
        found: list[float] = []
        while len(found) < self._serving.samples and not agree(found, self._serving.agreement):
            begun, whole = (self._took_us(asked, tokens) for tokens in (short, long))
            found.append((whole - begun) / (long - short))
        return {"step_us": found}

    def _prefill(self, load: Load) -> Samples:
        batches = [self._requests(load, str(part)) for part in range(self._serving.samples + 1)]
        self._engine.ask(batches[0], 1)
        self._counted_ns = monotonic_ns()
        return {"prefill_us": [self._took_us(asked, 1) for asked in batches[1:]]}

    def _stream(self, load: Load) -> Samples:
        waves = [self._requests(load, str(wave)) for wave in range(WAVES + 1)]
        watch = _Watch(self._engine)
        clients = list(zip(*waves[1:], strict=True))

        async def all_clients() -> None:
            await asyncio.gather(*(_Watch(self._engine).ask(asked, WARM_TOKENS) for asked in waves[0]))
            watch.begin()
            await asyncio.gather(*(watch.ask_all(asked, self._serving.stream_tokens) for asked in clients))

        self._engine.run(all_clients())
        return watch.samples()

    def _arrivals(self, load: Load) -> Samples:
        moments = arrivals_s(load, seed=self._serving.seed, duration_s=self._serving.arrivals_s)
        asked = self._requests(msgspec.structs.replace(load, requests=len(moments)))
        watch = _Watch(self._engine)

        async def one(request: Request, moment: float) -> None:
            await asyncio.sleep(moment)
            await watch.ask(request, self._serving.stream_tokens)

        async def all_arrivals() -> None:
            await asyncio.gather(*(_Watch(self._engine).ask(item, WARM_TOKENS) for item in asked[:8]))
            watch.begin()
            await asyncio.gather(*(one(*pair) for pair in zip(asked, moments, strict=True)))

        self._engine.run(all_arrivals())
        return watch.samples()

    async def _traced_decode(self, asked: list[Request], folder: Path) -> None:
        """A trace of steps alone: it begins when every request has had some."""
        watches = [_Watch(self._engine) for _ in asked]
        pairs = zip(watches, asked, strict=True)
        running = [asyncio.ensure_future(watch.ask(request, TRACED_ANSWER)) for watch, request in pairs]
        await _until(running, lambda: min(watch.last_tokens for watch in watches) >= SETTLED_TOKENS)
        await self._engine.begin_trace(folder)
        before = watches[0].last_tokens
        await _until(running, lambda: watches[0].last_tokens >= before + TRACED_TOKENS)
        await self._engine.end_trace()
        await asyncio.gather(*running)

    def _traced_prefill(self, asked: list[Request], folder: Path) -> None:
        """All prompts in one call, as they are measured: one after another they would come in several passes."""
        self._engine.run(self._engine.begin_trace(folder))
        self._engine.ask(asked, 1)
        self._engine.run(self._engine.end_trace())


class _Watch:
    """Looks at answers as they come: when each began, and the time between its pieces."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ttft_us: list[float] = []
        self._gap_us: list[float] = []
        self._tokens, self.last_tokens, self._began_ns = 0, 0, monotonic_ns()
        self._ended_ns = self._began_ns

    def begin(self) -> None:
        self._began_ns = monotonic_ns()

    async def ask_all(self, asked: tuple[Request, ...], new_tokens: int) -> None:
        for request in asked:
            await self.ask(request, new_tokens)

    async def ask(self, request: Request, new_tokens: int) -> None:
        sent, tokens = monotonic_ns(), 0
        last = sent
        async for tokens_now in self._engine.stream(request, new_tokens):
            now = monotonic_ns()
            (self._gap_us if tokens else self._ttft_us).append((now - last) / 1000)
            last, tokens, self.last_tokens = now, tokens_now, tokens_now
        if tokens != new_tokens:
            raise RequestFailed(f"{tokens} of {new_tokens} tokens arrived")
        self._tokens += tokens
        self._ended_ns = max(self._ended_ns, last)

    def samples(self) -> Samples:
        found: Samples = {"ttft_us": self._ttft_us, "tokens": [self._tokens]}
        found |= {"gap_us": self._gap_us} if self._gap_us else {}
        return found | {"span_us": [(self._ended_ns - self._began_ns) / 1000]}


async def _until(running: Sequence[asyncio.Future[None]], reached: Callable[[], bool]) -> None:
    """Wait; raises what a request raised, and RequestFailed if all are answered before."""
    while not reached():
        for task in running:
            if task.done() and (error := task.exception()):
                raise error
        if all(task.done() for task in running):
            raise RequestFailed("every request was answered before its trace was taken")
        await asyncio.sleep(POLL_S)


def _said(error: BaseException) -> str:
    """The error and the line that raised it."""
    places = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
