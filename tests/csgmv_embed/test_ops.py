"""The op keeps its promises: bit for bit the oracle, whole output, no stray read, clear errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csgmv_embed import (
    CapacityError,
    DeviceError,
    DtypeError,
    EmbeddingBatch,
    ShapeError,
    embedding_lora_a,
    embedding_lora_a_reference,
    lookup,
    to_storage,
)
from csgmv_embed.launch import checks, direct, tiles
from csgmv_embed.launch.tiles import LookupTile

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EXTREME_IDS = {torch.int32: [-(2**31), 2**31 - 1], torch.int64: [-(2**62), 2**62]}


def make_table(slots: int, rank: int, columns: int, dtype: torch.dtype, storage: str, device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(slots * 1000 + rank)
    table = torch.randn(slots, rank, columns, generator=generator).to(device=device, dtype=dtype)
    if storage == "strided":
        wide = table.new_full((slots, 2 * rank, columns), float("nan"))
        wide[:, ::2] = table
        return wide[:, ::2]
    if storage == "padded_rows":
        wide = table.new_full((slots, columns, rank + 3), float("nan"))
        wide[:, :, :rank] = table.transpose(1, 2)
        return wide[:, :, :rank].transpose(1, 2)
    return to_storage(table, storage)  # type: ignore[arg-type]


@st.composite
def lookups(draw):
    """A batch, its table and ids, with everything the promise speaks of."""
    slots = draw(st.integers(1, 4))
    rank = draw(st.sampled_from([1, 5, 8, 12, 16, 24, 40]))
    vocab, added = draw(st.integers(0, 30)), draw(st.integers(0, 3))
    extra_tokens = draw(st.sampled_from([None, 0, 1, 4]))
    sequences = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, slots - 1)), max_size=5))
    lens, seq_slots = [length for length, _ in sequences], [slot for _, slot in sequences]
    id_dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    ranks = draw(st.lists(st.integers(0, rank), min_size=slots, max_size=slots))
    padding = draw(st.sampled_from([None, 0, 7]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    total = sum(lens) + (padding or 0)
    ids = torch.from_numpy(rng.integers(-4, vocab + 8, total)).to(id_dtype)
    strange = rng.random(total) < 0.1
    ids[torch.from_numpy(strange)] = EXTREME_IDS[id_dtype][int(rng.integers(2))]
    return SimpleNamespace(
        slots=slots,
        rank=rank,
        vocab=vocab,
        columns=vocab + added,
        extra_tokens=extra_tokens,
        lens=lens,
        seq_slots=seq_slots,
        ranks=ranks,
        ids=ids,
        padding=padding,
        dtype=draw(st.sampled_from(DTYPES)),
        storage=draw(st.sampled_from(["rank_major", "vocab_major", "strided", "padded_rows"])),
        plan=draw(st.sampled_from(["tokens", "segments"])),
        chunk_size=draw(st.sampled_from([1, 2, 16, 128])),
        out=draw(st.sampled_from(["none", "poisoned", "padded"])),
    )


def make_batch(case, device) -> EmbeddingBatch:
    if case.padding is None:
        batch = EmbeddingBatch.build(
            case.lens, case.seq_slots, case.ranks, chunk_size=case.chunk_size, segments=True, device=device
        )
    else:
        batch = EmbeddingBatch.allocate(
            max_tokens=len(case.ids),
            max_sequences=8,
            slots=case.slots,
            segments=True,
            chunk_size=case.chunk_size,
            device=device,
        )
        batch.refill(case.lens, case.seq_slots, case.ranks)
    return batch if case.plan == "tokens" else batch.without_token_words()


def make_out(case, device) -> torch.Tensor | None:
    if case.out == "none":
        return None
    width = case.rank + (5 if case.out == "padded" else 0)
    return torch.full((len(case.ids), width), float("nan"), dtype=case.dtype, device=device)[:, : case.rank]


@given(lookups())
def test_the_lookup_equals_the_oracle_bit_for_bit(device, case):
    table = make_table(case.slots, case.rank, case.columns, case.dtype, case.storage, device)
    extra = None
    if case.extra_tokens is not None:
        extra = torch.randn(case.slots, 2 * case.extra_tokens, case.rank, device=device).to(case.dtype)[:, ::2]
    ids = case.ids.to(device)
    out = embedding_lora_a(ids, table, make_batch(case, device), case.vocab, extra, make_out(case, device))
    token_slots = torch.from_numpy(np.repeat(case.seq_slots, case.lens).astype(np.int64)).to(device)
    tokens = len(token_slots)
    ranks = torch.tensor(case.ranks, device=device)
    expected = embedding_lora_a_reference(ids[:tokens], table, token_slots, ranks, case.vocab, extra)
    assert torch.equal(out[:tokens], expected)
    assert torch.equal(out[tokens:], torch.zeros_like(out[tokens:]))


@pytest.mark.parametrize("plan", ["tokens", "segments"])
@pytest.mark.parametrize("storage", ["rank_major", "vocab_major"])
def test_no_address_outside_the_tensors_is_read(monkeypatch, storage, plan):
    if torch.cuda.is_available():
        pytest.skip("reads are watched in the interpreter")
    from triton.runtime import interpreter

    table = make_table(3, 12, 20, torch.float32, storage, "cpu")
    extra = torch.randn(3, 2, 12)
    ids = torch.tensor([-1, 0, 19, 20, 21, 22, 23, 2**40, -(2**40), 18, 17] * 3)
    batch = EmbeddingBatch.build([20, 13], [2, 1], [12, 7, 12], segments=True, device="cpu")
    batch = batch if plan == "tokens" else batch.without_token_words()
    arrays = [batch.token_adapters, batch.permutation, batch.seg_indptr, batch.seg_slots, batch.ranks]
    known = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in (ids, table, extra, *arrays) if t is not None]
    real = interpreter._interpreter
    seen = 0

    def load(pointers, mask, other, dtype):
        nonlocal seen
        for address in np.broadcast_to(pointers, mask.shape)[mask.astype(bool)].ravel().tolist():
            seen += 1
            assert any(low <= address < high for low, high in known), hex(address)
        return real.load(pointers, mask, other, dtype)

    stand_in = SimpleNamespace(**{name: getattr(real, name) for name in dir(real) if not name.startswith("_")})
    stand_in.load = load
    monkeypatch.setattr(interpreter, "_interpreter", stand_in)
    embedding_lora_a(ids, table, batch, 20, extra)
    assert seen > 0


class CountedKernel:
    """A kernel that notes its launches."""

    def __init__(self, kernel, name, launches):
        self.kernel, self.name, self.launches = kernel, name, launches

    def __getitem__(self, grid):
        self.launches.append(self.name)
        return self.kernel[grid]


@pytest.mark.parametrize("plan", ["tokens", "segments"])
def test_one_kernel_is_launched_and_nothing_is_cleared_first(monkeypatch, plan, device):
    table, ids = torch.randn(1, 8, 20, device=device), torch.arange(5, device=device)
    batch = EmbeddingBatch.build([5], [0], [8], segments=True, device=device)
    batch = batch if plan == "tokens" else batch.without_token_words()
    launches: list[str] = []
    for name in ("tokens", "segments"):
        attribute = f"embedding_lora_a_{name}_kernel"
        monkeypatch.setattr(lookup, attribute, CountedKernel(getattr(lookup, attribute), name, launches))

    def refuse(*_, **__):
        raise AssertionError("the output was cleared by a launch of its own")

    monkeypatch.setattr(torch, "zeros", refuse)
    embedding_lora_a(ids, table, batch, 20)
    assert launches == [plan]


def test_no_tokens_give_an_empty_output_without_a_launch(device):
    table = torch.randn(2, 8, 20, device=device)
    batch = EmbeddingBatch.build([], [], [8, 8], segments=True, device=device)
    out = embedding_lora_a(torch.zeros(0, dtype=torch.int64, device=device), table, batch, 20)
    assert out.shape == (0, 8)


def call(**changes):
    """A correct call with some arguments replaced."""
    arguments = {
        "input_ids": torch.zeros(4, dtype=torch.int64),
        "a_table": torch.zeros(2, 8, 20),
        "batch": EmbeddingBatch.build([4], [0], [8, 8], segments=True, device="cpu"),
        "vocab_size": 20,
        "extra_embeddings": None,
        "out": None,
    }
    return embedding_lora_a(**(arguments | changes))


def static_batch(tokens: int) -> EmbeddingBatch:
    return EmbeddingBatch.allocate(max_tokens=tokens, slots=2, segments=True, device="cpu")


ERRORS = [
    ({"input_ids": torch.zeros(2, 2, dtype=torch.int64)}, ShapeError, r"input_ids .*expected contiguous \(tokens,\)"),
    ({"input_ids": torch.zeros(8, dtype=torch.int64)[::2]}, ShapeError, "input_ids .*strides"),
    ({"input_ids": torch.zeros(4)}, DtypeError, "input_ids is torch.float32; expected torch.int32 or torch.int64"),
    ({"input_ids": torch.zeros(5, dtype=torch.int64)}, ShapeError, "5 tokens; expected 4"),
    (
        {"input_ids": torch.zeros(4, dtype=torch.int64, device="meta")},
        DeviceError,
        "input_ids is on meta; expected cpu",
    ),
    ({"a_table": torch.zeros(8, 20)}, ShapeError, r"a_table .*expected \(slots, max_rank, vocab\)"),
    ({"a_table": torch.zeros(2, 8, 20, dtype=torch.float64)}, DtypeError, "a_table is torch.float64; expected one of"),
    ({"a_table": torch.zeros(1, 8, 20)}, ShapeError, "2 slots; expected at most 1"),
    ({"a_table": torch.zeros(2, 4, 20)}, ShapeError, "rank 8; expected at most 4"),
    ({"vocab_size": 21}, ShapeError, "vocab_size is 21; expected 0 to 20"),
    ({"vocab_size": -1}, ShapeError, "vocab_size is -1"),
    ({"extra_embeddings": torch.zeros(2, 8)}, ShapeError, r"extra_embeddings .*expected \(2, extra, 8\)"),
    ({"extra_embeddings": torch.zeros(2, 3, 7)}, ShapeError, r"extra_embeddings .*expected \(2, extra, 8\)"),
    ({"extra_embeddings": torch.zeros(2, 3, 8).half()}, DtypeError, "extra_embeddings is torch.float16; expected"),
    ({"extra_embeddings": torch.zeros(2, 3, 8, device="meta")}, DeviceError, "extra_embeddings is on meta"),
    ({"out": torch.zeros(4, 7)}, ShapeError, r"out has shape \(4, 7\).*expected \(4, 8\)"),
    ({"out": torch.zeros(8, 4).T}, ShapeError, "out has strides .*expected its last axis contiguous"),
    ({"out": torch.zeros(8).expand(4, 8)}, ShapeError, "out has strides .*expected rows that lie apart"),
    ({"vocab_size": 20.0}, ShapeError, r"vocab_size is 20\.0; expected an integer"),
    ({"out": torch.zeros(4, 8).half()}, DtypeError, "out is torch.float16; expected torch.float32"),
    ({"out": torch.zeros(4, 8, device="meta")}, DeviceError, "out is on meta; expected cpu"),
    ({"batch": static_batch(3)}, CapacityError, "4 tokens; expected at most 3"),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="host tensors are refused where kernels are compiled")
@pytest.mark.parametrize(("changes", "kind", "words"), ERRORS)
def test_bad_input_is_named_with_what_would_be_right(changes, kind, words):
    with pytest.raises(kind, match=words):
        call(**changes)


@pytest.fixture
def fresh():
    """Nothing is kept of other tests' calls."""
    direct.launches.clear()


