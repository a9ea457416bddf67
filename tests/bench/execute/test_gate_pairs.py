"""The running of pairs: order, layouts and losses on a machine that is not there; then real workers, without a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import log
from pathlib import Path
from statistics import median

import msgspec
import pytest
import torch

from bench.cli import selftest
from bench.cli.selection import Choice
from bench.execute import interleaved as session
from bench.execute.interleaved import Machine
from bench.execute.pairs import WorkerSide
from bench.execute.protocol import Begin, Prepared, Side, SideLost
from bench.execute.stages import run_pairs
from bench.execute.trees import LIBRARY, Tree, hashes_at, trees
from bench.judge.times import judge_pairs
from bench.model import pairs as records
from bench.model.config import Config, Measure, PlannedPoint
from bench.model.environment import collect_code
from bench.model.git import GitError
from bench.model.gpus import Gpu
from bench.model.pairs import PairPoint, PairRun
from bench.model.records import SCHEMA_VERSION
from bench.model.verdict import CannotJudge, Exit, Subject
from tests.support.gate import GATE, LOADED, ROOT, FakeGpu, fake_trees


def small(**changes: object) -> Config:
    gate = msgspec.structs.replace(GATE, **changes)
    return msgspec.structs.replace(LOADED, gate=gate)


def planned(config: Config = LOADED, *axes: str) -> list[PairPoint]:
    choice = Choice(config=config, machine=Machine(), axes=list(axes))
    return session.pair_points(choice.plan("quick", ["graph"]).points)


def on_fake(gpu: FakeGpu, config: Config = LOADED, points: list[PairPoint] | None = None) -> PairRun:
    with fake_trees(None, None) as sides:
        run = session.pair_run(config, "self-check", sides, points or planned(config), 7, [])
        for _ in run_pairs(run, sides, gpu.open_side):
            pass
    return run


# --- on a machine that is not there --------------------------------------------------------------------------------


def test_a_round_is_taken_in_turns_that_cancel_a_drift() -> None:
    gpu = FakeGpu(process_sd=0.0)
    run = on_fake(gpu)
    turns = [str(entry[1]) for entry in gpu.log if entry[0] == "visit"]
    rounds = ["".join(turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert set(rounds) == {"ABBA", "BAAB"}
    assert abs(rounds.count("ABBA") - rounds.count("BAAB")) <= 1
    for point in run.points:
        assert [item.log_ratio for item in point.rounds] == pytest.approx([0.0] * len(point.rounds), abs=1e-9)


def test_no_two_preparations_share_a_layout_and_both_sides_have_their_own() -> None:
    gpu = FakeGpu()
    on_fake(gpu)
    seeds: dict[str, list[object]] = {"A": [], "B": []}
    for entry in gpu.log:
        if entry[0] == "prepare":
            seeds[str(entry[1])].append(entry[3])
    assert len(set(seeds["A"])) == len(seeds["A"]) == len(seeds["B"]) == len(set(seeds["B"]))
    assert not set(seeds["A"]) & set(seeds["B"])


def test_every_process_takes_all_points_in_an_order_of_its_own() -> None:
    gpu = FakeGpu()
    run = on_fake(gpu, small(screen_processes=6, screen_layouts=1))
    orders: dict[object, list[object]] = {}
    for entry in gpu.log:
        if entry[0] == "prepare" and entry[1] == "A":
            orders.setdefault(entry[4], []).append(entry[2])
    assert len({tuple(order) for order in orders.values()}) == 6
    assert len({tuple(ranks(order)) for order in orders.values()}) > 1, "tables, too, come in another order"
    for order in orders.values():
        assert sorted(map(str, order)) == sorted(point.planned.name for point in run.points)


def ranks(names: list[object]) -> list[str]:
    """The order in which the ranks, and so the tables, come."""
    return list(dict.fromkeys(part for name in names for part in str(name).split("|") if part.startswith("rank=")))


def test_both_sides_get_each_process_and_end_it_before_the_next() -> None:
    gpu = FakeGpu()
    on_fake(gpu)
    log = [entry for entry in gpu.log if entry[0] in ("begin", "finish")]
    for process in range(GATE.screen_processes):
        begins, ends = log[4 * process : 4 * process + 2], log[4 * process + 2 : 4 * process + 4]
        assert {entry[1:] for entry in begins} == {("A", process), ("B", process)}
        assert [entry[0] for entry in (*begins, *ends)] == ["begin", "begin", "finish", "finish"]


def test_a_side_that_dies_costs_one_point_and_the_rest_is_measured() -> None:
    victim = planned()[3]
    gpu = FakeGpu(dies=lambda side, point, process: side == "B" and point == victim.planned and process == 1)
    run = on_fake(gpu)
    dead = next(point for point in run.points if point.planned == victim.planned)
    assert (dead.status, dead.side, dead.reason) == ("crashed", "B", "measuring process ended by SIGSEGV")
    others = [point for point in run.points if point is not dead]
    assert {len(point.rounds) for point in others} == {GATE.screen_processes * GATE.screen_layouts}
    assert judge_pairs(run).exit_code is Exit.CANNOT_JUDGE


def test_a_lost_context_on_one_side_leaves_the_other_in_order() -> None:
    victim = planned()[5]

    def prepared(side: str, point: PlannedPoint, process: int) -> Prepared:
        if side == "A" and point == victim.planned and process == 0:
            return Prepared("crashed", "GPU context lost", lost=True)
        return Prepared("ok", nodes=60)

    run = on_fake(FakeGpu(prepared=prepared))
    assert sum(point.status == "ok" for point in run.points) == len(run.points) - 1


def test_a_crash_in_the_confirmation_leaves_the_point_undecided() -> None:
    victim = planned()[0]
    gpu = FakeGpu(
        slowdown=lambda point: 0.05,
        dies=lambda side, point, process: point == victim.planned and process == GATE.screen_processes + 4,
    )
    verdicts = judge_pairs(on_fake(gpu)).verdicts
    undecided = [item for item in verdicts if item.status != "slow"]
    assert [item.status for item in undecided] == ["error"]


def test_observations_of_many_processes_are_one_each_and_of_few_one_a_round() -> None:
    run = on_fake(FakeGpu(slowdown=lambda point: 0.05), small(confirm_layouts=3, screen_processes=2, screen_layouts=2))
    point = run.points[0]
    assert len(point.of_stage("confirm")) == 3 * GATE.confirm_processes
    assert len(records.observations(point.of_stage("confirm"))) == GATE.confirm_processes
    assert len(records.observations(point.of_stage("screen"))) == 4


def test_noise_of_processes_raises_no_alarm_and_5_percent_is_found() -> None:
    for seed in range(3):
        noisy = FakeGpu(process_sd=0.0075, seed=seed)
        assert judge_pairs(on_fake(noisy)).exit_code is Exit.PASS
        slowed = replace(noisy, slowdown=lambda point: log(1.05) if point.case.rank == 256 else 0.0)
        verdicts = judge_pairs(on_fake(slowed)).verdicts
        slow = {item.case.rank for item in verdicts if item.status == "slow"}
        assert slow == {256} and 256 not in {item.case.rank for item in verdicts if item.status != "slow"}


def test_processes_are_opened_in_waves_before_any_of_a_wave_is_timed() -> None:
    gpu = FakeGpu(slowdown=lambda point: 0.05)
    on_fake(gpu, small(screen_processes=3, confirm_processes=6, wave=4))
    opened = [gpu.opened["A", process] for process in range(9)]
    assert opened == [gpu.opened["B", process] for process in range(9)]
    assert [wave.stop for wave in opened] == [3, 3, 3, 7, 7, 7, 7, 9, 9]


def once(victim: PlannedPoint, process: int, log_effect: float) -> Callable[[PlannedPoint, int], float]:
    """An effect of one process on one point: chance, which the screen takes for a change."""
    return lambda point, now: log_effect if (point, now) == (victim, process) else 0.0


def test_a_point_flagged_by_chance_is_cleared_after_one_wave() -> None:
    victim = planned()[0].planned
    gpu = FakeGpu(chance=once(victim, 1, 0.09))
    run = on_fake(gpu)
    (point,) = [point for point in run.points if point.of_stage("confirm")]
    assert point.planned == victim
    assert len(point.of_stage("confirm")) == GATE.wave * GATE.confirm_layouts
    report = judge_pairs(run)
    (verdict,) = [item for item in report.verdicts if item.reason.startswith("flagged")]
    assert (verdict.status, verdict.reason) == ("pass", "flagged by the screen, cleared after 4 of 16 processes")
    assert report.exit_code is Exit.PASS


def test_rounds_that_end_within_a_wave_or_show_a_change_leave_the_point_undecided() -> None:
    victim = planned()[0].planned
    run = on_fake(FakeGpu(chance=once(victim, 1, 0.09)))
    (point,) = [point for point in run.points if point.of_stage("confirm")]
    last = point.rounds[-GATE.confirm_layouts :]
    del point.rounds[-GATE.confirm_layouts :]
    assert judge_pairs(run).exit_code is Exit.CANNOT_JUDGE, "three of four"
    for item in point.of_stage("confirm") + last:
        item.b_blocks_us = [value * 1.05 for value in item.b_blocks_us]
    point.rounds += last
    (verdict,) = [item for item in judge_pairs(run).verdicts if item.status == "inconclusive"]
    assert "incomplete" in verdict.reason


def test_records_from_before_there_were_waves_have_none_cleared() -> None:
    old = records.read(ROOT / "docs" / "experiments" / "planted-slow-bisect" / "bisect-2.json")
    assert (old.gate.wave, old.gate.clear_confidence) == (1, 1.0)
    reasons = {item.reason for item in judge_pairs(old).verdicts}
    assert "flagged by the screen, not confirmed" in reasons


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    run = on_fake(FakeGpu())
    records.write(tmp_path / "r.json", run)
    again = records.read(tmp_path / "r.json")
    assert [item.status for item in judge_pairs(again).verdicts] == [item.status for item in judge_pairs(run).verdicts]
    assert again.seed == run.seed and again.gate == run.gate


# --- real workers --------------------------------------------------------------------------------------------------

# One process of one layout, three to confirm: enough to go through everything.
TINY = small(screen_processes=1, screen_layouts=1, confirm_processes=3, confirm_layouts=1, visit_blocks=1)
TINY = msgspec.structs.replace(TINY, measure=msgspec.structs.replace(TINY.measure, eager_calls=1))


def interpreted(tree: Tree, settings: Measure, contenders: tuple[str, ...], gpu: Gpu | None = None) -> Side:
    """A real worker that runs the kernels in Triton's interpreter and takes the host's time."""
    return WorkerSide(tree, "interpret", settings, contenders)


MACHINE = Machine(has_gpu=lambda: True, open_side=interpreted, layout_seed=lambda: 11)
ONE = "phase=decode", "batch_size=1", "rank=16", "cache=warm", "vocab=1000", "base_fraction=0", "rank_mix=equal"


@pytest.fixture(scope="module")
def tree_pair() -> Iterator[tuple[Tree, Tree]]:
    with trees(None, None) as sides:
        yield sides


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "did not happen within 20 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def worker_side(tree_pair: tuple[Tree, Tree]) -> Iterator[WorkerSide]:
    """Shared, as its worker's imports take seconds."""
    with contextlib.closing(WorkerSide(tree_pair[0], "interpret", TINY.measure, ("csgmv_embed-vocab_major",))) as made:
        yield made


