"""`run_lora_a_embedding` through a real backend equals SGLang's own kernel bit for bit, and does what it cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csgmv_embed import EmbeddingBatch, ShapeError, embedding_lora_a_reference, to_storage
from csgmv_embed.sglang import planner, runtime
from tests.support import real_sglang as support

SLOTS, MAX_RANK, VOCAB, CAPACITY = 4, 16, 61, 12
RANKS = [0, 8, 16, 5]
pytestmark = pytest.mark.usefixtures("on_the_cpu", "loaded")


def table(columns: int = VOCAB, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SLOTS, MAX_RANK, columns, generator=generator).to(dtype)


def batch_of(rng: np.random.Generator, mode: str) -> tuple[SimpleNamespace, list[Any], torch.Tensor, torch.Tensor]:
    """A batch, its arguments, its ids, and the slot of each token."""
    requests = int(rng.integers(1, CAPACITY + 1))
    lens = [1] * requests if mode == "DECODE" else rng.integers(1, 24, requests).tolist()
    slots = rng.integers(0, SLOTS, requests)
    ids = torch.from_numpy(rng.integers(0, VOCAB, sum(lens)))
    return (
        support.forward_batch(mode, lens),
        [slots.tolist(), RANKS, [1.0] * SLOTS],
        ids,
        torch.from_numpy(slots.repeat(lens)),
    )


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "MIXED"])
def test_eager_equals_sglangs_kernel(mode: str, plugin_on: Any) -> None:
    """In either storage. SGLang's kernel is the slow one here, and runs once for both."""
    stock, ours = support.backend(SLOTS), support.backend(SLOTS)
    weights = table(dtype=torch.bfloat16)
    rng = np.random.default_rng(2)
    for _ in range(3):
        batch, arguments, ids, slots = batch_of(rng, mode)
        stock.prepare_lora_batch(batch, *arguments, False)
        expected = stock.run_lora_a_embedding(ids, weights, VOCAB)
        assert torch.equal(expected, embedding_lora_a_reference(ids, weights, slots, torch.tensor(RANKS), VOCAB))
        for storage in ("vocab_major", "rank_major"):
            plugin_on(storage=storage)
            ours.prepare_lora_batch(batch, *arguments, False)
            found = ours.run_lora_a_embedding(ids, to_storage(weights, storage), VOCAB)
            assert found.shape == (len(ids), MAX_RANK) and found.dtype == weights.dtype
            assert torch.equal(found, expected), storage
        runtime.activate(None)


