"""The loop around engines: real processes with an engine that answers at once, or does what an engine should not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from time import monotonic_ns
from typing import ClassVar

import msgspec
import pytest

from bench.engine import drive, peft_reference, watch
from bench.engine.drive import WAVES
from bench.engine.messages import Job, Loaded, Message, Prepared, PrepareJob, ServeJob, WarmJob
from bench.engine.processes import EngineChild
from bench.engine.run import Event, LoadDone, OutOfTime, Planned, ProcessDone, Surroundings, new_results, serve
from bench.engine.watch import Seen
from bench.judge.answers import answer_checks
from bench.judge.serving import failures, figures
from bench.model import config, served
from bench.model.paths import ROOT
from bench.model.records import Environment, ResultsError
from bench.model.served import ServeResults
from bench.model.serving import Load, LoadAxes, ServePlan, ServeProfile, Setup, make_serve_plan
from tests.support import fake_engine

TINY = {
    "model_type": "llama", "vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 16,
}  # fmt: skip
LOADED = config.load()
QUIET = LOADED.serving.__class__(
    **{**msgspec.structs.asdict(LOADED.serving), "arrivals_s": 0.2, "load_timeout_s": 30.0, "agreement": 0.0}
)


def looks_quiet() -> Seen:
    return Seen(monotonic_ns(), 1980, ("power_cap",), 2**30, None)


class Quick(EngineChild):
    """A process that prepares nothing: a tenth of a second in the place of torch's import."""

    prepared: Prepared | None = None

    def begin(self, job: Job) -> None:
        if isinstance(job, PrepareJob):
            environment = Environment({"gpu": None}, "here", {"gpu_uuid": "GPU-1"})
            self.prepared = Prepared("model", ["a"] * job.setup.adapters, 1, 500, environment, 0.1)
        else:
            super().begin(job)

    def hear(self, timeout_s: float) -> Message:
        return self.prepared or super().hear(timeout_s)

    def leave(self) -> None:
        if self.prepared is None:
            super().leave()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return path


def plan_of(
    tiny: Path, *modes: str, kinds: tuple[str, ...] = ("decode",), repeats: int = 1, **changed: float
) -> ServePlan:
    axes = {
        "decode": LoadAxes(("decode",), (1, 4)),
        "prefill": LoadAxes(("prefill",), (2,), (8,)),
        "stream": LoadAxes(("stream",), (3,)),
        "arrivals": LoadAxes(("arrivals",), rate_rps=(40.0,)),
    }
    profile = ServeProfile(modes, tuple(axes[kind] for kind in kinds), repeats=repeats)
    serving = msgspec.structs.replace(QUIET, **changed)
    return make_serve_plan({"p": profile}, serving, "p", model=str(tiny))


def around(tmp_path: Path, **changed: object) -> Surroundings:
    usual = Surroundings(tmp_path / "cache", opener=fake_engine.OPENER, child=Quick, look=looks_quiet)
    return msgspec.structs.replace(usual, **changed)


def begun(plan: ServePlan, *, where: bool = False) -> ServeResults:
    return new_results(plan, kinds=[], modes=[], model=plan.setup.model, where=where)


def ran(plan: ServePlan, tmp_path: Path, **changed: object) -> tuple[ServeResults, list[Event]]:
    """The file as it is read again, and the events."""
    path = tmp_path / "out.json"
    events = [*serve(plan, begun(plan), path, around(tmp_path, **changed))]
    return served.read(path), events


