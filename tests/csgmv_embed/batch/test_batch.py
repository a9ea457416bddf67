"""EmbeddingBatch: csgmv's structure, token words, static buffers, views of SGLang's batch infos."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from unittest import mock

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
    SlotError,
    embedding_lora_a,
)
from csgmv_embed.batch import BatchCapacity
from csgmv_embed.batch.staging import LAP, LAPS

ARRAYS = ("token_adapters", "permutation", "seg_indptr", "seg_slots", "ranks")


@st.composite
def batches(draw, max_len=40):
    slots = draw(st.integers(1, 5))
    sequences = draw(st.lists(st.tuples(st.integers(0, max_len), st.integers(0, slots - 1)), max_size=8))
    ranks = draw(st.lists(st.sampled_from([0, 1, 16, 64]), min_size=slots, max_size=slots))
    return [length for length, _ in sequences], [slot for _, slot in sequences], ranks


def model(lens, slots, ranks, chunk_size):
    """The same plan, one token after another."""
    token_slots = [slot for length, slot in zip(lens, slots, strict=True) for _ in range(length)]
    permutation = sorted(range(len(token_slots)), key=lambda token: token_slots[token])
    segments: list[tuple[int, int, int]] = []
    for position, token in enumerate(permutation):
        slot = token_slots[token]
        if segments and segments[-1][0] == slot and position - segments[-1][1] < chunk_size:
            segments[-1] = (slot, segments[-1][1], position + 1)
        else:
            segments.append((slot, position, position + 1))
    words = [slot << 16 | ranks[slot] if ranks[slot] else 0 for slot in token_slots]
    return words, permutation, segments


@given(batches(), st.sampled_from([1, 2, 16, 128]))
def test_the_plan_equals_a_token_by_token_model(batch_input, chunk_size):
    lens, slots, ranks = batch_input
    batch = EmbeddingBatch.build(lens, slots, ranks, chunk_size=chunk_size, segments=True, device="cpu")
    words, permutation, segments = model(lens, slots, ranks, chunk_size)
    assert batch.token_adapters.tolist() == words
    assert batch.permutation.tolist() == permutation
    count = len(segments)
    assert batch.seg_slots.tolist()[:count] == [slot for slot, _, _ in segments]
    assert batch.seg_indptr.tolist()[:count] == [start for _, start, _ in segments]
    assert set(batch.seg_indptr.tolist()[count:]) == {sum(lens)}
    assert batch.ranks.tolist() == ranks
    assert (batch.num_tokens, batch.max_rank) == (sum(lens), max(ranks))


@given(batches(), st.sampled_from([1, 3, 16]))
def test_max_segments_is_enough_for_every_batch_that_fits(batch_input, chunk_size):
    lens, slots, ranks = batch_input
    capacity = BatchCapacity(sum(lens), len(lens), len(ranks), chunk_size, segments=True)
    assert len(model(lens, slots, ranks, chunk_size)[2]) <= capacity.max_segments


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunk_size", [16, 32])
def test_the_segments_are_those_of_sglang(chunk_size):
    backend_module = pytest.importorskip("sglang.srt.lora.backend.chunked_backend")
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    backend = backend_module.ChunkedSgmvLoRABackend
    lens, slots = [5, 70, 1, 33, 16, 2], [2, 0, 2, 1, 0, 1]
    forward_batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        batch_size=len(lens),
        extend_seq_lens=torch.tensor(lens, dtype=torch.int32),
        extend_seq_lens_cpu=lens,
    )
    real = {name: getattr(torch, name) for name in ("empty", "tensor")}
    unpinned = {name: lambda *a, _f=f, pin_memory=False, **k: _f(*a, **k) for name, f in real.items()}
    with mock.patch.multiple(torch, **unpinned):
        permutation, reordered = backend._get_permutation(slots, forward_batch)
        seg_slots, seg_indptr = backend._get_segments_info(None, reordered, chunk_size)
    batch = EmbeddingBatch.build(lens, slots, [8, 8, 8], chunk_size=chunk_size, segments=True, device="cpu")
    assert batch.permutation.tolist() == permutation.tolist()
    assert batch.seg_slots.tolist()[: len(seg_slots)] == seg_slots.tolist()
    assert batch.seg_indptr.tolist()[: len(seg_indptr)] == seg_indptr.tolist()


def test_a_refill_keeps_addresses_and_leaves_nothing_of_the_batch_before():
    static = EmbeddingBatch.allocate(max_tokens=100, slots=3, segments=True, device="cpu")
    addresses = [getattr(static, name).data_ptr() for name in ARRAYS]
    for _ in range(LAPS * LAP):  # each staging buffer has held the larger batch
        static.refill([60, 40], [2, 1], [4, 5, 6])
    static.refill([3], [1], [4, 5, 6])
    fresh = EmbeddingBatch.allocate(max_tokens=100, slots=3, segments=True, device="cpu")
    fresh.refill([3], [1], [4, 5, 6])
    assert [getattr(static, name).data_ptr() for name in ARRAYS] == addresses
    for name in ARRAYS:
        assert torch.equal(getattr(static, name), getattr(fresh, name)), name
    assert static.token_adapters.tolist()[3:] == [0] * 97
    assert set(static.seg_indptr.tolist()[1:]) == {3}


@pytest.mark.parametrize(
    ("lens", "slots", "ranks", "words"),
    [
        ([9], [0], [8, 8], "9 tokens; expected at most 8"),
        ([1] * 4, [0] * 4, [8, 8], "4 sequences; expected at most 3"),
        ([1], [0], [8, 8, 8], "3 slots; expected 2"),
    ],
)
def test_a_batch_over_capacity_changes_nothing(lens, slots, ranks, words):
    static = EmbeddingBatch.allocate(max_tokens=8, max_sequences=3, slots=2, segments=True, device="cpu")
    static.refill([5, 2], [1, 0], [8, 4])
    before = [getattr(static, name).clone() for name in ARRAYS]
    with pytest.raises(CapacityError, match=words):
        static.refill(lens, slots, ranks)
    assert all(torch.equal(getattr(static, name), old) for name, old in zip(ARRAYS, before, strict=True))
    assert static.num_tokens == 7


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (([1, 2], [0], [8]), ShapeError, "seq_slots has 1 entries; expected 2"),
        (([1], [1], [8]), SlotError, r"seq_slots\[0\] is 1; expected a value in \[0, 0\]"),
        (([1], [-1], [8]), SlotError, r"seq_slots\[0\] is -1"),
        (([3, -2], [0, 0], [8]), SlotError, r"seq_lens\[1\] is -2"),
        (([1], [0], [-8]), SlotError, r"ranks\[0\] is -8"),
        (([1], [0], [1 << 16]), SlotError, r"ranks\[0\] is 65536"),
        (([1], [0], [8] * 32769), SlotError, "32769 slots; expected at most 32768"),
        (([1.5], [0], [8]), ShapeError, "seq_lens is 1-D of float64; expected a 1-D sequence of integers"),
        (([[1]], [0], [8]), ShapeError, "seq_lens is 2-D"),
        ((np.array([True]), [0], [8]), ShapeError, "seq_lens is 1-D of bool"),
        (([[1], [2, 3]], [0], [8]), ShapeError, "seq_lens is a list; expected a 1-D sequence of integers on the host"),
        (([1, 2**70], [0, 0], [8]), ShapeError, "seq_lens is 1-D of object"),
        ((np.array([1, 2**64 - 1], dtype=np.uint64), [0, 0], [8]), SlotError, r"seq_lens\[1\] is 18446744073709551615"),
        ((torch.ones(1, device="meta"), [0], [8]), ShapeError, "seq_lens is a Tensor; expected .* on the host"),
        ((None, [0, 1], [8]), SlotError, r"seq_slots\[1\] is 1; expected a value in \[0, 0\]"),
        (([1], [0], []), SlotError, r"seq_slots\[0\] is 0; expected a value in \[0, -1\]"),
    ],
)
def test_bad_values_are_named(arguments, kind, words):
    with pytest.raises(kind, match=words):
        EmbeddingBatch.build(*arguments, segments=True, device="cpu")


def test_bad_sizes_are_named():
    with pytest.raises(SlotError, match="chunk_size is 0"):
        EmbeddingBatch.build([1], [0], [8], chunk_size=0, segments=True, device="cpu")
    with pytest.raises(SlotError, match=r"max_tokens is -1; expected a value in \[0, 2147483647\]"):
        EmbeddingBatch.allocate(max_tokens=-1, slots=2, device="cpu")
    with pytest.raises(SlotError, match=r"slots is 32769; expected a value in \[0, 32768\]"):
        EmbeddingBatch.allocate(max_tokens=1, slots=32769, device="cpu")
    with pytest.raises(SlotError, match="max_sequences is -1"):
        EmbeddingBatch.allocate(max_tokens=1, slots=2, max_sequences=-1, device="cpu")
    with pytest.raises(CapacityError, match="seq_lens sum to 2147483648 tokens; expected at most 2147483647"):
        EmbeddingBatch.build([2**30, 2**30], [0, 0], [8], device="cpu")
    with pytest.raises(ShapeError, match="planned without csgmv's structure; expected one made with segments=True"):
        EmbeddingBatch.build([1], [0], [8], device="cpu").without_token_words()
    with pytest.raises(CapacityError, match=r"EmbeddingBatch\.allocate"):
        EmbeddingBatch.build([1], [0], [8], segments=True, device="cpu").refill([1], [0], [8])


def test_a_foreign_default_device_does_not_move_the_buffers():
    with torch.device("meta"):
        static = EmbeddingBatch.allocate(max_tokens=4, slots=1, segments=True, device="cpu")
        static.refill([2], [0], [8])
    assert static.token_adapters.tolist() == [8, 8, 0, 0]


def sglang_info(device, **changes):
    """What SGLang's csgmv backend prepares for lengths [3, 2] in slots [1, 0], chunk size 16."""
    ints = {"dtype": torch.int32, "device": device}
    fields = {
        "use_cuda_graph": False,
        "bs": 2,
        "num_segments": 2,
        "max_len": 16,
        "seg_indptr": torch.tensor([0, 2, 5], **ints),
        "weight_indices": torch.tensor([0, 1], **ints),
        "lora_ranks": torch.tensor([8, 4], **ints),
        "permutation": torch.tensor([3, 4, 0, 1, 2], **ints),
    }
    return SimpleNamespace(**(fields | changes))


