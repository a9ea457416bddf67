"""What the process of `bench serve` and the process of an engine tell each other, as JSON over two pipes."""

from __future__ import annotations

import msgspec

from bench.model.records import Anchor, Environment, Scalar
from bench.model.served import CrossName, SampleName, ServedAnswer, ServedTrace
from bench.model.serving import Load, ModeName, Serving, Setup


class PrepareJob(msgspec.Struct, tag=True):
    """Write the weights and adapters of a setup below a folder, if they are not there, and describe the machine."""

    setup: Setup
    cache: str
    anchors: bool = False  # measure them too


class Prepared(msgspec.Struct, tag=True):
    """Where the model and each adapter lie, how many layers the model has, and what the machine can do at best."""

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
    """Everything is imported, so long after the process was started."""

    imported_us: float


class ServeJob(msgspec.Struct, tag=True):
    """Start an engine and ask it every load in turn. `opener`: `module:function` that starts it."""

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
    """Start a server in a mode, as an engine of the same loads is started, and have SGLang's bench_serving ask it some.

    server, client: modules that are run; other ones in tests
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
    """What bench_serving says of a load, or why it says nothing."""

    load: Load
    began_ns: int
    ended_ns: int
    said: dict[CrossName, float] = {}
    problem: str | None = None


class Begun(msgspec.Struct, tag=True):
    """A load begins; times are of the clock that all processes share, ns."""

    load: Load
    at_ns: int


class Loaded(msgspec.Struct, tag=True):
    """What a load gave, or why it gave nothing."""

    load: Load
    began_ns: int
    ended_ns: int
    samples: dict[SampleName, list[float]] = {}
    answers: list[ServedAnswer] = []
    problem: str | None = None


class Started(msgspec.Struct, tag=True):
    """The engine runs; `engine` is what it was started with and says of itself."""

    engine: dict[str, Scalar]


class Traced(msgspec.Struct, tag=True):
    """A trace, or why there is none."""

    load: Load
    trace: ServedTrace | None = None
    problem: str | None = None


class Done(msgspec.Struct, tag=True):
    """Everything was asked. `problem`: why the whole process is worth nothing, if it is."""

    problem: str | None = None


Job = PrepareJob | WarmJob | ServeJob | CrossJob
Message = Prepared | Warm | Started | Begun | Loaded | Traced | Crossed | Done