def test_every_load_of_every_mode_is_in_the_file_with_its_samples(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "none", "csgmv", kinds=("decode", "prefill", "stream", "arrivals"), repeats=2)
    results, events = ran(plan, tmp_path, child=EngineChild)
    assert [(item.mode, item.repeat) for item in results.processes] == [
        ("none", 0),
        ("csgmv", 0),
        ("csgmv", 1),
        ("none", 1),
    ]
    for process in results.processes:
        assert process.status == "ok" and [item.load for item in process.loads] == [*plan.loads]
        assert {item.status for item in process.loads} == {"ok"} and process.engine == {"fake": True}
        by_kind = {item.load.kind: item.samples for item in process.loads}
        assert len(by_kind["decode"]["step_us"]) == len(by_kind["prefill"]["prefill_us"]) == QUIET.samples
        assert len(by_kind["stream"]["ttft_us"]) == 3 * WAVES and by_kind["stream"]["tokens"] == [3 * WAVES * 64]
        assert len(by_kind["stream"]["gap_us"]) == 3 * WAVES * 63
        assert len(by_kind["arrivals"]["ttft_us"]) * 64 == by_kind["arrivals"]["tokens"][0]
        assert (
            by_kind["start"]["gpu_bytes"] == [pytest.approx(2**30, rel=1e-5)] and by_kind["start"]["start_us"][0] > 1e4
        )
        assert by_kind["start"]["compile_us"] == [2000.0] + [5000.0] * (process.mode == "csgmv")
        named = {item.load.kind: item.compiled for item in process.loads}
        assert named["start"] == ["attention"] + ["lora"] * (process.mode == "csgmv")
        assert by_kind["decode"].get("compile_us", []) == [5000.0] * (process.mode == "csgmv")
        decodes = [item for item in process.loads if item.load.kind == "decode"]
        steps = QUIET.samples * (QUIET.short_tokens + QUIET.long_tokens)
        for item in decodes:
            assert len(item.samples.get("prepare_us", [])) == (steps if process.mode == "csgmv" else 0)
            assert item.throttle == ["power_cap"] and item.sm_mhz == [1980, 1980]
    assert events[0] == Planned(4, 0) and sum(isinstance(event, ProcessDone) for event in events) == 4
    assert results.run.duration_s > 0 and results.env is not None


def test_what_is_right_is_asked_once_and_for_answers_alone(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "peft", "none", "csgmv", repeats=2)
    results, _ = ran(plan, tmp_path, right=fake_engine.OPENER)
    assert [item.mode for item in results.processes] == ["peft", "none", "csgmv", "csgmv", "none"]
    right, *engines = [[item.load for item in process.loads if item.status == "ok"] for process in results.processes]
    assert [(load.kind, load.base_fraction) for load in right] == [("answers", share) for share in (0.0, 0.25, 1.0)]
    assert all(loads == [*plan.loads] for loads in engines)
    assert [load.kind for load in plan_of(tiny, "csgmv").loads].count("answers") == 1, "as ever, where it is not asked"
    assert {figure.mode for figure in figures(results)} == {"none", "csgmv"}