def test_host_tensors_are_refused_outside_the_interpreter(monkeypatch, fresh):
    monkeypatch.setattr(checks, "accept_host_tensors", False)
    with pytest.raises(DeviceError, match="expected a CUDA device"):
        call()


def groups_of(table, out):
    """(a_width, out_width) of a launch on these tensors."""
    constants = lookup._constants(table, table.shape[2], None, out, LookupTile(4, 8, 4), False, False)
    return constants.a_width, constants.out_width


def test_accesses_are_no_wider_than_every_row_is_aligned() -> None:
    table, out = torch.zeros(2, 50, 24).transpose(1, 2), torch.zeros(4, 24)
    assert groups_of(table, out) == (4, 4)  # 16 bytes of float32
    assert groups_of(table.half(), out.half()) == (8, 8)
    assert groups_of(table, torch.zeros(4, 26)[:, :24]) == (4, 2)
    assert groups_of(table, torch.zeros(101)[1:97].view(4, 24)) == (4, 1)
    assert groups_of(torch.zeros(2401)[1:].view(2, 50, 24).transpose(1, 2), out) == (1, 4)
    assert groups_of(torch.zeros(2, 24, 50), out) == (1, 4)  # rank-major
    assert groups_of(torch.zeros(2, 50, 27)[:, :, :24].transpose(1, 2), out) == (1, 4)
    assert groups_of(torch.zeros(2, 50, 6).transpose(1, 2), torch.zeros(4, 6)) == (2, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="host tensors are refused where kernels are compiled")
