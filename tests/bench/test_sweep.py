"""The sweep: end to end on the work clock, killed and resumed; and its loop against workers that die on cue."""

from __future__ import annotations

import errno
import functools
import json
import operator
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from bench import config, isolate
from bench import results as store
from bench import sweep as loop
from bench.case import Case
from bench.config import Plan, PlannedPoint
from bench.isolate import Answer, Ask, Hello, Start, Worker, WorkerDied
from bench.results import (
    Anchor,
    Code,
    Environment,
    Point,
    Results,
    ResultsError,
    Round,
    Run,
    Schema,
    Selection,
    Work,
    WorkCounts,
)

ROOT = config.DEFAULT_PATH.parent
SMOKE = ("-p", "smoke", "-k", "work", "-c", "csgmv_embed-*")
MANY = (*SMOKE, "-a", "phase=decode,prefill,mixed", "-a", "batch_size=4,5,6,7,8", "-a", "rank=8,16,32")
MANY_POINTS = 3 * 5 * 3 * 2


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
    jsonschema.validate(data, json.loads((ROOT / "bench" / "results.schema.json").read_bytes()))
    age = datetime.now(UTC) - datetime.fromisoformat(data["run"]["started_utc"])
    assert timedelta(0) <= age < timedelta(hours=1)
    assert data["schema"] == {"name": store.SCHEMA_NAME, "version": store.SCHEMA_VERSION}


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
    assert f"interrupted; go on with: python -m bench sweep --resume {file}" in said
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


# The parent's side of a worker, against a script in the place of the interpreter.

