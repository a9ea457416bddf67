"""What every op asks of its operands, each op with each operand: what is wrong is named, nothing is misread."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import csgmv_embed
from csgmv_embed import CapacityError, DtypeError, EmbeddingBatch, ShapeError
from csgmv_embed.batch.plan import integer

LENS, SLOTS, RANKS, MAX_RANK = [3, 2], [1, 0], [16, 8], 16
TOKENS, VOCAB, HIDDEN = 5, 20, 16


def planned(device: torch.device, lens: list[int] = LENS) -> EmbeddingBatch:
    return EmbeddingBatch.build(lens, SLOTS, RANKS, tiles=True, device=device)


def static(device: torch.device, room: int = 3) -> EmbeddingBatch:
    batch = EmbeddingBatch.allocate(max_tokens=TOKENS + room, slots=2, tiles=True, device=device)
    batch.refill(LENS, SLOTS, RANKS)
    return batch


def foreign(device: torch.device) -> EmbeddingBatch:
    return EmbeddingBatch.from_sglang(sglang_info(device))


def sglang_info(device: torch.device) -> SimpleNamespace:
    batch = planned(device)
    return SimpleNamespace(
        seg_indptr=batch.seg_indptr,
        weight_indices=batch.seg_slots,
        lora_ranks=batch.ranks,
        permutation=batch.permutation,
        scalings=batch.scalings,
        max_len=16,
        num_segments=batch.num_segments,
        use_cuda_graph=False,
    )


BATCHES: dict[str, Callable[[torch.device], EmbeddingBatch]] = {
    "built": planned,
    "built, segments": lambda device: planned(device).without_token_words(),
    "static": static,
    "static, segments": lambda device: static(device).without_token_words(),
    "sglang's": foreign,
}

# The operands of each op that have a row for each token, and those that have not.
ROWS = {
    "embedding_lora_a": ("input_ids", "out"),
    "embedding_lora": ("input_ids", "out"),
    "embedding_lora_add": ("base_output", "input_ids"),
    "lora_linear": ("x", "out"),
    "lora_shrink": ("x", "out"),
    "lora_expand": ("shrunk", "out"),
}
ALLOCATES = ("embedding_lora_a", "embedding_lora", "lora_shrink")  # without an output of its own
OTHERS = {
    "embedding_lora_a": ("a_table", "extra_embeddings"),
    "embedding_lora": ("embedding", "a_table", "b_table", "extra_embeddings"),
    "embedding_lora_add": ("a_table", "b_table", "extra_embeddings"),
    "lora_linear": ("a_table", "b_table"),
    "lora_shrink": ("a_table",),
    "lora_expand": ("b_table",),
}
every_op = pytest.mark.parametrize("name", ROWS)
OPERANDS = [(op, operand) for op in ROWS for operand in (*ROWS[op], *OTHERS[op])]
every_operand = pytest.mark.parametrize(("name", "operand"), OPERANDS)
every_lookup = pytest.mark.parametrize("name", [op for op in ROWS if op.startswith("embedding")])


def call(name: str, device: torch.device, rows: int = TOKENS, **changes: Any) -> torch.Tensor:
    """A correct call with some arguments replaced."""
    given = arguments(name, device, rows)
    assert changes.keys() <= given.keys() | {"missing_row"}
    found: torch.Tensor = getattr(csgmv_embed, name)(**(given | changes))
    return found


def arguments(name: str, device: torch.device, rows: int = TOKENS) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    head = name.startswith(("lm_head", "lora"))  # or a linear layer: VOCAB are the columns of its output
    columns = VOCAB if head else HIDDEN
    if name == "embedding_lora_a" or name.endswith("shrink"):
        columns = MAX_RANK
    operands = {
        "input_ids": torch.arange(rows, device=device),
        "hidden_states": draw(rows, HIDDEN),
        "x": draw(rows, HIDDEN),
        "shrunk": draw(rows, MAX_RANK),
        "base_output": draw(rows, HIDDEN),
        "out": draw(rows, columns),
        "logits": draw(rows, VOCAB),
        "embedding": draw(VOCAB, HIDDEN),
        "a_table": draw(2, MAX_RANK, HIDDEN if head else VOCAB),
        "b_table": draw(2, VOCAB if head else HIDDEN, MAX_RANK),
        "extra_embeddings": draw(2, 3, MAX_RANK),
    }
    others = {} if head else {"vocab_size": VOCAB}
    return {at: operands[at] for at in (*ROWS[name], *OTHERS[name])} | others | {"batch": planned(device)}


@every_operand
@pytest.mark.parametrize("allocated", [True, False])
def test_operands_of_too_few_axes(device, name, operand, allocated):
    """Those of the op's own output, too."""
    for axes in range(len(arguments(name, device)[operand].shape)):
        made = torch.zeros((4,) * axes, device=device)
        output = {} if allocated or operand == "out" or name not in ALLOCATES else {"out": None}
        with pytest.raises(ShapeError) as error:
            call(name, device, **{operand: made.long() if operand == "input_ids" else made}, **output)
        assert f"{operand} has shape {(4,) * axes}" in str(error.value)


