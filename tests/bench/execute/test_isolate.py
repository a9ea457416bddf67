"""The parent's side of a worker, against a script in its place: one that crashes, hangs or talks nonsense died."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.execute import isolate
from bench.execute.isolate import Ask, EarlyWorker, Hello, Start, Worker, WorkerDied
from bench.model import config
from bench.model.case import Case
from bench.model.config import PlannedPoint
from bench.model.records import Environment

START = Start("interpret", msgspec.structs.replace(config.load().measure, start_timeout_s=20.0), 0, ())
ASK = Ask(PlannedPoint(Case("decode", 1, 1, 16), "torch_gather", "graph"), 0)
ENVIRONMENT = Environment({"gpu": None}, "key", {})
GREETING = msgspec.json.encode(Hello(ENVIRONMENT, []))
HELLO = f"""
from multiprocessing.connection import Connection
receiver, sender = Connection(int(sys.argv[3]), writable=False), Connection(int(sys.argv[4]), readable=False)
receiver.recv_bytes()
sender.send_bytes({GREETING!r})
receiver.recv_bytes()
"""


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the interpreter that a Worker starts by one that runs these lines."""

    def play(lines: str) -> None:
        script = tmp_path / "interpreter"
        script.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{lines}\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr(isolate.sys, "executable", str(script))

    return play


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("print('last words'); sys.exit(7)", "exit status 7: ...last words"),
        ("time.sleep(60)", "no answer within 0.5 s: killed"),
        ("os.close(int(sys.argv[4])); time.sleep(60)", "signal SIGKILL"),
    ],
)
def test_how_it_ended_is_said(
    played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, lines: str, words: str
) -> None:
    monkeypatch.setattr(isolate, "GRACE_S", 0.5)
    played(lines)
    # Short only where nothing is to come: an interpreter may take seconds to start.
    settings = msgspec.structs.replace(START.settings, start_timeout_s=0.5 if lines == "time.sleep(60)" else 20.0)
    with pytest.raises(WorkerDied, match=words):
        Worker(msgspec.structs.replace(START, settings=settings), {})


def test_sglangs_kernel_cache_is_off_and_the_profile_can_turn_it_on(played: Callable[[str], None]) -> None:
    name = "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"
    played(f"print(os.environ['{name}']); sys.exit(1)")
    with pytest.raises(WorkerDied, match=r"\.\.\.0"):
        Worker(START, {})


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("sender.send_bytes(b'not JSON'); time.sleep(60)", r"its answer is no Answer \(.*malformed.*\): killed"),
        ("sender.send_bytes(b'[1]'); time.sleep(60)", r"no Answer \(Expected `object`, got `array`\): killed"),
        ("sender.send_bytes(b'{}'); time.sleep(60)", r"no Answer \(.*missing required field.*\): killed"),
        (r"sender.send_bytes(b'{\"type\": \"\xff\"}'); time.sleep(60)", r"no Answer \(.*(?i:utf-8).*\): killed"),
        (r"os.write(sender.fileno(), b'a stray line\n'); time.sleep(60)", "signal SIGKILL"),
    ],
)
def test_an_answer_that_is_garbage_ends_the_worker(
    played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, lines: str, words: str
) -> None:
    monkeypatch.setattr(isolate, "GRACE_S", 0.5)
    played(HELLO + lines)
    with Worker(START, {}) as worker:
        with pytest.raises(WorkerDied, match=words):
            worker.ask(ASK, 20)
        with pytest.raises(WorkerDied):
            worker.ask(ASK, 1)


def test_a_greeting_that_is_garbage_is_a_worker_that_died(played: Callable[[str], None]) -> None:
    played(HELLO.replace(repr(GREETING), "b'1'"))
    with pytest.raises(WorkerDied, match=r"its answer is no Hello \(Expected `object`, got `int`\): killed"):
        Worker(START, {})


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
            worker.ask(ASK, 0.5 if "sleep" in lines else 20)
        assert all(part in str(death.value) for part in said)
        with pytest.raises(WorkerDied):
            worker.ask(ASK, 1)


def test_only_the_end_of_a_dead_workers_output_is_quoted(played: Callable[[str], None]) -> None:
    played(HELLO + "sys.exit('x' * 5000 + 'end')")
    with Worker(START, {}) as worker, pytest.raises(WorkerDied) as death:
        worker.ask(ASK, 20)
    assert str(death.value).endswith("xend")
    assert len(str(death.value)) < isolate.LAST_WORDS + 60


def test_a_worker_that_closes_its_pipe_and_lives_on_is_killed(
    played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "GRACE_S", 0.2)
    played(HELLO + "sender.close(); receiver.close(); time.sleep(60)")
    with Worker(START, {}) as worker, pytest.raises(WorkerDied, match="signal SIGKILL"):
        worker.ask(ASK, 20)


def test_a_worker_is_told_where_it_runs(played: Callable[[str], None]) -> None:
    names = "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE", "EXTRA"
    played(HELLO + f"sys.exit(repr([os.environ.get(name) for name in {names}]))")
    for kind, interpret in (("interpret", "1"), ("compile", "0")):
        start = msgspec.structs.replace(START, kind=kind)
        with Worker(start, {"EXTRA": "7"}) as worker, pytest.raises(WorkerDied) as death:
            worker.ask(ASK, 20)
        assert repr([interpret, "", "0", "7"]) in str(death.value)


def test_a_worker_started_early_waits_to_be_told_what_for(played: Callable[[str], None], tmp_path: Path) -> None:
    told = tmp_path / "told"
    played(HELLO.replace("sender.send_bytes", f"open({str(told)!r}, 'w').close(); sender.send_bytes"))
    with EarlyWorker("interpret", {}) as worker:
        assert not told.exists()
        worker.begin(START)
        assert told.exists() and worker.hello.env == ENVIRONMENT


def test_a_worker_that_is_never_told_ends_when_it_is_closed(played: Callable[[str], None], tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    played(HELLO.replace("receiver.recv_bytes()", f"""
try:
    receiver.recv_bytes()
except EOFError:
    open({str(ended)!r}, "w").close()
    raise
""", 1))  # fmt: skip
    EarlyWorker("interpret", {}).close()
    assert ended.exists(), "it ended by itself, at the closed pipe"
