"""The gate's exit codes through the command line: a stored baseline and result, wrong files and wrong usage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.execute.protocol import Prepared
from bench.model.records import Results
from tests.support.gate import (
    AA,
    OURS,
    ROOT,
    FakeGpu,
    Outcome,
    aa,
    anchors_moved,
    failed,
    fewer_points,
    first,
    foreign,
    identity,
    jittered,
    no_anchors,
    no_environment,
    no_points,
    one_round,
    other_nodes,
    other_seed,
    saved,
    scaled,
    throttled,
    version,
)

Run = Callable[..., Outcome]


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


CANNOT = [
    (identity(gpu="NVIDIA H100 80GB HBM3"), "gpu is NVIDIA H100 80GB HBM3, the baseline's is NVIDIA H200"),
    (identity(driver="570.12"), "driver is 570, the baseline's is 580"),
    (identity(triton="4.0.0"), "triton is 4.0, the baseline's is 3.6"),
    (identity(triton="3.7.0"), "triton is 3.7, the baseline's is 3.6"),
    (identity(sm_count=78), "sm_count is 78"),
    (identity(gpu=None), "gpu is unknown in the result"),
    (no_environment, "the result does not say on which machine it was made"),
    (version, "the suite's measuring code has changed: no known version (code 0000000000000000)"),
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
    path.write_bytes(AA.read_bytes().replace(b'"layout_seed":1,', b'"layout_seed":"one",', 1))
    return "Expected `int`, got `str` - at `$.points[0].rounds[0].layout_seed`"


def newer(path: Path) -> str:
    path.write_bytes(AA.read_bytes().replace(b'"version":"1.0.0"', b'"version":"2.0.0"', 1))
    return "schema.version is 2.0.0; expected 1.x.y"


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
        (("gate", "--clock", "work", "--against", "HEAD"), "expected no other clock, no --against and no --self-check"),
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
    from bench.execute.trees import trees

    return trees


def test_without_a_gpu_times_cannot_be_judged(run: Run) -> None:
    machine = FakeGpu().instrument(has_gpu=lambda: False)
    for use in (("--self-check",), ("--against", "HEAD")):
        done = run("gate", *use, instrument=machine)
        assert done.code == 3
        assert "no NVIDIA GPU was found; without one, only --clock work can judge" in done.out
