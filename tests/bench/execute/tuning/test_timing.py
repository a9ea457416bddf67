"""Times of tiles: a wrong result is refused, whatever its time; a fresh process is one, and its error comes back."""

from __future__ import annotations

import os

import msgspec
import pytest
import torch

from bench import contenders
from bench.execute.measure import Bench
from bench.execute.tuning import timing
from bench.execute.tuning.subjects import SUBJECTS
from bench.model import config
from bench.model.records import ResultsError
from csgmv_embed.launch import tiles


def test_a_tile_with_wrong_results_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = next(SUBJECTS[0].cells())
    cell = cell._replace(case=type(cell.case)("decode", 4, 1, 16, vocab=50), tiles=cell.tiles[:2])
    settings = msgspec.structs.replace(config.load().measure, nodes=1)
    monkeypatch.setattr(timing, "_bench", lambda: Bench(torch.device("cpu"), settings, process=0))
    whole = contenders.build(cell.contender, "lookup")
    used: list[object] = []

    class Wrong:
        tolerance, oracle, result = whole.tolerance, whole.oracle, whole.result

        def setup(self, workload: object, *, static: bool) -> object:
            return lambda k: (
                used.append(tiles.forced_now.tiles[cell.kernel]) or torch.zeros(4, 16, dtype=torch.bfloat16)
            )

    monkeypatch.setattr(contenders, "build", lambda name, op, site: Wrong())
    with pytest.raises(ResultsError, match=r"lookup_tokens_vocab_major with .* at decode 4 r16: error"):
        timing.verify(cell)
    assert used == [cell.tiles[0]], "the launch that is checked is the tile's"


def test_a_fresh_process_is_another_one_and_its_error_comes_back() -> None:
    assert timing.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        timing.in_fresh_process(divmod, 1, 0)