SETTINGS = msgspec.structs.replace(config.load().measure, start_timeout_s=20.0, point_timeout_s=1.0, work_lanes=1)
START = Start("interpret", SETTINGS, 0, ())
ENVIRONMENT = Environment({"gpu": None, "torch": "1"}, "key", {})
PREAMBLE = f"""#!{sys.executable}
import os, signal, sys, time
from multiprocessing.connection import Connection
receiver, sender = Connection(int(sys.argv[3]), writable=False), Connection(int(sys.argv[4]), readable=False)
receiver.recv_bytes()
"""
HELLO = f"sender.send_bytes({msgspec.json.encode(Hello(ENVIRONMENT, []))!r})\nreceiver.recv_bytes()\n"


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the interpreter that a Worker starts by one that runs these lines after it was greeted."""

    def play(lines: str) -> None:
        script = tmp_path / "interpreter"
        script.write_text(PREAMBLE + lines, encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))

    return play


def planned(batch_size: int = 8, contender: str = "torch_gather", clock: Any = "graph") -> PlannedPoint:
    return PlannedPoint(Case("decode", batch_size, 1, 16, vocab=100), contender, clock)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", ["signal SIGSEGV"]),
        ("print('the last', 'words', flush=True); os.abort()", ["signal SIGABRT", "...the last words"]),
        ("sys.exit('no such kernel')", ["exit status 1", "...no such kernel"]),
        ("sys.exit(0)", ["exit status 0"]),
        ("time.sleep(60)", ["no answer within 0.5 s: killed"]),
    ],
)
def test_a_worker_that_gives_no_answer_died_and_says_how(
    played: Callable[[str], None], lines: str, said: list[str]
) -> None:
    played(HELLO + lines)
    with Worker(START, {}) as worker:
        assert worker.hello.env == ENVIRONMENT
        with pytest.raises(WorkerDied) as death:
            worker.ask(Ask(planned(), 0), 0.5 if "sleep" in lines else 20)
        assert all(part in str(death.value) for part in said)
        with pytest.raises(WorkerDied):
            worker.ask(Ask(planned(), 0), 1)


def test_only_the_end_of_a_dead_workers_output_is_quoted(played: Callable[[str], None]) -> None:
    played(HELLO + "sys.exit('x' * 5000 + 'end')")
    with Worker(START, {}) as worker, pytest.raises(WorkerDied) as death:
        worker.ask(Ask(planned(), 0), 20)
    assert str(death.value).endswith("xend")
    assert len(str(death.value)) < isolate.LAST_WORDS + 60


def test_a_worker_that_closes_its_pipe_and_lives_on_is_killed(
    played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "GRACE_S", 0.2)
    played(HELLO + "sender.close(); receiver.close(); time.sleep(60)")
    with Worker(START, {}) as worker, pytest.raises(WorkerDied, match="signal SIGKILL"):
        worker.ask(Ask(planned(), 0), 20)


def test_a_worker_is_told_where_it_runs(played: Callable[[str], None]) -> None:
    names = "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE", "EXTRA"
    played(HELLO + f"sys.exit(repr([os.environ.get(name) for name in {names}]))")
    for kind, interpret in (("interpret", "1"), ("compile", "0")):
        start = msgspec.structs.replace(START, kind=kind)
        with Worker(start, {"EXTRA": "7"}) as worker, pytest.raises(WorkerDied) as death:
            worker.ask(Ask(planned(), 0), 20)
        assert repr([interpret, "", "0", "7"]) in str(death.value)


# The loop, against workers that follow a script.

COUNTS = WorkCounts(1, 1, 1, 1, 1, 8, 8, 1, 1)


class FakeWorker:
    """Answers ok, but for what `script` says of (process, batch size)."""

    script: dict[tuple[int, int], str] = {}
    stillborn: set[tuple[str, int]] = set()  # (kind, how many of the kind came before it)
    lives: list[tuple[str, int, list[int]]] = []  # kind, process, batch sizes it was asked for
    running: list[FakeWorker] = []
    env_key = "key"

    def __init__(self, start: Start, environment: dict[str, str]) -> None:
        self.start, self.asked, self.dead = start, list[int](), False
        before = [kind for kind, _, _ in FakeWorker.lives].count(start.kind)
        FakeWorker.lives.append((start.kind, start.process, self.asked))
        if (start.kind, before) in self.stillborn:
            raise WorkerDied("worker ended with exit status 1")
        identity = {"gpu": None, "torch": "1" if self.env_key == "key" else "2"}
        self.hello = Hello(Environment(identity, self.env_key, {}), [Anchor("copy", "B/us", [1.0 + start.process])])
        FakeWorker.running.append(self)

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        FakeWorker.running.remove(self)

    def ask(self, ask: Ask, timeout_s: float) -> Answer:
        assert not self.dead, "a dead worker was asked"
        assert timeout_s == SETTINGS.point_timeout_s
        case, process = ask.planned.case, self.start.process
        self.asked.append(case.batch_size)
        fate = self.script.get((process, case.batch_size), "ok")
        if fate == f"die {self.start.kind}" or fate == "die":
            self.dead = True
            raise WorkerDied("worker ended with signal SIGSEGV")
        if fate == "fault in the suite":
            raise ZeroDivisionError(fate)
        point = ask.counted or Point(case, ask.planned.contender, ask.planned.clock, ask.index, "ok")
        if ask.planned.clock == "work":
            point.work = Work(COUNTS, compiled_reason="asked" if ask.counted else None)
        elif fate == "ok":
            point.rounds, point.floor_us, point.wall_s = [Round(process, 10 + process, [5.0 + process])], [1.0], 2.0
        elif fate == "lost":
            point.status, point.reason, self.dead = "crashed", "GPU context lost", True
            return Answer(point, lost=True)
        else:
            point.status, point.reason = "wrong", fate
        return Answer(point)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeWorker]]:
    monkeypatch.setattr(loop, "Worker", FakeWorker)
    for name, value in (("script", {}), ("stillborn", set()), ("lives", []), ("running", []), ("env_key", "key")):
        monkeypatch.setattr(FakeWorker, name, value)
    yield FakeWorker
    assert FakeWorker.running == [], "a worker was left open"


def plan_of(
    batch_sizes: list[int], *, processes: int = 1, clock: str = "graph", shuffle: bool = False, lanes: int = 1
) -> Plan:
    measure = msgspec.structs.replace(SETTINGS, processes=processes, work_lanes=lanes)
    return Plan("p", measure, tuple(planned(size, clock=clock) for size in batch_sizes), shuffle, {})


def empty() -> Results:
    run = Run("id", "sweep", Selection("p"), "2025-01-01T00:00:00+00:00", 0.0, [], 1, "", "0")
    return Results(Schema(), run, Code(None, None, None, None, None, None, "", ""))


def swept(plan: Plan, folder: Path, results: Results | None = None) -> Results:
    """The file of a whole sweep."""
    for _ in loop.sweep(plan, results or empty(), folder / "r.json"):
        pass
    return store.read(folder / "r.json")


def statuses(results: Results) -> dict[int, str]:
    return {point.case.batch_size: point.status for point in results.points}


@pytest.mark.parametrize(("fate", "reason"), [("die", "signal SIGSEGV"), ("lost", "GPU context lost")])
def test_a_crash_is_a_result_and_a_new_worker_measures_the_rest(
    fake: type[FakeWorker], tmp_path: Path, fate: str, reason: str
) -> None:
    fake.script = {(0, 2): fate}
    results = swept(plan_of([1, 2, 3, 4]), tmp_path)
    assert statuses(results) == {1: "ok", 2: "crashed", 3: "ok", 4: "ok"}
    assert reason in (results.points[1].reason or "")
    assert fake.lives == [("gpu", 0, [1, 2]), ("gpu", 0, [3, 4])]
    assert results.anchors == [Anchor("copy", "B/us", [1.0])]  # of the first worker alone


def test_a_crash_while_counting_is_a_result_and_a_new_lane_counts_the_rest(
    fake: type[FakeWorker], tmp_path: Path
) -> None:
    fake.script = {(0, 2): "die interpret"}
    results = swept(plan_of([1, 2, 3, 4], clock="work"), tmp_path)
    assert statuses(results) == {1: "ok", 2: "crashed", 3: "ok", 4: "ok"}
    lanes = [asked for kind, _, asked in fake.lives if kind == "interpret"]
    assert len(lanes) == 2 and sorted(functools.reduce(operator.iadd, lanes, [])) == [1, 2, 3, 4]
    assert all(point.work.compiled_reason == "asked" for point in results.points if point.work)


@pytest.mark.timeout(20)
def test_the_last_lane_that_cannot_be_replaced_ends_the_sweep(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script, fake.stillborn = {(0, 2): "die interpret"}, {("interpret", 1)}
    with pytest.raises(WorkerDied, match="exit status 1"):
        swept(plan_of([1, 2, 3, 4], clock="work"), tmp_path)
    assert statuses(store.read(tmp_path / "r.json")) == {1: "ok", 2: "crashed"}


@pytest.mark.timeout(20)
def test_a_lane_that_cannot_be_replaced_leaves_the_rest_to_the_others(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script, fake.stillborn = {(0, 2): "die interpret"}, {("interpret", 2)}
    results = swept(plan_of([1, 2, 3, 4], clock="work", lanes=2), tmp_path)
    assert statuses(results) == {1: "ok", 2: "crashed", 3: "ok", 4: "ok"}


@pytest.mark.timeout(20)
def test_a_fault_of_the_suite_in_a_lane_ends_the_sweep(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script = {(0, 2): "fault in the suite"}
    with pytest.raises(ZeroDivisionError):
        swept(plan_of(list(range(1, 30)), clock="work"), tmp_path)


@pytest.mark.parametrize("stillborn", [("interpret", 0), ("interpret", 1), ("compile", 0)])
def test_workers_are_closed_when_another_cannot_start(
    fake: type[FakeWorker], tmp_path: Path, stillborn: tuple[str, int]
) -> None:
    fake.stillborn = {stillborn}
    with pytest.raises(WorkerDied, match="exit status 1"):
        swept(plan_of([1, 2], clock="work", lanes=2), tmp_path)


def test_counts_stand_when_the_compiling_worker_dies(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script = {(0, 1): "die compile"}
    results = swept(plan_of([1, 2, 3], clock="work"), tmp_path)
    assert statuses(results) == {1: "ok", 2: "ok", 3: "ok"}
    reasons = {point.case.batch_size: point.work.compiled_reason for point in results.points if point.work}
    assert "SIGSEGV" in (reasons[1] or "")
    assert [kind for kind, _, _ in fake.lives].count("compile") == 1
    assert all(point.work is not None and point.work.counts == COUNTS for point in results.points)


def test_the_rounds_of_two_processes_are_merged(fake: type[FakeWorker], tmp_path: Path) -> None:
    results = swept(plan_of([1, 2], processes=2), tmp_path)
    assert [process for _, process, _ in fake.lives] == [0, 1]
    assert len(results.points) == 2
    for point in results.points:
        assert point.rounds == [Round(0, 10, [5.0]), Round(1, 11, [6.0])]
        assert (point.floor_us, point.wall_s) == ([1.0, 1.0], 4.0)
    assert results.anchors == [Anchor("copy", "B/us", [1.0, 2.0])]


@pytest.mark.parametrize(
    ("fate", "status", "reason"), [("die", "crashed", "SIGSEGV"), ("differs by 3", "wrong", "differs by 3")]
)
def test_a_failure_in_a_later_process_is_the_points_status(
    fake: type[FakeWorker], tmp_path: Path, fate: str, status: str, reason: str
) -> None:
    fake.script = {(1, 2): fate}
    results = swept(plan_of([1, 2, 3], processes=2), tmp_path)
    assert statuses(results) == {1: "ok", 2: status, 3: "ok"}
    assert reason in (results.points[1].reason or "")
    assert [len(point.rounds) for point in results.points] == [2, 1, 2]


def test_a_failure_in_the_first_process_is_not_mended_by_a_later_one(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.script = {(0, 2): "differs by 3"}
    results = swept(plan_of([1, 2], processes=2), tmp_path)
    assert statuses(results) == {1: "ok", 2: "wrong"}
    assert results.points[1].reason == "differs by 3"


def test_what_is_left_are_points_without_a_record_or_without_rounds_of_the_process() -> None:
    plan, results = plan_of([1, 2, 3], processes=2), empty()
    case = [point.case for point in plan.points]
    results.points = [
        Point(case[0], "torch_gather", "graph", 0, "ok", rounds=[Round(0, 1, [1.0])]),
        Point(case[1], "torch_gather", "graph", 1, "crashed", "signal"),
        Point(case[2], "torch_gather", "eager", 2, "ok", rounds=[Round(0, 1, [1.0])]),
    ]
    assert [index for index, _ in loop.left_of(plan, results, 0)] == [2]
    assert [index for index, _ in loop.left_of(plan, results, 1)] == [0, 2]


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_what_a_process_settled_is_not_asked_again_and_the_plan_still_comes_to_its_end(
    fake: type[FakeWorker], tmp_path: Path, clock: str
) -> None:
    fake.script = {(0, 2): "die interpret" if clock == "work" else "differs by 3"}
    plan, done = plan_of([1, 2, 3], processes=3, clock=clock), 0
    for event in loop.sweep(plan, empty(), tmp_path / "r.json"):
        if isinstance(event, loop.Planned):
            assert event.total == 9 and event.done >= done
            done = event.done
        done += isinstance(event, loop.Measured)
    assert done == 9
    asked = [(process, sizes) for kind, process, sizes in fake.lives if kind == "gpu"]
    assert asked == ([(0, [1, 2, 3]), (1, [1, 3]), (2, [1, 3])] if clock == "graph" else [])
    assert {process for kind, process, _ in fake.lives if kind == "interpret"} <= {0}


def test_there_is_a_file_to_go_on_with_before_the_first_worker_starts(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan, file = plan_of([1, 2]), tmp_path / "new folder" / "r.json"
    events = loop.sweep(plan, empty(), file)
    assert next(events) == loop.Planned(2, 0)
    events.close()
    assert fake.lives == [] and store.read(file) == empty()
    assert statuses(swept(plan, file.parent, store.read(file))) == {1: "ok", 2: "ok"}


def test_counted_points_need_no_rounds() -> None:
    plan, results = plan_of([1, 2], clock="work"), empty()
    results.points = [Point(plan.points[0].case, "torch_gather", "work", 0, "ok", work=Work(COUNTS))]
    assert [index for index, _ in loop.left_of(plan, results, 0)] == [1]


def test_each_process_has_its_own_order_and_the_same_one_every_time() -> None:
    plan, results = plan_of(list(range(1, 30)), processes=2, shuffle=True), empty()
    first, again, second = (loop.left_of(plan, results, process) for process in (0, 0, 1))
    assert first == again != second
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(29))
    assert loop.left_of(plan_of([1, 2, 3]), results, 0) == list(enumerate(plan.points[:3]))


def test_a_resumed_sweep_takes_what_is_left_of_each_process(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan, results = plan_of([1, 2, 3], processes=2), empty()
    events = loop.sweep(plan, results, tmp_path / "r.json")
    for _ in range(8):  # the plan, process 0 with three points; the plan, process 1 with one
        last = next(events)
    events.close()
    assert isinstance(last, loop.Measured)
    fake.lives.clear()
    resumed = store.read(tmp_path / "r.json")
    assert next(iter(loop.sweep(plan, resumed, tmp_path / "x.json"))) == loop.Planned(6, 4)
    results = swept(plan, tmp_path, resumed)
    assert fake.lives == [("gpu", 1, [2, 3])]
    assert [[item.process for item in point.rounds] for point in results.points] == [[0, 1]] * 3
    assert results.anchors == [Anchor("copy", "B/us", [1.0, 2.0])]


def test_a_finished_file_starts_no_worker(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan = plan_of([1, 2])
    results = swept(plan, tmp_path)
    fake.lives.clear()
    assert swept(plan, tmp_path, results).points == results.points
    assert fake.lives == []


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_another_machine_is_refused_before_it_measures(fake: type[FakeWorker], tmp_path: Path, clock: str) -> None:
    results = swept(plan_of([1], clock=clock), tmp_path)
    before = (tmp_path / "r.json").read_bytes()
    fake.env_key = "other"
    fake.lives.clear()
    with pytest.raises(ResultsError, match="torch 1 -> 2"):
        swept(plan_of([1, 2], clock=clock), tmp_path, results)
    assert functools.reduce(operator.iadd, (asked for _, _, asked in fake.lives), []) == []
    assert (tmp_path / "r.json").read_bytes() == before


def test_every_measurement_is_in_the_file_when_its_event_comes(fake: type[FakeWorker], tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    counted = [
        len(store.read(file).points)
        for event in loop.sweep(plan_of([1, 2, 3]), empty(), file)
        if isinstance(event, loop.Measured)
    ]
    assert counted == [1, 2, 3]


@pytest.mark.parametrize("clock", ["graph", "work"])
def test_a_disk_that_fills_up_ends_the_sweep_and_keeps_what_is_written(
    fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    def fills_up(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    synced: list[int] = []
    monkeypatch.setattr(store.os, "fsync", fills_up)
    with pytest.raises(ResultsError, match=r"r\.json: cannot be written: No space left on device"):
        swept(plan_of([1, 2, 3, 4], clock=clock), tmp_path)
    assert statuses(store.read(tmp_path / "r.json")) == {1: "ok", 2: "ok"}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_the_digest_is_of_what_is_measured_and_how() -> None:
    assert loop.plan_digest(plan_of([1, 2])) == loop.plan_digest(plan_of([1, 2]))
    others = [plan_of([1, 3]), plan_of([1, 2], processes=2), plan_of([1, 2], clock="eager"), plan_of([2, 1])]
    digests = {loop.plan_digest(plan) for plan in (plan_of([1, 2]), *others)}
    assert len(digests) == 5
