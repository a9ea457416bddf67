"""A worker that crashes, hangs or talks nonsense is a WorkerDied with its reason."""

from __future__ import annotations

import sys

import msgspec
import pytest

from bench import config, isolate
from bench.isolate import Start, Worker, WorkerDied

SETTINGS = msgspec.structs.replace(config.load().measure, start_timeout_s=3.0)


def start_with(monkeypatch, tmp_path, body: str) -> None:
    """Start a worker whose process runs `body` instead of bench.worker."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys, time, signal\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(isolate.sys, "executable", str(script))
    Worker(Start("interpret", SETTINGS, 0, ()), {})


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
