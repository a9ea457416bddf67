"""Makes the requests of a load from the load and a seed only, so every mode and process gets the same."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import NamedTuple

import msgspec

from bench.model.serving import Load, prompt_lengths

FIRST_ID = 3  # ids below are a tokenizer's own in most models


class Request(NamedTuple):
    """A prompt, and the number of its adapter; None means no adapter."""

    ids: list[int]
    adapter: int | None


def requests(load: Load, *, seed: int, adapters: int, vocab: int, part: str = "") -> list[Request]:
    """The requests of a load. Another `part` of a measurement has other prompts of the same lengths and adapters."""
    chosen = _adapters(load, _rng(load, seed, "adapters"), adapters)
    rng = _rng(load, seed, f"prompts {part}")
    prompts = [[rng.randrange(FIRST_ID, vocab) for _ in range(length)] for length in prompt_lengths(load)]
    return [Request(ids, adapter) for ids, adapter in zip(prompts, chosen, strict=True)]


def arrivals_s(load: Load, *, seed: int, duration_s: float) -> list[float]:
    """Arrival times of requests in seconds from the start: a Poisson process. At least one request arrives."""
    rng, moment = _rng(load, seed, "arrivals"), 0.0
    found: list[float] = []
    while not found or moment < duration_s:
        moment += rng.expovariate(load.rate_rps)
        found.append(moment)
    return found[: max(1, len(found) - 1)]


def _adapters(load: Load, rng: random.Random, adapters: int) -> list[int | None]:
    """As `mix` says, uniform: in turn; then a share of the requests loses its adapter."""
    count = load.requests
    if load.mix == "one":
        chosen = [0] * count
    elif load.mix == "uniform":
        chosen = [index % adapters for index in range(count)]
    else:
        exponent = float(load.mix.partition(":")[2])
        weights = [(place + 1) ** -exponent for place in range(adapters)]
        chosen = rng.choices(range(adapters), weights, k=count)
    without = {*rng.sample(range(count), round(count * load.base_fraction))}
    return [None if index in without else adapter for index, adapter in enumerate(chosen)]


def _rng(load: Load, seed: int, purpose: str) -> random.Random:
    digest = sha256(msgspec.json.encode([load, seed, purpose])).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
