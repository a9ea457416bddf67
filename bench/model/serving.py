"""What a real engine serves, and how: modes, cases, the profiles of `bench serve`, and the plan of a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Annotated, Literal, TypeVar, get_args

import msgspec

from bench.model.toml import ConfigError

T = TypeVar("T")
Some = Annotated[tuple[T, ...], msgspec.Meta(min_length=1)]
Whole = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
MODE = (
    r"^((none|triton)(-eager)?|(csgmv|plugin)(-chunk(32|64|128))?(-eager)?"
    r"|plugin-(lookup|no_linear|no_layer|no_lm_head)|peft)$"
)
PEFT = "peft"  # no engine: what answers are right
ModeName = Annotated[
    str,
    msgspec.Meta(
        pattern=MODE,
        description="none, triton, csgmv, plugin; csgmv and plugin also with -chunk32, -chunk64 or -chunk128; all of "
        "them also with -eager; plugin-lookup, plugin-no_linear, plugin-no_layer, plugin-no_lm_head; peft, which is no "
        "engine and says what is right",
    ),
]
ServedMix = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(one|uniform|zipf:[0-9]{1,6}(\.[0-9]{1,6})?)$", description="one, uniform (in turn), zipf:EXPONENT"
    ),
]
Targets = Literal["all", "ends", "attention"]
LoadKind = Literal["decode", "prefill", "stream", "arrivals"]
ANY_KIND = Literal["start", "answers", "decode", "prefill", "stream", "arrivals"]
LOAD_KINDS: tuple[LoadKind, ...] = get_args(LoadKind)
LAYER_SITES: dict[Targets, tuple[Literal["qkv", "o", "gate_up", "down"], ...]] = {
    "all": ("qkv", "o", "gate_up", "down"),
    "ends": (),
    "attention": ("qkv", "o"),
}
SWITCHES = {
    "no_linear": ("LINEAR",),
    "no_layer": ("LAYER",),
    "no_lm_head": ("LM_HEAD",),
    "lookup": ("LINEAR", "LAYER", "LM_HEAD"),
}
# Shares of the answers' requests that have no adapter, where what is right is known: some, and all, as `none` has.
BASE_ANSWERS = (0.25, 1.0)
EXACT = ("plugin-lookup",)  # modes that copy rows where the reference does, and compute nothing otherwise
GREATEST_PROMPT = 2**17


class Mode:
    """A mode, by its name: which backend serves, with or without the plugin, and which switches are set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.base, *self.options = name.split("-")

    @property
    def engine(self) -> bool:
        """Whether this is one of SGLang's engines, of which times are taken. The mode `peft` only answers prompts."""
        return self.base != PEFT

    @property
    def lora(self) -> bool:
        return self.base != "none"

    @property
    def plugin(self) -> bool:
        return self.base == "plugin"

    @property
    def backend(self) -> str:
        """SGLang's name for the LoRA backend."""
        return "triton" if self.base == "triton" else "csgmv"

    @property
    def eager(self) -> bool:
        """Whether decode graphs are off."""
        return "eager" in self.options

    @property
    def chunk_size(self) -> int | None:
        """The chunk size; None means SGLang's default."""
        return next((int(word.removeprefix("chunk")) for word in self.options if word.startswith("chunk")), None)

    @property
    def environment(self) -> dict[str, str]:
        """The plugin's environment variables. All are set, so that this process's own environment does not matter."""
        off = {word for option in self.options for word in SWITCHES.get(option, ())}
        switches = {f"CSGMV_EMBED_{word}": "0" if word in off else "1" for word in ("LINEAR", "LAYER", "LM_HEAD")}
        return {"CSGMV_EMBED_DISABLE": "0" if self.plugin else "1", **switches}


