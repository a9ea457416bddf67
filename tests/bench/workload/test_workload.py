"""Workloads: lengths, slots, ids and tables are what the case says, and depend on the case and the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.model.case import Case
from bench.workload import oracle, traffic
from bench.workload.tensors import (
    Workload,
    adapter_ranks,
    case_seed,
    make_table,
    make_workload,
    request_slots,
    sequence_lengths,
)
from csgmv_embed import storage_of

CPU = torch.device("cpu")
TINY = Case("prefill", 4, 3, 4, adapters=3, vocab=50)


def made(case: Case = TINY, seed: int = 1, sets: int = 2) -> Workload:
    return make_workload(case, seed=seed, index_sets=sets, device=CPU)


def slots_of(mix: str, *, count: int = 64, adapters: int = 8, base: float = 0.0, seed: int = 0) -> list[int]:
    case = Case("decode", count, 1, 4, mix=mix, adapters=adapters, base_fraction=base)
    return request_slots(case, np.random.default_rng(seed)).tolist()


@given(
    phase=st.sampled_from(["decode", "prefill", "mixed"]),
    batch_size=st.integers(1, 100),
    seq_len=st.integers(1, 200),
    skew=st.floats(0, 5),
)
def test_lengths_sum_to_the_total_and_are_at_least_one(phase: str, batch_size: int, seq_len: int, skew: float) -> None:
    case = Case(phase, batch_size, seq_len, 16, skew=skew)
    lengths = sequence_lengths(case)
    assert len(lengths) == batch_size
    assert lengths.sum() == case.num_tokens
    assert lengths.min() >= 1
    assert (lengths[case.num_prefills :] == 1).all()
    assert (np.diff(lengths[: case.num_prefills]) <= 0).all()


@given(batch_size=st.integers(1, 100), seq_len=st.integers(1, 200))
def test_without_skew_lengths_are_equal(batch_size: int, seq_len: int) -> None:
    assert (sequence_lengths(Case("prefill", batch_size, seq_len, 16)) == seq_len).all()


@given(batch_size=st.integers(2, 64), seq_len=st.integers(2, 200), skews=st.tuples(st.floats(0, 4), st.floats(0, 4)))
def test_more_skew_makes_the_longest_no_shorter(batch_size: int, seq_len: int, skews: tuple[float, float]) -> None:
    little, much = (sequence_lengths(Case("prefill", batch_size, seq_len, 16, skew=skew)) for skew in sorted(skews))
    assert much[0] >= little[0]


def test_lengths_by_hand() -> None:
    # 4 requests, 4*13-4 = 48 spare tokens in shares 1 : 1/2 : 1/3 : 1/4 -> 23.04, 11.52, 7.68, 5.76
    assert sequence_lengths(Case("prefill", 4, 13, 16, skew=1.0)).tolist() == [24, 12, 9, 7]
    assert sequence_lengths(Case("mixed", 16, 5, 16)).tolist() == [5, 5] + [1] * 14
    assert sequence_lengths(Case("decode", 3, 1, 16)).tolist() == [1, 1, 1]


def test_slots_of_one_and_distinct() -> None:
    assert slots_of("one") == [0] * 64
    assert slots_of("distinct", count=9, adapters=9) == list(range(9))


@given(count=st.integers(1, 100), adapters=st.integers(1, 20), seed=st.integers(0, 9))
def test_uniform_slots_are_balanced(count: int, adapters: int, seed: int) -> None:
    used = np.bincount(slots_of("uniform", count=count, adapters=adapters, seed=seed), minlength=adapters)
    assert len(used) == adapters
    assert used.max() - used.min() <= 1


def test_uniform_slots_are_not_in_order() -> None:
    assert slots_of("uniform") != [index % 8 for index in range(64)]


def test_zipf_favours_the_first_slot_in_proportion() -> None:
    used = np.bincount(slots_of("zipf:1", count=11000, adapters=4), minlength=4)
    assert used == pytest.approx(11000 * np.array([12, 6, 4, 3]) / 25, rel=0.1)


@given(
    count=st.integers(1, 64),
    base=st.floats(0, 1),
    mix=st.sampled_from(["one", "uniform", "zipf:1.2", "distinct"]),
    seed=st.integers(0, 9),
)
def test_base_requests_are_exactly_as_many_as_asked_and_use_the_slot_of_rank_zero(
    count: int, base: float, mix: str, seed: int
) -> None:
    adapters = count if mix == "distinct" else 5
    case = Case("decode", count, 1, 8, adapters=adapters, mix=mix, base_fraction=base)
    slots, ranks = request_slots(case, np.random.default_rng(seed)), adapter_ranks(case)
    assert (ranks[slots] == 0).sum() == round(base * count)
    assert (slots[ranks[slots] == 0] == adapters).all()
    assert len(ranks) == adapters + (base > 0)


@pytest.mark.parametrize(
    ("mix", "ranks"),
    [("equal", [8] * 6), ("ladder", [8, 4, 2, 1, 8, 4]), ("gaps", [8, 8, 8, 0, 8, 8])],
)
def test_ranks_of_slots(mix: str, ranks: list[int]) -> None:
    assert adapter_ranks(Case("decode", 1, 1, 8, adapters=6, rank_mix=mix)).tolist() == ranks


def test_a_ladder_never_falls_to_rank_zero() -> None:
    assert adapter_ranks(Case("decode", 1, 1, 2, adapters=4, rank_mix="ladder")).tolist() == [2, 1, 1, 1]


def same(one: Workload, other: Workload) -> list[bool]:
    """Whether slots, and each index set, are equal."""
    ids = [torch.equal(*pair) for pair in zip(one.index_sets, other.index_sets, strict=True)]
    return [np.array_equal(one.seq_slots, other.seq_slots), *ids]


def test_the_case_and_the_seed_make_the_tensors() -> None:
    case = Case("prefill", 32, 8, 16, vocab=1000)
    assert all(same(made(case), made(case)))
    assert not any(same(made(case), made(case, seed=2)))
    other = Case("prefill", 32, 8, 16, vocab=1000, cache="cold")
    assert not any(same(made(case), made(other)))
    assert len({case_seed(*key) for key in ((case, 1), (case, 2), (other, 1))}) == 3


def test_the_seed_of_a_case_is_the_same_in_every_process() -> None:
    assert case_seed(Case("decode", 8, 1, 16), 1) == SEED_OF_DECODE_8


SEED_OF_DECODE_8 = 11300003139214490515


def test_ids_lie_in_the_vocabulary_and_sets_differ() -> None:
    workload = made(Case("prefill", 16, 16, 4, vocab=7), sets=3)
    for ids in workload.index_sets:
        assert ids.dtype == torch.int64 and ids.shape == (256,)
        assert set(ids.tolist()) == set(range(7))
    assert not torch.equal(workload.index_sets[0], workload.index_sets[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tables_of_both_storages_have_equal_values(dtype: str) -> None:
    workload = made(Case("decode", 2, 1, 4, vocab=50, dtype=dtype))
    rank_major, vocab_major = workload.table("rank_major"), workload.table("vocab_major")
    assert storage_of(rank_major) == "rank_major" and storage_of(vocab_major) == "vocab_major"
    assert rank_major.dtype == vocab_major.dtype == workload.dtype == getattr(torch, dtype)
    assert torch.equal(rank_major, vocab_major)
    assert workload.table("rank_major") is rank_major


def test_a_table_longer_than_its_pattern_repeats_at_a_period_that_no_axis_divides() -> None:
    case = Case("decode", 1, 1, 16, vocab=40000)
    table = make_table(case, 2, "rank_major", torch.float32, CPU)
    assert not torch.equal(table[0], table[1])
    assert table.isfinite().all()
    assert float(table.std()) == pytest.approx(1, rel=0.01)


def addresses(workload: Workload) -> list[int]:
    return [tensor.data_ptr() for tensor in (*workload.index_sets, *workload.tables.values())]


@pytest.mark.parametrize("storages", [("vocab_major",), ("rank_major",), ("rank_major", "vocab_major")])
def test_a_relayout_moves_everything_and_changes_nothing(storages: tuple[str, ...]) -> None:
    workload = made()
    tables = [workload.table(storage) for storage in storages]
    ids, strides, exact = list(workload.index_sets), [table.stride() for table in tables], oracle.exact(workload, 1)
    before = addresses(workload)
    workload.relayout(7)
    assert all(new != old for new, old in zip(addresses(workload), before, strict=True))
    assert [table.stride() for table in workload.tables.values()] == strides
    assert all(torch.equal(*pair) for pair in zip(workload.tables.values(), tables, strict=True))
    assert all(torch.equal(*pair) for pair in zip(workload.index_sets, ids, strict=True))
    assert torch.equal(oracle.exact(workload, 1), exact)


def test_the_oracle_reads_the_row_of_slot_and_id_and_clears_beyond_the_rank() -> None:
    workload = made(Case("decode", 6, 1, 8, adapters=4, rank_mix="ladder", base_fraction=0.5, vocab=50))
    table, out = workload.table("rank_major"), oracle.exact(workload, 0)
    for row, (slot, token) in enumerate(zip(workload.token_slots(), workload.index_sets[0].tolist(), strict=True)):
        rank = workload.ranks[slot]
        assert torch.equal(out[row, :rank], table[slot, :rank, token])
        assert not out[row, rank:].any()


def by_hand(ids: list[int]) -> Workload:
    """Requests of 2, 1 and 1 tokens in slots 0 (rank 4), 1 (rank 2) and 2 (rank 0)."""
    case = Case("prefill", 3, 2, 4, adapters=3, vocab=10, dtype="float16")
    lengths, slots, ranks = (np.array(values, dtype=np.int32) for values in ([2, 1, 1], [0, 1, 2], [4, 2, 0]))

    class Short(Workload):
        num_tokens = 4

    return Short(case, CPU, lengths, slots, ranks, [torch.tensor(ids)])


def test_minimum_bytes_by_hand() -> None:
    output_and_ids = 4 * (8 + 4 * 2)
    assert traffic.minimum(by_hand([5, 6, 5, 5])) == output_and_ids + (4 + 4 + 2) * 2
    assert traffic.minimum(by_hand([5, 5, 5, 5])) == output_and_ids + (4 + 2) * 2  # slot 0 reads its row once


def test_distinct_rows_by_hand() -> None:
    assert by_hand([5, 6, 5, 5]).distinct_rows().tolist() == [5, 6, 15]
    assert by_hand([5, 6, 7, 5]).distinct_rows(4).tolist() == [4, 14]