def test_the_checks_of_one_call_are_not_taken_for_another(fresh):
    call()
    for changes, kind, words in ERRORS:
        with pytest.raises(kind, match=words):
            call(**changes)
    call(vocab_size=19)
    call(a_table=torch.zeros(2, 20, 8).transpose(1, 2))
    assert len(direct.launches) >= 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="host tensors are refused where kernels are compiled")
def test_a_vocab_size_from_numpy_is_as_good_as_an_int(fresh):
    call(vocab_size=np.int64(19))
    assert [type(launch.constant.vocab_size) for launch in direct.launches.values()] == [int]


def test_an_output_of_one_column_may_have_any_column_stride(device):
    table = torch.randn(1, 1, 20, device=device)
    out = torch.empty(1, 4, device=device).T
    batch = EmbeddingBatch.build([4], [0], [1], device=device)
    assert torch.equal(embedding_lora_a(torch.arange(4, device=device), table, batch, 20, out=out), table[0, :, :4].T)


def test_extra_tokens_behind_the_largest_vocabulary_are_found(device):
    vocab = 2**31 - 1
    table = torch.randn(1, 8, 1, device=device).expand(1, 8, vocab)
    extra = torch.randn(1, 4, 8, device=device)
    ids = torch.tensor([vocab - 1, vocab, vocab + 3, vocab + 4], device=device)
    batch = EmbeddingBatch.build([4], [0], [8], device=device)
    out = embedding_lora_a(ids, table, batch, vocab, extra)
    expected = [table[0, :, 0], extra[0, 0], extra[0, 3], torch.zeros(8, device=device)]
    assert torch.equal(out, torch.stack(expected))