@pytest.fixture
def side(worker_side: WorkerSide) -> Iterator[WorkerSide]:
    yield worker_side
    worker_side.finish()


def test_each_process_is_a_fork_that_ends_and_a_killed_one_is_a_lost_side(side: WorkerSide) -> None:
    point = planned(TINY, *ONE)[0].planned
    assert side._worker is not None
    parent = side._worker._process.pid
    pids = []
    for process in range(2):
        begun = side.begin(Begin(process))
        assert begun.library == str(ROOT / LIBRARY / "__init__.py")
        pids += children(parent)
        assert side.prepare(point, 5, 0.0).status == "ok"
        assert len(side.visit(2).blocks_us) == 2
        side.finish()
        assert children(parent) == []
    assert len(set(pids)) == 2
    side.begin(Begin(2))
    assert side.prepare(point, 6, 0.0).status == "ok"
    os.kill(children(parent)[0], signal.SIGKILL)
    wait_until(lambda: not children(parent))  # else it may die with half of the next message read
    with pytest.raises(SideLost, match="SIGKILL"):
        side.visit(1)
    side.begin(Begin(3))
    assert side.prepare(point, 7, 0.0).status == "ok"
    assert side._worker._process.pid == parent, "only the child was lost"


def test_a_killed_worker_takes_its_child_with_it_and_is_replaced(side: WorkerSide) -> None:
    point = planned(TINY, *ONE)[0].planned
    side.begin(Begin(0))
    assert side._worker is not None
    parent = side._worker._process.pid
    (child,) = children(parent)
    os.kill(parent, signal.SIGKILL)
    with pytest.raises(SideLost):
        side.prepare(point, 5, 0.0)
    stat = Path(f"/proc/{child}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
    side.begin(Begin(1))
    assert side.prepare(point, 6, 0.0).status == "ok"


def test_what_a_contender_raises_is_the_points_status(side: WorkerSide) -> None:
    point = planned(TINY, *ONE)[0].planned
    bad = msgspec.structs.replace(point, case=msgspec.structs.replace(point.case, mix="zipf:-9e9"))
    side.begin(Begin(0))
    answer = side.prepare(bad, 5, 0.0)
    assert answer.status == "error" and answer.reason
    assert side.prepare(point, 6, 0.0).status == "ok"


def test_processes_opened_ahead_wait_side_by_side_and_end_with_the_worker(side: WorkerSide) -> None:
    point = planned(TINY, *ONE)[0].planned
    assert side._worker is not None
    parent = side._worker._process.pid
    side.begin(Begin(0, ahead=2, rehearse=point))
    second, third = children(parent)[1:]
    side.finish()
    assert children(parent) == [second, third]
    os.kill(second, signal.SIGKILL)
    side.begin(Begin(2))
    assert third in children(parent), "opened ahead, not again"
    assert side.prepare(point, 5, 0.0).status == "ok"
    side.finish()
    with pytest.raises(SideLost, match="SIGKILL"):
        side.begin(Begin(1))
    side.begin(Begin(1))
    side.finish()
    side.begin(Begin(3, ahead=1))
    side.finish()
    (waiting,) = children(parent)
    side.close()
    assert not Path(f"/proc/{waiting}").exists()


def test_planted_work_is_in_the_times_of_side_b_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the work, for a busy host's clock; a second call of the script makes nothing again."""
    monkeypatch.setattr(selftest.configuration, "load", lambda: TINY)
    monkeypatch.setattr(selftest, "_points", lambda config, profile, contenders: planned(config, *ONE)[:1])
    arguments = ["planted", "-o", str(tmp_path), "--share", "900"]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            selftest.main(arguments, MACHINE)
        assert end.value.code == 0
    (repeat,) = json.loads((tmp_path / "planted.json").read_bytes())
    assert {share: total for share, (_, total) in repeat["found"].items()} == {"9": 1}
    run = records.read(tmp_path / "planted-1.json")
    assert run.env is not None and run.env.identity["triton"]
    assert run.start_s > 0 and run.open_s > 0 and run.duration_s > run.start_s + run.open_s
    (verdict,) = judge_pairs(run).verdicts
    assert verdict.status in ("slow", "inconclusive") and verdict.before_us and verdict.after_us
    (point,) = run.points
    assert point.status == "ok" and median(item.log_ratio for item in point.rounds) > log(2.5), (
        "a stall may take one round"
    )


def test_the_script_counts_what_was_found_by_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_points", lambda config, profile, contenders: planned(config)[::4][:10])
    arguments = ["planted", "-o", str(tmp_path), "--share", "1", "--share", "5", "--share", "10", "--repeats", "2"]
    with pytest.raises(SystemExit) as end:
        selftest.main(arguments, FakeGpu().instrument())
    assert end.value.code == 0
    for repeat in json.loads((tmp_path / "planted.json").read_bytes()):
        assert repeat["found"] == {"0.01": [0, 10], "0.05": [10, 10], "0.1": [10, 10]}
        assert repeat["exit_code"] == 1 and repeat["points"] == 30
        assert repeat["seconds_a_point"] == pytest.approx(repeat["duration_s"] / 30)


def test_the_script_begins_nothing_that_may_not_end_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        selftest.main(["self-check", "-o", str(tmp_path), "--seconds", "0"], FakeGpu().instrument())
    assert "5 left: run the same command again" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        selftest.main(["self-check", "-o", str(tmp_path)], FakeGpu().instrument())
    assert "5 runs, 5 with exit 0" in capsys.readouterr().out


def test_the_script_says_when_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        selftest.main(["self-check", "-o", str(tmp_path)], Machine(has_gpu=lambda: False))
    assert end.value.code == 3
    assert "no NVIDIA GPU was found" in capsys.readouterr().err


# --- trees ---------------------------------------------------------------------------------------------------------


def in_git() -> bool:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, check=False)
    return done.returncode == 0