INFOS = {
    "csgmv eager": {},
    "csgmv graph": {
        "use_cuda_graph": True,
        "seg_indptr": torch.tensor([0, 2, 5, 5, 5], dtype=torch.int32),
        "weight_indices": torch.tensor([0, 1, 0, 0], dtype=torch.int32),
        "permutation": torch.tensor([3, 4, 0, 1, 2, 9, 9], dtype=torch.int32),
    },
    "triton eager": {
        "permutation": None,
        "max_len": 3,
        "seg_indptr": torch.tensor([0, 3, 5], dtype=torch.int32),
        "weight_indices": torch.tensor([1, 0], dtype=torch.int32),
        "lora_ranks": torch.tensor([8, 4], dtype=torch.int64),
    },
}


@pytest.mark.parametrize("kind", INFOS)
def test_sglangs_batch_infos_drive_the_lookup_as_they_are(kind, device):
    changes = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in INFOS[kind].items()}
    table = torch.randn(2, 8, 20, device=device)
    padding = 2 if kind == "csgmv graph" else 0
    ids = torch.arange(5 + padding, device=device)
    out = embedding_lora_a(ids, table, EmbeddingBatch.from_sglang(sglang_info(device, **changes)), 20)
    expected = torch.zeros(5 + padding, 8, device=device)
    expected[:3, :4] = table[1, :4, :3].T
    expected[3:5] = table[0, :, 3:5].T
    assert torch.equal(out, expected)


