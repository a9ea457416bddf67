"""Which tiles are kept: those that fresh processes prove to be faster; and how the table is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.execute.tuning import run, timing
from bench.execute.tuning.subjects import SUBJECTS, Cell, Subject
from bench.execute.tuning.timing import Screened
from bench.model.gpus import Gpu
from csgmv_embed.launch import tiles, tuned

CELLS = list(SUBJECTS[0].cells())[:3]


def winner(cell: Cell, rule_us: float = 2.0, best_us: float = 1.0) -> Screened:
    return Screened(cell, cell.tiles[1], best_us, rule_us)


def processes(*ratios: float) -> list[list[tuple[float, float]]]:
    """One winner, whose tile takes these shares of the rule's 2 us, a process each."""
    return [[(2.0 * ratio, 2.0)] for ratio in ratios]


def test_a_tile_that_is_faster_in_every_process_is_kept_with_what_that_proves() -> None:
    (row,) = run.proven([winner(CELLS[1])], processes(0.90, 0.91, 0.89, 0.90, 0.90))
    assert (row.kernel, row.element_bytes, row.at) == (CELLS[1].kernel, 2, CELLS[1].at)
    assert row.tile == CELLS[1].tiles[1]._asdict()  # type: ignore[attr-defined]
    assert row.rule_us == 2.0 and row.tuned_us == pytest.approx(1.8, rel=0.01)
    assert 8.5 < row.gain_pct < 10.0, "less than the mean gain of 10 %"


@pytest.mark.parametrize(
    "ratios",
    [
        pytest.param((0.90, 1.05, 0.85, 1.08, 0.95), id="by no more than processes differ"),
        pytest.param((1.02, 1.03, 1.01, 1.02, 1.02), id="slower after all"),
        pytest.param((0.999, 0.998, 0.999, 0.998, 0.999), id="by next to nothing"),
    ],
)
def test_a_tile_that_won_once_is_dropped_where_fresh_processes_do_not_say_so(ratios: tuple[float, ...]) -> None:
    assert run.proven([winner(CELLS[0])], processes(*ratios)) == []


def test_winners_are_judged_together() -> None:
    """The same times that prove one winner alone do not prove it among fifty that have no effect."""
    ratios = (0.96, 0.99, 0.97, 1.0, 0.965)
    assert run.proven([winner(CELLS[0])], processes(*ratios))
    times = [
        [(2.0 * ratio, 2.0), *([(2.0 * (1 + 0.001 * (-1) ** index), 2.0)] * 49)] for index, ratio in enumerate(ratios)
    ]
    assert run.proven([winner(CELLS[0])] * 50, times) == []


def test_only_what_was_faster_when_screened_is_put_to_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def instead(function: object, argument: list[object], gpu: Gpu | None) -> object:
        assert gpu is None
        if function is timing.screen:
            return [winner(CELLS[0]), winner(CELLS[1], 2.0, 1.97), winner(CELLS[2], 2.0, 1.5)]
        asked.append(argument)
        return [(1.0, 2.0), (1.5, 2.0)]

    checked: list[object] = []
    monkeypatch.setattr(run, "verify_all", checked.append)
    monkeypatch.setattr(run, "in_fresh_process", instead)
    subject = Subject(CELLS[0].kernel, SUBJECTS[0].axes, lambda: iter(CELLS))
    (found,) = run.tune([subject])
    assert asked == [[(CELLS[0], CELLS[0].tiles[1]), (CELLS[2], CELLS[2].tiles[1])]] * run.PROCESSES
    assert checked == [CELLS], "before anything is timed"
    assert (found.cells, found.tried, [row.at for row in found.rows]) == (3, 2, [CELLS[0].at, CELLS[2].at])


def test_a_cell_is_screened_and_proven_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are dealt; what each GPU found is judged together, in the order of the proof's processes."""
    asked: dict[str, list[object]] = {}

    def instead(function: object, argument: list[object], gpu: Gpu) -> object:
        asked.setdefault(gpu.uuid, []).append([item if isinstance(item, Cell) else item[0] for item in argument])
        if function is timing.screen:
            return [winner(cell) for cell in argument]
        return [(1.0 if gpu.uuid == "GPU-a" else 1.5, 2.0) for _ in argument]

    monkeypatch.setattr(run, "verify_all", lambda cells: None)
    monkeypatch.setattr(run, "in_fresh_process", instead)
    subject = Subject(CELLS[0].kernel, SUBJECTS[0].axes, lambda: iter(CELLS))
    (found,) = run.tune([subject], [Gpu(0, "GPU-a", "GPU X"), Gpu(1, "GPU-b", "GPU X")])
    shares = {uuid: cells[0] for uuid, cells in asked.items()}
    assert set(shares) == {"GPU-a", "GPU-b"}
    assert sorted(cell.at for cells in shares.values() for cell in cells) == sorted(cell.at for cell in CELLS)
    assert all(cells == [shares[uuid]] * (1 + run.PROCESSES) for uuid, cells in asked.items())
    on_a = {cell.at for cell in shares["GPU-a"]}
    assert {row.at: row.tuned_us for row in found.rows} == {cell.at: 1.0 if cell.at in on_a else 1.5 for cell in CELLS}


def test_the_library_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = run.proven([winner(CELLS[1])], processes(0.5, 0.5, 0.5, 0.5, 0.5))
    found = run.Tuned(SUBJECTS[0], 3, 1, [row])
    text = run.encode(run.as_file("GPU X", "abc", "python -m bench tune", [found], [Gpu(1, "GPU-b", "GPU X")]))
    assert json.loads(text)["commit"] == "abc" and json.loads(text)["gpus"] == ["GPU-b"]
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    (tmp_path / "GPU-X.json").write_bytes(text)
    rank, tokens = row.at
    for cached in (tuned.tuned, tuned.read_table):
        cached.cache_clear()
    try:
        assert tiles.choose_lookup("tokens", tokens, rank, True, 2, "GPU X") == CELLS[1].tiles[1]
        assert len(text.splitlines()) == 16, "a line a GPU, a grid and a row"
    finally:
        for cached in (tuned.tuned, tuned.read_table):
            cached.cache_clear()
