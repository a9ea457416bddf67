"""The torch gather equals the oracle, with and without the clearing pass, and counts its traffic."""

from __future__ import annotations

import pytest
import torch

from bench.contenders.torch.gather import TorchGather
from bench.model.case import Case
from bench.workload.tensors import make_workload

CPU = torch.device("cpu")
EQUAL = Case("decode", 4, 1, 16, adapters=2, vocab=997)
UNEQUAL = [
    Case("mixed", 9, 7, 8, adapters=3, rank_mix="ladder", vocab=997),
    Case("prefill", 4, 9, 8, adapters=4, rank_mix="gaps", vocab=997),
    Case("prefill", 5, 9, 8, skew=1.0, adapters=3, base_fraction=0.4, vocab=997),
]


@pytest.mark.parametrize("case", [EQUAL, *UNEQUAL], ids=lambda case: case.label)
def test_equals_the_oracle(case: Case) -> None:
    workload, contender = make_workload(case, seed=1, index_sets=2, device=CPU), TorchGather()
    launch = contender.setup(workload, static=False)
    for k in (1, 0, 1):  # a repeated launch must not have changed the table
        assert torch.equal(launch(k), contender.oracle(workload, k))


def test_required_bytes_of_a_case_counted_by_hand() -> None:
    workload = make_workload(EQUAL, seed=1, index_sets=1, device=CPU)
    workload.index_sets[0] = torch.tensor([5, 5, 5, 5])  # two slots, so two rows of 16 x 2 bytes: a sector each
    assert TorchGather().required_bytes(workload) == 4 * 32 + 4 * 16 * 2 + 2 * 32


def test_clearing_adds_its_passes() -> None:
    workload = make_workload(UNEQUAL[1], seed=1, index_sets=1, device=CPU)
    workload.index_sets[0] = torch.zeros_like(workload.index_sets[0])
    tokens = workload.num_tokens
    assert TorchGather().required_bytes(workload) == tokens * 32 + tokens * 8 * (3 * 2 + 1) + 4 * 32
