"""The messages between `bench serve` and the process of an engine, as JSON over two pipes."""

from __future__ import annotations

import msgspec

from bench.model.records import Anchor, Environment, Scalar
from bench.model.served import CrossName, SampleName, ServedAnswer, ServedTrace
from bench.model.serving import Load, ModeName, Serving, Setup


class PrepareJob(msgspec.Struct, tag=True):
    """Write the weights and adapters of a setup into a folder if they are missing, and describe the machine."""

    setup: Setup
    cache: str
    anchors: bool = False  # measure them too


class Prepared(msgspec.Struct, tag=True):
    """Where the model and each adapter lie, how many layers the model has, and the machine's best bandwidths."""

    model: str
    adapters: list[str]
    layers: int
    vocab: int
    env: Environment
    written_s: float
    anchors: list[Anchor] = []


class WarmJob(msgspec.Struct, tag=True):
    """Import what an engine needs, leaving the GPU alone, say so, and wait for the next job.

    spawned_ns: when the process was started, on the clock that all processes share.
    """

    opener: str
    spawned_ns: int


class Warm(msgspec.Struct, tag=True):
    """Everything is imported. Says how long after the start of the process."""

    imported_us: float


class ServeJob(msgspec.Struct, tag=True):
    """Start an engine and put every load on it in turn. `opener`: `module:function` that starts it."""

    mode: ModeName
    setup: Setup
    serving: Serving
    loads: tuple[Load, ...]
    prepared: Prepared
    trace: tuple[Load, ...]
    opener: str
    imported_us: float  # until its process had imported what it needs
    scratch: str  # folder for what other processes of the engine write


class CrossJob(msgspec.Struct, tag=True):
    """Start a server in a mode, as an engine for these loads would be started, and run bench_serving on it.

    server, client: modules to run; tests replace them
    """

    mode: ModeName
    setup: Setup
    serving: Serving
    loads: tuple[Load, ...]
    prepared: Prepared
    asked: tuple[Load, ...]
    cache: str
    scratch: str
    server: str
    client: str


class Crossed(msgspec.Struct, tag=True):
    """bench_serving's figures of a load, or the reason why there are none."""

    load: Load
    began_ns: int
    ended_ns: int
    said: dict[CrossName, float] = {}
    problem: str | None = None


class Begun(msgspec.Struct, tag=True):
    """A load begins. Times are in ns, on the clock that all processes share."""

    load: Load
    at_ns: int


class Loaded(msgspec.Struct, tag=True):
    """The samples of a load, or the reason why there are none."""

    load: Load
    began_ns: int
    ended_ns: int
    samples: dict[SampleName, list[float]] = {}
    answers: list[ServedAnswer] = []
    problem: str | None = None
    compiled: list[str] = []


class Started(msgspec.Struct, tag=True):
    """The engine runs. `engine`: its arguments, and what it reports about itself."""

    engine: dict[str, Scalar]


class Traced(msgspec.Struct, tag=True):
    """A trace, or why there is none."""

    load: Load
    trace: ServedTrace | None = None
    problem: str | None = None


class Done(msgspec.Struct, tag=True):
    """All loads are done. `problem`: why the whole process is unusable, if it is."""

    problem: str | None = None


Job = PrepareJob | WarmJob | ServeJob | CrossJob
Message = Prepared | Warm | Started | Begun | Loaded | Traced | Crossed | Done
