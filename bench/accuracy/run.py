"""The loop of the comparison: the reference, then each path, then adapters coming and going. Yields its findings."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import msgspec
import torch

from bench.accuracy import compare, faults, lifecycle, models, text
from bench.accuracy.compare import Limit, Row
from bench.accuracy.generation import Output, Request, generate
from bench.accuracy.lifecycle import Check
from bench.accuracy.models import AccuracyError, Adapter, Source
from bench.accuracy.reference import HuggingFace
from bench.accuracy.serving import Backend, Server
from bench.accuracy.sglang_host import hosted
from bench.model.records import Code, Environment

PathName = Literal["triton", "csgmv", "plugin"]
PATHS: tuple[PathName, ...] = ("triton", "csgmv", "plugin")  # the plugin last: before it SGLang is as it was installed
STEPS = 32
SHORT = 3  # steps where adapters come and go, and where faults are planted
OPS = {"embedding_lora": "embedding", "lora_linear": "lm_head"}  # what the plugin's hooks of the two layers call
SLOTS = 4  # the base model's, two adapters', and one that stays empty
WIDER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}


@dataclass(frozen=True)
class Setting:
    """What to compare. `graphs`: decode in CUDA graphs. `prompts`: how many prompts of the fixed list."""

    source: Source
    adapters: tuple[Path, ...]  # folders
    dtype: torch.dtype
    device: torch.device
    steps: int = STEPS
    prompts: int = len(text.PROMPTS)
    graphs: bool = False
    plant: bool = False


class Stage(NamedTuple):
    """A stage begins."""

    what: str


class Fault(msgspec.Struct):
    """A planted fault: how many of the adapters' outputs failed, and the largest difference in nats."""

    path: str
    fault: str
    failed: int
    outputs: int
    difference: float

    @property
    def caught(self) -> bool:
        return self.failed > 0


class Reference(msgspec.Struct):
    """The reference's text of one request."""

    prompt: str
    adapter: str | None
    written: str


class AccuracyFile(msgspec.Struct):
    """The file that `python -m bench accuracy -o` writes."""

    environment: Environment
    code: Code
    argv: list[str]
    model: str
    adapters: list[str]
    dtype: str
    graphs: bool
    steps: int
    complete: bool = False
    limit: float = 0.0
    rounding: float = 0.0
    references: list[Reference] = msgspec.field(default_factory=list)
    rows: list[Row] = msgspec.field(default_factory=list)
    checks: list[Check] = msgspec.field(default_factory=list)
    faults: list[Fault] = msgspec.field(default_factory=list)

    def add(self, event: Event) -> None:
        """Store an event's finding."""
        match event:
            case Limit():
                self.limit, self.rounding = event.limit, event.rounding
            case Reference():
                self.references.append(event)
            case Row():
                self.rows.append(event)
            case Check():
                self.checks.append(event)
            case Fault():
                self.faults.append(event)

    @property
    def passed(self) -> bool:
        """Whether every output, check and planted fault was as it should be."""
        good = [row.passed for row in self.rows] + [check.passed for check in self.checks]
        return self.complete and bool(good) and all(good) and all(fault.caught for fault in self.faults)


Event = Stage | Limit | Reference | Row | Check | Fault


@dataclass
class _Run:
    """What every path is given."""

    setting: Setting
    model: Any
    tokenizer: Any
    adapters: list[Adapter]
    requests: list[Request]
    reference: list[Output] = field(default_factory=list)
    served: dict[PathName, list[Output]] = field(default_factory=dict)
    limit: float = 0.0

    def server(self, path: PathName, slots: int, *, graphs: bool = False) -> Server:
        backend: Backend = "triton" if path == "triton" else "csgmv"
        capacity = 1 << (len(self.requests) - 1).bit_length() if graphs else 0  # SGLang captures for more than come
        ranks = max(adapter.rank for adapter in self.adapters)
        return Server(self.model, backend, slots=slots, max_rank=ranks, graph_requests=capacity)

    def written(self, output: Output) -> str:
        found: str = self.tokenizer.decode(output.tokens)
        return found


def accuracy(setting: Setting) -> Iterator[Event]:
    """Compare every path with the reference. Raises AccuracyError if that is not possible here."""
    yield Stage(f"loading {setting.source.name}")
    run = _begin(setting)
    yield Stage(f"Hugging Face + PEFT, {len(run.requests)} requests")
    reference = HuggingFace(run.model, run.adapters, setting.dtype)
    run.reference = generate(reference, run.requests, setting.steps)
    yield Stage(f"the same in {WIDER[setting.dtype]}".replace("torch.", ""))
    reference = HuggingFace(run.model, run.adapters, WIDER[setting.dtype])
    limit = compare.limit_for(setting.dtype, run.reference, generate(reference, run.requests, setting.steps))
    del reference
    run.limit = limit.limit
    compare.require_effect(run.reference, run.limit)
    yield limit
    for output in run.reference:
        yield Reference(output.request.prompt, output.request.adapter, run.written(output))
    with hosted(setting.device):
        for path in PATHS:
            with plugin_on() if path == "plugin" else nullcontext():
                yield from _path(run, path)
        for path in PATHS if setting.plant else ():
            with plugin_on() if path == "plugin" else nullcontext():
                yield Stage(f"SGLang {path}: planted faults")
                yield from _plant(run, path)


def _begin(setting: Setting) -> _Run:
    model, tokenizer = models.load(setting.source, setting.dtype, str(setting.device))
    adapters = [models.adapter(folder) for folder in setting.adapters]
    for adapter in adapters:
        models.require_servable(adapter, model)
    names = (None, *(adapter.name for adapter in adapters))
    requests = [
        Request(prompt, name, tuple(tokenizer(prompt).input_ids))
        for prompt in text.PROMPTS[: setting.prompts]
        for name in names
    ]
    return _Run(setting, model, tokenizer, adapters, requests)


