"""LoRA on lm_head against float64: whatever the plan, ranks, shard and dtype of the logits."""

from __future__ import annotations

import pytest
import torch

from csgmv_embed import (
    DtypeError,
    EmbeddingBatch,
    ShapeError,
    lm_head_expand,
    lm_head_lora,
    lm_head_shrink,
)
from csgmv_embed.launch import checks, direct, tiles
from tests.csgmv_embed.test_embedding_layer import DTYPES, PLANNED
from tests.support.lora_cases import NAN, Case
from tests.support.rounding import Exact, assert_rounded

pytestmark = pytest.mark.numeric


def tables(case: Case, vocab: int):
    """hidden states, A, B."""
    a = case.a_table(case.hidden) * case.hidden**-0.5
    return case.random(case.tokens, case.hidden), a, case.b_table(vocab)


def exact_shrunk(case: Case, hidden, a) -> Exact:
    """(tokens, max_rank), zero beyond the rank and where nothing is written."""
    sums = torch.zeros(2, case.tokens, case.max_rank, dtype=torch.float64, device=case.device)
    for row, slot in enumerate(case.token_slots.tolist()):
        rank = case.ranks[slot] if slot >= 0 else 0
        terms = hidden[row].double() * a[slot, :rank].double()
        sums[:, row, :rank] = torch.stack([terms.sum(1), terms.abs().sum(1)])
    return Exact(*sums, terms=case.hidden)


def exact_expanded(case: Case, shrunk, b, logits) -> Exact:
    """(tokens, columns of logits): logits and the scaled products with B."""
    sums = torch.stack([logits.double(), logits.double().abs()])
    for row, slot in enumerate(case.token_slots.tolist()):
        rank = case.ranks[slot] if slot >= 0 else 0
        terms = case.scalings[slot] * b[slot, :, :rank].double() * shrunk[row, :rank].double()
        sums[:, row, : b.shape[1]] += torch.stack([terms.sum(1), terms.abs().sum(1)])
    return Exact(*sums, terms=case.max_rank + 2)


