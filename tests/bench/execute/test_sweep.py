"""The sweep end to end on the work clock: its file, killed, interrupted and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest

from bench.model import config, store
from bench.model.records import Results

ROOT = config.DEFAULT_PATH.parent
SMOKE = ("-p", "smoke", "-k", "work", "-c", "csgmv_embed-*", "-a", "op=lookup")
# Enough that a sweep is killed before its end: a point takes half a second, the file is looked at every 5 ms.
MANY = (*SMOKE, "-a", "phase=decode,mixed", "-a", "batch_size=4,5", "-a", "seq_len=4")
MANY_POINTS = 2 * 2 * 2


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def started(file: Path, log: Path) -> subprocess.Popen[bytes]:
    """A sweep of many points in its own process group."""
    command = [sys.executable, "-m", "bench", "sweep", *MANY, "-o", str(file)]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # A job in the background of a shell ignores SIGINT and would hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def wait_for_points(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not (file.exists() and raw_points(file)):
        assert process.poll() is None, "the sweep ended before its first point"
        assert time.monotonic() < deadline, "no point within 60 s"
        time.sleep(0.005)


def raw_points(file: Path) -> list[str]:
    """Each point of a file as its JSON text."""
    return [json.dumps(point) for point in json.loads(file.read_bytes())["points"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    file = tmp_path_factory.mktemp("sweep") / "new folder" / "results.json"
    return file, bench("sweep", *SMOKE, "-o", file)


def test_a_sweep_counts_every_point_and_says_that_counts_are_not_times(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    file, done = finished
    assert done.returncode == 0, done.stderr
    assert "counts from Triton's interpreter, not times" in done.stdout
    assert f"written to {file}" in done.stdout
    results = store.read(file)
    assert {(point.status, point.clock) for point in results.points} == {("ok", "work")}
    assert sorted(point.index for point in results.points) == [0, 1, 2, 3]
    for point in results.points:
        assert point.work is not None and point.check is not None and point.check.passed
        assert point.work.counts.store_bytes == point.case.num_tokens * point.case.rank * 2
        assert point.rounds == []


def test_the_file_of_a_sweep_is_of_today_and_fits_the_schema(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    data = json.loads(finished[0].read_bytes())
    jsonschema.validate(data, json.loads((ROOT / "bench" / "model" / "results.schema.json").read_bytes()))
    age = datetime.now(UTC) - datetime.fromisoformat(data["run"]["started_utc"])
    assert timedelta(0) <= age < timedelta(hours=1)
    assert data["schema"] == {"name": store.SCHEMA_NAME, "version": store.SCHEMA_VERSION}
    assert data["env"]["volatile"]["library_sha256"] == data["code"]["kernel_source_sha256"], "what the worker imported"


def test_show_prints_the_table_of_a_file(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = bench("show", finished[0])
    assert done.returncode == 0, done.stderr
    assert "counts of one launch, not times" in done.stdout
    for part in ("decode 8 r16", "mixed 8x24 r16", "ours-rank", "ours-vocab"):
        assert part in done.stdout
    assert "\x1b" not in done.stdout


def test_an_existing_output_is_refused_and_left_alone(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    before = finished[0].read_bytes()
    done = bench("sweep", *SMOKE, "-o", finished[0])
    assert done.returncode == 2
    assert "exists" in done.stderr and f"--resume {finished[0]}" in done.stderr
    assert finished[0].read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda results: setattr(results.code, "kernel_source_sha256", "other"), "the kernel's source"),
        (lambda results: setattr(results.code, "bench_version", "other"), "the suite's measuring code"),
        (lambda results: setattr(results.schema, "version", "1.9.0"), "the format"),
    ],
)
def test_a_resume_after_a_change_of_code_says_what_changed(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
    change: Callable[[Results], None],
    said: str,
) -> None:
    results, file = store.read(finished[0]), tmp_path / "changed.json"
    change(results)
    store.write(file, results)
    done = bench("sweep", "--resume", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}: {said} has changed" in done.stderr


def test_a_resume_with_another_plan_is_refused(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    before, edited = finished[0].read_bytes(), tmp_path / "edited.toml"
    text = config.DEFAULT_PATH.read_text(encoding="utf-8")
    edited.write_text(text.replace("seed = 1\n", "seed = 2\n", 1), encoding="utf-8")
    assert edited.read_text(encoding="utf-8") != text
    done = bench("sweep", "--resume", finished[0], "--config", edited)
    assert done.returncode == 2
    assert "the plan (bench.toml or the options) has changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert finished[0].read_bytes() == before


def test_a_killed_sweep_resumes_and_measures_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    process = started(file, tmp_path / "log")
    try:
        wait_for_points(file, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    measured, run = raw_points(file), store.read(file).run
    assert 1 <= len(measured) < MANY_POINTS
    done = bench("sweep", "--resume", file)
    assert done.returncode == 0, done.stderr
    assert f"{MANY_POINTS} measurements planned, {len(measured)} already there" in done.stdout
    assert raw_points(file)[: len(measured)] == measured
    results = store.read(file)
    assert sorted(point.index for point in results.points) == list(range(MANY_POINTS))
    assert len({point.key for point in results.points}) == MANY_POINTS
    assert {point.status for point in results.points} == {"ok"}
    assert (results.run.id, results.run.resumed) == (run.id, 1)
    assert results.run.duration_s > run.duration_s


def test_an_interrupted_sweep_says_how_to_go_on_and_leaves_a_valid_file(tmp_path: Path) -> None:
    file, log = tmp_path / "results.json", tmp_path / "log"
    process = started(file, log)
    try:
        wait_for_points(file, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    said = log.read_text(encoding="utf-8")
    assert f"interrupted; continue with: python -m bench sweep --resume {file}" in said
    assert "Traceback" not in said
    assert 1 <= len(store.read(file).points) < MANY_POINTS
    assert list(tmp_path.glob(".*")) == []


def test_a_sweep_interrupted_before_its_first_point_can_be_resumed(tmp_path: Path) -> None:
    file, log = tmp_path / "results.json", tmp_path / "log"
    process = started(file, log)
    try:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    said = log.read_text(encoding="utf-8")
    assert f"--resume {file}" in said and "Traceback" not in said
    assert store.read(file).points == []
