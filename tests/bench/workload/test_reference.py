"""The suite's oracle and the library's references say the same, each in its own words."""

from __future__ import annotations

import pytest
import torch

from bench.workload import reference
from csgmv_embed import embedding_lora_a_reference, embedding_lora_reference, lora_linear_reference

SLOTS, RANK, VOCAB, HIDDEN, TOKENS = 4, 8, 50, 12, 9


@pytest.fixture
def made() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        "ids": torch.randint(0, VOCAB, (TOKENS,)),
        "a": torch.randn(SLOTS, RANK, VOCAB).bfloat16(),
        "b": torch.randn(SLOTS, HIDDEN, RANK).bfloat16(),
        "embedding": torch.randn(VOCAB, HIDDEN).bfloat16(),
        "slots": torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 0]),
        "ranks": torch.tensor([8, 4, 0, 1]),
        "scalings": torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64),
    }


def test_a_lookup(made) -> None:
    mine = reference.lookup(made["ids"], made["a"], made["slots"], made["ranks"])
    assert torch.equal(mine, embedding_lora_a_reference(made["ids"], made["a"], made["slots"], made["ranks"], VOCAB))


def test_a_layer(made) -> None:
    common = (made["ids"], made["embedding"], made["a"], made["b"], made["slots"], made["ranks"], made["scalings"])
    torch.testing.assert_close(reference.layer(*common), embedding_lora_reference(*common, VOCAB))


@pytest.mark.parametrize("starts", [None, (0, 5, HIDDEN)])
def test_a_linear_layer_of_one_slice_or_several(made, starts) -> None:
    slices = len(starts) - 1 if starts else 1
    x, a = torch.randn(TOKENS, 6).bfloat16(), torch.randn(SLOTS, slices * RANK, 6).bfloat16()
    base = torch.randn(TOKENS, HIDDEN)
    common = (x, a, made["b"], base, made["slots"], made["ranks"], made["scalings"], starts)
    before = base.clone()
    torch.testing.assert_close(reference.linear(*common), lora_linear_reference(*common))
    assert torch.equal(base, before), "what is added to stays"
