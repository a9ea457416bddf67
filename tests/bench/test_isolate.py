"""A worker that crashes, hangs or talks nonsense is a WorkerDied with its reason."""

from __future__ import annotations

import sys

import msgspec
import pytest

from bench import config, isolate
from bench.case import Case
from bench.config import PlannedPoint
from bench.isolate import Ask, Hello, Start, Worker, WorkerDied
from bench.results import Environment

SETTINGS = msgspec.structs.replace(config.load().measure, start_timeout_s=3.0)


def start_with(monkeypatch, tmp_path, body: str) -> Worker:
    """Start a worker whose process runs `body` instead of bench.worker."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys, time, signal\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(isolate.sys, "executable", str(script))
    return Worker(Start("interpret", SETTINGS, 0, ()), {})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("print('last words'); sys.exit(7)", "exit status 7: ...last words"),
        ("time.sleep(60)", "no answer within 3 s: killed"),
        ("os.close(int(sys.argv[4])); time.sleep(60)", "signal SIGKILL"),
    ],
)
def test_how_it_ended_is_said(monkeypatch, tmp_path, body, words):
    monkeypatch.setattr(isolate, "GRACE_S", 0.5)
    with pytest.raises(WorkerDied, match=words):
        start_with(monkeypatch, tmp_path, body)


def test_sglangs_kernel_cache_is_off_and_the_profile_can_turn_it_on(monkeypatch, tmp_path):
    name = "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"
    with pytest.raises(WorkerDied, match=r"\.\.\.0"):
        start_with(monkeypatch, tmp_path, f"print(os.environ['{name}']); sys.exit(1)")


ENVIRONMENT = Environment({"gpu": None}, "key", {})
CONNECT = f"""
from multiprocessing.connection import Connection
receiver, sender = Connection(int(sys.argv[3]), writable=False), Connection(int(sys.argv[4]), readable=False)
receiver.recv_bytes()
sender.send_bytes({msgspec.json.encode(Hello(ENVIRONMENT, []))!r})
receiver.recv_bytes()
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sender.send_bytes(b'not JSON'); time.sleep(60)", r"answered what is no Answer \(.*malformed.*\): killed"),
        ("sender.send_bytes(b'[1]'); time.sleep(60)", r"no Answer \(Expected `object`, got `array`\): killed"),
        ("sender.send_bytes(b'{}'); time.sleep(60)", r"no Answer \(.*missing required field.*\): killed"),
        (r"sender.send_bytes(b'{\"type\": \"\xff\"}'); time.sleep(60)", r"no Answer \(.*utf-8.*\): killed"),
        (r"os.write(sender.fileno(), b'a stray line\n'); time.sleep(60)", "signal SIGKILL"),
    ],
)
def test_an_answer_that_is_garbage_ends_the_worker(monkeypatch, tmp_path, body, words):
    monkeypatch.setattr(isolate, "GRACE_S", 0.5)
    with start_with(monkeypatch, tmp_path, CONNECT + body) as worker:
        ask = Ask(PlannedPoint(Case("decode", 1, 1, 16), "torch_gather", "graph"), 0)
        with pytest.raises(WorkerDied, match=words):
            worker.ask(ask, 20)
        with pytest.raises(WorkerDied):
            worker.ask(ask, 1)


def test_a_greeting_that_is_garbage_is_a_worker_that_died(monkeypatch, tmp_path):
    with pytest.raises(WorkerDied, match=r"answered what is no Hello \(Expected `object`, got `int`\): killed"):
        start_with(monkeypatch, tmp_path, CONNECT.replace(repr(msgspec.json.encode(Hello(ENVIRONMENT, []))), "b'1'"))
