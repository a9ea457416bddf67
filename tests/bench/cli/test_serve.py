"""`serve` without a GPU says what would run; show, compare and plot take its files, gate and history do not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.cli import guards, serve
from bench.model import config, gpus, served
from bench.model.serving import make_serve_plan
from tests.support.gate import Outcome
from tests.support.served import usual

Run = Callable[..., Outcome]
BASELINE = "bench/baselines/nvidia-h100-80gb-hbm3.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "engines.json"
    served.write(path, usual())
    return path


def test_without_a_gpu_the_plan_is_told_and_the_status_is_that_of_other_verbs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (serve, guards):
        monkeypatch.setattr(module, "has_gpu", lambda: False)
    done = run("serve", "-p", "8b", "-m", "csgmv", "-m", "plugin-lookup", "-l", "decode", "--repeats", "2", "--where")
    crossed = run("serve", "-p", "cross", "--cross-check").out
    assert "then bench_serving puts loads on a server in each mode: decode 32, stream 32x128, arrivals 8/s x 128" in (
        crossed
    )
    assert done.code == 2 and done.err == "bench: serve: needs an NVIDIA GPU and none was found\n"
    assert "4 engines, one after another: csgmv plugin-lookup plugin-lookup csgmv" in done.out
    assert "  decode 256\n" in done.out and "prefill" not in done.out and "then traced: decode 32" in done.out


def test_a_model_over_several_gpus_is_planned_whole_and_refused_where_it_cannot_be_split(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (serve, guards):
        monkeypatch.setattr(module, "has_gpu", lambda: False)
    done = run("serve", "-p", "quick", "-m", "csgmv", "--tp", "2", "--repeats", "1")
    assert done.code == 2 and done.err == "bench: serve: needs an NVIDIA GPU and none was found\n"
    assert "8 slots, 2 GPUs" in done.out and done.out.startswith("serve profile quick: 1 engine, csgmv\n")
    odd = run("serve", "-p", "quick", "--tp", "3")
    assert odd.code == 2 and odd.out == "" and "tp 3" in odd.err
    for module in (serve, guards):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setattr(guards, "require_timing", lambda verb: None)
    monkeypatch.setattr(gpus, "visible", lambda: (gpus.Gpu(0, "GPU-a", "NVIDIA H200"),))
    fewer = run("serve", "-p", "quick", "--tp", "2")
    assert fewer.code == 2 and "tp 2: there is no GPU 1" in fewer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("-p", "nope"),
            "serve profile 'nope' is unknown; expected one of 1b, 8b, answers, cross, ends, evict, quick, switches",
        ),
        (("-m", "flash"), "--mode flash: expected none, triton, csgmv, plugin"),
        (("-l", "stream"), "--load stream: serve profile quick has none; expected one of decode, prefill"),
        (("--model", "70b"), "model 70b: "),
        (("--resume", "absent.json"), "absent.json: cannot be read"),
    ],
)
def test_a_wrong_case_is_named(arguments: tuple[str, ...], said: str, run: Run) -> None:
    done = run("serve", *arguments)
    assert (done.code, done.out) == (2, "") and said in done.err


def test_a_file_goes_on_with_its_own_choice_and_its_own_code(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "continues the file's own run" in run("serve", "--resume", file, "-p", "8b").err
    for module in (serve, guards):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    done = run("serve", "--resume", file)
    assert done.code == 2 and "the plan (bench.toml or the options) has changed since the file was begun" in done.err
    made, loaded = served.read(file), config.load()
    made.run.plan_sha256 = make_serve_plan(loaded.serve, loaded.serving, "quick").digest
    served.write(file, made)
    assert "the library's source has changed since the file was begun" in run("serve", "--resume", file).err


def test_a_file_that_is_there_is_not_written_over(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (serve, guards):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    before = file.read_bytes()
    done = run("serve", "-o", file)
    assert done.code == 2 and f"--resume {file} to continue it" in done.err and file.read_bytes() == before


def test_show_answers_in_every_format(run: Run, file: Path) -> None:
    table = run("show", file)
    assert table.code == 0 and "decode 32: step" in table.out
    chosen = ("--case", "kind=decode,requests=32", "-c", "plug*", "-k", "engine")
    (row,) = json.loads(run("show", file, *chosen, "-f", "json").out)
    assert (row["contender"], row["figure"], row["clock"]) == ("plugin", "step", "engine")
    (same,) = csv.DictReader(io.StringIO(run("show", file, *chosen, "-f", "csv").out))
    assert float(same["value"]) == row["value"]
    assert f"{row['value']:.4g}" in run("show", file, *chosen, "-f", "markdown").out.splitlines()[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-c", "flash"), "no mode has this name; expected some of none, csgmv, plugin"),
        (("--case", "kind=prefill"), "no load has all of these values"),
        (("--case", "rank=16"), "'rank=16' is not a term"),
        (("-k", "graph"), "expected engine"),
        (("--top", "3"), "expected no --sort, --top, --pivot or --subject"),
        (("-f", "xml"), "--format xml"),
    ],
)
def test_a_wrong_question_is_named(arguments: tuple[str, ...], said: str, run: Run, file: Path) -> None:
    done = run("show", file, *arguments)
    assert (done.code, done.out) == (2, "") and said in done.err


def test_two_files_are_compared_and_other_kinds_are_not(run: Run, file: Path, tmp_path: Path) -> None:
    other, faster = tmp_path / "faster.json", usual()
    for process in faster.processes:
        if process.mode == "plugin":
            process.loads[1] = msgspec.structs.replace(process.loads[1], samples={"step_us": [3275.0]})
    served.write(other, faster)
    rows = {row["contender"]: row for row in json.loads(run("compare", file, other, "-f", "json").out)}
    assert rows["csgmv"]["ratio"] == 1 and rows["plugin"]["ratio"] == pytest.approx(0.5, rel=0.001)
    assert "plugin" in run("compare", file, other).out
    mixed = run("compare", file, BASELINE)
    assert (
        mixed.code == 2
        and "is not a file of bench serve, but the other one is; expected two files of the same kind" in mixed.err
    )


def test_two_files_are_judged_in_every_format(run: Run, file: Path, tmp_path: Path) -> None:
    slow, slower = tmp_path / "slower.json", usual()
    for process in slower.processes:
        if process.mode == "plugin":
            process.loads[1] = msgspec.structs.replace(process.loads[1], samples={"step_us": [9000.0]})
    served.write(slow, slower)
    assert (run("gate", file, "--baseline", file).code, run("gate", slow, "--baseline", file).code) == (0, 1)
    told = run("gate", slow, "--baseline", file, "-f", "json", "-c", "plugin")
    (row,) = json.loads(told.out)
    assert told.code == 1 and (row["status"], row["mode"], row["load"]) == ("slow", "plugin", "decode 32")
    assert "for files of bench serve expected one of table" in run("gate", file, "--baseline", file, "-f", "junit").err
    mixed = run("gate", file, "--baseline", BASELINE)
    assert mixed.code == 2 and "is not a file of bench serve, but the other one is" in mixed.err


def test_the_history_keeps_a_series_for_each_load_mode_and_figure(run: Run, tmp_path: Path) -> None:
    store, files = tmp_path / "store", []
    for place, step in enumerate((6500.0, 6510.0, 7800.0)):
        made = usual()
        made.code = msgspec.structs.replace(
            made.code, sha=f"{place + 1}" * 40, commit_time=f"2026-01-0{place + 1}T00:00:00+00:00"
        )
        made.run.id = f"0000000{place}-0000-4000-8000-000000000000"
        for process in made.processes:
            if process.mode == "plugin":
                process.loads[1] = msgspec.structs.replace(process.loads[1], samples={"step_us": [step]})
        files.append(tmp_path / f"{place}.json")
        served.write(files[-1], made)
    added = run("history", "add", *files, "--store", store)
    assert added.code == 0 and "figures of 111111111, written to" in added.out
    assert len([*(store / "gpu-x").glob("*.engine.json")]) == 3
    shown = run("history", "show", "-k", "engine", "--store", store)
    assert shown.code == 0 and "333333333: slow: plugin, decode 32: step +19.8 %" in shown.out
    assert "222222222: " not in shown.out and "decode 32: step; model 8b" in shown.out
    assert "--gpu NAME" in run("history", "show", "-k", "engine", "--gpu", "H100", "--store", store).err
    dirty = usual()
    dirty.code = msgspec.structs.replace(dirty.code, dirty=True)
    served.write(files[0], dirty)
    assert "expected a file made in a clean git checkout" in run("history", "add", files[0], "--store", store).err


def test_plot_draws_both_pictures(run: Run, file: Path, tmp_path: Path) -> None:
    done = run("plot", "all", file, "-o", tmp_path / "x.png")
    assert done.code == 0
    names = {path.name for path in tmp_path.glob("x-*")}
    assert names == {"x-serve.png", "x-serve.svg", "x-where.png", "x-where.svg"}
    bare = usual()
    for process in bare.processes:
        process.traces = []
    served.write(file, bare)
    assert "expected a file of bench serve --where" in run("plot", "where", file).err
