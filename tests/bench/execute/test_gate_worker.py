"""What a worker does for its forks, in this process: rehearsals, and the tensors that layouts share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from bench.execute import pair_worker as worker
from bench.execute.isolate import Start
from bench.execute.pairs import WorkerSide
from bench.execute.protocol import Begin, Begun, Finish, Prepare, Prepared, SideLost, Visit, Visited
from bench.execute.trees import trees
from bench.model.case import Case
from bench.model.config import PlannedPoint
from tests.support.gate import LOADED, ROOT

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


class Refused:
    """A sampler that cannot be made."""

    def __init__(self, start: Start, process: int) -> None:
        raise RuntimeError("no such GPU")


def test_a_process_that_cannot_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Sampler", Refused)
    (_, theirs_in), (theirs_out, _) = Pipe(), Pipe()
    children = worker.Children(START, theirs_in, theirs_out)
    ended = children.run(Begin(0, ahead=0, rehearse=None))
    assert ended == "measuring process ended with exit status 1: RuntimeError: no such GPU"


class Broken:
    """A sampler that an answer ends."""

    bench = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, start: Start, process: int) -> None: ...

    def visit(self, ask: Visit) -> Visited:
        raise ZeroDivisionError("in a visit")


def test_a_process_that_ends_in_the_middle_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Sampler", Broken)
    (ours_out, theirs_in), (theirs_out, _) = Pipe(), Pipe()
    children = worker.Children(START, theirs_in, theirs_out)
    ours_out.send_bytes(msgspec.json.encode(Visit(1)))
    ended = children.run(Begin(0, ahead=0, rehearse=None))
    assert ended == "measuring process ended with exit status 1: ZeroDivisionError: in a visit"


SERVERS = ("sglang_csgmv-chunk16", "sglang_tokens@0.5.23", "vllm_specialized", "csgmv_embed_plugin-chunk16")
ALONE = ("csgmv_embed-vocab_major", "csgmv_embed_segments-vocab_major", "torch_gather", "base")


def test_on_a_gpu_each_child_imports_what_may_touch_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log, parent = tmp_path / "loaded", os.getpid()

    def load(names: Iterable[str]) -> None:
        with log.open("a") as file:
            file.write(f"{'parent' if os.getpid() == parent else 'child'} {' '.join(names)}\n")

    monkeypatch.setattr(worker.contenders, "load", load)
    monkeypatch.setattr(worker, "Sampler", Fragile)
    (ours_out, theirs_in), (theirs_out, _held) = Pipe(), Pipe()
    start = Start("gpu", START.settings, 0, (*SERVERS, *ALONE))
    for message in (start, Begin(0, ahead=0, rehearse=None), Finish()):
        ours_out.send_bytes(msgspec.json.encode(message))
    ours_out.close()
    worker.serve(theirs_in, theirs_out)
    assert log.read_text().splitlines() == [f"parent {' '.join(ALONE)}", f"child {' '.join((*SERVERS, *ALONE))}"]


def test_what_is_imported_before_the_fork_leaves_the_gpu_alone() -> None:
    """torch knows in a fork whether the process it came from has asked for a GPU, and then refuses to use one."""
    script = """if True:
        import os, torch
        from bench import contenders
        contenders.load({names!r})
        {touch}
        pid = os.fork()
        if pid == 0:
            os._exit(int(torch._C._cuda_isInBadFork()))
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    if not torch.backends.cuda.is_built():
        pytest.skip("needs a torch that is built for CUDA")
    for touch, expected in (("", 0), ("torch.cuda.is_available()", 1)):
        command = [sys.executable, "-c", script.format(names=ALONE, touch=touch)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == expected, touch


@pytest.mark.gpu
def test_a_pair_of_a_servers_contender_begins_on_a_gpu() -> None:
    """SGLang's own kernels ask for the current device when they are imported."""
    with trees(None, None) as (tree, _):
        side = WorkerSide(tree, "gpu", START.settings, ("sglang_triton",))
        try:
            assert side.begin(Begin(0, ahead=1, rehearse=None)).env.identity["gpu"]
        finally:
            side.close()


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
