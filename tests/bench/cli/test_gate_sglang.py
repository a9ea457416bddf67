"""`gate --against-sglang`: two versions of SGLang are each other's judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.execute.trees import Tree
from bench.model.verdict import Subject
from tests.support.gate import FakeGpu, Outcome

Run = Callable[..., Outcome]


@contextmanager
def sides(before: str, after: str | None, patterns: Sequence[str]) -> Iterator[tuple[Tree, Tree]]:
    trees = [
        Tree(Subject(label, digit * 40, False, digit * 64), Path("/fake") / name, Path("/fake/sglang"))
        for label, digit, name in ((before, "a", "a"), (after or "0.5.16", "b", "b"))
    ]
    yield trees[0], trees[1]


def test_a_slower_version_is_1_and_only_sglangs_contenders_are_judged(run: Run, tmp_path: Path) -> None:
    gpu = FakeGpu(slowdown=lambda planned: 0.06 if planned.contender == "sglang_triton" else 0.0)
    few = ("--case", "op=lookup,phase=decode,rank=16", "-f", "table", "-f", f"json={tmp_path / 'r.json'}")
    options = ("--against-sglang", "0.5.20", "--sglang", "0.5.23", *few, "-o", tmp_path / "pairs.json")
    done = run("gate", *options, instrument=gpu.instrument(open_sglang=sides))
    assert done.code == 1, done.out + done.err
    assert "--against-sglang 0.5.20 --sglang 0.5.23 --clock graph" in done.out
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert {verdict["contender"]: verdict["status"] for verdict in report["verdicts"]} == {
        "sglang_triton": "slow",
        "sglang_csgmv-chunk16": "pass",
    }
    assert (report["use"], report["before"]["label"], report["after"]["label"]) == (
        "against-sglang",
        "0.5.20",
        "0.5.23",
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--sglang", "0.5.23"), 2, "expected --against-sglang V"),
        (("--against-sglang", "0.5.20", "--self-check"), 2, "--against-sglang excludes"),
        (("--against-sglang", "0.5.20", "-k", "work", "-k", "graph"), 2, "expected no other clock with it"),
        (("--against-sglang", "0.5.1"), 2, "SGLang 0.5.1: found "),
        (("--against-sglang", "0.5.1..0.5.2"), 2, "no such version was found"),
    ],
)
def test_what_is_no_such_gate_is_2(run: Run, options: tuple[str, ...], code: int, words: str) -> None:
    done = run("gate", *options)
    assert done.code == code and words in done.err


def test_without_a_gpu_it_is_3_and_counts_are_offered(run: Run, tmp_path: Path) -> None:
    machine = FakeGpu().instrument(open_sglang=sides, has_gpu=lambda: False)
    done = run("gate", "--against-sglang", "0.5.20", instrument=machine)
    assert done.code == 3 and "without one, only --clock work can judge" in done.out + done.err
