"""The layer on a GPU: CUDA graphs, real sizes, offsets past 2^31."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csgmv_embed import (
    EmbeddingBatch,
    embedding_lora,
    embedding_lora_add,
    empty_a_table,
)
from tests.support.lora_cases import Case
from tests.support.rounding import Exact, assert_rounded

pytestmark = [pytest.mark.numeric, pytest.mark.gpu]
BIG = 72  # slots: with rank 256 and a real vocabulary the tables pass 2^31 elements
VOCAB = 128256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("max_rank", [16, 64, 256])
@pytest.mark.parametrize("tokens", [1, 100, 600, 3000])
def test_real_sizes(device, tokens, max_rank, dtype):
    rng = np.random.default_rng(tokens)
    ranks = [max_rank, max_rank // 2, 0, max_rank, 1, max_rank - 1, max_rank, 8]
    lens, slots = [tokens - tokens // 3, tokens // 3], rng.integers(0, 8, 2).tolist()
    if tokens < 1000:  # decode
        lens, slots = [1] * tokens, rng.integers(0, 8, tokens).tolist()
    shape = {"max_rank": max_rank, "hidden": 4096, "vocab": 5000, "dtype": dtype, "device": device}
    case = Case(lens=lens, slots=slots, ranks=ranks, padding=5, **shape)
    ids, embedding = case.ids(), case.random(case.vocab, case.hidden)
    a, b = case.embedding_a(), case.b_table(case.hidden)
    for words in (True, False):
        batch = case.batch() if words else case.batch().without_token_words()
        found = embedding_lora(ids, embedding, a, b, batch, case.vocab)
        assert_rounded(found, case.expected_layer(ids, embedding, a, b))


def test_captured_graphs_are_exact_after_every_refill(device):
    rng = np.random.default_rng(1)
    case = Case(hidden=1024, dtype=torch.bfloat16, device=device, padding=1)
    embedding, a, b = case.random(case.vocab, case.hidden), case.embedding_a(), case.b_table(case.hidden)
    capacity = 256
    ids = torch.zeros(capacity, dtype=torch.int64, device=device)
    batch = EmbeddingBatch.allocate(max_tokens=capacity, slots=4, segments=True, device=device)

    def step():
        return embedding_lora(ids, embedding, a, b, batch, case.vocab)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(30):
        sequences = int(rng.integers(0, 40))
        lens, slots = rng.integers(0, 6, sequences).tolist(), rng.integers(0, 4, sequences).tolist()
        ranks = rng.integers(0, 25, 4).tolist()
        ranks = [min(rank, most) for rank, most in zip(ranks, case.ranks, strict=True)]  # NaN lies beyond those
        step_case = Case(lens=lens, slots=slots, ranks=ranks, padding=capacity - sum(lens), device=device)
        step_case.vocab, step_case.hidden = case.vocab, case.hidden
        step_case.scalings = [1.0, 2.0, 0.5, 0.0]
        ids.copy_(step_case.ids())
        batch.refill(lens, slots, ranks, step_case.scalings)
        out.fill_(float("nan"))
        graph.replay()
        assert_rounded(out, step_case.expected_layer(ids, embedding, a, b))


def product(rows, b) -> Exact:
    """rows @ B^T, added to zeros."""
    rows, b = rows.double(), b.double()
    return Exact(rows @ b.T, rows.abs() @ b.abs().T, terms=b.shape[1] + 2)


def test_layer_tables_past_2_to_the_31(device):
    a = empty_a_table(BIG, 256, VOCAB, dtype=torch.bfloat16, device=device, storage="vocab_major")
    assert a.numel() > 2**31
    a[BIG - 1].normal_()
    b = torch.randn(BIG, 64, 256, device=device, dtype=torch.bfloat16)
    ids = torch.randint(0, VOCAB, (33,), device=device)
    batch = EmbeddingBatch.build(None, [BIG - 1] * 33, [256] * BIG, segments=True, device=device)
    base = torch.zeros(33, 64, device=device, dtype=torch.bfloat16)
    embedding_lora_add(base, ids, a, b, batch, VOCAB)
    exact = product(a[BIG - 1][:, ids].T, b[BIG - 1])
    assert_rounded(base, exact)
