"""The op on a GPU: every dtype, storage and plan, CUDA graphs, tables past 2^31 elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csgmv_embed import EmbeddingBatch, embedding_lora_a, embedding_lora_a_reference, empty_a_table, to_storage

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
STORAGES = ["rank_major", "vocab_major"]
PLANS = ["tokens", "segments"]


def planned(batch: EmbeddingBatch, plan: str) -> EmbeddingBatch:
    return batch if plan == "tokens" else batch.without_token_words()


def expected(ids, table, lens, slots, ranks, vocab, extra=None):
    token_slots = torch.from_numpy(np.repeat(slots, lens)).to(ids.device)
    return embedding_lora_a_reference(
        ids[: len(token_slots)], table, token_slots, torch.tensor(ranks, device=ids.device), vocab, extra
    )


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_lookup_is_exact(dtype, storage, plan, device):
    lens, slots, ranks, vocab = [5, 0, 33, 1, 70], [2, 0, 0, 1, 3], [12, 0, 5, 12], 100
    table = to_storage(torch.randn(4, 12, vocab + 3, device=device).to(dtype), storage)
    extra = torch.randn(4, 7, 12, device=device).to(dtype)
    ids = torch.randint(-5, vocab + 20, (sum(lens),), device=device)
    batch = planned(EmbeddingBatch.build(lens, slots, ranks, segments=True, device=device), plan)
    out = torch.full((sum(lens), 12), float("nan"), dtype=dtype, device=device)
    embedding_lora_a(ids, table, batch, vocab, extra, out)
    assert torch.equal(out, expected(ids, table, lens, slots, ranks, vocab, extra))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_real_sizes_are_exact(ids_dtype, dtype, storage, plan, device):
    rng = np.random.default_rng(0)
    ranks, vocab = [64, 16, 0, 64, 1, 33, 64, 8], 128256
    lens, slots = rng.multinomial(4096, np.ones(32) / 32), rng.integers(0, 8, 32)
    table = to_storage(torch.randn(8, 64, vocab, device=device, dtype=torch.float32).to(dtype), storage)
    ids = torch.randint(0, vocab, (4096,), device=device, dtype=ids_dtype)
    ids[::97], ids[5::101], ids[7::103] = -1, vocab, 2**31 - 1
    batch = planned(EmbeddingBatch.build(lens, slots, ranks, segments=True, device=device), plan)
    out = torch.full((4096, 64), float("nan"), dtype=dtype, device=device)
    embedding_lora_a(ids, table, batch, vocab, out=out)
    assert torch.equal(out, expected(ids, table, lens, slots, ranks, vocab))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("storage", STORAGES)
def test_a_captured_graph_is_exact_after_every_refill(storage, plan, device):
    rng = np.random.default_rng(1)
    slots_in_table, max_rank, vocab, capacity = 8, 32, 5000, 256
    table = to_storage(torch.randn(slots_in_table, max_rank, vocab, device=device).bfloat16(), storage)
    ids = torch.zeros(capacity, dtype=torch.int64, device=device)
    static = EmbeddingBatch.allocate(max_tokens=capacity, slots=slots_in_table, segments=True, device=device)
    view = planned(static, plan)
    static.refill([capacity], [0], [max_rank] * slots_in_table)
    embedding_lora_a(ids, table, view, vocab)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = embedding_lora_a(ids, table, view, vocab)
    for _ in range(50):
        sequences = int(rng.integers(0, 40))
        lens = rng.integers(0, capacity // 40, sequences)
        slots = rng.integers(0, slots_in_table, sequences)
        ranks = rng.integers(0, max_rank + 1, slots_in_table)
        ids.copy_(torch.from_numpy(rng.integers(-3, vocab + 3, capacity)))
        static.refill(lens, slots, ranks)
        out.fill_(float("nan"))
        graph.replay()
        tokens = int(lens.sum())
        assert torch.equal(out[:tokens], expected(ids, table, lens, slots, ranks, vocab))
        assert torch.equal(out[tokens:], torch.zeros_like(out[tokens:]))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("storage", STORAGES)
def test_a_table_past_two_to_the_31_elements_is_exact(storage, plan, device):
    slots_in_table, rank, vocab = 72, 256, 128256  # 2.36e9 elements
    table = empty_a_table(slots_in_table, rank, vocab, dtype=torch.bfloat16, device=device, storage=storage)
    pattern = torch.randn(1_048_583, device=device).bfloat16()
    flat = table.as_strided((table.numel(),), (1,))
    whole = flat.numel() // pattern.numel() * pattern.numel()
    flat[:whole].view(-1, pattern.numel()).copy_(pattern.expand(whole // pattern.numel(), -1))
    flat[whole:].copy_(pattern[: flat.numel() - whole])
    lens, slots, ranks = [40, 3, 50, 1], [70, 0, 71, 35], [rank] * slots_in_table
    ids = torch.randint(0, vocab, (sum(lens),), device=device)
    ids[:2] = torch.tensor([vocab - 1, 0], device=device)
    batch = planned(EmbeddingBatch.build(lens, slots, ranks, segments=True, device=device), plan)
    out = torch.full((sum(lens), rank), float("nan"), dtype=torch.bfloat16, device=device)
    embedding_lora_a(ids, table, batch, vocab, out=out)
    assert torch.equal(out, expected(ids, table, lens, slots, ranks, vocab))


def test_a_refill_on_another_stream_is_ordered_before_the_launch_on_it(device):
    table = torch.randn(2, 8, 50, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        static = EmbeddingBatch.allocate(max_tokens=64, slots=2, segments=True, device=device)
        ids = torch.arange(40, device=device)
        for slot in (0, 1, 0, 1, 1):
            static.refill([40], [slot], [8, 5])
            out = embedding_lora_a(ids, table, static, 50)
            assert torch.equal(out, expected(ids, table, [40], [slot], [8, 5], 50))