def test_what_is_right_is_asked_of_another_program_with_its_own_packages(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[tuple[str | None, bool]] = []

    class Seeing(Quick):
        def __init__(self, environment: Mapping[str, str]) -> None:
            paths.append((environment.get("PYTHONPATH"), "BENCH_START_TIMES" in environment))
            super().__init__(environment)

    monkeypatch.setenv(peft_reference.PATH, str(ROOT / "elsewhere"))
    results, _ = ran(plan_of(tiny, "peft", "csgmv"), tmp_path, child=Seeing, right="tests.support.fake_engine:missing")
    assert (f"{ROOT / 'elsewhere'}:{ROOT}", True) in paths and [path for path, _ in paths].count(None) == 2
    peft, csgmv = results.processes
    assert (peft.status, csgmv.status) == ("crashed", "ok") and "has no attribute 'missing'" in str(peft.reason)
    assert {check.reason for check in answer_checks(results) if check.reference == "peft"} == {
        "peft has no answers to compare"
    }


def test_a_step_is_the_difference_of_long_and_short_answers(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "csgmv", long_tokens=144)
    results, _ = ran(plan, tmp_path)
    (step, *_) = [item for item in results.processes[0].loads if item.load.kind == "decode"]
    assert 0.8 < sorted(step.samples["step_us"])[1] / (1e6 * fake_engine.STEP_S["csgmv"]) < 2.5


@pytest.mark.parametrize(
    ("steps", "taken"), [((100.0, 100.9, 300.0), 2), ((100.0, 150.0, 100.5), 3), ((100.0, 100.0, 100.0), 2)]
)
def test_steps_that_agree_are_not_repeated(
    steps: tuple[float, ...], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only the engine moves."""
    now, left = [0], [*steps]

    class Exact:
        def ask(self, asked: list[object], new_tokens: int) -> None:
            if new_tokens == QUIET.long_tokens:
                now[0] += round(1000 * left.pop(0) * (new_tokens - QUIET.short_tokens))

    monkeypatch.setattr(drive, "monotonic_ns", lambda: now[0])
    load = Load("decode", 2, 4)
    serving = msgspec.structs.replace(QUIET, agreement=0.01)
    prepared = Prepared("model", ["a"], 1, 500, Environment({}, "k", {}), 0.0)
    job = ServeJob("none", Setup(), serving, (load,), prepared, (), "", 0.0, "")
    told: list[Message] = []
    drive._Driver(job, Exact(), {}, 0).measured(load, told.append)  # type: ignore[arg-type]  # what a decode needs
    done = told[-1]
    assert isinstance(done, Loaded) and done.problem is None
    assert done.samples["step_us"] == [*steps[:taken]]


class Counted(Quick):
    """Remembers the processes that were started, and which of them were ended."""

    all: ClassVar[list[Counted]] = []

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self.jobs: list[Job] = []
        self.closed, self.closed_ns = False, 0
        self.all.append(self)

    def begin(self, job: Job) -> None:
        self.jobs.append(job)
        super().begin(job)

    def close(self) -> None:
        self.closed, self.closed_ns = True, monotonic_ns()
        super().close()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    monkeypatch.setattr(Counted, "all", [])
    return Counted.all


def served_by(child: Counted) -> list[str]:
    return [job.mode for job in child.jobs if isinstance(job, ServeJob)]


def test_the_next_engine_imports_while_one_starts_and_waits_while_it_is_measured(
    tiny: Path, tmp_path: Path, counted: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "none:slow,csgmv:slow")  # a start that takes longer than imports
    results, _ = ran(plan_of(tiny, "none", "csgmv", "plugin"), tmp_path, child=Counted)
    assert [item.status for item in results.processes] == ["ok"] * 3
    children = [child for child in counted if child.prepared is None]
    assert [served_by(child) for child in children] == [["none"], ["csgmv"], ["plugin"]], "none was started twice"
    assert all(isinstance(child.jobs[0], WarmJob) for child in children) and all(child.closed for child in counted)
    for one, following in pairwise(children):
        assert following.spawned_ns < one.closed_ns, "it is there before the one before it is ended"
    for process in results.processes:
        (start,) = [item.samples for item in process.loads if item.load.kind == "start"]
        slow = 0 if process.mode == "plugin" else 1e6 * fake_engine.SLOW_S
        assert start["start_us"][0] > start["import_us"][0] + slow > 1e4
    ends = [item.duration_s for item in results.processes]
    assert sum(ends) < results.run.duration_s + 0.01, "what waits is not counted as its own"


def test_an_engine_that_still_imports_when_another_is_to_be_measured_is_ended_and_started_again(
    tiny: Path, tmp_path: Path, counted: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.WARM, "3")  # and the engine before it starts at once
    results, _ = ran(plan_of(tiny, "none", "plugin"), tmp_path, child=Counted)
    assert [item.status for item in results.processes] == ["ok", "ok"]
    children = [child for child in counted if child.prepared is None]
    assert [served_by(child) for child in children] == [["none"], [], ["plugin"]]
    (start,) = [item.samples for item in results.processes[1].loads if item.load.kind == "start"]
    assert 3e6 < start["import_us"][0] < start["start_us"][0]


def test_an_engine_that_cannot_import_is_a_row(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_engine.WARM, "die")
    results, _ = ran(plan_of(tiny, "none", "csgmv"), tmp_path)
    for process in results.processes:
        assert process.status == "crashed" and "ImportError: no module named sgl_kernel" in str(process.reason)


def test_an_engine_whose_imports_take_a_place_on_the_gpu_is_started_in_its_turn_alone(
    tiny: Path, tmp_path: Path, counted: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FREE_S", 0.0)

    def looks() -> Seen:
        alive = sum(not child.closed and child.prepared is None for child in counted)
        return Seen(monotonic_ns(), 1980, (), 2**30, (*range(2**24, 2**24 + alive),))

    results, _ = ran(plan_of(tiny, "none", "csgmv"), tmp_path, child=Counted, look=looks)
    assert [item.status for item in results.processes] == ["ok", "ok"]
    children = [child for child in counted if child.prepared is None]
    assert [served_by(child) for child in children] == [[], ["none"], ["csgmv"]]


def test_what_a_start_consists_of_is_in_its_samples(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "csgmv:parts")
    results, _ = ran(plan_of(tiny, "csgmv"), tmp_path)
    (start,) = [item.samples for item in results.processes[0].loads if item.load.kind == "start"]
    assert 2e4 < start["weights_us"][0] < 1e6 and 1e4 < start["graphs_us"][0] < 1e6
    assert start["processes_us"][0] > 0 and "adapters_us" not in start
    parts = ("import_us", "processes_us", "weights_us", "graphs_us")
    assert sum(start[name][0] for name in parts) < start["start_us"][0]  # type: ignore[index]  # names of samples


def test_an_engine_that_dies_is_a_row_with_its_last_words_and_the_others_go_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "csgmv:die:4,triton:start")
    results, _ = ran(plan_of(tiny, "none", "csgmv", "triton"), tmp_path)
    none, csgmv, triton = results.processes
    assert none.status == "ok"
    assert csgmv.status == "crashed" and "SIGKILL: ...CUDA error: an illegal memory access" in str(csgmv.reason)
    assert [(item.load.requests, item.status) for item in csgmv.loads] == [
        (8, "ok"),
        (16, "ok"),
        (1, "ok"),
        (4, "crashed"),
    ]
    assert triton.status == "crashed" and "RuntimeError: no kernel image is available" in str(triton.reason)
    assert triton.loads == []


def test_what_an_engine_spawns_times_batch_preparation_and_without_lora_nothing_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "csgmv:spawn,none:spawn")
    results, _ = ran(plan_of(tiny, "csgmv", "none"), tmp_path)
    assert [item.status for item in results.processes] == ["ok", "crashed"]


def test_a_load_that_hangs_is_killed_with_its_group(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "csgmv:hang:1")
    results, _ = ran(plan_of(tiny, "csgmv", load_timeout_s=3.0), tmp_path)
    (process,) = results.processes
    assert process.status == "error" and str(process.reason).startswith("no answer within 3 s: killed")
    assert process.loads[-1].status == "crashed" and process.duration_s < 30


def test_a_failed_request_voids_its_load_and_an_error_is_told_and_neither_stops_the_next(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "csgmv:fail:1,none:raise:1")
    results, _ = ran(plan_of(tiny, "csgmv", "none"), tmp_path)
    csgmv, none = results.processes
    assert csgmv.status == none.status == "ok"
    one, four = csgmv.loads[2:]
    assert (one.status, one.reason, one.samples) == ("void", "a request failed: out of slots", {})
    assert four.status == "ok" and four.samples["step_us"]
    assert none.loads[2].status == "error" and "RuntimeError: shapes differ (fake_engine.py" in str(
        none.loads[2].reason
    )


def test_a_mode_whose_plugin_is_off_has_no_figures(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_engine.FAULTS, "plugin:off")
    results, _ = ran(plan_of(tiny, "plugin"), tmp_path)
    (process,) = results.processes
    assert (process.status, process.reason) == ("error", "the plugin is off: told so")
    assert {(item.status, item.reason) for item in process.loads} == {("void", process.reason)}


def test_another_process_voids_what_it_met_and_is_shown(tiny: Path, tmp_path: Path) -> None:
    """The engine has one on the GPU from the second look on; another's comes with the answers, and stays."""
    pids: list[int] = []
    path, plan = tmp_path / "out.json", plan_of(tiny, "csgmv", kinds=("arrivals",), arrivals_s=1.0)

    def looks() -> Seen:
        found = Seen(monotonic_ns(), 1980, (), 2**30, tuple(pids))
        pids[:] = pids or [2**24]
        return found

    for event in serve(plan, begun(plan), path, around(tmp_path, look=looks)):
        if isinstance(event, LoadDone) and event.load.load.kind == "answers":
            pids.append(2**24 + 1)
    results = served.read(path)
    start, answers, arrivals = results.processes[0].loads
    reason = "another process was on the GPU: 2 where the engine has 1"
    assert (start.status, answers.status) == ("ok", "ok")
    assert (arrivals.status, arrivals.reason) == ("void", reason) and arrivals.samples, "kept, labelled"
    found = {figure.name: figure for figure in figures(results)}
    assert {figure.name for figure in found.values() if figure.case.load.kind == "arrivals"} == set()
    assert found["start"].value and "memory" not in found, "some of it was the other's"
    told = [(item.what, item.status, item.reason) for item in failures(results)]
    assert told == [(arrivals.load.label, "void", reason)], "what `show` prints"


def test_a_lowered_clock_voids_what_it_met(tiny: Path, tmp_path: Path) -> None:
    began = time.monotonic()

    def disturbed() -> Seen:
        return Seen(monotonic_ns(), 1200, ("thermal", "power_cap") if time.monotonic() > began else (), 2**30, None)

    results, _ = ran(plan_of(tiny, "csgmv"), tmp_path, look=disturbed)
    assert {(item.status, item.reason) for item in results.processes[0].loads} == {
        ("void", "the GPU's clock was lowered: thermal")
    }
    assert all(item.samples for item in results.processes[0].loads if item.load.kind != "answers"), "kept, labelled"


def test_no_engine_starts_on_a_gpu_that_is_anothers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FREE_S", 0.1)
    results, _ = ran(plan_of(tiny, "csgmv"), tmp_path, look=lambda: Seen(monotonic_ns(), 1980, (), 2**35, ()))
    (process,) = results.processes
    assert process.status == "error" and "32.0 GiB in use before the engine was started" in str(process.reason)


def test_a_run_goes_on_where_it_was_and_repeats_nothing(tiny: Path, tmp_path: Path) -> None:
    plan, path = plan_of(tiny, "none", "csgmv", repeats=2), tmp_path / "out.json"
    events = serve(plan, begun(plan), path, around(tmp_path))
    for event in events:
        if isinstance(event, LoadDone) and event.run.index == 1:
            break
    events.close()  # interrupted within the second engine
    first = served.read(path)
    assert [(item.mode, item.repeat) for item in first.processes] == [("none", 0)]
    later = [*serve(plan, first, path, around(tmp_path))]
    assert later[0] == Planned(4, 1)
    whole = served.read(path)
    assert [(item.mode, item.repeat) for item in whole.processes] == [
        ("none", 0),
        ("csgmv", 0),
        ("csgmv", 1),
        ("none", 1),
    ]
    assert whole.processes[0].started_utc == first.processes[0].started_utc
    assert [*serve(plan, whole, path, around(tmp_path))] == [Planned(4, 4)]


def test_no_engine_is_started_that_would_not_end_in_time(tiny: Path, tmp_path: Path) -> None:
    plan, path = plan_of(tiny, "none", "csgmv", repeats=2), tmp_path / "out.json"
    results = begun(plan)
    events = [*serve(plan, results, path, around(tmp_path, budget_s=0.5))]
    assert isinstance(events[-1], OutOfTime) and events[-1].left == 4 - len(results.processes) > 0


def test_another_machine_does_not_go_on_with_a_file(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "none")
    results = begun(plan)
    results.env = Environment({"gpu": "GPU Y"}, "other", {})
    with pytest.raises(ResultsError, match="differs from the one that the file was begun on: .*gpu GPU Y -> None"):
        [*serve(plan, results, tmp_path / "out.json", around(tmp_path))]


def test_another_gpu_of_the_same_model_does_not_either(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "none")
    results = begun(plan)
    results.env = Environment({"gpu": None}, "here", {"gpu_uuid": "GPU-2"})
    with pytest.raises(ResultsError, match="only one of the same model"):
        [*serve(plan, results, tmp_path / "out.json", around(tmp_path))]


def test_weights_that_cannot_be_written_end_the_run(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "none")
    tiny.write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match="cannot be written below .*config.json"):
        [*serve(plan, begun(plan), tmp_path / "out.json", around(tmp_path, child=EngineChild))]


def test_the_first_engine_of_a_mode_is_traced_after_its_figures(tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, "csgmv", kinds=("decode", "prefill"), repeats=2)
    results, _ = ran(plan, tmp_path, where=True)
    first, second = results.processes
    assert [trace.load.label for trace in first.traces] == ["decode 4", "prefill 2x8"] and second.traces == []
    assert {kernel.site for kernel in first.traces[0].kernels} == {"attention", "base", "unplaced"}
    assert first.traces[0].lacking == {"without an end": 1, "passes that do not have the model's sites": 1}
    assert [item.status for item in first.loads] == ["ok"] * len(plan.loads)
