"""Every exit code through the command line: stored baselines, interleaved pairs, wrong files, machines that differ."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gate_support import AA, GATE, OURS, ROOT, FakeGpu, Outcome, aa, jittered, ours, saved, scaled, work_results

from bench import results as store
from bench.environment import collect_code
from bench.gate import records
from bench.gate.protocol import Prepared
from bench.results import Point, Results

Run = Callable[..., Outcome]
QUICK = ("-a", "phase=decode", "-a", "batch_size=32", "-a", "rank=16,64", "-a", "cache=warm")


def first(results: Results) -> Callable[[Point], bool]:
    return lambda point: point.key == ours(results)[0].key


# --- a stored baseline and a stored result -------------------------------------------------------------------------


def test_another_run_of_the_same_machine_passes(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", jittered(aa())))
    assert done.code == 0, done.out + done.err
    assert "gate baseline: pass (16 pass" in done.out


def test_a_stored_slowdown_is_unconfirmed_and_cannot_be_a_regression_yet(run: Run, tmp_path: Path) -> None:
    after = scaled(jittered(aa()), 1.10, first(aa()))
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", after))
    assert done.code == 3
    assert "unconfirmed" in done.out and "1 slow, 15 pass" in done.out
    assert f"again: python -m bench gate --against {aa().code.sha}" in done.out
    assert f"-c {OURS} --case" in done.out


def test_an_improvement_is_reported_and_passes(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", scaled(jittered(aa()), 0.8, first(aa()))))
    assert done.code == 0
    assert "1 fast, 15 pass" in done.out


def test_a_slowdown_of_a_peer_is_not_ours_to_judge(run: Run, tmp_path: Path) -> None:
    after = scaled(jittered(aa()), 1.5, lambda point: point.contender != OURS)
    assert run("gate", "--baseline", AA, saved(tmp_path / "b.json", after)).code == 0


def slower_machine(results: Results, factor: float) -> Results:
    """The anchors of a machine that takes `factor` times as long."""
    for anchor in results.anchors:
        anchor.values = [
            value / factor if anchor.name == "copy_bandwidth" else value * factor for value in anchor.values
        ]
    return results


def test_a_session_that_is_slower_as_a_whole_is_corrected_by_its_anchors(run: Run, tmp_path: Path) -> None:
    after = slower_machine(scaled(jittered(aa()), 1.025), 1.025)
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", after))
    assert done.code == 0, done.out
    assert "16 pass" in done.out and "corrected by +2.4" in done.out and "flagged" not in done.out


def test_a_slowdown_of_every_point_is_not_taken_for_the_machines(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", scaled(jittered(aa()), 1.10)))
    assert done.code == 3
    assert "16 slow" in done.out


def identity(**changes: object) -> Callable[[Results], None]:
    def change(results: Results) -> None:
        assert results.env is not None
        results.env.identity |= changes  # type: ignore[arg-type]

    return change


def version(results: Results) -> None:
    results.code.bench_version = "0" * 16


def no_points(results: Results) -> None:
    results.points = [point for point in results.points if point.contender != OURS]


def fewer_points(results: Results) -> None:
    results.points.remove(ours(results)[0])


def anchors_moved(results: Results) -> None:
    for anchor in results.anchors:
        if anchor.name == "gather":
            anchor.values = [value * 1.05 for value in anchor.values]


def no_anchors(results: Results) -> None:
    results.anchors = [anchor for anchor in results.anchors if anchor.name != "copy_bandwidth"]


def throttled(results: Results) -> None:
    ours(results)[0].rounds[3].throttle = ["thermal"]


def other_seed(results: Results) -> None:
    results.run.seed = 2


def failed(results: Results) -> None:
    ours(results)[0].status, ours(results)[0].reason = "wrong", "error 0.5 of the oracle's largest value"


def other_nodes(results: Results) -> None:
    ours(results)[0].nodes = 20


def one_round(results: Results) -> None:
    del ours(results)[0].rounds[1:]


def no_environment(results: Results) -> None:
    results.env = None


CANNOT = [
    (identity(gpu="NVIDIA H100 80GB HBM3"), "gpu is NVIDIA H100 80GB HBM3, the baseline's is NVIDIA H200"),
    (identity(driver="570.12"), "driver is 570, the baseline's is 580"),
    (identity(triton="4.0.0"), "triton is 4.0, the baseline's is 3.6"),
    (identity(triton="3.7.0"), "triton is 3.7, the baseline's is 3.6"),
    (identity(sm_count=78), "sm_count is 78"),
    (identity(gpu=None), "gpu is unknown in the result"),
    (no_environment, "the result does not say on which machine it was made"),
    (version, "the suite's measuring code has changed: version 0000000000000000"),
    (other_seed, "the seed is 2, the baseline's is 1"),
    (no_points, "no point of the baseline was measured"),
    (fewer_points, "in the baseline, but not measured"),
    (anchors_moved, "anchor gather moved by +4.9 %, at most 3 % allowed"),
    (no_anchors, "no anchor copy_bandwidth in both files"),
    (throttled, "the GPU lowered its clock while the result was measured: thermal"),
    (failed, "wrong: error 0.5 of the oracle's largest value"),
    (other_nodes, "measured differently: nodes 20, baseline 60"),
    (one_round, "1 round in the result; a spread needs two"),
]


@pytest.mark.parametrize(("spoil", "said"), CANNOT, ids=[said[:40] for _, said in CANNOT])
def test_what_cannot_be_judged_is_3_with_the_reason(
    run: Run, tmp_path: Path, spoil: Callable[[Results], None], said: str
) -> None:
    after = jittered(aa())
    spoil(after)
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", after))
    assert done.code == 3
    assert said in done.out
    assert "CANNOT JUDGE" in done.out


def test_versions_that_do_not_change_what_is_measured_may_differ(run: Run, tmp_path: Path) -> None:
    after = jittered(aa())
    identity(driver="580.999", triton="3.6.1", torch="2.12.0")(after)
    done = run("gate", "--baseline", AA, saved(tmp_path / "b.json", after))
    assert done.code == 0
    assert "note: torch is 2.12.0, the baseline's is 2.11.0\n" in done.out


def test_a_baseline_with_too_few_rounds_judges_nothing(run: Run, tmp_path: Path) -> None:
    before = aa()
    for point in before.points:
        del point.rounds[4:]
    done = run("gate", "--baseline", saved(tmp_path / "a.json", before), AA)
    assert done.code == 3
    assert "4 rounds in the baseline; expected 6 or more" in done.out


# --- files that are none -------------------------------------------------------------------------------------------


def corrupt(path: Path) -> str:
    path.write_bytes(AA.read_bytes().replace(b'"points"', b'"points" oops', 1))
    return "not a results file"


def truncated(path: Path) -> str:
    path.write_bytes(AA.read_bytes()[:100_000])
    return "not a results file of this suite: Input data was truncated"


def wrong_place(path: Path) -> str:
    path.write_bytes(AA.read_bytes().replace(b'"layout_seed": 1,', b'"layout_seed": "one",', 1))
    return "Expected `int`, got `str` - at `$.points[0].rounds[0].layout_seed`"


def newer(path: Path) -> str:
    path.write_bytes(AA.read_bytes().replace(b'"version": "1.0.0"', b'"version": "2.0.0"', 1))
    return "schema.version is 2.0.0; expected 1.x.y"


def foreign(path: Path) -> str:
    path.write_bytes(AA.read_bytes().replace(b"csgmv-bench-results", b"another-tool", 1))
    return "schema.name is 'another-tool'; expected 'csgmv-bench-results'"


def absent(path: Path) -> str:
    return "cannot be read: No such file"


@pytest.mark.parametrize("spoil", [corrupt, truncated, wrong_place, newer, foreign, absent])
@pytest.mark.parametrize("position", ["baseline", "result"])
def test_a_broken_file_is_2_and_named_with_the_place(
    run: Run, tmp_path: Path, spoil: Callable[[Path], str], position: str
) -> None:
    path = tmp_path / "broken.json"
    said = spoil(path)
    if path.exists():
        assert path.read_bytes() != AA.read_bytes()
    files = (path, AA) if position == "baseline" else (AA, path)
    done = run("gate", "--baseline", *files)
    assert done.code == 2
    assert str(path) in done.err and said in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gate",), "expected --baseline FILE, --against REV, --self-check or --clock work"),
        (("gate", "--self-check", "--against", "HEAD"), "exclude each other"),
        (("gate", "--clock", "hours", "--self-check"), "--clock hours: expected one of graph, eager, work"),
        (("gate", "--clock", "work", "--against", "HEAD"), "expected no other clock, at most FILE"),
        (("gate", str(AA)), "expected --baseline FILE"),
        (("gate", "--self-check", "--format", "xls"), "--format xls: expected NAME or NAME=FILE"),
        (("gate", "--self-check", "-f", "json", "-f", "junit"), "only one format can go to standard output"),
        (("gate", "--self-check", "-p", "nope"), "profile 'nope' is unknown"),
        (("gate", "--self-check", "-p", "quick", "-c", "sglang*"), "none of its contenders"),
    ],
)
def test_wrong_usage_is_2_and_says_what_was_expected(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments, instrument=FakeGpu().instrument())
    if "sglang*" in arguments:  # a peer can be asked for by name
        assert done.code == 0
        return
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_an_error_of_the_gate_itself_is_2_and_not_a_regression(run: Run) -> None:
    def explode(side: str, planned: object, process: int) -> Prepared:
        raise RuntimeError("a fault of the gate")

    done = run("gate", "--self-check", instrument=FakeGpu(prepared=explode).instrument())
    assert done.code == 2
    assert "a fault of the gate" in done.err


def test_an_unknown_option_is_2() -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "gate", "--nope"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2


def test_an_unknown_revision_is_2_and_no_worktree_is_left(run: Run) -> None:
    done = run("gate", "--against", "no-such-branch", instrument=FakeGpu().instrument(open_trees=real_trees()))
    assert done.code == 2
    assert "no-such-branch" in done.err and "expected a revision" in done.err


def real_trees() -> object:
    from bench.gate.trees import trees

    return trees


def test_without_a_gpu_times_cannot_be_judged(run: Run) -> None:
    machine = FakeGpu().instrument(has_gpu=lambda: False)
    for use in (("--self-check",), ("--against", "HEAD")):
        done = run("gate", *use, instrument=machine)
        assert done.code == 3
        assert "no NVIDIA GPU was found: only --clock work judges without one" in done.out


# --- interleaved pairs ---------------------------------------------------------------------------------------------


def test_a_quiet_self_check_passes_and_says_what_it_can_see(run: Run, tmp_path: Path) -> None:
    done = run("gate", "--self-check", "-o", tmp_path / "r.json", instrument=FakeGpu().instrument())
    assert done.code == 0, done.out
    assert "every slowdown from +" in done.out and "on would be seen" in done.out
    record = records.read(tmp_path / "r.json")
    assert len(record.points) == 32
    assert all(
        len(point.rounds) == record.gate.screen_processes * record.gate.screen_layouts for point in record.points
    )


def test_a_slower_revision_is_1_with_the_points_and_how_to_see_them_again(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.05 if planned.case.rank == 64 else 0.0)
    done = run("gate", "--against", "HEAD~1", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    assert done.code == 1
    assert "REGRESSION" in done.out
    slow = [line for line in done.out.splitlines() if line.startswith("│slow")]
    assert slow and all("r64" in line and "+5." in line for line in slow)
    again = [line for line in done.out.splitlines() if line.startswith("again: ")]
    assert len(again) == len(slow)
    assert all(
        "--against 'HEAD~1' --clock graph -p quick -a phase=decode" in line and "vocab=128256" in line for line in again
    )


def test_only_flagged_points_are_confirmed_on_fresh_processes(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.05 if planned.case.rank == 64 else 0.0)
    run("gate", "--against", "HEAD", *QUICK, "-o", tmp_path / "r.json", instrument=gpu.instrument())
    record = records.read(tmp_path / "r.json")
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
    assert "unconfirmed: slower than the floor of 5 %" in done.out
    swept = [entry for entry in gpu.log if entry[0] == "swept"]
    assert {entry[2] for entry in swept} == {3, GATE.confirm_processes}, "flagged points get fresh processes"


def test_a_baseline_of_another_suite_version_is_refused_before_anything_is_measured(run: Run) -> None:
    gpu = FakeGpu()
    done = run("gate", "--baseline", AA, instrument=gpu.instrument())
    assert done.code == 3
    assert "the suite's measuring code has changed" in done.out
    assert gpu.log == []


# --- counted work --------------------------------------------------------------------------------------------------


def work_gate(run: Run, folder: Path, before: Results, after: Results, *options: str) -> Outcome:
    files = saved(folder / "a.json", before), saved(folder / "b.json", after)
    return run("gate", "--clock", "work", "--baseline", files[0], files[1], *options)


def test_equal_counts_pass(run: Run, tmp_path: Path) -> None:
    assert work_gate(run, tmp_path, work_results(), work_results()).code == 0


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("launches", 2),
        ("programs", 9),
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
    toml.write_text(f"{text}\nregisters = 10\n", encoding="utf-8")
    assert work_gate(run, tmp_path, work_results(), work_results(registers=26), "--config", str(toml)).code == 0
    assert work_gate(run, tmp_path, work_results(), work_results(registers=27), "--config", str(toml)).code == 1


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
    assert spoil is failed or "python -m bench baseline --clock work" in done.out


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


# --- compare and baseline ------------------------------------------------------------------------------------------


def test_compare_shows_the_analysis_and_no_verdict(run: Run, tmp_path: Path) -> None:
    after = saved(tmp_path / "b.json", scaled(jittered(aa()), 1.10, first(aa())))
    done = run("compare", AA, after)
    assert done.code == 0
    assert "corrected by" in done.out and "48 points in both" in done.out
    assert "+10." in next(line for line in done.out.splitlines() if line.startswith("│")), "the worst comes first"
    assert "slow" not in done.out and "REGRESSION" not in done.out


def test_compare_warns_of_what_the_gate_would_refuse(run: Run, tmp_path: Path) -> None:
    after = aa()
    identity(gpu="NVIDIA A100")(after)
    done = run("compare", AA, saved(tmp_path / "b.json", after))
    assert done.code == 0
    assert "not comparable: gpu is NVIDIA A100" in done.out


def test_compare_of_a_broken_file_is_2(run: Run, tmp_path: Path) -> None:
    foreign(tmp_path / "b.json")
    assert run("compare", AA, tmp_path / "b.json").code == 2


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Results:
    """A checkout without changes, at the commit that h200-aa.json measured."""
    from bench.gate import files

    results = aa()
    code = results.code
    code.dirty = False
    monkeypatch.setattr(files, "collect_code", lambda: code)
    return results


def test_a_baseline_keeps_one_value_a_round_and_no_host(run: Run, clean: Results, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    done = run("baseline", AA, "-o", path)
    assert done.code == 0, done.err
    kept = store.read(path)
    assert kept.env is not None and kept.env.volatile == {}
    assert kept.code.dirty is False, "proven by its hashes"
    assert {len(item.blocks_us) for point in kept.points for item in point.rounds} == {1}
    assert run("gate", "--baseline", path, saved(tmp_path / "b.json", jittered(aa()))).code == 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (one_round, "1 rounds of 1 processes; expected 6 of 3 or more"),
        (failed, "is wrong: error 0.5"),
        (throttled, "lowered its clock"),
        (no_points, "it has no point"),
    ],
)
def test_a_baseline_refuses_what_is_not_fit(
    run: Run, clean: Results, tmp_path: Path, spoil: Callable[[Results], None], said: str
) -> None:
    bad = aa()
    spoil(bad)
    if spoil is no_points:
        bad.points = []
    done = run("baseline", saved(tmp_path / "bad.json", bad), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "baseline.json").exists()


def test_a_baseline_refuses_unstable_points(run: Run, clean: Results, tmp_path: Path) -> None:
    bad = jittered(aa(), sd=0.05)
    done = run("baseline", saved(tmp_path / "bad.json", bad), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert "is unstable" in done.err and "at most 1.5 % allowed" in done.err


def test_a_baseline_refuses_a_dirty_tree_and_results_of_one(
    run: Run, clean: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dirty = aa()
    dirty.code.dirty = True
    done = run("baseline", saved(tmp_path / "dirty.json", dirty), "-o", tmp_path / "b.json")
    assert done.code == 2 and "measured on a tree with uncommitted changes" in done.err
    clean.code.dirty = True
    done = run("baseline", AA, "-o", tmp_path / "b.json")
    assert done.code == 2 and "the tree has uncommitted changes" in done.err
    clean.code.dirty = None
    assert run("baseline", AA, "-o", tmp_path / "b.json").code == 2


def test_a_baseline_from_a_machine_without_git_must_be_of_this_commits_sources(
    run: Run, clean: Results, tmp_path: Path
) -> None:
    other = aa()
    other.code.kernel_source_sha256 = "0" * 64
    done = run("baseline", saved(tmp_path / "other.json", other), "-o", tmp_path / "b.json")
    assert done.code == 2
    assert "its sources are not those of this checkout's commit" in done.err


def test_thresholds_are_in_bench_toml_and_shown(run: Run) -> None:
    shown = json.loads(run("config").out)["gate"]
    assert shown["graph"] == {"screen_pct": 2.0, "floor_pct": 2.5, "unconfirmed_floor_pct": 5.0}
    assert shown["alpha"] == 0.005 and shown["work_tolerance_pct"] == {}
