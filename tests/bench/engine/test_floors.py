"""Least bytes by site, beside those that the suite counts for its own ops on the same shape and ranks."""

from __future__ import annotations

import pytest

from bench.engine.floors import least_bytes
from bench.engine.requests import requests
from bench.engine.weights import SHAPES
from bench.model.serving import Load, Setup

CONFIG = SHAPES["8b"]
HIDDEN, INNER, VOCAB, LAYERS = 4096, 14336, 128256, 32
RANKS = 4 * 16 + 4 * 64  # of eight adapters, all in use


def found(load: Load, setup: Setup | None = None, *, lora: bool = True) -> dict[str, int]:
    setup = setup or Setup()
    asked = requests(load, seed=1, adapters=setup.adapters, vocab=VOCAB)
    return {**least_bytes(CONFIG, setup, load, asked, lora=lora)}


@pytest.mark.parametrize(("load", "tokens"), [(Load("decode", 32, 16), 32), (Load("prefill", 8, 512), 4096)])
def test_a_site_reads_input_and_tables_and_its_output_twice(load: Load, tokens: int) -> None:
    least = found(load)
    o = 2 * (tokens * HIDDEN + RANKS * 2 * HIDDEN + 2 * tokens * HIDDEN)
    gate_up = 2 * (tokens * HIDDEN + RANKS * (2 * HIDDEN + 2 * INNER) + 2 * tokens * 2 * INNER)
    assert least["o"] == LAYERS * o and least["gate_up"] == LAYERS * gate_up
    rows = load.requests
    assert least["lm_head"] == 2 * (rows * HIDDEN + RANKS * (HIDDEN + VOCAB) + 2 * rows * VOCAB)
    mean_rank = RANKS // 8
    assert least["embedding"] == 8 * tokens + 2 * (tokens * mean_rank + RANKS * HIDDEN + 2 * tokens * HIDDEN)


def test_requests_without_an_adapter_move_nothing_but_the_base() -> None:
    assert {*found(Load("decode", 32, 16, base_fraction=1.0))} == {"base"}
    assert {*found(Load("decode", 32, 16), lora=False)} == {"base"}
    assert {*found(Load("decode", 32, 16), Setup(targets="ends"))} == {"base", "embedding", "lm_head"}
    assert {*found(Load("decode", 32, 16), Setup(targets="attention"))} == {"base", "qkv", "o"}
    assert found(Load("decode", 32, 16), Setup(tp=2)) == {}


def test_base_products_read_every_weight() -> None:
    parameters = LAYERS * (HIDDEN * (4096 + 2 * 1024) + HIDDEN * 4096 + 3 * HIDDEN * INNER) + VOCAB * HIDDEN
    least = found(Load("decode", 1, 16))["base"]
    assert 2 * parameters < least < 2.001 * parameters


def test_one_adapter_in_the_batch_reads_its_tables_alone() -> None:
    one, all_of_them = (found(Load("decode", 8, 16, mix=mix))["qkv"] for mix in ("one", "uniform"))
    per_rank = 2 * LAYERS * (3 * HIDDEN + HIDDEN + 2 * 1024)
    assert all_of_them - one == per_rank * (RANKS - 16)