@pytest.mark.parametrize(("chunk_size", "padding", "words", "dtype"), PLANNED)
def test_shrink_and_expand_each_round_once(device, dtype, chunk_size, padding, words):
    case = Case(chunk_size=chunk_size, padding=padding, words=words, dtype=dtype, device=device)
    hidden, a, b = tables(case, 208)
    batch = case.batch()
    live = (case.token_slots >= 0) & (case.token_slots != 1)
    out = torch.full((case.tokens, case.max_rank), NAN, device=device).to(dtype)
    shrunk = lm_head_shrink(hidden, a, batch, out)
    assert_rounded(shrunk[live], exact_shrunk(case, hidden, a)[live])
    assert shrunk[~live].isnan().all()  # not written

    logits = case.random(case.tokens, 211)
    before = logits.clone()
    assert lm_head_expand(shrunk, b, logits, batch) is logits
    assert_rounded(logits[live], exact_expanded(case, shrunk, b, before)[live])
    assert torch.equal(logits[~live], before[~live])
    assert torch.equal(logits[:, 208:], before[:, 208:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logits_dtype", DTYPES)
def test_lm_head_is_within_the_roundings_of_the_oracle(device, dtype, logits_dtype):
    """The row of A's products is rounded to the dtype of the tables, the sum to that of the logits."""
    case = Case(padding=3, dtype=dtype, device=device)
    hidden, a, b = tables(case, 208)
    logits = torch.randn(case.tokens, 208, device=device).to(logits_dtype)
    exact = case.expected_head(hidden, a, b, logits)
    lm_head_lora(hidden, a, b, logits, case.batch())
    assert_rounded(logits, exact, inner_dtype=dtype)


@pytest.mark.parametrize(("max_rank", "ranks"), [(5, (5, 0, 3, 1)), (130, (130, 64, 0, 129))])
@pytest.mark.parametrize("vocab", [33, 128, 150])
@pytest.mark.parametrize("hidden", [33, 300])
def test_any_rank_hidden_size_and_vocabulary(device, vocab, hidden, max_rank, ranks):
    case = Case(max_rank=max_rank, ranks=ranks, hidden=hidden, device=device)
    states, a, b = tables(case, vocab)
    logits = case.random(case.tokens, vocab)
    exact = case.expected_head(states, a, b, logits)
    assert_rounded(lm_head_lora(states, a, b, logits, case.batch()), exact)


@pytest.mark.parametrize("tile", [(16, 16, 16, 4, 1), (64, 32, 16, 4, 2), (32, 64, 64, 4, 4)])
def test_any_tile(device, tile):
    case = Case(padding=2, chunk_size=2, device=device)
    hidden, a, b = tables(case, 104)
    logits = case.random(case.tokens, 104)
    exact = case.expected_head(hidden, a, b, logits)
    forced = tiles.MatrixTile(*tile)
    with tiles.forced(lm_head_shrink=forced, lm_head_expand=forced):
        assert_rounded(lm_head_lora(hidden, a, b, logits, case.batch()), exact)


def test_shards_of_the_vocabulary_together_are_the_whole(device):
    """But for roundings: products of another width are summed in another order."""
    case = Case(device=device)
    hidden, a, b = tables(case, 208)
    whole = case.random(case.tokens, 208)
    exact = case.expected_head(hidden, a, b, whole)
    parts = whole.clone()
    lm_head_lora(hidden, a, b, whole, case.batch())
    for first, end in ((0, 96), (96, 208)):
        lm_head_lora(hidden, a, b[:, first:end], parts[:, first:end], case.batch())
    assert_rounded(whole, exact)
    assert_rounded(parts, exact)


def test_no_tokens_launch_nothing(device):
    case = Case(lens=(), slots=(), device=device)
    hidden, a, b = tables(case, 208)
    assert lm_head_lora(hidden, a, b, case.random(0, 208), case.batch()).shape == (0, 208)


def call(**changes):
    case = Case()
    given = {
        "hidden_states": torch.zeros(51, 80),
        "a_table": torch.zeros(4, 24, 80),
        "b_table": torch.zeros(4, 208, 24),
        "logits": torch.zeros(51, 208),
        "batch": case.batch(),
    }
    return lm_head_lora(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (
            {"hidden_states": torch.zeros(51, 64)},
            ShapeError,
            "a_table has shape (4, 24, 80); expected (slots, max_rank",
        ),
        ({"hidden_states": torch.zeros(51, 80).half()}, DtypeError, "a_table is torch.float32; expected torch.float16"),
        ({"hidden_states": torch.zeros(50, 80)}, ShapeError, "50 tokens; expected 51"),
        ({"a_table": torch.zeros(4, 80, 24).mT}, ShapeError, "a_table has strides"),
        (
            {"b_table": torch.zeros(4, 208, 16)},
            ShapeError,
            "b_table has shape (4, 208, 16); expected (slots, vocab, 24)",
        ),
        ({"logits": torch.zeros(51, 207)}, ShapeError, "logits has shape (51, 207); expected (51, at least 208)"),
        ({"logits": torch.zeros(51, 208, dtype=torch.int32)}, DtypeError, "logits is torch.int32"),
        ({"logits": torch.zeros(1, 208).expand(51, 208)}, ShapeError, "logits has strides (0, 1)"),
        ({"batch": EmbeddingBatch.build([51], [0], [8], device="cpu")}, ShapeError, "segments=True"),
    ],
)
def test_bad_input_is_named_with_what_would_be_right(monkeypatch, changes, kind, words):
    monkeypatch.setattr(checks, "accept_host_tensors", True)  # a GPU machine refuses them before it looks further
    monkeypatch.setattr(direct.Launch, "__call__", None)  # all is checked before anything runs
    with pytest.raises(kind) as error:
        call(**changes)
    assert words in str(error.value)
