"""`history confirm`: the changes of a store are tried by pairs, the largest first, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.execute.interleaved import Machine
from bench.model import history as records
from bench.model import pairs as pair_store
from bench.model.config import PlannedPoint
from tests.bench.execute.test_history_bisect import FakeGpu
from tests.support.gate import Outcome
from tests.support.history import entry, exported, sha

Run = Callable[..., Outcome]


def store(folder: Path, levels: list[float]) -> tuple[object, ...]:
    """A history whose point has these times; options that name it and its commits."""
    for number, level in enumerate(levels):
        records.write(folder / "store", entry(number, level * (1 + 0.001 * (number % 3))))
    exported(folder / "commits", len(levels))
    line = f"{sha(0)}..{sha(len(levels) - 1)}"
    return ("--store", folder / "store", "--exported", folder / "commits", "--commits", line, "--processes", 6)


def machine(level: dict[int, float], broken: frozenset[int] = frozenset()) -> tuple[FakeGpu, Machine]:
    def known(number: int, planned: PlannedPoint) -> float:
        return level[number]

    gpu = FakeGpu(known, set(broken))
    return gpu, Machine(has_gpu=lambda: True, open_side=gpu.open_side)


LEVELS = [2.0] * 6 + [2.4] * 5 + [2.2] * 5


def test_a_change_is_confirmed_or_not_by_its_commits_in_turns(run: Run, tmp_path: Path) -> None:
    options = store(tmp_path, LEVELS)
    truth = dict(enumerate(LEVELS)) | {10: 2.2}  # the second change is none: its commits take the same time
    _, instrument = machine(truth)
    done: Outcome = run("history", "confirm", *options, "-o", tmp_path / "pairs", instrument=instrument)
    assert done.code == 0, done.err
    first, second = (
        " ".join(line.split()) for line in done.out.replace("\n ", " ").splitlines() if "confirmed" in line
    )
    assert first.startswith("000000006: ") and ": confirmed, in turns " in first and "+20." in first
    assert second.startswith("000000011: ") and "NOT confirmed, in turns" in second
    assert len(pair_store.read(tmp_path / "pairs" / "confirm-1.json").points) == 1


def test_the_budget_ends_it_and_what_was_not_tried_is_named(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench.execute import stages

    moments = iter(range(0, 100_000, 10))
    monkeypatch.setattr(stages.time, "monotonic", lambda: float(next(moments)))
    options = store(tmp_path, LEVELS)
    gpu, instrument = machine(dict(enumerate(LEVELS)))
    done: Outcome = run("history", "confirm", *options, "--budget-s", 60, instrument=instrument)
    assert done.code == 3
    assert "not tried: 1 changes at 000000011: the budget is spent" in " ".join(done.out.split())
    assert {*gpu.opened} == {"000000005", "000000006"}, "the largest change was tried"


def test_a_commit_that_cannot_be_driven_has_no_answer(run: Run, tmp_path: Path) -> None:
    options = store(tmp_path, LEVELS)
    _, instrument = machine(dict(enumerate(LEVELS)), frozenset({5}))
    done: Outcome = run("history", "confirm", *options, instrument=instrument)
    assert done.code == 3 and "cannot be compared: 000000005: its library cannot be driven" in " ".join(
        done.out.split()
    )


def test_a_history_without_a_change_has_nothing_to_confirm(run: Run, tmp_path: Path) -> None:
    done: Outcome = run("history", "confirm", *store(tmp_path, [2.0] * 8), instrument=machine({})[1])
    assert done.code == 3 and "shows no lasting change of level" in done.err