needs_git = pytest.mark.skipif(not in_git(), reason="not a git checkout")


def test_later_processes_compare_one_index_set_and_the_first_all_of_them() -> None:
    from bench.clocks.graph import CapturedGraph
    from bench.execute.pair_worker import to_verify

    captured = CapturedGraph(object(), 60, [torch.zeros(1), torch.ones(1)], lambda index_set: torch.zeros(1))
    assert to_verify(captured, 0).outputs == captured.outputs
    later = to_verify(captured, 3)
    assert later.outputs == captured.outputs[:1] and later.graph is captured.graph and later.nodes == 60


@needs_git
def test_the_sources_of_a_commit_have_the_hashes_of_a_checkout_of_it() -> None:
    here = collect_code()
    assert here.sha is not None
    found = hashes_at(here.sha, SCHEMA_VERSION)
    assert found is not None
    assert found == (here.kernel_source_sha256, here.suite_source_sha256) or here.dirty
    assert hashes_at("0" * 40, SCHEMA_VERSION) is None


@needs_git
def test_a_revision_is_measured_from_its_own_files_by_this_checkouts_suite() -> None:
    with trees("HEAD", None) as (a, b):
        assert a.library.is_dir() and a.library != b.library == (ROOT / LIBRARY)
        assert (a.path / "bench").resolve() == (ROOT / "bench")
        assert a.subject.dirty is False and a.subject.sha
        worker = WorkerSide(a, "interpret", TINY.measure, ("csgmv_embed-vocab_major",))
        with contextlib.closing(worker):
            assert worker.begin(Begin(0)).library == str(a.library / "__init__.py")
            worker.finish()
        kept = a.library
    assert not kept.exists()
    listed = subprocess.run(["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True, check=True)
    assert "bench-gate-" not in listed.stdout


@needs_git
def test_an_unknown_revision_names_itself() -> None:
    with pytest.raises(GitError, match="no-such-branch"), trees("no-such-branch", None):
        pass


def broken(folder: Path, text: str) -> Tree:
    (folder / LIBRARY).mkdir(parents=True)
    (folder / LIBRARY / "__init__.py").write_text(text, encoding="utf-8")
    (folder / "bench").symlink_to(ROOT / "bench")
    return Tree(Subject("old", "0" * 40, False, ""), folder)


def test_a_worker_finds_what_the_caller_has_on_its_path(
    tree_pair: tuple[Tree, Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the side's own tree, which an entry of the caller must not replace."""
    tree = tree_pair[0]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/some/site", str(ROOT)]))
    assert tree.environment()["PYTHONPATH"].split(os.pathsep) == [str(tree.path), "/some/site", str(ROOT)]
    monkeypatch.delenv("PYTHONPATH")
    assert tree.environment()["PYTHONPATH"] == str(tree.path)


def test_a_library_that_cannot_be_driven_cannot_be_judged(tmp_path: Path, tree_pair: tuple[Tree, Tree]) -> None:
    old = broken(tmp_path, "raise ImportError('an API of long ago')")
    run = session.pair_run(TINY, "against", (old, tree_pair[1]), planned(TINY, *ONE)[:1], 1, [])

    def opened(tree: Tree, settings: Measure, contenders: tuple[str, ...], gpu: Gpu | None) -> Side:
        return (interpreted if tree is old else FakeGpu().open_side)(tree, settings, contenders, gpu)

    with pytest.raises(CannotJudge, match="old: its library cannot be driven: .*an API of long ago"):
        list(run_pairs(run, (old, tree_pair[1]), opened))


def test_a_worker_that_loaded_another_library_cannot_be_judged(tmp_path: Path, tree_pair: tuple[Tree, Tree]) -> None:
    a = tree_pair[0]
    elsewhere = broken(tmp_path, "")

    class Astray(Tree):
        def environment(self) -> dict[str, str]:
            return a.environment()

    worker = WorkerSide(Astray(elsewhere.subject, elsewhere.path), "interpret", TINY.measure, ())
    with contextlib.closing(worker), pytest.raises(CannotJudge, match="the worker loaded .*; expected"):
        worker.begin(Begin(0))
