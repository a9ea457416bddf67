"""--subject: gate, compare and history judge whichever contender is named, not this repository's alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bench.model import history as records
from tests.support.gate import AA, OURS, FakeGpu, Outcome, aa, saved, scaled
from tests.support.history import PEER, entry

Run = Callable[..., Outcome]


def judged(path: Path) -> set[str]:
    return {verdict["contender"] for verdict in json.loads(path.read_text(encoding="utf-8"))["verdicts"]}


def test_a_stored_slowdown_of_the_subject_is_seen_and_others_are_not_judged(run: Run, tmp_path: Path) -> None:
    names = {point.contender for point in aa().points}
    peer = next(name for name in sorted(names) if name != OURS)
    slower = saved(tmp_path / "b.json", scaled(aa(), 1.5, lambda point: point.contender == peer))
    assert run("gate", "--baseline", AA, slower).code == 0
    report = tmp_path / "r.json"
    done = run("gate", "--baseline", AA, slower, "--subject", peer, "-f", "table", "-f", f"json={report}")
    assert done.code == 3 and "unconfirmed" in done.out
    assert judged(report) == {peer}
    assert json.loads(report.read_text(encoding="utf-8"))["rules"]["contenders"] == [peer]


def test_a_subject_that_the_baseline_has_not_is_2(run: Run) -> None:
    done = run("gate", "--baseline", AA, AA, "--subject", "nobody")
    assert done.code == 2 and "nobody: matches none of" in done.err


def test_pairs_are_measured_of_the_subject_alone(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.05 if planned.contender == "sglang_triton" else 0.0)
    report = tmp_path / "r.json"
    few = ("-a", "phase=decode", "-a", "batch_size=32", "-a", "rank=64", "-a", "cache=warm", "-f", f"json={report}")
    options = ("--against", "HEAD", *few, "-o", tmp_path / "pairs.json")
    assert run("gate", *options, instrument=gpu.instrument()).code == 0
    done = run("gate", *options, "--subject", "sglang_tri*", instrument=gpu.instrument())
    assert done.code == 1, done.out + done.err
    assert judged(report) == {"sglang_triton"}
    nothing = run("gate", *options, "--subject", "vllm", instrument=gpu.instrument())
    assert nothing.code == 2 and "profile quick: none of its contenders is vllm" in nothing.err


def test_compare_shows_the_subject_and_says_if_neither_file_has_it(run: Run) -> None:
    done = run("compare", AA, AA, "--subject", "torch_gather", "-f", "csv")
    assert done.code == 0 and "torch_gather" in done.out and OURS not in done.out
    done = run("compare", AA, AA, "--subject", "nobody")
    assert done.code == 2 and "--subject nobody: neither file has a point of this contender" in done.err


def test_history_shows_the_changes_of_the_subject(run: Run, tmp_path: Path) -> None:
    for number in range(10):
        made = entry(number, [2.0 * (1.2 if number > 4 else 1.0), 2.004 * (1.2 if number > 4 else 1.0)])
        made.results.points[0].contender = PEER
        records.write(tmp_path, made)
    shown = run("history", "show", "--store", tmp_path, "--subject", "sglang_*")
    assert shown.code == 0 and "000000005: 1 worse" in shown.out
    assert run("history", "show", "--store", tmp_path, "--subject", OURS).code == 2


def test_show_tells_the_others_by_the_subject(run: Run) -> None:
    done = run("show", AA, "--subject", PEER, "--sort", "ratio", "--top", 1, "-f", "json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    own = next(row for row in rows if row["contender"] == PEER)
    assert own["to_ours"] == 1.0
    assert all(row["to_ours"] == row["median_us"] / own["median_us"] for row in rows)
    table = run("show", AA, "--subject", "sglang_tri*").out
    assert "ours-vocab takes" in table and "times that of triton" in table
    done = run("show", AA, "--subject", "nobody")
    assert done.code == 2 and "matches 0 contenders; expected one of" in done.err
