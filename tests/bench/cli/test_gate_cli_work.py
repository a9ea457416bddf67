"""The gate's exit codes through the command line: counted work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.judge import comparable, occupancy
from bench.judge.work import judge_work
from bench.model.records import Results, WorkLaunch
from bench.model.verdict import Report
from tests.support.gate import (
    COMPILED,
    GATE,
    ROOT,
    Outcome,
    failed,
    fewer_points,
    identity,
    no_environment,
    no_points,
    other_seed,
    ours,
    saved,
    version,
    work_results,
)

Run = Callable[..., Outcome]


def work_gate(run: Run, folder: Path, before: Results, after: Results, *options: str) -> Outcome:
    files = saved(folder / "a.json", before), saved(folder / "b.json", after)
    return run("gate", "--clock", "work", "--baseline", files[0], files[1], *options)


def test_equal_counts_pass(run: Run, tmp_path: Path) -> None:
    assert work_gate(run, tmp_path, work_results(), work_results()).code == 0


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("launches", 2),
        ("programs", 10),
        ("active_programs", 9),
        ("busiest_loads", 4),
        ("busiest_stores", 2),
        ("load_bytes", 4097),
        ("store_bytes", 2049),
        ("load_sectors", 129),
        ("store_sectors", 65),
        ("registers", 25),
        ("spill_bytes", 8),
        ("shared_bytes", 4),
        ("instructions", 201),
        ("widest_load_bits", 64),
        ("widest_store_bits", 32),
        ("num_warps", 8),
    ],
)
def test_any_figure_that_is_worse_is_1(run: Run, tmp_path: Path, figure: str, value: int) -> None:
    done = work_gate(run, tmp_path, work_results(), work_results(**{figure: value}))
    assert done.code == 1
    assert f"{figure} " in done.out and f"-> {value}" in done.out
    better = work_gate(run, tmp_path, work_results(**{figure: value}), work_results())
    assert better.code == 0
    assert "1 fast" in better.out


def test_a_tolerance_of_bench_toml_allows_what_it_says(run: Run, tmp_path: Path) -> None:
    toml = tmp_path / "bench.toml"
    text = (ROOT / "bench.toml").read_text(encoding="utf-8")
    head, table, rest = text.partition("[gate.work_tolerance_pct]")
    toml.write_text(f"{head}{table}\nregisters = 10\n#{rest}", encoding="utf-8")
    options = "--config", str(toml), "--allow-changed-rules"
    assert work_gate(run, tmp_path, work_results(), work_results(registers=26), *options).code == 0
    assert work_gate(run, tmp_path, work_results(), work_results(registers=27), *options).code == 1


def test_another_triton_compiles_otherwise_but_counts_alike(run: Run, tmp_path: Path) -> None:
    after = work_results()
    identity(triton="3.5.0")(after)
    done = work_gate(run, tmp_path, work_results(), after)
    assert done.code == 3
    assert (
        "Triton is 3.5.0, the baseline's is 3.6.0" in done.out and "python -m bench baseline --clock work" in done.out
    )
    done = work_gate(run, tmp_path, work_results(), after, "--counts-only")
    assert done.code == 0
    assert "compiled figures not compared" in done.out
    worse = work_results(load_sectors=200)
    identity(triton="3.5.0")(worse)
    assert work_gate(run, tmp_path, work_results(), worse, "--counts-only").code == 1


def test_each_triton_has_a_baseline_of_its_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the results at hand is taken; a Triton without one is told of the others."""
    monkeypatch.setattr("bench.cli.gate.BASELINES", tmp_path)
    before, counted, older = work_results(registers=30), work_results(registers=30), work_results(registers=20)
    for results in (before, counted):
        identity(triton="3.8.1")(results)
    saved(tmp_path / "work-triton-3.8.json", before)
    saved(tmp_path / "work-triton-3.6.json", older)
    assert run("gate", "--clock", "work", saved(tmp_path / "b.json", counted)).code == 0
    identity(triton="3.9.0")(counted)
    done = run("gate", "--clock", "work", saved(tmp_path / "c.json", counted))
    assert done.code == 3
    said = " ".join((done.out + done.err).split())
    assert "no baseline of counts under Triton 3.9.0" in said and "work-triton-3.6.json" in said
    assert "--counts-only" in said


def test_counts_do_not_care_on_which_machine_they_were_made(run: Run, tmp_path: Path) -> None:
    after = work_results()
    identity(gpu=None, driver="1.2", python="3.13")(after)
    assert work_gate(run, tmp_path, work_results(), after).code == 0


@pytest.mark.parametrize("spoil", [version, other_seed, fewer_points, no_points, failed])
def test_a_changed_workload_is_3_with_the_command_that_renews_the_baseline(
    run: Run, tmp_path: Path, spoil: Callable[[Results], None]
) -> None:
    after = work_results()
    spoil(after)
    done = work_gate(run, tmp_path, work_results(), after)
    assert done.code == 3
    renewing = "python -m bench baseline --clock work" in done.out
    assert renewing == (spoil is not failed), "a point that failed is to be mended, not taken as the baseline"


def test_a_new_point_without_a_baseline_is_3(run: Run, tmp_path: Path) -> None:
    before = work_results()
    fewer_points(before)
    assert work_gate(run, tmp_path, before, work_results()).code == 3


def test_a_point_without_compiled_figures_is_3(run: Run, tmp_path: Path) -> None:
    after = work_results()
    work = ours(after)[1].work
    assert work is not None
    work.compiled, work.compiled_reason = [], "cuobjdump is missing"
    done = work_gate(run, tmp_path, work_results(), after)
    assert done.code == 3
    assert "cuobjdump is missing" in done.out