def _path(run: _Run, path: PathName) -> Iterator[Event]:
    setting = run.setting
    yield Stage(f"SGLang {path}{' in CUDA graphs' if setting.graphs else ''}")
    used: Counter[str] = Counter()
    with _counted(used):
        server = run.server(path, SLOTS, graphs=setting.graphs)
        for adapter in run.adapters:
            server.load(adapter)
        run.served[path] = generate(server, run.requests, setting.steps)
    for found, expected in zip(run.served[path], run.reference, strict=True):
        yield compare.judge(path, found, expected, run.limit, run.written(found))
    if path == "plugin":
        yield from _against_csgmv(run, used)
    yield Stage(f"SGLang {path}: adapters evicted, updated")
    make, short = partial(run.server, path, graphs=setting.graphs), min(setting.steps, SHORT)
    yield from lifecycle.eviction(path, make, run.adapters, run.requests[0], short)
    yield from lifecycle.update(path, make, run.adapters, run.requests[0], short)


def _against_csgmv(run: _Run, used: Counter[str]) -> Iterator[Check]:
    """The plugin's layers round less often than SGLang's: they may differ by what every path may from the reference.

    Switched off they leave the lookup, which is exact, so a few steps have to be equal to the bit. `used`: how often
    each op ran on the plugin's path so far.
    """
    right = _right_by_csgmv(run)
    yield Check("plugin", "both layers ran on its kernels", _failing(not all(used[op] for op in OPS)), 0.0)
    rows = [
        compare.judge("plugin", found, expected, run.limit, "")
        for found, expected in zip(_of(right, run.served["plugin"]), _of(right, run.served["csgmv"]), strict=True)
    ]
    worst = max(_failing(row.text == "differs") or max(row.prefill_max, row.decode_max) for row in rows)
    yield Check("plugin", "every request as by csgmv", worst, run.limit)
    used.clear()
    with _switched_off(), _counted(used):
        server = run.server("plugin", SLOTS, graphs=run.setting.graphs)
        for adapter in run.adapters:
            server.load(adapter)
        found = _of(right, generate(server, run.requests, min(run.setting.steps, SHORT)))
    expected = [_cut(output, len(found[0].tokens)) for output in _of(right, run.served["csgmv"])]
    worst = lifecycle.finite(compare.largest_difference(found, expected))
    yield Check("plugin", "every request as by csgmv, layers switched off", worst, 0.0)
    yield Check("plugin", "no layer ran when switched off", _failing(bool(used)), 0.0)


def _right_by_csgmv(run: _Run) -> list[bool]:
    """Whether each request came out right without the plugin: an adapter that SGLang misreads is no measure for it."""
    pairs = zip(run.served["csgmv"], run.reference, strict=True)
    return [compare.judge("csgmv", found, expected, run.limit, "").passed for found, expected in pairs]


def _of(wanted: list[bool], outputs: list[Output]) -> list[Output]:
    return [output for output, is_wanted in zip(outputs, wanted, strict=True) if is_wanted]


def _failing(failed: bool) -> float:
    """The difference of a check that is not about logprobs."""
    return lifecycle.finite(float("inf")) if failed else 0.0


def _plant(run: _Run, path: PathName) -> Iterator[Fault]:
    """Each fault in an eager server, on prefill and a few decode steps."""
    for fault in faults.FAULTS:
        server = run.server(path, SLOTS)
        for adapter in run.adapters:
            server.load(adapter)
        with faults.planted(server, fault):
            found = generate(server, run.requests, min(run.setting.steps, SHORT))
        rows = [
            compare.judge(path, one, _cut(other, len(one.tokens)), run.limit, "")
            for one, other in zip(found, run.reference, strict=True)
        ]
        worst = max(max(row.prefill_max, row.decode_max) for row in rows)
        yield Fault(path, fault, sum(not row.passed for row in rows), len(rows), worst)


def _cut(output: Output, steps: int) -> Output:
    return Output(output.request, output.prefill, output.decode[:steps], output.tokens[:steps])


@contextmanager
def plugin_on() -> Iterator[None]:
    """Within this context the plugin's hooks are installed and on, as `csgmv_embed.sglang.install` leaves them.

    Outside they are off.
    """
    plugin = importlib.import_module("csgmv_embed.sglang")
    runtime = importlib.import_module("csgmv_embed.sglang.runtime")
    found = plugin.install()
    if not found.active:
        raise AccuracyError(f"the plugin is off: {found.reason}; see `python -m csgmv_embed doctor`")
    try:
        yield
    finally:
        runtime.activate(None)


@contextmanager
def _switched_off() -> Iterator[None]:
    """The plugin is on but for its two layers."""
    runtime = importlib.import_module("csgmv_embed.sglang.runtime")
    active = runtime.active
    settings = dataclasses.replace(active.settings, layer=False, lm_head=False)
    runtime.activate(active._replace(settings=settings))
    try:
        yield
    finally:
        runtime.activate(active)


@contextmanager
def _counted(used: Counter[str]) -> Iterator[None]:
    """Count the calls of OPS, which in a captured graph are those of its capture."""
    modules = {op: importlib.import_module(f"csgmv_embed.sglang.hooks.{module}") for op, module in OPS.items()}

    def counting(name: str) -> Any:
        op = getattr(modules[name], name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            used[name] += 1
            return op(*args, **kwargs)

        return counted

    with ExitStack() as stack:
        for name in OPS:
            stack.enter_context(patch.object(modules[name], name, counting(name)))
        yield
