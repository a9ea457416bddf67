"""What the op decides on the host before it launches, and what the kernel guards when the host cannot know."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from csgmv_embed import EmbeddingBatch, embedding_lora_a, ops


def test_loads_are_no_wider_than_every_row_is_aligned() -> None:
    table, out = torch.zeros(2, 50, 24).transpose(1, 2), torch.zeros(4, 24)
    assert ops._vector_group(table, out) == 4  # 16 bytes of float32
    assert ops._vector_group(table.half(), out.half()) == 8
    assert ops._vector_group(table, torch.zeros(4, 26)[:, :24]) == 2
    assert ops._vector_group(table, torch.zeros(101)[1:97].view(4, 24)) == 1
    assert ops._vector_group(torch.zeros(2, 24, 50), out) == 1  # rank-major
    assert ops._vector_group(torch.zeros(2, 50, 27)[:, :, :24].transpose(1, 2), out) == 1


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
