"""The gate's exit codes through the command line: counted work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.results import Results
from tests.support.gate import (
    ROOT,
    Outcome,
    failed,
    fewer_points,
    identity,
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
