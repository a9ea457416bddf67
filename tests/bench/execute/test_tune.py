"""Tuning: its candidates; and on a GPU that it keeps the faster one and refuses a wrong one."""

from __future__ import annotations

import pytest
import torch

from bench import contenders
from bench.execute import tune
from bench.model.case import Case
from bench.model.records import ResultsError
from bench.workload import oracle
from bench.workload.tensors import make_workload
from csgmv_embed.launch import tiles
from csgmv_embed.launch.tiles import Plan


@pytest.mark.parametrize("plan", tune.PLANS)
@pytest.mark.parametrize("rows_contiguous", [True, False])
@pytest.mark.parametrize(("tokens", "rank"), [(1, 8), (32, 64), (16384, 256)])
def test_candidates_begin_with_the_rule_and_are_powers_of_two(
    plan: Plan, tokens: int, rank: int, rows_contiguous: bool
) -> None:
    found = tune.candidates(plan, tokens, rank, rows_contiguous)
    assert found[0] == tiles.rule(tokens, rank, rows_contiguous)
    assert len(found) == len(set(found)) > 3
    for config in found:
        assert all(value > 0 and value & (value - 1) == 0 for value in config)
        assert config.block_n <= rank
    longest = max(config.block_m for config in found[1:])
    if plan == "segments":
        assert longest <= 16, "no tile is longer than a segment"
    else:
        assert longest <= max(8, 2 * tokens), "no tile is mostly empty"


def test_the_best_replaces_the_rule_only_where_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make_workload(Case("decode", 32, 1, 64, vocab=100), seed=1, index_sets=1, device=torch.device("cpu"))
    first, second, *_ = tune.candidates("tokens", 32, 64, True)
    for factor, winner in ((0.9, second), (0.99, first)):
        times = {second: 2.0 * factor}
        monkeypatch.setattr(tune, "_time_us", lambda *a, times=times: times.get(a[-1], 2.0))
        row = tune._best(workload, oracle.exact(workload, 0), "tokens", "vocab_major")
        assert row.config == winner
        assert (row.best_us, row.rule_us) == (2.0 * factor if winner is second else 2.0, 2.0)
        assert (row.plan, row.max_rank, row.max_tokens, row.element_bytes, row.rows_contiguous) == (
            "tokens",
            64,
            32,
            2,
            True,
        )


def test_a_configuration_with_wrong_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make_workload(Case("decode", 4, 1, 16, vocab=50), seed=1, index_sets=1, device=torch.device("cpu"))

    class Wrong:
        def setup(self, workload: object, *, static: bool) -> object:
            return lambda k: torch.zeros(4, 16, dtype=torch.bfloat16)

    monkeypatch.setattr(contenders, "build", lambda name: Wrong())
    with pytest.raises(ResultsError, match="gives wrong rows at decode 4 r16"):
        tune._best(workload, oracle.exact(workload, 0), "tokens", "vocab_major")
