"""Files of NVBench and pytest-benchmark in `compare` and `history`: series of their own, and never a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.model import foreign, history
from bench.model.records import ResultsError
from tests.support.gate import AA, Outcome
from tests.support.history import sha

Run = Callable[..., Outcome]
# A file that pytest-benchmark 5.3.1 wrote of one test, without what names the host and the CPU's flags.
REAL = Path(__file__).parents[2] / "support" / "pytest_benchmark.json"


def state(size: int, seconds: float | None, device: int = 0) -> dict[str, Any]:
    """As NVBench's JSON printer and the reader of its Python package have it: numbers in summaries are texts."""
    value = {"name": "value", "type": "float64", "value": str(seconds)}
    summary = {"tag": foreign.GPU_MEAN, "name": "GPU Time", "hint": "duration", "data": [value]}
    return {
        "name": f"Device={device} BlockSize=2^{size}",
        "device": device,
        "axis_values": [{"name": "BlockSize", "type": "int64", "value": str(2**size)}],
        "summaries": [summary] if seconds is not None else None,
        "is_skipped": seconds is None,
        **({"skip_reason": "too large"} if seconds is None else {}),
    }


def nvbench(path: Path, *states: dict[str, Any], gpu: str = "NVIDIA H200") -> Path:
    axis = {"name": "BlockSize", "type": "int64", "flags": "pow2", "values": []}
    bench = {"name": "copy", "index": 0, "devices": [0], "axes": [axis], "states": list(states)}
    meta = {"argv": ["bench"], "version": {"json": {"major": 1, "minor": 0, "patch": 0, "string": "1.0.0"}}}
    data = {"meta": meta, "devices": [{"id": 0, "name": gpu}], "benchmarks": [bench]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_nvbenchs_states_are_series_with_their_axes_and_their_gpu(tmp_path: Path) -> None:
    found = foreign.read(nvbench(tmp_path / "a.json", state(8, 1.25e-5), state(9, None)))
    assert found.tool == "nvbench" and found.sha is None
    first, skipped = found.points
    assert (first.name, first.machine, first.value_us) == ("copy BlockSize=2^8", "NVIDIA H200", pytest.approx(12.5))
    assert (skipped.value_us, skipped.reason) == (None, "too large")


def test_a_real_file_of_pytest_benchmark_is_read() -> None:
    found = foreign.read(REAL)
    written = json.loads(REAL.read_text(encoding="utf-8"))
    (point,) = found.points
    assert point.name == "test_pb.py::test_sum" and point.machine == written["machine_info"]["cpu"]["brand_raw"]
    assert point.value_us == pytest.approx(1e6 * written["benchmarks"][0]["stats"]["median"])
    assert found.sha == written["commit_info"]["id"]


def test_two_files_are_compared_by_benchmark_and_machine(run: Run, tmp_path: Path) -> None:
    before = nvbench(tmp_path / "a.json", state(8, 1e-5), state(9, 2e-5), state(10, None))
    after = nvbench(tmp_path / "b.json", state(8, 1e-5), state(9, 3e-5), state(10, 1.0))
    done = run("compare", before, after)
    assert done.code == 0, done.err
    rows = [" ".join(line.split()) for line in done.out.splitlines() if line.startswith("copy")]
    assert rows[0].startswith("copy BlockSize=2^9 NVIDIA H200") and rows[0].endswith("+50.0 %")
    assert rows[1].endswith("+0.0 %") and rows[2].endswith("too large 1.00 s -")
    assert "none is a verdict" in done.out
    (row,) = json.loads(run("compare", before, after, "-c", "*2^9", "-f", "json").out)
    assert row["ratio"] == pytest.approx(1.5)
    elsewhere = nvbench(tmp_path / "c.json", state(8, 1e-5), gpu="NVIDIA H100")
    rows = json.loads(run("compare", before, elsewhere, "-f", "json").out)
    assert [one["ratio"] for one in rows] == [None] * 4, "another GPU's is another benchmark"


def test_a_history_of_them_is_their_own(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number in range(16):
        path = nvbench(
            tmp_path / f"{number}.json", state(8, (1e-5 if number < 8 else 1.3e-5) * (1 + number % 3 / 1000))
        )
        written = foreign.entry(path, foreign.read(path), history.Commit(sha(number), time=f"2026-01-{number + 1:02d}"))
        foreign.write(store, written)
    done = run("history", "show", "-k", "nvbench", "--store", store)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"{sha(8)[:9]}: copy BlockSize=2^8 +30.0 %"
    assert history.read_all(store) == [], "the other verbs do not see them"
    assert run("history", "show", "-k", "pytest-benchmark", "--store", store).code == 2


def test_a_file_is_added_at_the_commit_it_names_or_at_one_that_is_stated(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = run("history", "add", nvbench(tmp_path / "a.json", state(8, 1e-5)), "--store", store)
    assert done.code == 2 and "nvbench does not say which commit it measured; expected --commit REV" in done.err
    done = run("history", "add", tmp_path / "a.json", "--store", store, "--commit", sha(3))
    assert done.code == 0 and f"1 benchmarks of {sha(3)[:9]}" in done.out
    done = run("history", "add", REAL, "--store", store)
    assert done.code == 0, done.err
    assert len(foreign.read_all(store, "pytest-benchmark")) == len(foreign.read_all(store, "nvbench")) == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda data: data["benchmarks"][0]["states"][0].pop("name"),
            "differs from what nvbench writes: KeyError: 'name'",
        ),
        (lambda data: data["benchmarks"][0].update(states=[]), "holds no benchmark"),
        (lambda data: data["benchmarks"][0]["states"].append(state(8, 1e-5)), "the benchmark"),
        (
            lambda data: data["benchmarks"][0]["states"].append(state(9, -1.0)),
            "-1.0 s is not a valid time of a benchmark",
        ),
    ],
)
def test_a_file_that_is_not_as_the_tool_writes_it_is_refused(
    tmp_path: Path, spoil: Callable[[Any], object], said: str
) -> None:
    path = nvbench(tmp_path / "a.json", state(8, 1e-5))
    data = json.loads(path.read_text(encoding="utf-8"))
    spoil(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ResultsError, match=said):
        foreign.read(path)


def test_two_tools_are_not_compared_and_our_files_are_not_theirs(run: Run, tmp_path: Path) -> None:
    done = run("compare", nvbench(tmp_path / "a.json", state(8, 1e-5)), REAL)
    assert done.code == 2 and "expected two files of one tool" in done.err
    assert foreign.tool_of(AA) is None
    done = run("compare", REAL, AA)
    assert done.code == 2 and "was not written by nvbench or pytest-benchmark" in done.err
