"""The two storages of an A table: same logical values, other strides."""

from __future__ import annotations

import pytest
import torch

from csgmv_embed import ShapeError, empty_a_table, storage_of, to_storage
from csgmv_embed.storage import Storage

SLOTS, MAX_RANK, VOCAB = 3, 4, 7
STRIDES: dict[Storage, tuple[int, int, int]] = {
    "rank_major": (MAX_RANK * VOCAB, VOCAB, 1),
    "vocab_major": (VOCAB * MAX_RANK, 1, MAX_RANK),
}


def table_in(storage: Storage, device: torch.device) -> torch.Tensor:
    table = empty_a_table(SLOTS, MAX_RANK, VOCAB, dtype=torch.float16, device=device, storage=storage)
    return table.copy_(torch.arange(SLOTS * MAX_RANK * VOCAB).view(SLOTS, MAX_RANK, VOCAB))


@pytest.mark.parametrize("storage", STRIDES)
def test_empty_table_has_the_shape_strides_and_dtype_of_its_storage(storage: Storage, device: torch.device) -> None:
    table = empty_a_table(SLOTS, MAX_RANK, VOCAB, dtype=torch.bfloat16, device=device, storage=storage)
    assert table.shape == (SLOTS, MAX_RANK, VOCAB)
    assert table.stride() == STRIDES[storage]
    assert (table.dtype, table.device.type) == (torch.bfloat16, device.type)
    assert storage_of(table) == storage


@pytest.mark.parametrize("target", STRIDES)
@pytest.mark.parametrize("source", STRIDES)
def test_conversion_keeps_the_values_and_copies_only_when_needed(
    source: Storage, target: Storage, device: torch.device
) -> None:
    table = table_in(source, device)
    converted = to_storage(table, target)
    assert converted.stride() == STRIDES[target]
    assert converted.dtype == table.dtype
    assert torch.equal(converted, table)
    assert (converted is table) == (source == target)


def test_conversion_of_a_strided_view_keeps_its_values(device: torch.device) -> None:
    view = table_in("rank_major", device)[:, ::2, ::2]
    for storage in STRIDES:
        converted = to_storage(view, storage)
        assert storage_of(converted) == storage
        assert torch.equal(converted, view)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (lambda table: table[:, ::2], "rank_major"),
        (lambda table: table[:, :, ::2], "strided"),
        (lambda table: table[:, :, 1:], "rank_major"),
        (lambda table: table.transpose(0, 1), "rank_major"),
        (lambda table: table.transpose(1, 2), "vocab_major"),
        (lambda table: table.transpose(0, 2), "strided"),
    ],
)
def test_storage_of_a_view_follows_its_contiguous_axis(view, expected: str, device: torch.device) -> None:
    assert storage_of(view(table_in("rank_major", device))) == expected


def test_unknown_storage_is_an_error_that_names_the_known_ones(device: torch.device) -> None:
    with pytest.raises(ShapeError, match=r"storage is 'columns'; expected 'rank_major' or 'vocab_major'"):
        empty_a_table(1, 1, 1, dtype=torch.float32, device=device, storage="columns")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_table_that_is_not_three_dimensional_is_an_error(shape: tuple[int, ...], device: torch.device) -> None:
    table = torch.zeros(shape, device=device)
    for call in (storage_of, lambda table: to_storage(table, "vocab_major")):
        with pytest.raises(ShapeError, match=r"a_table has shape .*; expected \(slots, max_rank, vocab\)"):
            call(table)