@every_operand
def test_an_operand_whose_memory_holds_other_values_is_refused(device, name, operand):
    """The negative bit, after a call that differs in it alone; what resolves it is taken."""
    right = call(name, device).clone()
    given = arguments(name, device)[operand]
    negated = torch._neg_view(-given)
    assert negated.is_neg() and torch.equal(negated, given)
    with pytest.raises(DtypeError, match=f"{operand} has the negative bit.*resolve_neg"):
        call(name, device, **{operand: negated})
    assert torch.equal(call(name, device, **{operand: negated.resolve_neg()}), right)


@every_operand
def test_conjugated_operands_are_complex_and_so_refused(device, name, operand):
    call(name, device)
    conjugated = arguments(name, device)[operand].to(torch.complex64).conj()
    assert conjugated.is_conj()
    with pytest.raises(DtypeError, match=f"{operand} is torch.complex64"):
        call(name, device, **{operand: conjugated})


def test_the_imaginary_part_of_a_conjugate_is_no_table(device):
    """As one comes by a negative bit: float32, of strides that an A table may have."""
    values = torch.complex(*torch.randn(2, 2, MAX_RANK, VOCAB)).to(device)
    assert torch.equal(
        call("embedding_lora_a", device, a_table=values.imag),
        call("embedding_lora_a", device, a_table=values.imag.contiguous()),
    )
    with pytest.raises(DtypeError, match="a_table has the negative bit"):
        call("embedding_lora_a", device, a_table=values.conj().imag)


@pytest.mark.parametrize("array", ["seg_indptr", "weight_indices", "lora_ranks", "permutation", "scalings"])
def test_arrays_of_sglang_are_what_their_memory_holds(device, array):
    info = sglang_info(device)
    for given, kind, words in (
        (torch._neg_view(getattr(info, array)), DtypeError, "has the negative bit"),
        (getattr(info, array).double(), DtypeError, "is torch.float64; expected"),
        (getattr(info, array)[0], ShapeError, r"has shape \(\)"),
        (getattr(info, array)[:1].expand(4), ShapeError, r"has shape \(4,\), strides \(0,\); expected"),
    ):
        with pytest.raises(kind, match=f"batch_info.{array} {words}"):
            EmbeddingBatch.from_sglang(SimpleNamespace(**(vars(info) | {array: given})))


NO_INTEGERS = (True, False, 1.0, 1.5, "1", np.True_, np.float64(1), torch.tensor(True), torch.tensor(1.0), [1])


@every_lookup
@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_vocab_size_is_an_integer(device, name, value):
    for known in (0, 1):  # what True and 1.0 are equal to
        call(name, device, vocab_size=known)
    with pytest.raises(ShapeError, match="vocab_size is .*; expected an integer"):
        call(name, device, vocab_size=value)


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_missing_row_is_an_integer(device, value):
    for known in (0, 1):
        call("embedding_lora", device, missing_row=known)
    with pytest.raises(ShapeError, match="missing_row is .*; expected an integer"):
        call("embedding_lora", device, missing_row=value)


@pytest.mark.parametrize("value", [-1, -2, VOCAB])
def test_missing_row_is_a_row_of_the_embedding(device, value):
    with pytest.raises(ShapeError, match=f"missing_row is {value}; expected a row of embedding"):
        call("embedding_lora", device, missing_row=value)


@every_lookup
@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_integers_of_other_libraries_are_integers(device, name, kind):
    assert torch.equal(call(name, device, vocab_size=kind(7)), call(name, device, vocab_size=7))


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_sizes_of_a_batch_are_integers(value):
    with pytest.raises(ShapeError, match="chunk_size is .*; expected an integer"):
        EmbeddingBatch.build(LENS, SLOTS, RANKS, chunk_size=value, device="cpu")
    assert integer("size", np.int32(3)) == 3


@every_op
@pytest.mark.parametrize("batch", BATCHES)
def test_no_rows_go_with_any_batch(device, name, batch):
    """A rank that idles runs its layers so, while the last batch that it worked on is still planned."""
    if name.startswith("lora") and batch == "sglang's":
        pytest.skip("SGLang plans no tiles")
    expected = arguments(name, device, 0)[[at for at in ROWS[name] if at != "input_ids"][-1]].shape
    assert expected[0] == 0
    assert call(name, device, 0, batch=BATCHES[batch](device)).shape == expected
    if name in ALLOCATES:
        assert call(name, device, 0, batch=BATCHES[batch](device), out=None).shape == expected


@every_op
@pytest.mark.parametrize("batch", ["static", "static, segments"])
def test_a_static_batch_may_hold_fewer_tokens_than_there_are_rows_not_more(device, name, batch):
    call(name, device, TOKENS + 3, batch=BATCHES[batch](device))
    with pytest.raises(ShapeError, match="4 tokens; expected at least 5, those of the batch"):
        call(name, device, TOKENS - 1, batch=BATCHES[batch](device))
    with pytest.raises(CapacityError, match="9 tokens; expected at most 8, as allocated"):
        call(name, device, TOKENS + 4, batch=BATCHES[batch](device))


@every_op
def test_a_batch_of_its_own_size_has_as_many_tokens_as_there_are_rows(device, name):
    for rows in (TOKENS - 1, TOKENS + 1):
        with pytest.raises(ShapeError, match=f"{rows} tokens; expected 5, the tokens of the batch"):
            call(name, device, rows)
