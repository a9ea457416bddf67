"""What a worker does for its forks, in this process: rehearsals, and the tensors that layouts share."""

from __future__ import annotations

from multiprocessing import Pipe
from types import SimpleNamespace

import msgspec
import pytest
import torch

from bench.execute import pair_worker as worker
from bench.execute.isolate import Start
from bench.execute.protocol import Begin, Begun, Finish, Prepare, Prepared, SideLost, Visit
from bench.model.case import Case
from bench.model.config import PlannedPoint
from tests.support.gate import LOADED

POINT = PlannedPoint(Case("decode", 1, 1, 16, adapters=2, vocab=3000), "csgmv_embed-vocab_major", "graph")
START = Start("interpret", msgspec.structs.replace(LOADED.measure, eager_calls=1), 0, (POINT.contender,))


def test_a_rehearsal_runs_the_point_on_a_small_table_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = worker.Sampler(START, 0)
    asked: list[object] = []
    for name in ("prepare", "visit"):
        real = getattr(sampler, name)
        monkeypatch.setattr(sampler, name, lambda ask, real=real: asked.append(ask) or real(ask))
    sampler.rehearse(POINT)
    prepared, visited = asked
    assert isinstance(prepared, Prepare) and isinstance(visited, Visit)
    assert prepared.planned.case == msgspec.structs.replace(POINT.case, vocab=worker.REHEARSED_VOCAB)
    with pytest.raises(AssertionError, match="a visit follows"):
        sampler.visit(Visit(1))
    assert sampler._workload is None and not sampler._verified
    assert sampler.prepare(Prepare(POINT, 5)).status == "ok"


def test_a_rehearsal_that_loses_the_context_raises_and_one_that_is_skipped_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = worker.Sampler(START, 0)
    monkeypatch.setattr(sampler, "prepare", lambda ask: Prepared("skipped", "not here"))
    sampler.rehearse(POINT)
    monkeypatch.setattr(sampler, "prepare", lambda ask: Prepared("crashed", "context lost", lost=True))
    with pytest.raises(SideLost, match="context lost"):
        sampler.rehearse(POINT)


class Fragile:
    """A sampler that no rehearsal survives."""

    def __init__(self, start: Start, process: int) -> None:
        self.bench = SimpleNamespace(device=torch.device("cpu"))

    def rehearse(self, planned: PlannedPoint) -> None:
        raise SideLost("killed by the rehearsal")


def test_a_process_that_a_rehearsal_kills_is_opened_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Sampler", Fragile)
    (ours_out, theirs_in), (theirs_out, ours_in) = Pipe(), Pipe()
    children = worker.Children(msgspec.structs.replace(START, kind="gpu"), theirs_in, theirs_out)
    ours_out.send_bytes(msgspec.json.encode(Finish()))
    assert children.run(Begin(0, ahead=1, rehearse=POINT)) is None
    assert msgspec.json.decode(ours_in.recv_bytes(), type=Begun).library
    children.end()


def test_layouts_of_a_case_share_its_tensors_and_differ_in_their_addresses() -> None:
    sampler = worker.Sampler(START, 0)
    assert sampler.prepare(Prepare(POINT, 5)).status == "ok"
    first = sampler._workload
    assert first is not None
    ids, table = first.index_sets[0], first.tables["vocab_major"]
    assert sampler.prepare(Prepare(POINT, 6)).status == "ok"
    assert sampler._workload is first
    assert torch.equal(first.index_sets[0], ids) and torch.equal(first.tables["vocab_major"], table)
    assert first.index_sets[0].data_ptr() != ids.data_ptr()
    assert first.tables["vocab_major"].data_ptr() != table.data_ptr()
    other = msgspec.structs.replace(POINT, case=msgspec.structs.replace(POINT.case, batch_size=2))
    assert sampler.prepare(Prepare(other, 7)).status == "ok"
    assert sampler._workload is not first and sampler._workload is not None
    assert sampler._workload.tables is first.tables, "the same tables serve another batch"