class Setup(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """What an engine is started with: the model, and the adapters that it knows.

    model     8b or 1b (shapes of Llama, random weights), a config.json (random weights), or a folder with a checkpoint
    slots     adapters that lie on the GPU at once; fewer than adapters: they are evicted. 0: as many as adapters
    ranks     of the adapters, in turn
    targets   all; ends: embedding and lm_head; attention: q, k, v, o
    tp        GPUs that the model is spread over
    """

    model: str = "8b"
    adapters: Whole = 8
    slots: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    ranks: Some[Whole] = (16, 64)
    targets: Targets = "all"
    tp: Whole = 1

    @property
    def num_slots(self) -> int:
        return self.slots or self.adapters


class Load(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """What an engine is asked.

    decode    `requests` in flight: time of a step
    prefill   `requests` prompts at once, one new token each
    stream    `requests` clients, each of which sends its next prompt when it has its answer
    arrivals  prompts arrive by chance, `rate_rps` a second on average (Poisson), for some seconds
    start     the start of the engine, and its first request
    answers   short prompts, whose tokens and log-probabilities are held against another mode's

    Prompts share requests * prompt_tokens tokens, lengths proportional to (i+1)^-skew. `base_fraction` of the requests
    use no adapter; `mix` says how the others choose theirs.
    """

    kind: ANY_KIND
    requests: Whole
    prompt_tokens: Whole
    skew: NotNegative = 0.0
    base_fraction: Fraction = 0.0
    mix: ServedMix = "uniform"
    rate_rps: NotNegative = 0.0

    @property
    def label(self) -> str:
        """A label for people, which names only what is unusual."""
        if self.kind == "arrivals":
            parts = [f"arrivals {self.rate_rps:g}/s x {self.prompt_tokens}"]
        elif self.kind in ("decode", "start"):
            parts = [f"{self.kind} {self.requests}"]
        else:
            parts = [f"{self.kind} {self.requests}x{self.prompt_tokens}"]
        if self.skew:
            parts.append(f"skew {self.skew:g}")
        if self.mix != "uniform":
            parts.append(self.mix)
        if self.base_fraction:
            parts.append(f"{100 * self.base_fraction:g}% base")
        return " ".join(parts)


def not_crossed(load: Load) -> str | None:
    """Why SGLang's bench_serving cannot run a load. None if it can."""
    if load.kind not in ("decode", "stream", "arrivals"):
        return f"it has no {load.kind}"
    if load.skew:
        return "its prompts have no such lengths"
    if load.mix not in ("one", "uniform"):
        return "it has no such popularity of adapters"
    if 0 < load.base_fraction < 1:
        return "it gives all requests an adapter, or none"
    return None


class ServeCase(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """A setup under a load: the key of a point, with the mode that serves."""

    setup: Setup
    load: Load

    @property
    def key(self) -> str:
        """Canonical `name=value` list, sorted by name."""
        fields = msgspec.structs.asdict(self.setup) | msgspec.structs.asdict(self.load)
        fields["ranks"] = "+".join(map(str, self.setup.ranks))
        return ",".join(f"{name}={value}" for name, value in sorted(fields.items()))


class LoadAxes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Lists of a load's values. All combinations are run."""

    kind: Some[LoadKind]
    requests: Some[Whole] = (32,)
    prompt_tokens: Some[Whole] = (16,)
    skew: Some[NotNegative] = (0.0,)
    base_fraction: Some[Fraction] = (0.0,)
    mix: Some[ServedMix] = ("uniform",)
    rate_rps: Some[NotNegative] = (0.0,)

    def loads(self) -> Iterator[Load]:
        """All combinations; the first field varies slowest."""
        values = [getattr(self, name) for name in self.__struct_fields__]
        for chosen in itertools.product(*values):
            yield Load(*chosen)


class ServeProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named selection of modes and loads on one setup."""

    modes: Some[ModeName]
    loads: tuple[LoadAxes, ...] = ()  # none: modes start and answer, and nothing is timed
    setup: Setup = Setup()
    repeats: Whole = 1


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How engines are measured and judged; bench.toml says why."""

    seed: Whole
    samples: Whole
    short_tokens: Whole
    long_tokens: Whole
    stream_tokens: Whole
    arrivals_s: Seconds
    start_timeout_s: Seconds
    load_timeout_s: Seconds
    reference: ModeName
    answer_requests: Whole
    answer_tokens: Whole
    mean_limit_nats: Seconds
    max_limit_nats: Seconds
    agreement: Fraction = 0.0


class EngineRun(msgspec.Struct, frozen=True):
    """One engine process of a plan."""

    index: int
    mode: str
    repeat: int


class ServePlan(msgspec.Struct, frozen=True):
    """The plan of a `bench serve`: processes in order, each of which runs every load."""

    profile: str
    setup: Setup
    serving: Serving
    loads: tuple[Load, ...]
    runs: tuple[EngineRun, ...]

    @property
    def digest(self) -> str:
        """Equal for plans that do the same."""
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(run.mode for run in self.runs))

    def asked(self, mode: str) -> tuple[Load, ...]:
        """The loads of a mode."""
        return self.loads if Mode(mode).engine else tuple(load for load in self.loads if load.kind == "answers")


def make_serve_plan(
    profiles: dict[str, ServeProfile],
    serving: Serving,
    name: str,
    *,
    modes: Sequence[str] = (),
    kinds: Sequence[str] = (),
    repeats: int | None = None,
    model: str | None = None,
    tp: int | None = None,
) -> ServePlan:
    """The plan of a profile after the command line's options. Raises ConfigError naming what was expected."""
    profile = profiles.get(name)
    if profile is None:
        raise ConfigError(f"serve profile {name!r} is unknown; expected one of {', '.join(sorted(profiles)) or 'none'}")
    chosen = _modes(modes) or list(dict.fromkeys(profile.modes))
    setup = msgspec.structs.replace(profile.setup, model=model or profile.setup.model, tp=tp or profile.setup.tp)
    asked = [load for axes in profile.loads for load in axes.loads()]
    for kind in kinds:
        if kind not in {load.kind for load in asked}:
            known = ", ".join(dict.fromkeys(load.kind for load in asked))
            raise ConfigError(f"--load {kind}: serve profile {name} has none; expected one of {known}")
    wanted = [load for load in dict.fromkeys(asked) if not kinds or load.kind in kinds]
    for load in wanted:
        _refuse_impossible(f"serve profile {name}: {load.label}", setup, load, serving)
    first = Load("start", min(setup.num_slots, 8), 16)
    shares = (0.0, *BASE_ANSWERS) if PEFT in chosen else (0.0,)
    answers = [Load("answers", serving.answer_requests, 24, base_fraction=share) for share in shares]
    loads = (first, *answers, *wanted)
    return ServePlan(name, setup, serving, loads, tuple(_interleaved(chosen, repeats or profile.repeats)))


def _modes(names: Sequence[str]) -> list[str]:
    for name in names:
        try:
            msgspec.convert(name, ModeName)
        except msgspec.ValidationError:
            allowed = get_args(ModeName)[1].description
            raise ConfigError(f"--mode {name}: expected {allowed}") from None
    return list(dict.fromkeys(names))


def _interleaved(modes: Sequence[str], repeats: int) -> Iterator[EngineRun]:
    """A B B A: every second time backwards, so that a drift of the machine meets all modes alike.

    What is right is asked once: it is the same each time.
    """
    places = itertools.count()
    for repeat in range(repeats):
        for mode in modes if repeat % 2 == 0 else reversed(modes):
            if repeat == 0 or Mode(mode).engine:
                yield EngineRun(next(places), mode, repeat)


def engines(modes: Sequence[str]) -> list[str]:
    """The modes of which times are taken."""
    return [mode for mode in modes if Mode(mode).engine]


def _refuse_impossible(place: str, setup: Setup, load: Load, serving: Serving) -> None:
    """Raises ConfigError for a load that would not measure what it says."""
    if load.kind == "arrivals" and load.rate_rps == 0:
        raise ConfigError(f"{place}: rate_rps is 0; expected requests a second above 0 for arrivals")
    if load.kind != "arrivals" and load.rate_rps:
        raise ConfigError(f"{place}: rate_rps is {load.rate_rps:g}; expected none, because only arrivals have a rate")
    together = load.kind in ("decode", "prefill") and load.mix != "one"
    if together and setup.num_slots < min(setup.adapters, load.requests):
        raise ConfigError(
            f"{place}: {setup.adapters} adapters on {setup.num_slots} slots do not run in one batch; "
            "expected at least as many slots, or the kind stream or arrivals"
        )
    longest = max(prompt_lengths(load))
    if longest + serving.long_tokens > GREATEST_PROMPT:
        raise ConfigError(f"{place}: its longest prompt has {longest} tokens; expected at most {GREATEST_PROMPT}")


def prompt_lengths(load: Load) -> list[int]:
    """Tokens of each prompt: at least one, their sum requests * prompt_tokens, shares proportional to (i+1)^-skew."""
    count, total = load.requests, load.requests * load.prompt_tokens
    shares = [(index + 1) ** -load.skew for index in range(count)]
    whole, spread = sum(shares), total - count
    ends = [round(spread * part / whole) for part in itertools.accumulate(shares)]
    return [1 + end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
