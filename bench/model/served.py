"""What `bench serve` records: raw samples of every engine process, in a JSON file of its own.

A point is a case and a mode; its clock is called engine. A record of a process holds what each load gave, in the order
asked; a load that failed, or was disturbed, stands there with its reason. Nothing is derived here: medians, ratios and
the judgement of answers are made by bench/judge/serving.py.

History of the format (semver, as in bench/model/store.py)
1.0.0  first version
1.1.0  parts of a start, time under a profiler, anchors, sites of a trace by pass
1.2.0  what SGLang's bench_serving says of a server
1.3.0  the mode peft: what is right, and how far its own rounding takes it
1.4.0  what Triton compiles at the start and under each load
1.5.0  which kernels these are
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from bench.model import store
from bench.model.faults import twice
from bench.model.fields import AtLeastOne, Count, Duration, Positive, Some, Uuid
from bench.model.records import Anchor, Code, Environment, Scalar
from bench.model.serving import Load, ModeName, Serving, Setup

SERVE_NAME, SERVE_VERSION = "csgmv-bench-serve", "1.5.0"
CLOCK = "engine"
StartPart = Literal["import_us", "processes_us", "weights_us", "adapters_us", "pools_us", "graphs_us"]
START_PARTS: tuple[StartPart, ...] = get_args(StartPart)
SampleName = Literal[
    StartPart,
    "start_us",
    "first_request_us",
    "second_request_us",
    "gpu_bytes",
    "step_us",
    "prefill_us",
    "ttft_us",
    "gap_us",
    "span_us",
    "tokens",
    "prepare_us",
    "compile_us",
]
Site = Literal["embedding", "qkv", "o", "gate_up", "down", "lm_head", "unplaced", "base", "attention", "copies", "rest"]
SITES: tuple[Site, ...] = get_args(Site)
Phase = Literal["decode", "prefill"]
LoadStatus = Literal["ok", "void", "crashed", "error"]
CrossName = Literal["ttft_us", "ttft_p99_us", "itl_us", "itl_p99_us", "tpot_us", "output_rate_per_s"]
# What each kind of load has to have if it went well.
NEEDED: dict[str, tuple[SampleName, ...]] = {
    "start": ("start_us", "first_request_us", "second_request_us"),
    "answers": (),
    "decode": ("step_us",),
    "prefill": ("prefill_us",),
    "stream": ("ttft_us", "span_us", "tokens"),
    "arrivals": ("ttft_us", "span_us", "tokens"),
}
Nats = Annotated[float, msgspec.Meta(ge=-1e6, le=1e-3)]


class ServeSchema(msgspec.Struct):
    """Name and version of the format."""

    name: str = SERVE_NAME
    version: str = SERVE_VERSION


class ServedAnswer(msgspec.Struct):
    """A prompt's greedy answer: tokens, their log-probabilities, and those of the prompt's own after its first.

    exact    a hash of all of them in full, for a file keeps 6 digits
    rounded  of what is right: the same, computed in the dtype of the engines
    without  the same as `rounded`, a token long, if a site had no adapter: what a fault there would look like
    """

    tokens: Some[Count]
    logprobs: Some[Nats]
    prompt_logprobs: list[Nats] = []
    exact: str | None = None
    rounded: ServedAnswer | None = None
    without: dict[Site, ServedAnswer] = {}


class ServedLoad(msgspec.Struct):
    """One load in one process, in raw samples.

    start_us, first_request_us, second_request_us  start of the engine; its first requests; the same ones again
    import_us, processes_us, weights_us, adapters_us, pools_us, graphs_us  parts of start_us: imports of the engine's
                   process; spawning and imports of its scheduler's; loading of weights, of adapters; allocation of
                   pools; capture of decode graphs
    gpu_bytes      memory of the GPU in use, most of what was seen, at any time of the process
    step_us        (long answers' time - short answers' time) / difference of their tokens
    prefill_us     prompts in, one token each out
    ttft_us        from a request's sending to its first token, by request
    gap_us         between two pieces of an answer as its client gets them; a piece is a token unless the client lags
    span_us, tokens  time of all clients, and the tokens that they got
    prepare_us     host time of SGLang's prepare_lora_batch, by step, of the scheduler of every GPU
    compile_us     of each kernel that Triton compiled during the load, its warm-up included, in the scheduler of every
                   GPU; of the load `start`: from the engine's call on
    compiled       its name, for each of compile_us; before 1.5.0: none
    """

    load: Load
    status: LoadStatus
    reason: str | None = None
    samples: dict[SampleName, Some[Positive]] = {}
    answers: list[ServedAnswer] = []
    compiled: list[str] = []
    sm_mhz: list[Count] = []  # least and most seen
    throttle: list[str] = []
    duration_s: Duration = 0.0


class TracedKernel(msgspec.Struct):
    """A kernel in a trace of the engine's own profiler: where it belongs, calls, and the sum of their times.

    phase   of the passes it is of, by their attention; None: not told
    """

    site: Site
    name: str
    calls: AtLeastOne
    total_us: Duration
    phase: Phase | None = None


class TracedPass(msgspec.Struct):
    """One pass of a trace, kernel by kernel in the order of their starts: enough to place them anew."""

    phase: Phase | None
    names: Some[str]
    sequence: Some[Count]  # places in names
    took_us: Some[Duration]


class ServedTrace(msgspec.Struct):
    """A traced load. Times were taken under a profiler, so they are shares of a pass and no figures.

    passes       forward passes, by their attention kernels; None if it has none
    span_us      from the first kernel's start to the last one's end
    lacking      events that were not used, by what they lack
    phases       passes of each phase, where passes are told apart
    example      the pass of the load's own phase whose kernels take the median time
    least_bytes  that each site has to move in a pass of the load's own phase
    layers       of the model: a site in a block is called as often in a pass
    """

    load: Load
    kernels: Some[TracedKernel]
    span_us: Positive
    passes: Positive | None = None
    lacking: dict[str, AtLeastOne] = {}
    phases: dict[Phase, Positive] = {}
    example: TracedPass | None = None
    least_bytes: dict[Site, AtLeastOne] = {}
    layers: AtLeastOne | None = None


class EngineProcess(msgspec.Struct):
    """One engine, from its start to its end.

    status, reason   ok, or how it ended before all loads were asked, with the end of what it wrote to standard error
    engine           what it was started with, and what it says that it runs
    """

    index: Count
    mode: ModeName
    repeat: Count
    status: Literal["ok", "crashed", "error"]
    started_utc: str
    reason: str | None = None
    loads: list[ServedLoad] = []
    traces: list[ServedTrace] = []
    trace_notes: list[str] = []
    engine: dict[str, Scalar] = {}
    duration_s: Duration = 0.0
    traced_s: Duration = 0.0  # of it, under the profiler


class CrossLoad(msgspec.Struct):
    """A load as SGLang's bench_serving asked it of a server, and what it says: medians, 99th percentiles, a rate.

    ttft, itl   to the first token, and between two tokens
    tpot        of a request: from its first token to its last, over the tokens but one
    """

    load: Load
    status: LoadStatus
    reason: str | None = None
    said: dict[CrossName, Positive] = {}
    sm_mhz: list[Count] = []  # least and most seen
    throttle: list[str] = []
    duration_s: Duration = 0.0


class CrossProcess(msgspec.Struct):
    """One HTTP server in a mode, and every load that bench_serving put on it. status, reason: as for an engine."""

    mode: ModeName
    status: Literal["ok", "crashed", "error"]
    started_utc: str
    reason: str | None = None
    loads: list[CrossLoad] = []
    server: dict[str, Scalar] = {}
    duration_s: Duration = 0.0


class ServeRun(msgspec.Struct):
    """One invocation of `bench serve`. A resumed run keeps its id."""

    id: Uuid
    kind: Literal["serve"]
    profile: str
    modes: list[ModeName]
    started_utc: str
    duration_s: Duration
    argv: list[str]
    plan_sha256: str
    tool_version: str
    planned: AtLeastOne  # processes
    kinds: list[str] = []
    repeats: AtLeastOne | None = None
    model: str | None = None
    tp: AtLeastOne | None = None
    chosen_modes: list[ModeName] = []
    where: bool = False
    resumed: Count = 0
    cross_check: bool = False


class ServeResults(msgspec.Struct):
    """A whole file."""

    run: ServeRun
    setup: Setup
    serving: Serving
    code: Code
    env: Environment | None = None  # filled in by the first process
    processes: list[EngineProcess] = []
    schema: ServeSchema = msgspec.field(default_factory=ServeSchema)
    anchors: list[Anchor] = []  # of a run whose modes are traced: what floors are made of
    cross_checks: list[CrossProcess] = []


def write(path: Path, results: ServeResults) -> None:
    """Write the file in one step."""
    store.write(path, results)


def read(path: Path) -> ServeResults:
    """Read a file of `bench serve`. Raises ResultsError for a missing, corrupt, foreign, newer or unsound file."""
    return store.read_document(path, ServeResults, SERVE_NAME, SERVE_VERSION, faults)


def faults(results: ServeResults) -> Iterator[str]:
    """Faults of a record, as bench/model/faults.py has them for results."""
    keys = []
    for index, process in enumerate(results.processes):
        where = f"processes[{index}] ({process.mode}, repeat {process.repeat})"
        keys.append((where, (process.mode, process.repeat)))
        yield from _process_faults(where, process)
        if process.mode not in results.run.modes:
            yield f"{where}.mode is none of run.modes; expected one of {', '.join(results.run.modes)}"
    yield from twice("the mode and repeat", keys)
    crossed = [(f"cross_checks[{index}]", item.mode) for index, item in enumerate(results.cross_checks)]
    yield from twice("the mode", crossed)
    for place, item in zip((place for place, _ in crossed), results.cross_checks, strict=True):
        yield from _cross_faults(f"{place} ({item.mode})", item)


def _process_faults(place: str, process: EngineProcess) -> Iterator[str]:
    if (process.status == "ok") != (process.reason is None):
        yield f"{place}.reason is {process.reason!r}; expected one if, and only if, its status is not ok"
    yield from twice("the load", [(f"{place}.loads[{i}]", item.load) for i, item in enumerate(process.loads)])
    yield from twice("the load", [(f"{place}.traces[{i}]", item.load) for i, item in enumerate(process.traces)])
    for index, item in enumerate(process.loads):
        yield from _load_faults(f"{place}.loads[{index}] ({item.load.label})", item)
    for index, trace in enumerate(process.traces):
        where = f"{place}.traces[{index}] ({trace.load.label})"
        names = [
            (f"{where}.kernels[{i}]", (kernel.site, kernel.phase, kernel.name))
            for i, kernel in enumerate(trace.kernels)
        ]
        yield from twice("the site and kernel", names)
        if trace.example is not None:
            yield from _pass_faults(f"{where}.example", trace.example)


def _cross_faults(place: str, process: CrossProcess) -> Iterator[str]:
    if (process.status == "ok") != (process.reason is None):
        yield f"{place}.reason is {process.reason!r}; expected one if, and only if, its status is not ok"
    yield from twice("the load", [(f"{place}.loads[{i}]", item.load) for i, item in enumerate(process.loads)])
    for index, item in enumerate(process.loads):
        where = f"{place}.loads[{index}] ({item.load.label})"
        if (item.status == "ok") != (item.reason is None):
            yield f"{where}.reason is {item.reason!r}; expected one if, and only if, its status is not ok"
        missing = [name for name in get_args(CrossName) if name not in item.said]
        if item.status == "ok" and missing:
            yield f"{where}.said lacks {', '.join(missing)}; expected them, for its status is ok"


def _pass_faults(place: str, example: TracedPass) -> Iterator[str]:
    if len(example.sequence) != len(example.took_us):
        yield f"{place}.took_us has {len(example.took_us)}; expected {len(example.sequence)}, one a kernel"
    if max(example.sequence) >= len(example.names):
        yield f"{place}.sequence names kernel {max(example.sequence)}; expected less than {len(example.names)}"


def _load_faults(place: str, item: ServedLoad) -> Iterator[str]:
    if (item.status == "ok") != (item.reason is None):
        yield f"{place}.reason is {item.reason!r}; expected one if, and only if, its status is not ok"
    if item.status == "ok":
        missing = [name for name in NEEDED[item.load.kind] if name not in item.samples]
        if missing:
            yield f"{place}.samples lacks {', '.join(missing)}; expected them, for its status is ok"
        if item.load.kind == "answers" and len(item.answers) != item.load.requests:
            yield f"{place}.answers has {len(item.answers)}; expected {item.load.requests}, one a request"
    for index, answer in enumerate(item.answers):
        if len(answer.tokens) != len(answer.logprobs):
            yield (
                f"{place}.answers[{index}].logprobs has {len(answer.logprobs)} of {len(answer.tokens)} tokens; "
                "expected one each"
            )
    times = len(item.samples.get("compile_us", []))
    if item.compiled and len(item.compiled) != times:
        yield f"{place}.compiled has {len(item.compiled)} names; expected {times}, as samples.compile_us has times"
    spans, tokens = item.samples.get("span_us", []), item.samples.get("tokens", [])
    if len(spans) != len(tokens):
        yield f"{place}.samples.tokens has {len(tokens)}; expected {len(spans)}, as span_us has"
