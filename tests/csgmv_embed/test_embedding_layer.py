"""The whole embedding layer against float64: one rounding, whatever the plan, storage, ranks and ids."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from csgmv_embed import (
    CapacityError,
    CsgmvEmbedError,
    DeviceError,
    DtypeError,
    EmbeddingBatch,
    ShapeError,
    embedding_lora,
    embedding_lora_add,
)
from csgmv_embed.kernels.embedding import embedding_lora_kernel, embedding_rows_kernel
from csgmv_embed.launch import checks, direct, tiles
from tests.support.lora_cases import NAN, Case
from tests.support.rounding import assert_rounded

pytestmark = pytest.mark.numeric
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLANS = tuple(itertools.product((2, 16, 64), (0, 3), (True, False)))  # chunk size, padding, words
# A dtype changes no plan: every plan in float32, and in the others each value of each of the three.
PLANNED = [(*plan, dtype) for dtype in DTYPES for plan in (PLANS if dtype is torch.float32 else PLANS[1::5])]


def run(case: Case, **options):
    """(result, exact result, inputs)."""
    ids, embedding = case.ids(), case.random(case.vocab, case.hidden)
    a, b = case.embedding_a(), case.b_table(case.hidden)
    out = torch.full((case.tokens, case.hidden), NAN, device=case.device).to(case.dtype)
    found = embedding_lora(ids, embedding, a, b, case.batch(), case.vocab, out=out, **options)
    assert found is out
    return found, case.expected_layer(ids, embedding, a, b, **options), (ids, embedding, a, b)


@pytest.mark.parametrize(("chunk_size", "padding", "words", "dtype"), PLANNED)
def test_the_layer_rounds_the_exact_sum_once(device, dtype, chunk_size, padding, words):
    case = Case(chunk_size=chunk_size, padding=padding, words=words, dtype=dtype, device=device)
    found, exact, _ = run(case)
    assert_rounded(found, exact)


@pytest.mark.parametrize(("max_rank", "ranks"), [(5, (5, 0, 3, 1)), (24, (24, 0, 7, 24)), (130, (130, 64, 0, 129))])
@pytest.mark.parametrize("hidden", [33, 80, 256])
def test_any_rank_and_hidden_size(device, hidden, max_rank, ranks):
    case = Case(max_rank=max_rank, ranks=ranks, hidden=hidden, padding=2, device=device)
    found, exact, _ = run(case)
    assert_rounded(found, exact)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("tile", [(16, 16, 16, 4, 1), (64, 32, 16, 4, 2), (32, 64, 64, 4, 2)])
def test_any_tile(device, tile, padding):
    case = Case(padding=padding, chunk_size=2, storage="rank_major", hidden=40, device=device)
    with tiles.forced(layer=tiles.MatrixTile(*tile)):
        for words in (True, False):
            found, exact, _ = run(replace(case, words=words))
            assert_rounded(found, exact)


def test_added_tokens_and_the_row_of_ids_without_one(device):
    case = Case(device=device)
    extra = case.random(len(case.ranks), 4, case.max_rank)
    found, exact, (ids, embedding, _, _) = run(case, extra_embeddings=extra, missing_row=7)
    assert_rounded(found, exact)
    nobody = (case.token_slots == 1) & (ids < 0)
    lonely = embedding_lora(ids, embedding, case.embedding_a(), case.b_table(80), case.batch(), 200, missing_row=7)
    assert torch.equal(lonely[nobody], embedding[7].expand_as(lonely[nobody]))


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_without_an_adapter_the_layer_is_its_base_row_bit_for_bit(device, padding, words):
    case = Case(ranks=(0, 0, 0, 0), padding=padding, words=words, dtype=torch.bfloat16, device=device)
    found, _, (ids, embedding, _, _) = run(case)
    inside = (ids >= 0) & (ids < case.vocab)
    assert torch.equal(found[inside], embedding[ids[inside]])
    assert not found[~inside].any()


def test_a_batch_that_is_known_to_have_no_adapter_writes_no_lora_and_a_refilled_one_does(device, monkeypatch):
    launched = []
    real = direct.Launch.__call__
    monkeypatch.setattr(direct.Launch, "__call__", lambda self, *given: (launched.append(self), real(self, *given)))
    bare = Case(ranks=(0, 0, 0, 0), device=device)
    run(bare)
    batch = bare.batch()
    embedding_lora_add(bare.random(51, 80), bare.ids(), bare.embedding_a(), bare.b_table(80), batch, 200)
    assert len(launched) == 1  # the base rows alone; nothing to add

    static = Case(ranks=(0, 0, 0, 0), padding=3, device=device)
    batch = static.batch()
    case = Case(padding=3, device=device)
    ids, embedding, a, b = case.ids(), case.random(200, 80), case.embedding_a(), case.b_table(80)
    embedding_lora(ids, embedding, a, b, batch, 200)
    batch.refill(case.lens, case.slots, case.ranks, case.scalings)
    found = embedding_lora(ids, embedding, a, b, batch, 200)
    assert_rounded(found, case.expected_layer(ids, embedding, a, b))


@pytest.mark.parametrize(("chunk_size", "padding", "words", "dtype"), PLANNED)
def test_adding_into_a_base_output_leaves_rows_without_adapter_alone(device, dtype, chunk_size, padding, words):
    case = Case(chunk_size=chunk_size, padding=padding, words=words, dtype=dtype, device=device)
    ids, a, b = case.ids(), case.embedding_a(), case.b_table(case.hidden)
    wide = case.random(case.tokens, case.hidden + 16)
    base = wide[:, 8 : 8 + case.hidden]  # rows of a wider tensor: nothing beside them may change
    before = wide.clone()
    found = embedding_lora_add(base, ids, a, b, case.batch(), case.vocab)
    lora = case.expected_layer(ids, torch.zeros(1, case.hidden, device=device), a, b)
    assert found is base
    assert_rounded(base, lora + before[:, 8 : 8 + case.hidden])
    untouched = (case.token_slots < 0) | (case.token_slots == 1)
    assert torch.equal(wide[untouched], before[untouched])
    assert torch.equal(wide[:, :8], before[:, :8])
    assert torch.equal(wide[:, 8 + case.hidden :], before[:, 8 + case.hidden :])


def test_a_static_batch_is_exact_after_every_refill(device):
    case = Case(padding=9, device=device)
    embedding, a, b = case.random(case.vocab, case.hidden), case.embedding_a(), case.b_table(case.hidden)
    batch = EmbeddingBatch.allocate(max_tokens=60, slots=4, segments=True, device=device)
    generator = torch.Generator().manual_seed(5)
    for _ in range(6):
        lens = torch.randint(0, 12, (5,), generator=generator).tolist()
        slots = torch.randint(0, 4, (5,), generator=generator).tolist()
        scalings = torch.rand(4, generator=generator).tolist()
        batch.refill(lens, slots, case.ranks, scalings)
        step = Case(lens=lens, slots=slots, padding=60 - sum(lens), device=device)
        step.scalings = scalings
        ids = step.ids()
        found = embedding_lora(ids, embedding, a, b, batch, case.vocab)
        assert_rounded(found, step.expected_layer(ids, embedding, a, b))


@pytest.mark.parametrize("static", [False, True])
def test_requests_in_the_order_of_the_tokens_as_sglangs_other_backend_has_them(device, static):
    case = Case(lens=(3, 1, 40, 7), slots=(0, 1, 2, 3), device=device)
    int32 = {"dtype": torch.int32, "device": device}
    info = SimpleNamespace(
        seg_indptr=torch.tensor([0, 3, 4, 44, 51], **int32),
        weight_indices=torch.tensor(case.slots, **int32),
        lora_ranks=torch.tensor(case.ranks, **int32),
        scalings=torch.tensor(case.scalings, device=device),
        max_len=8 if static else 40,  # the capture saw shorter requests
        permutation=None,
        num_segments=4,
        use_cuda_graph=static,
    )
    ids, embedding = case.ids(), case.random(case.vocab, case.hidden)
    a, b = case.embedding_a(), case.b_table(case.hidden)
    found = embedding_lora(ids, embedding, a, b, EmbeddingBatch.from_sglang(info), case.vocab)
    assert_rounded(found, case.expected_layer(ids, embedding, a, b))


def test_no_tokens_give_an_empty_output(device):
    case = Case(lens=(), slots=(), device=device)
    found, _, _ = run(case)
    assert found.shape == (0, case.hidden)


@pytest.mark.parametrize(
    ("tokens", "static", "words", "rank", "copied"),
    [
        (500, True, True, 8, "bare rows"),
        (3000, True, True, 8, "bare rows"),  # it may be replayed without an adapter
        (3000, True, False, 8, "padding"),
        (500, False, True, 8, "bare rows"),
        (3000, False, True, 8, "none"),
        (3000, False, True, 0, "all"),
    ],
)
def test_rows_without_adapter_are_found_as_fast_as_the_batch_allows(monkeypatch, tokens, static, words, rank, copied):
    monkeypatch.setattr(checks, "accept_host_tensors", True)
    seen = []
    monkeypatch.setattr(direct.Launch, "__call__", lambda self, *given: seen.append((self.kernel, self.constant)))
    planned = [tokens], [0], [rank, 0]
    if static:
        batch = EmbeddingBatch.allocate(max_tokens=tokens, slots=2, segments=True, device="cpu")
        batch.refill(*planned)
    else:
        batch = EmbeddingBatch.build(*planned, segments=True, device="cpu")
    batch = batch if words else batch.without_token_words()
    ids = torch.zeros(tokens, dtype=torch.int64)
    embedding_lora(ids, torch.zeros(9, 32), torch.zeros(2, 8, 9), torch.zeros(2, 32, 8), batch, 9)
    ((kernel, constants),) = seen
    assert kernel is (embedding_rows_kernel if copied == "all" else embedding_lora_kernel)
    if copied != "all":
        assert (constants.copy_bare, constants.copy_padding) == (copied == "bare rows", copied == "padding")


def call(**changes):
    case = Case()
    given = {
        "input_ids": torch.zeros(51, dtype=torch.int64),
        "embedding": torch.zeros(200, 80),
        "a_table": torch.zeros(4, 24, 200),
        "b_table": torch.zeros(4, 80, 24),
        "batch": case.batch(),
        "vocab_size": 200,
    }
    return embedding_lora(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"input_ids": torch.zeros(5, 5, dtype=torch.int64)}, ShapeError, "input_ids has shape (5, 5)"),
        ({"input_ids": torch.zeros(51)}, DtypeError, "input_ids is torch.float32"),
        ({"input_ids": torch.zeros(50, dtype=torch.int64)}, ShapeError, "50 tokens; expected 51"),
        ({"embedding": torch.zeros(200, 64)}, ShapeError, "embedding has shape (200, 64); expected (rows, 80)"),
        ({"embedding": torch.zeros(200, 80).half()}, DtypeError, "embedding is torch.float16; expected torch.float32"),
        ({"a_table": torch.zeros(24, 200)}, ShapeError, "a_table has shape (24, 200)"),
        ({"b_table": torch.zeros(4, 80, 16)}, ShapeError, "b_table has shape (4, 80, 16); expected (4, hidden, 24)"),
        ({"b_table": torch.zeros(4, 24, 80).mT}, ShapeError, "b_table has strides"),
        ({"vocab_size": 201}, ShapeError, "vocab_size is 201; expected 0 to 200"),
        ({"missing_row": 200}, ShapeError, "missing_row is 200; expected a row of embedding, 0 to 199"),
        ({"extra_embeddings": torch.zeros(4, 2, 8)}, ShapeError, "extra_embeddings has shape (4, 2, 8)"),
        ({"out": torch.zeros(51, 79)}, ShapeError, "out has shape (51, 79); expected (51, 80)"),
        ({"out": torch.zeros(1, 80).expand(51, 80)}, ShapeError, "out has strides (0, 1); expected rows"),
        ({"a_table": torch.zeros(4, 9, 200), "b_table": torch.zeros(4, 80, 9)}, ShapeError, "adapter of rank 24"),
        ({"a_table": torch.zeros(3, 24, 200), "b_table": torch.zeros(3, 80, 24)}, ShapeError, "4 slots; expected at"),
        ({"batch": EmbeddingBatch.build([51], [0], [8], device="cpu")}, ShapeError, "segments=True"),
        ({"batch": Case(padding=3).batch(), "input_ids": torch.zeros(99, dtype=torch.int64)}, CapacityError, "most 57"),
        ({"batch": Case(padding=3).batch(), "input_ids": torch.zeros(9, dtype=torch.int64)}, ShapeError, "least 51"),
    ],
)
def test_bad_input_is_named_with_what_would_be_right(monkeypatch, changes, kind, words):
    monkeypatch.setattr(checks, "accept_host_tensors", True)  # a GPU machine refuses them before it looks further
    monkeypatch.setattr(direct.Launch, "__call__", None)  # all is checked before anything runs
    with pytest.raises(kind) as error:
        call(**changes)
    assert words in str(error.value)
    assert isinstance(error.value, CsgmvEmbedError)


@pytest.mark.parametrize(
    ("scalings", "words"), [([1.0], "(1,); expected (4,)"), ([1, 2, NAN, 4], "scalings[2] is nan")]
)
def test_scalings_are_one_finite_number_a_slot(scalings, words):
    with pytest.raises(ShapeError) as error:
        EmbeddingBatch.build([1], [0], [1, 2, 3, 4], scalings=scalings, segments=True, device="cpu")
    assert words in str(error.value)


def test_host_tensors_are_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(checks, "accept_host_tensors", False)
    with pytest.raises(DeviceError, match="expected a CUDA device"):
        call(a_table=torch.zeros(4, 24, 230)[..., :200])
