"""The prepare clock: what it times is the planning that the launch then reads."""

from __future__ import annotations

import time

import pytest
import torch

from bench import contenders
from bench.clocks import prepare
from bench.model.case import Case
from bench.workload.tensors import make_workload
from csgmv_embed import EmbeddingBatch

PLANNERS = ["csgmv_embed-vocab_major", "csgmv_embed_segments-rank_major", "sglang_csgmv-chunk16", "sglang_triton"]
CASES = [
    Case("decode", 6, 1, 16, adapters=3, rank_mix="ladder", base_fraction=0.2, vocab=97),
    Case("prefill", 3, 21, 16, adapters=2, vocab=97, skew=1.0),
    Case("mixed", 9, 12, 8, adapters=2, rank_mix="gaps", vocab=97),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.phase)
@pytest.mark.parametrize("name", PLANNERS)
def test_the_launch_reads_what_was_prepared_each_time(name: str, case: Case, device: torch.device) -> None:
    contender = contenders.build(name)
    if reason := contender.unavailable():
        pytest.skip(reason)
    workload = make_workload(case, seed=1, index_sets=2, device=device)
    preparation = contender.preparation(workload)
    assert preparation is not None
    with preparation as prepared:
        for index_set in (0, 1):
            prepared.prepare()
            assert torch.equal(prepared.launch(index_set), contender.oracle(workload, index_set))


def test_ours_is_planned_again_by_every_call(device: torch.device) -> None:
    workload = make_workload(CASES[0], seed=1, index_sets=1, device=device)
    contender = contenders.build("csgmv_embed-vocab_major")
    preparation = contender.preparation(workload)
    assert preparation is not None
    with preparation as prepared:
        right = prepared.launch(0).clone()
        batch = next(
            cell.cell_contents
            for cell in prepared.prepare.__closure__ or ()  # type: ignore[attr-defined]
            if isinstance(cell.cell_contents, EmbeddingBatch)
        )
        batch.refill(None, [0] * 6, [0] * workload.num_slots)
        assert not prepared.launch(0).any()
        prepared.prepare()
        assert torch.equal(prepared.launch(0), right)


@pytest.mark.parametrize("name", ["torch_gather", "base"])
def test_what_plans_nothing_says_so(name: str, device: torch.device) -> None:
    workload = make_workload(CASES[0], seed=1, index_sets=1, device=device)
    assert contenders.build(name).preparation(workload) is None


def test_a_block_is_the_mean_host_time_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[int] = []
    calls: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronised.append(len(calls)))

    def plan() -> None:
        calls.append(1)
        time.sleep(0.002)

    blocks = prepare.sample(plan, calls=4, blocks=3)
    assert len(calls) == prepare.WARMUP_CALLS + 3 * 4
    assert len(blocks) == 3 and all(2000 <= block < 20_000 for block in blocks)
    assert synchronised == [prepare.WARMUP_CALLS + 4 * block for block in (0, 1, 2, 3)]


@pytest.mark.gpu
def test_refilling_allocates_no_pinned_memory_and_waits_for_nothing(device: torch.device) -> None:
    static = EmbeddingBatch.allocate(max_tokens=512, slots=8, segments=True, device=device)
    slots = [request % 8 for request in range(512)]
    for _ in range(3):
        static.refill(None, slots, [64] * 8)
    torch.cuda.synchronize()
    before = torch.cuda.host_memory_stats()
    with pytest.warns(UserWarning, match="prototype"):
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            static.refill(None, slots, [64] * 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.host_memory_stats()
    assert {key: value for key, value in after.items() if "allocat" in key or "num_host_alloc" in key} == {
        key: value for key, value in before.items() if "allocat" in key or "num_host_alloc" in key
    }