@pytest.mark.parametrize("field", ["seg_indptr", "weight_indices", "lora_ranks", "max_len"])
def test_a_batch_info_that_was_not_prepared_is_refused(field):
    with pytest.raises(ShapeError, match=f"batch_info.{field} is None or missing"):
        EmbeddingBatch.from_sglang(sglang_info("cpu", **{field: None}))


def test_numpy_and_list_input_plan_alike():
    from_lists = EmbeddingBatch.build([3, 2], [1, 0], [8, 4], segments=True, device="cpu")
    from_arrays = EmbeddingBatch.build(
        np.array([3, 2]), np.array([1, 0], np.int32), np.array([8, 4]), segments=True, device="cpu"
    )
    assert all(torch.equal(getattr(from_lists, name), getattr(from_arrays, name)) for name in ARRAYS)


def test_a_view_follows_the_refills_of_its_batch():
    static = EmbeddingBatch.allocate(max_tokens=10, slots=2, segments=True, device="cpu")
    view = static.without_token_words()
    static.refill([3, 2], [1, 0], [4, 64])
    assert (view.num_tokens, view.max_rank) == (5, 64)
    with pytest.raises(ShapeError, match="rank 64; expected at most 8"):
        embedding_lora_a(torch.zeros(5, dtype=torch.int64), torch.zeros(2, 8, 20), view, 20)


def test_without_segments_the_words_are_the_same_and_the_structure_is_absent():
    arguments = ([3, 0, 2], [1, 0, 0], [4, 64])
    alone, full = (EmbeddingBatch.build(*arguments, segments=segments, device="cpu") for segments in (False, True))
    assert alone.token_adapters.tolist() == full.token_adapters.tolist()
    assert [alone.permutation, alone.seg_indptr, alone.seg_slots, alone.ranks] == [None] * 4


def test_without_lengths_every_sequence_has_one_token():
    for segments in (False, True):
        batch, same = (
            EmbeddingBatch.build(lens, [1, 0, 1], [4, 64], segments=segments, device="cpu") for lens in (None, [1] * 3)
        )
        for name in ARRAYS:
            mine, theirs = getattr(batch, name), getattr(same, name)
            assert (mine is None and theirs is None) or mine.tolist() == theirs.tolist()
        assert batch.num_tokens == 3