def sglang_batch(device, seg_indptr, slots, ranks, permutation, *, chunk_size=16, static=False):
    """An SGLang LoRABatchInfo as far as the lookup reads it."""
    arrays = {"seg_indptr": seg_indptr, "weight_indices": slots, "lora_ranks": ranks, "permutation": permutation}
    return SimpleNamespace(
        use_cuda_graph=static,
        num_segments=len(slots),
        max_len=chunk_size,
        **{
            name: None if values is None else torch.tensor(values, dtype=torch.int32, device=device)
            for name, values in arrays.items()
        },
    )


def test_a_static_batch_longer_than_its_first_segments_is_exact_on_the_launch_made_for_them(device):
    """A captured launch keeps the grid of its capture; what it reads may later hold longer segments."""
    table, ids = torch.randn(2, 8, 50, device=device), torch.arange(40, device=device)
    info = sglang_batch(device, [0, 40, 40], [1, 0], [8, 8], list(range(40)), chunk_size=1, static=True)
    out = embedding_lora_a(ids, table, EmbeddingBatch.from_sglang(info), 50)
    assert torch.equal(out, table[1, :, :40].T)


@pytest.mark.parametrize("programs", [1, 2, 64])
def test_rows_behind_a_batch_are_zero_although_it_was_full_when_its_launch_was_chosen(device, monkeypatch, programs):
    """What a captured graph meets: launched when full, replayed with fewer tokens, on as many programs or fewer."""
    monkeypatch.setattr(tiles, "choose_lookup", lambda *_: LookupTile(2, 8, 1))
    monkeypatch.setattr(lookup, "MAX_PADDING_PROGRAMS", programs)
    direct.launches.clear()
    table, ids = torch.randn(2, 8, 50, device=device), torch.arange(12, device=device)
    static = EmbeddingBatch.allocate(max_tokens=12, slots=2, segments=True, device=device)
    view = static.without_token_words()
    static.refill([12], [1], [8, 8])
    captured = []
    monkeypatch.setattr(direct.Launch, "__call__", lambda *arguments: captured.append(arguments))
    out = embedding_lora_a(ids, table, view, 50)
    static.refill([5], [1], [8, 8])
    out.fill_(float("nan"))
    monkeypatch.undo()
    launch, *where = captured[0]
    launch(*where)
    assert torch.equal(out[:5], table[1, :, :5].T)
    assert torch.equal(out[5:], torch.zeros(7, 8, device=device))


def test_offsets_along_the_rank_axis_pass_two_to_the_31(device):
    stride = 2**30  # of the rank axis; the pages between are never touched
    memory = torch.empty(2 * stride + 8, dtype=torch.float16, device=device)
    table = memory.as_strided((1, 3, 8), (8, stride, 1))
    values = torch.randn(3, 8, device=device).half()
    for rank in range(3):
        table[0, rank].copy_(values[rank])
    out = embedding_lora_a(torch.arange(8, device=device), table, EmbeddingBatch.build([8], [0], [3], device=device), 8)
    assert torch.equal(out, values.T)


def test_ranks_and_slots_of_a_foreign_batch_beyond_the_table_read_nothing_outside(device: torch.device) -> None:
    table = torch.randn(9, 8, 20, device=device)[:2]
    slot_ranks = torch.tensor([8, 99, 8, 8, 8, 8, 8, 8, 8], dtype=torch.int32, device=device)[:2]
    info = SimpleNamespace(
        use_cuda_graph=False,
        num_segments=2,
        max_len=16,
        seg_indptr=torch.tensor([0, 2, 4], dtype=torch.int32, device=device),
        weight_indices=torch.tensor([1, 7], dtype=torch.int32, device=device),
        lora_ranks=slot_ranks,
        permutation=torch.arange(4, dtype=torch.int32, device=device),
    )
    out = embedding_lora_a(torch.arange(4, device=device), table, EmbeddingBatch.from_sglang(info), 20)
    assert torch.equal(out[:2], table[1, :, :2].T)
    assert torch.equal(out[2:], torch.zeros(2, 8, device=device))