def unchecked(results: Results) -> None:
    ours(results)[1].check = None


def failed_check(results: Results) -> None:
    check = ours(results)[1].check
    assert check is not None
    check.passed = False


def no_launches(results: Results) -> None:
    counts_of_second(results, launches=0)


def negative(results: Results) -> None:
    counts_of_second(results, load_bytes=-4096)


def counts_of_second(results: Results, **changes: int) -> None:
    work = ours(results)[1].work
    assert work is not None
    work.counts = msgspec.structs.replace(work.counts, **changes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unchecked, "its output was not checked against the oracle"),
        (failed_check, "its output failed the check against the oracle"),
        (no_launches, "it launched nothing"),
        (negative, "load_bytes is -4096; expected a count"),
    ],
)
@pytest.mark.parametrize("side", ["baseline", "result"])
def test_counts_that_nothing_vouches_for_are_an_error(spoil: Callable[[Results], None], said: str, side: str) -> None:
    """On the verdict itself: such a file is refused before, where it is read."""
    before, after = work_results(), work_results()
    spoil(before if side == "baseline" else after)
    report = judged(before, after)
    (verdict,) = [item for item in report.verdicts if item.status != "pass"]
    assert verdict.status == "error" and verdict.reason == f"the {side}'s point cannot be used: {said}"
    assert report.exit_code == 3


def test_a_point_that_a_file_has_twice_is_refused() -> None:
    after = work_results()
    after.points.append(after.points[0])
    report = judged(work_results(), after)
    assert report.exit_code == 3 and "is more than once in the result" in report.refusals[0]


def judged(before: Results, after: Results) -> Report:
    match = comparable.match(before.points, after.points, lambda point: True)
    return judge_work(before, after, GATE, match, counts_only=False, renew="renew")


def other_capability(results: Results) -> None:
    for point in results.points:
        assert point.work is not None
        point.work.compiled = [msgspec.structs.replace(kernel, capability=120) for kernel in point.work.compiled]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_capability, "compiled for capability 120, the baseline for 90"),
        (no_environment, "does not say on which machine it was made"),
        (identity(triton=None), "triton is unknown"),
    ],
)
@pytest.mark.parametrize("sides", ["result", "both"])
def test_counts_of_another_compiler_or_of_an_unknown_one_are_3(
    run: Run, tmp_path: Path, spoil: Callable[[Results], None], said: str, sides: str
) -> None:
    before, after = work_results(), work_results()
    spoil(after)
    if sides == "both":
        spoil(before)
    done = work_gate(run, tmp_path, before, after)
    if spoil is other_capability and sides == "both":  # then they can be compared
        assert done.code == 0
        return
    assert done.code == 3
    assert said in done.out


def filled(active_programs: int, num_warps: int = 4) -> Results:
    """One launch a point that so many programs of four warps take part in."""
    results = work_results()
    for point in ours(results):
        assert point.work is not None
        point.work.compiled = [msgspec.structs.replace(COMPILED, num_warps=num_warps)]
        programs = active_programs + 1
        point.work.counts = msgspec.structs.replace(
            point.work.counts, programs=programs, active_programs=active_programs
        )
        point.work.launches = [WorkLaunch("kernel", programs, active_programs, 0)]
    return results


def test_fewer_and_larger_programs_are_not_less_work(run: Run, tmp_path: Path) -> None:
    fewer = filled(8)
    for point in ours(fewer):
        assert point.work is not None
        point.work.counts = msgspec.structs.replace(point.work.counts, programs=4, active_programs=4)
        point.work.launches = [WorkLaunch("kernel", 4, 4, 0)]
    done = work_gate(run, tmp_path, filled(8), fewer)
    assert done.code == 1
    assert "worse: resident_warps" in done.out and "resident_warps 32 -> 16" in done.out
    assert work_gate(run, tmp_path, fewer, filled(8)).code == 1, "more programs are more work"


def test_a_full_gpu_is_not_filled_further(run: Run, tmp_path: Path) -> None:
    assert work_gate(run, tmp_path, filled(90_000), filled(80_000)).code == 0


def test_figures_that_an_old_baseline_lacks_are_named(run: Run, tmp_path: Path) -> None:
    done = work_gate(run, tmp_path, work_results(), filled(8))
    assert done.code == 0 and "not in the baseline, so not compared: resident_warps" in done.out
    done = work_gate(run, tmp_path, filled(8), work_results())
    assert done.code == 3 and "the baseline has resident_warps, the result does not" in done.out


@pytest.mark.parametrize(
    ("changes", "programs"),
    [
        ({}, 16),  # 64 warps of 4
        ({"num_warps": 1}, 32),  # the most programs
        ({"registers": 128}, 4),  # 65536 registers, 4096 a warp: 16 warps
        ({"registers": 40}, 12),  # 1280 a warp: 51 warps, whole fours of them: 48
        ({"shared_bytes": 100 << 10}, 2),  # 228 KiB, and 1 KiB a program of the system's
        ({"shared_bytes": 300 << 10}, 0),
    ],
)
def test_what_one_sm_of_an_h100_holds(changes: dict[str, int], programs: int) -> None:
    binary = msgspec.structs.replace(COMPILED, **changes)
    assert occupancy.resident_programs(occupancy.GPUS[90], binary) == programs
    all_of_it = occupancy.resident_warps(WorkLaunch("kernel", 10**6, 10**6, 0), binary)
    assert all_of_it == 132 * programs * binary.num_warps
