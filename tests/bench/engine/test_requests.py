"""Requests follow from the load and a seed: the same in every mode, other prompts in every part."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bench.engine.requests import arrivals_s, requests
from bench.model.serving import Load, prompt_lengths

LOAD = Load("decode", 64, 16)


def made(load: Load = LOAD, *, seed: int = 1, adapters: int = 8, part: str = ""):  # type: ignore[no-untyped-def]
    return requests(load, seed=seed, adapters=adapters, vocab=1000, part=part)


def test_the_same_load_and_seed_give_the_same_requests_and_nothing_else_does() -> None:
    assert made() == made()
    assert made() != made(seed=2)
    one, other = made(part="0"), made(part="1")
    assert [item.adapter for item in one] == [item.adapter for item in other]
    assert all(a.ids != b.ids for a, b in zip(one, other, strict=True))


def test_prompts_have_their_lengths_and_ids_of_the_vocabulary() -> None:
    load = Load("prefill", 8, 64, skew=1.0)
    found = made(load)
    assert [len(item.ids) for item in found] == prompt_lengths(load)
    assert all(3 <= token < 1000 for item in found for token in item.ids)


def test_adapters_are_chosen_as_the_mix_says() -> None:
    assert [item.adapter for item in made()] == [*range(8)] * 8
    assert {item.adapter for item in made(Load("decode", 64, 16, mix="one"))} == {0}
    counts = Counter(item.adapter for item in made(Load("stream", 2000, 1, mix="zipf:1.2"), adapters=32))
    assert counts[0] > 4 * counts[7] > 0 and len(counts) > 24


@pytest.mark.parametrize(("share", "without"), [(0.0, 0), (0.25, 16), (1.0, 64)])
def test_a_share_of_the_requests_has_no_adapter_and_each_adapter_keeps_some(share: float, without: int) -> None:
    found = [item.adapter for item in made(Load("decode", 64, 16, base_fraction=share))]
    assert found.count(None) == without
    assert len({*found} - {None}) == (8 if share < 1 else 0)


def test_arrivals_are_poissons() -> None:
    load = Load("arrivals", 32, 16, rate_rps=50.0)
    moments = arrivals_s(load, seed=1, duration_s=100.0)
    assert moments == arrivals_s(load, seed=1, duration_s=100.0) == sorted(moments)
    assert 4500 < len(moments) < 5500 and moments[-1] <= 100.0
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1), "of an exponential distribution both are one"
    assert len(arrivals_s(Load("arrivals", 32, 16, rate_rps=0.001), seed=1, duration_s=1.0)) == 1
