"""The oracle against formulas that do not share its code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csgmv_embed import embedding_lora_a_reference

pytestmark = pytest.mark.numeric


def one_hot_formula(
    ids: list[int], table: torch.Tensor, slots: list[int], ranks: list[int], vocab: int, extra: torch.Tensor
) -> torch.Tensor:
    """rows @ (A | extra)^T in float64: the row of an id is one-hot, all zero where the id is in neither."""
    rows = []
    for token_id, slot in zip(ids, slots, strict=True):
        weights = torch.cat([table[slot, :, :vocab], extra[slot].T], dim=1).double()
        weights[ranks[slot] :] = 0
        one_hot = (torch.arange(weights.shape[1]) == token_id).double()
        rows.append(one_hot @ weights.T)
    return torch.stack(rows)


@given(data=st.data(), seed=st.integers(0, 2**16))
def test_equals_one_hot_times_the_table(data: st.DataObject, seed: int) -> None:
    slots, max_rank, columns, added = 3, data.draw(st.sampled_from([1, 4, 5])), 6, 2
    vocab = data.draw(st.integers(0, columns))
    ranks = data.draw(st.lists(st.integers(0, max_rank), min_size=slots, max_size=slots))
    tokens = data.draw(st.lists(st.tuples(st.integers(-3, 12), st.integers(0, slots - 1)), min_size=1, max_size=9))
    ids, token_slots = [t[0] for t in tokens], [t[1] for t in tokens]
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(slots, max_rank, columns, generator=generator)
    extra = torch.randn(slots, added, max_rank, generator=generator)
    got = embedding_lora_a_reference(
        torch.tensor(ids), table, torch.tensor(token_slots), torch.tensor(ranks), vocab, extra
    )
    expected = one_hot_formula(ids, table, token_slots, ranks, vocab, extra)
    assert torch.equal(got.double(), expected)


def test_equals_the_hand_computed_example_of_peft() -> None:
    """PEFT's LoRA embedding: after_A = F.embedding(x, lora_embedding_A.T), with A of shape (r, vocab)."""
    lora_embedding_a = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    x = torch.tensor([2, 0, 1, 2])
    expected = torch.tensor([[3.0, 30.0], [1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert torch.equal(torch.nn.functional.embedding(x, lora_embedding_a.T), expected)
    got = embedding_lora_a_reference(x, lora_embedding_a[None], torch.zeros(4), torch.tensor([2]), 3)
    assert torch.equal(got, expected)


def test_hand_example_with_two_slots_of_different_rank_and_an_extra_token() -> None:
    table = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.float16)  # (slot, rank, id)
    extra = torch.tensor([[[9, 10]], [[11, 12]]], dtype=torch.float16)  # (slot, extra, rank)
    ids, slots = torch.tensor([0, 1, 0, 2, 2, 3, -1]), torch.tensor([0, 0, 1, 0, 1, 0, 1])
    got = embedding_lora_a_reference(ids, table, slots, torch.tensor([2, 1]), 2, extra)
    expected = [[1, 3], [2, 4], [5, 0], [9, 10], [11, 0], [0, 0], [0, 0]]
    assert got.dtype == torch.float16
    assert got.tolist() == expected


@pytest.mark.parametrize("token_id", [-1, 2, 5, 2**40, -(2**40)])
def test_id_outside_the_vocabulary_gives_a_zero_row_even_inside_the_table(token_id: int) -> None:
    table = torch.ones(1, 3, 6)
    got = embedding_lora_a_reference(torch.tensor([token_id]), table, torch.tensor([0]), torch.tensor([3]), 2)
    assert not got.any()


def test_no_tokens_give_an_empty_result() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    got = embedding_lora_a_reference(nothing, torch.ones(1, 3, 6), nothing, torch.tensor([3]), 6)
    assert got.shape == (0, 3)