@pytest.mark.parametrize("num_slots", [1, 9, 256, 257])
def test_slots_of_a_list_are_those_of_an_array_and_as_strict(num_slots):
    """A list of slots that fit a byte is read another way."""
    last = num_slots - 1
    for good in ([], [last], [0, last, 0], [last] * 300):
        batch = EmbeddingBatch.build(None, good, [8] * num_slots, segments=True, device="cpu")
        assert batch.token_adapters.tolist() == [slot << 16 | 8 for slot in good]
        grouped = sorted(range(len(good)), key=good.__getitem__)
        assert batch.permutation.tolist() == grouped
    for bad, kind in (([0, num_slots], SlotError), ([-1], SlotError), ([1 << 70], ShapeError), ([0.0], ShapeError)):
        with pytest.raises(kind, match="seq_slots"):
            EmbeddingBatch.build(None, bad, [8] * num_slots, device="cpu")


def test_ranks_changed_in_place_are_seen():
    static = EmbeddingBatch.allocate(max_tokens=2, slots=2, device="cpu")
    for ranks in ([4, 8], np.array([4, 8])):
        static.refill(None, [0, 1], ranks)
        ranks[1] = 2
        static.refill(None, [0, 1], ranks)
        assert static.token_adapters.tolist() == [4, 1 << 16 | 2]
        assert static.max_rank == 4


def test_sizes_may_be_numpy_integers_and_nothing_else():
    batch = EmbeddingBatch.allocate(max_tokens=np.int64(4), slots=np.int32(2), chunk_size=np.int64(16), device="cpu")
    assert {type(size) for size in (batch.max_tokens, batch.slots, batch.chunk_size, batch.num_segments)} == {int}
    with pytest.raises(ShapeError, match=r"max_tokens is 4\.0; expected an integer"):
        EmbeddingBatch.allocate(max_tokens=4.0, slots=2, device="cpu")


def test_a_batch_made_in_inference_mode_is_refilled_outside_it():
    with torch.inference_mode():
        static = EmbeddingBatch.allocate(max_tokens=2, slots=1, device="cpu")
    static.refill([2], [0], [8])
    assert static.token_adapters.tolist() == [8, 8]


def test_a_batch_is_not_copied():
    batch = EmbeddingBatch.build([1], [0], [8], device="cpu")
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled; expected another one"):
            duplicate(batch)


def foreign(**changes):
    arrays = {
        "seg_indptr": torch.tensor([0, 2, 4]),
        "weight_indices": torch.tensor([1, 0]),
        "lora_ranks": torch.tensor([8, 8]),
        "permutation": torch.arange(4),
    }
    arrays = {name: tensor.int() for name, tensor in arrays.items()}
    return SimpleNamespace(**({"use_cuda_graph": False, "num_segments": 2, "max_len": 16} | arrays | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (
            {"permutation": torch.zeros(8, dtype=torch.int32)[::2]},
            ShapeError,
            "has shape .4,., strides .2,.",
        ),
        ({"seg_indptr": torch.zeros(3)}, DtypeError, "seg_indptr is torch.float32; expected torch.int32 or"),
        ({"lora_ranks": torch.zeros(2, 1, dtype=torch.int32)}, ShapeError, r"lora_ranks has shape \(2, 1\)"),
        (
            {"weight_indices": torch.zeros(2, dtype=torch.int32, device="meta")},
            DeviceError,
            "weight_indices is on meta; expected cpu",
        ),
        ({"num_segments": None}, ShapeError, "num_segments is None; expected an integer"),
        ({"max_len": -1}, SlotError, "max_len is -1"),
    ],
)
def test_a_foreign_batch_that_the_kernels_cannot_read_is_refused(changes, kind, words):
    with pytest.raises(kind, match=words):
        EmbeddingBatch.from_sglang(foreign(**changes))


def test_a_foreign_batch_may_hold_64_bit_integers_no_permutation_and_empty_sequences():
    table, ids = torch.randn(2, 8, 20), torch.arange(4)
    wide = {name: getattr(foreign(), name).long() for name in ("seg_indptr", "weight_indices", "lora_ranks")}
    out = embedding_lora_a(ids, table, EmbeddingBatch.from_sglang(foreign(**wide)), 20)
    assert torch.equal(out, torch.cat([table[1, :, :2].T, table[0, :, 2:4].T]))
    info = foreign(max_len=0, seg_indptr=torch.zeros(3, dtype=torch.int32), permutation=None)
    del info.permutation  # the triton backend of older versions
    out = embedding_lora_a(ids, table, EmbeddingBatch.from_sglang(info), 20, out=torch.full((4, 8), float("nan")))
    assert torch.equal(out, torch.zeros(4, 8))
