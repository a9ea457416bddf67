"""Checks adapters that come and go: eviction, reused slots, updates, failed loads. Yields one check after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import msgspec

from bench.accuracy.compare import largest_difference
from bench.accuracy.generation import Output, Request, generate
from bench.accuracy.models import AccuracyError, Adapter
from bench.accuracy.serving import Server

SLOTS = 3  # the base model's and two: fewer than the adapters in rotation
MakeServer = Callable[[int], Server]  # slots


class Check(msgspec.Struct):
    """`difference`: the largest difference of a logprob, in nats. `allowed` 0 means equal bits.

    If a text differs, it is the largest float. A check that is not about logprobs has 0 or the largest float.
    """

    path: str
    what: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


def eviction(path: str, make: MakeServer, adapters: Sequence[Adapter], prompt: Request, steps: int) -> Iterator[Check]:
    """Rotate four adapters through two slots, twice. Each must answer as it does alone, and both times alike."""
    rotation = [*adapters, *(weaker(adapter) for adapter in adapters)]
    alone = {adapter.name: _alone(make, adapter, prompt, steps) for adapter in rotation}
    server = make(SLOTS)
    for adapter in rotation:
        server.load(adapter)
    names = [adapter.name for adapter in rotation]
    batches = [(names[k], None, names[(k + 1) % len(names)]) for k in range(len(names))]
    rounds = []
    for number in (1, 2):
        found = [generate(server, [_for(prompt, name) for name in batch], steps) for batch in batches]
        rounds.append(found)
        pairs = [(row[k], alone[str(row[k].request.adapter)][k]) for row in found for k in (0, 2)]
        worst = largest_difference(*zip(*pairs, strict=True))
        yield Check(path, f"eviction, round {number}: each adapter as alone", finite(worst), 0.0)
    worst = max(largest_difference(one, other) for one, other in zip(*rounds, strict=True))
    yield Check(path, "eviction, round 2 as round 1", finite(worst), 0.0)


def _alone(make: MakeServer, adapter: Adapter, prompt: Request, steps: int) -> list[Output]:
    """With no other adapter loaded, in batches of the rotation's shape."""
    server = make(SLOTS)
    server.load(adapter)
    return generate(server, [_for(prompt, name) for name in (adapter.name, None, adapter.name)], steps)


def update(path: str, make: MakeServer, adapters: Sequence[Adapter], prompt: Request, steps: int) -> Iterator[Check]:
    """Load, unload and load again, and load with a failure: the base model and other adapters must stay as they are."""
    server = make(SLOTS)
    base = [_for(prompt, None)]
    everyone = [*base, *(_for(prompt, adapter.name) for adapter in adapters)]
    before = generate(server, base, steps)
    for adapter in adapters:
        server.load(adapter)
    loaded = generate(server, everyone, steps)
    last = adapters[-1]
    server.unload(last.name)
    yield _same(path, "base model after an unload", generate(server, base, steps), before)
    others = [request for request in everyone if request.adapter != last.name]
    without = generate(server, others, steps)
    server.load(last)
    yield _same(path, "all after a reload", generate(server, everyone, steps), loaded)
    for what, bad in spoiled(last, server.vocab, plugin=path == "plugin"):
        yield Check(path, f"update: refused, {what}", 0.0 if _refused(server, bad) else finite(float("inf")), 0.0)
    yield _same(path, "all after a load that failed", generate(server, everyone, steps), loaded)
    yield _same(path, "the others without it", generate(server, others, steps), without)


def weaker(adapter: Adapter) -> Adapter:
    """The adapter at half its scale, which is another adapter as far as serving goes."""
    halves = {key: alpha / 2 for key, alpha in (adapter.config.get("alpha_pattern") or {}).items()}
    config = {**adapter.config, "lora_alpha": adapter.config["lora_alpha"] / 2, "alpha_pattern": halves}
    return dataclasses.replace(adapter, name=f"{adapter.name}-half", config=config)


def spoiled(adapter: Adapter, vocab: int, *, plugin: bool) -> list[tuple[str, Adapter]]:
    """Adapters that must be refused when they are loaded. SGLang itself checks only the rank."""
    rank = dataclasses.replace(adapter, name="bad", config={**adapter.config, "r": 4 * adapter.rank})
    short = {
        name: tensor[..., : vocab - 1] if "lora_embedding_A" in name else tensor
        for name, tensor in adapter.tensors.items()
    }
    found = [("of a rank above the pool's", rank)]
    return [*found, ("of another vocabulary", dataclasses.replace(adapter, name="bad", tensors=short))][: 1 + plugin]


def _refused(server: Server, bad: Adapter) -> bool:
    try:
        server.load(bad)
    except AccuracyError:
        return True
    return False


def _same(path: str, what: str, found: Sequence[Output], expected: Sequence[Output]) -> Check:
    return Check(path, f"update: {what}", finite(largest_difference(found, expected)), 0.0)


def _for(prompt: Request, adapter: str | None) -> Request:
    return Request(prompt.prompt, adapter, prompt.ids)


def finite(difference: float) -> float:
    """The value, or the largest float in place of an infinite one, for JSON."""
    return min(difference, 3.4e38)
