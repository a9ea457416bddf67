"""The plugin under tensor parallelism: two ranks of SGLang's layers, each against float64 of the unsplit layer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from csgmv_embed import embedding_lora_reference, lora_linear_reference
from tests.support import tp_ranks
from tests.support.real_sglang import NOT_HERE, REPO
from tests.support.rounding import Exact, assert_rounded
from tests.support.tp_ranks import FEATURES, HIDDEN, LINEAR, MAX_RANK, OF_REQUEST, RANKS, SCALINGS, VOCAB, Whole

pytestmark = pytest.mark.numeric
OPS = {"embedding": ["embedding_lora_add"], "row": ["lora_shrink", "lora_expand"]}  # the others: one call of the layer
ROWS = VOCAB + -VOCAB % (2 * 64)  # of the padded vocabulary, which the ranks share evenly


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank left, by site. Skips where this SGLang's classes do not load."""
    folder = tmp_path_factory.mktemp("ranks")
    path = [str(folder), os.environ.get("PYTHONPATH"), str(REPO)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", tp_ranks.__name__, str(folder)],
        env={**os.environ, **tp_ranks.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if NOT_HERE in done.stderr:
        pytest.skip(done.stderr[done.stderr.index(NOT_HERE) :][:300])
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(tp_ranks.WORLD)]


def exact(whole: Whole) -> Exact:
    """The output of the layer on one rank."""
    factors = torch.tensor(RANKS), torch.tensor(SCALINGS)

    def of(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        a, b, weight, x = map(change, (whole.a, whole.b, whole.weight, whole.x))
        if whole.site == "embedding":
            return embedding_lora_reference(whole.ids, weight, a, b, whole.token_slots, *factors, VOCAB)
        slots = torch.tensor(OF_REQUEST) if whole.site == "lm_head" else whole.token_slots
        base = x.double() @ weight.double().T
        ends = [0, *torch.tensor(whole.slices).cumsum(0).tolist()]
        return lora_linear_reference(x, a, b, base, slots, *factors, tuple(ends))

    terms = (HIDDEN if whole.site == "lm_head" else FEATURES) + MAX_RANK + 2
    return Exact(of(torch.clone), of(torch.abs), terms, inner=4)  # base, either rank's part, and what the two sum to


def columns(site: str, rank: int) -> list[int]:
    """Which columns of the whole output a rank has."""
    if site in ("embedding", "row"):
        return [*range(sum(LINEAR[site][0]) if site == "row" else HIDDEN)]
    if site == "lm_head":
        return [*range(rank * ROWS // 2, min(VOCAB, (rank + 1) * ROWS // 2))]
    found, first = list[int](), 0
    for width in LINEAR[site][0]:
        found += range(first + rank * width // 2, first + (rank + 1) * width // 2)
        first += width
    return found


@pytest.mark.parametrize("site", ["embedding", "lm_head", *LINEAR])
def test_each_rank_has_its_columns_of_the_unsplit_layer_from_the_plugins_kernels(
    ranks: list[dict[str, Any]], site: str
) -> None:
    whole = exact(Whole(site))
    for rank, found in enumerate(ranks):
        own = columns(site, rank)
        assert_rounded(found[site]["output"][:, : len(own)], whole[:, own])
        assert found[site]["ops"] == OPS.get(site, ["lora_linear"])


def test_ranks_of_lm_head_share_a_vocabulary_that_is_no_multiple_of_them(ranks: list[dict[str, Any]]) -> None:
    assert [len(columns("lm_head", rank)) for rank in (0, 1)] == [64, 36]
    assert not ranks[1]["lm_head"]["output"][:, 36:].any(), "rows of nobody"