def test_captured_decode_follows_every_refill(plugin_on: Any, loaded: Any) -> None:
    plugin_on(storage="rank_major")
    backend = support.backend(SLOTS)
    getattr(backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    weights = table()
    rng = np.random.default_rng(4)
    for _ in range(10):
        batch, arguments, ids, slots = batch_of(rng, "DECODE")
        backend.prepare_lora_batch(batch, *arguments, True)
        padded = torch.zeros(CAPACITY, dtype=torch.int64)
        padded[: len(ids)] = ids
        found = backend.run_lora_a_embedding(padded, weights, VOCAB)
        expected = embedding_lora_a_reference(ids, weights, slots, torch.tensor(RANKS), VOCAB)
        assert torch.equal(found[: len(ids)], expected)
        assert not found[len(ids) :].any()


def test_captured_prefill_follows_every_refill(plugin_on: Any, loaded: Any) -> None:
    parameters = loaded[1].release.prefill_graph
    if not parameters:
        pytest.skip("this SGLang does not capture prefill with LoRA")
    plugin_on(storage="rank_major")
    backend = support.backend(SLOTS)
    tokens, weights = 40 * CAPACITY, table()
    sizes = {"max_num_tokens": tokens, "max_num_requests": CAPACITY}
    backend.init_prefill_cuda_graph_batch_info(**{name: sizes[name] for name in parameters[1:]})
    rng = np.random.default_rng(4)
    for _ in range(6):
        batch, arguments, ids, slots = batch_of(rng, "EXTEND")
        backend.prepare_lora_batch(batch, *arguments, False, use_prefill_cuda_graph=True)
        padded = torch.zeros(tokens, dtype=torch.int64)
        padded[: len(ids)] = ids
        found = backend.run_lora_a_embedding(padded, weights, VOCAB)
        assert torch.equal(
            found[: len(ids)], embedding_lora_a_reference(ids, weights, slots, torch.tensor(RANKS), VOCAB)
        )
        assert not found[len(ids) :].any()


def test_an_sglang_plan_is_read_as_segments(plugin_on: Any) -> None:
    backend = support.backend(SLOTS)
    batch, arguments, ids, slots = batch_of(np.random.default_rng(6), "EXTEND")
    backend.prepare_lora_batch(batch, *arguments, False)  # the plugin is off
    plugin_on()
    weights = to_storage(table(), "vocab_major")
    found = backend.run_lora_a_embedding(ids, weights, VOCAB)
    assert torch.equal(found, embedding_lora_a_reference(ids, weights, slots, torch.tensor(RANKS), VOCAB))


def test_rows_that_pad_an_eager_batch_are_zero(plugin_on: Any) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    batch, arguments, ids, slots = batch_of(np.random.default_rng(8), "DECODE")
    backend.prepare_lora_batch(batch, *arguments, False)
    weights = table()
    padded = torch.cat([ids, torch.full((7,), 3)])
    found = backend.run_lora_a_embedding(padded, weights, VOCAB)
    expected = embedding_lora_a_reference(ids, weights, slots, torch.tensor(RANKS), VOCAB)
    assert torch.equal(found[: len(ids)], expected) and not found[len(ids) :].any()
    with pytest.raises(ShapeError):
        backend.run_lora_a_embedding(ids[:-1], weights, VOCAB)


def test_no_ids_give_no_rows_whatever_is_planned(plugin_on: Any, loaded: Any) -> None:
    """A rank that idles under data-parallel attention calls so."""
    plugin_on(storage="rank_major")
    backend = support.backend(SLOTS)
    nobody, weights = torch.zeros(0, dtype=torch.int64), table()
    assert backend.run_lora_a_embedding(nobody, weights, VOCAB).shape == (0, MAX_RANK)  # before there was a batch
    getattr(backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    for mode, graph in (("EXTEND", False), ("DECODE", False), ("DECODE", True)):
        batch, arguments, _, _ = batch_of(np.random.default_rng(6), mode)
        backend.prepare_lora_batch(batch, *arguments, graph)
        found = backend.run_lora_a_embedding(nobody, weights, VOCAB)
        assert found.shape == (0, MAX_RANK) and found.dtype == weights.dtype


def test_tables_and_ids_of_too_few_axes(plugin_on: Any) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    batch, arguments, ids, _ = batch_of(np.random.default_rng(6), "EXTEND")
    backend.prepare_lora_batch(batch, *arguments, False)
    for shape in ((), (4,), (4, 4)):
        with pytest.raises(ShapeError, match="weights has shape .*expected .slots, max_rank, vocab."):
            backend.run_lora_a_embedding(ids, torch.zeros(shape), VOCAB)
        if len(shape) != 1:
            with pytest.raises(ShapeError, match="input_ids has shape"):
                backend.run_lora_a_embedding(torch.zeros(shape, dtype=torch.int64), table(), VOCAB)
    with pytest.raises(ShapeError, match="vocab_size is True; expected an integer"):
        backend.run_lora_a_embedding(ids, table(), True, torch.zeros(SLOTS, 2, MAX_RANK))


def test_added_tokens_and_ids_out_of_range(plugin_on: Any) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    ids = torch.tensor([5, VOCAB, VOCAB + 2, VOCAB + 3, -1, 10**9])
    lens, slots = [len(ids)], torch.full((len(ids),), 2)
    backend.prepare_lora_batch(support.forward_batch("EXTEND", lens), [2], RANKS, [1.0] * SLOTS, False)
    ranks = torch.tensor(RANKS)

    wide = to_storage(table(VOCAB + 3), "vocab_major")  # the pool's own columns of added tokens
    expected = embedding_lora_a_reference(ids, wide, slots, ranks, VOCAB + 3)
    assert expected[2].any() and not expected[3:].any()
    assert torch.equal(backend.run_lora_a_embedding(ids, wide, VOCAB), expected)
    hidden_rows = torch.ones(SLOTS, 3, 3 * MAX_RANK)  # SGLang's new_embeddings_buffer: not the A side's
    assert torch.equal(backend.run_lora_a_embedding(ids, wide, VOCAB, hidden_rows), expected)

    narrow, extra = table(), torch.randn(SLOTS, 3, MAX_RANK)
    expected = embedding_lora_a_reference(ids, narrow, slots, ranks, VOCAB, extra)
    assert expected[1].any()
    assert torch.equal(backend.run_lora_a_embedding(ids, narrow, VOCAB, extra_embeddings=extra), expected)


def test_without_adapters_nothing_is_looked_up(plugin_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    backend.prepare_lora_batch(support.forward_batch("DECODE", [1] * 3), [0, 0, 0], [0] * SLOTS, [0] * SLOTS, False)
    monkeypatch.setattr("csgmv_embed.sglang.hooks.lookup.embedding_lora_a", None)
    found = backend.run_lora_a_embedding(torch.tensor([1, 2, 3]), table(), VOCAB)
    assert found.shape == (3, MAX_RANK) and not found.any()


def test_a_vocabulary_larger_than_the_table_is_refused(plugin_on: Any) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    backend.prepare_lora_batch(support.forward_batch("DECODE", [1]), [1], RANKS, [1.0] * SLOTS, False)
    with pytest.raises(ShapeError, match="vocabulary has 62 ids"):
        backend.run_lora_a_embedding(torch.tensor([1]), table(), VOCAB + 1)


def test_an_adapter_above_the_tables_rank_is_refused(plugin_on: Any) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    ranks = [0, MAX_RANK + 1, 0, 0]
    backend.prepare_lora_batch(support.forward_batch("DECODE", [1]), [1], ranks, [1.0] * SLOTS, False)
    with pytest.raises(ShapeError, match="rank 17"):
        backend.run_lora_a_embedding(torch.tensor([1]), table(), VOCAB)


def test_sglangs_own_lookup_is_told_of_the_storage(plugin_on: Any) -> None:
    backend = support.backend(SLOTS)
    batch, arguments, ids, _ = batch_of(np.random.default_rng(6), "EXTEND")
    backend.prepare_lora_batch(batch, *arguments, False)
    with pytest.raises(ShapeError, match="CSGMV_EMBED_STORAGE=rank_major"):
        backend.run_lora_a_embedding(ids, to_storage(table(), "vocab_major"), VOCAB)  # the plugin is off


def test_the_batch_has_token_words(plugin_on: Any) -> None:
    plugin_on()
    backend = support.backend(SLOTS)
    backend.prepare_lora_batch(support.forward_batch("EXTEND", [3, 1, 2]), [2, 1, 2], RANKS, [1.0] * SLOTS, False)
    words = getattr(backend.batch_info, planner.BATCH)
    assert isinstance(words, EmbeddingBatch)
    assert words.token_adapters.tolist() == [2 << 16 | 16] * 3 + [1 << 16 | 8] + [2 << 16 | 16] * 2
