"""The gate's exit codes through the command line: interleaved pairs, and measuring against a stored baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.execute.protocol import Prepared
from bench.model import pairs as records
from bench.model.environment import collect_code
from bench.model.records import Results
from tests.support.gate import AA, GATE, QUICK_POINTS, FakeGpu, Outcome, aa, saved

Run = Callable[..., Outcome]
QUICK = ("-a", "phase=decode", "-a", "batch_size=32", "-a", "rank=16,64", "-a", "cache=warm")


# --- interleaved pairs ---------------------------------------------------------------------------------------------


def test_a_quiet_self_check_passes_and_says_what_it_can_see(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--self-check", "-o", tmp_path / "r.json", instrument=FakeGpu().instrument())
    assert done.code == 0, done.out
    assert "every slowdown from +" in done.out and "on would be seen" in done.out
    record = records.read(tmp_path / "r.json")
    assert len(record.points) == QUICK_POINTS
    assert all(
        len(point.rounds) == record.gate.screen_processes * record.gate.screen_layouts for point in record.points
    )


def test_a_slower_revision_is_1_with_the_points_and_how_to_see_them_again(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.05 if planned.case.rank == 64 else 0.0)
    done = run("gate", "--against", "HEAD~1", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 1
    assert "REGRESSION" in done.out
    slow = [line for line in done.out.splitlines() if line.startswith("slow")]
    assert slow and all("r64" in line and "+5." in line for line in slow)
    again = [line for line in done.out.splitlines() if line.startswith("again: ")]
    assert len(again) == len(slow)
    assert all(
        "--against 'HEAD~1' --clock graph -p quick -a phase=decode" in line and "vocab=" in line for line in again
    )


def test_only_flagged_points_are_confirmed_on_fresh_processes(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.05 if planned.case.rank == 64 else 0.0)
    run("gate", "--against", "HEAD", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    record = records.read(tmp_path / "r.json")
    assert len({point.case.rank == 64 for point in record.points}) == 2
    for point in record.points:
        screen = {item.process for item in point.of_stage("screen")}
        confirm = {item.process for item in point.of_stage("confirm")}
        assert not screen & confirm
        assert len(confirm) == (record.gate.confirm_processes if point.case.rank == 64 else 0)


def test_a_faster_revision_passes(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: -0.2)
    done = run("gate", "--against", "HEAD", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 0
    assert "fast" in done.out and "pass (" in done.out


def test_a_point_that_is_wrong_on_one_side_is_3(run: Run, tmp_path: Path) -> None:
    def prepared(side: str, planned: object, process: int) -> Prepared:
        return Prepared("wrong", "error 1 of the oracle's largest value") if side == "B" else Prepared("ok", nodes=60)

    gpu = FakeGpu(prepared=prepared)
    done = run("gate", "--against", "HEAD", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 3
    assert "wrong on side B: error 1 of the oracle" in done.out


def test_a_run_in_which_every_point_is_skipped_judged_nothing(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(prepared=lambda side, planned, process: Prepared("skipped", "not installed"))
    done = run("gate", "--self-check", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 3
    assert "CANNOT JUDGE" in done.out and "skipped" in done.out


def test_throttling_on_a_pair_is_3(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(throttle=lambda side, process: ["power_cap"] if side == "A" and process == 1 else [])
    done = run("gate", "--self-check", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 3
    assert "the GPU lowered its clock: power_cap" in done.out


def test_a_certain_regression_outweighs_points_that_cannot_be_judged(run: Run, tmp_path: Path) -> None:
    def prepared(side: str, planned: object, process: int) -> Prepared:
        bad = getattr(planned, "case").rank == 16  # noqa: B009
        return Prepared("error", "out of memory") if bad else Prepared("ok", nodes=60)

    gpu = FakeGpu(slowdown=lambda planned: 0.05, prepared=prepared)
    done = run("gate", "--against", "HEAD", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 1
    assert "error" in done.out


# --- measuring against a stored baseline ---------------------------------------------------------------------------


def current(results: Results) -> Results:
    """As if made by this version of the suite."""
    results.code.bench_version = collect_code().bench_version
    return results


def test_a_measured_quiet_result_passes(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu()
    path = saved(tmp_path / "a.json", current(aa()))
    done = run("gate", "--baseline", path, "-o", tmp_path / "b.json", instrument=gpu.instrument())
    assert done.code == 0, done.out + done.err
    assert {entry[2] for entry in gpu.log} == {3}, "no more than the first look was needed"


def test_a_measured_slowdown_is_confirmed_against_the_baselines_commit(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.06 if planned.case.rank == 64 else 0.0)
    path = saved(tmp_path / "a.json", current(aa()))
    machine = gpu.instrument(knows_commit=lambda sha: sha == aa().code.sha)
    done = run("gate", "--baseline", path, "-o", tmp_path / "b.json", instrument=machine)
    assert done.code == 1, done.out + done.err
    assert "unconfirmed" not in done.out
    assert "flagged points were measured again, interleaved" in done.out
    began = [entry for entry in gpu.log if entry[0] == "begin"]
    assert len(began) == 2 * GATE.confirm_processes


def test_a_measured_slowdown_whose_baseline_cannot_be_run_stays_unconfirmed(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.10 if planned.case.rank == 64 else 0.0)
    path = saved(tmp_path / "a.json", current(aa()))
    done = run("gate", "--baseline", path, "-o", tmp_path / "b.json", instrument=gpu.instrument())
    assert done.code == 3
    assert "unconfirmed: slower by more than the limit of 5 %" in done.out
    swept = [entry for entry in gpu.log if entry[0] == "swept"]
    assert {entry[2] for entry in swept} == {3, GATE.confirm_processes}, "flagged points get fresh processes"


def test_a_baseline_of_another_suite_version_is_refused_before_anything_is_measured(run: Run) -> None:
    gpu = FakeGpu()
    done = run("gate", "--baseline", AA, instrument=gpu.instrument())
    assert done.code == 3
    assert "the suite's measuring code has changed" in done.out
    assert gpu.log == []
