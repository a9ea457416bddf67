"""The first design of SGLang's pull request 14805 beside ours: its batch info, and the rows it looks up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from csgmv_embed import embedding_lora_a_reference
from csgmv_embed.sglang import runtime
from tests.support import original_order
from tests.support import real_sglang as support

SLOTS, MAX_RANK, VOCAB = 4, 16, 61
RANKS = [0, 8, 16, 5]
pytestmark = pytest.mark.usefixtures("on_the_cpu", "loaded")


@pytest.mark.parametrize("mode", [pytest.param("DECODE", marks=pytest.mark.once), "EXTEND", "MIXED"])
def test_it_looks_up_what_ours_does(mode: str, plugin_on: Any, loaded: Any) -> None:
    stock, ours = support.backend(SLOTS), support.backend(SLOTS)
    weights = torch.randn(SLOTS, MAX_RANK, VOCAB, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    rng = np.random.default_rng(2)
    for _ in range(2):
        requests = int(rng.integers(3, 8))
        lens = [1] * requests if mode == "DECODE" else rng.integers(1, 24, requests).tolist()
        slots = rng.integers(0, SLOTS, requests)
        ids = torch.from_numpy(rng.integers(0, VOCAB, sum(lens)))
        batch, arguments = support.forward_batch(mode, lens), [slots.tolist(), RANKS, [1.0] * SLOTS, False]
        stock.prepare_lora_batch(batch, *arguments)
        info = original_order.second_batch_info(stock, lens, slots.tolist())
        found = original_order.lookup(loaded[1].release, info, ids, weights, VOCAB)
        of_token = torch.from_numpy(slots.repeat(lens))
        assert torch.equal(found, embedding_lora_a_reference(ids, weights, of_token, torch.tensor(RANKS), VOCAB))
        plugin_on(storage="rank_major")
        ours.prepare_lora_batch(batch, *arguments)
        assert torch.equal(ours.run_lora_a_embedding(ids, weights, VOCAB), found)
        runtime.activate(None)


def test_its_batch_info() -> None:
    """What the unit test of the pull request looked at."""
    backend, slots = support.backend(SLOTS), [2, 1, 2]
    backend.prepare_lora_batch(support.forward_batch("EXTEND", [3, 1, 4]), slots, RANKS, [1.0] * SLOTS, False)
    info = original_order.second_batch_info(backend, [3, 1, 4], slots)
    assert (info.bs, info.num_segments, info.max_len, info.permutation) == (3, 3, 4, None)
    assert info.seg_lens.tolist() == [3, 1, 4] and info.seg_indptr.tolist() == [0, 3, 4, 8]
    assert info.weight_indices.tolist() == [2, 1, 2]
    assert info.lora_ranks.tolist() == RANKS and not info.use_cuda_graph
