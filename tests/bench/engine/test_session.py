"""A server under a profiler: what is asked before the capture range, within it, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.cli import main as cli
from bench.engine.messages import Prepared
from bench.engine.server_process import HOST, Server, ServerDied, free_port
from bench.engine.session import Session, SessionError, batches, run
from bench.model import config
from bench.model.records import Environment
from bench.model.serving import Load, Setup
from profiles.capture import CaptureFailed
from tests.bench.engine.test_run import tiny

__all__ = ["tiny"]
SERVER = "tests.support.fake_http"


@pytest.fixture
def session(tiny: Path, tmp_path: Path) -> Session:
    setup, serving = Setup(str(tiny), adapters=2), config.load().serving
    return Session("csgmv", setup, serving, Load("decode", 4, 16), str(tmp_path), 6, 4, 5, SERVER)


@pytest.fixture
def prepared() -> Prepared:
    return Prepared("model", ["a", "b"], 1, 500, Environment({}, "here", {}), 0.0)


def test_so_many_requests_are_captured_and_so_many_go_before(
    session: Session, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_HTTP_SAW", str(tmp_path / "saw"))
    run(session, prepared)
    given, *asked = map(json.loads, (tmp_path / "saw").read_text().splitlines())
    assert given["lora_backend"] == "csgmv"
    counts = [(item["path"], len(item.get("input_ids", []))) for item in asked]
    assert counts == [("/generate", 4), ("/generate", 2), ("/start_profile", 0), ("/generate", 4), ("/stop_profile", 0)]
    assert asked[2]["activities"] == ["CUDA_PROFILER"] and asked[3]["sampling_params"]["max_new_tokens"] == 5
    assert asked[3]["lora_path"] == ["a0", "a1", "a0", "a1"] and asked[0]["input_ids"] != asked[3]["input_ids"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("die", "the server ended with exit status 1 before it answered: ...no kernel image is available$"),
        (
            "die-asked",
            "the server ended with exit status 1 while it was asked: ...CUDA error: an illegal memory access$",
        ),
        ("refuse", 'generate: HTTP status 400: {"error": "LoRA adapter a0 is not loaded"}'),
        ("abort", "out of memory"),
    ],
)
def test_a_server_that_fails_is_no_capture_and_says_why(
    session: Session, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, why: str
) -> None:
    monkeypatch.setenv("FAKE_HTTP_SAW", str(tmp_path / "saw"))
    monkeypatch.setenv("FAKE_HTTP", fault)
    with pytest.raises(SessionError, match=why):
        run(session, prepared)


def test_a_server_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HTTP_SAW", str(tmp_path / "saw"))
    given = {"host": HOST, "port": free_port()}
    with Server(SERVER, given, answer_s=0.2, environment={"FAKE_HTTP": "hang"}) as server:
        server.until_ready(30.0)
        with pytest.raises(ServerDied, match=r"the server did not answer generate within 0\.2 s"):
            server.post("generate", {})


def test_a_capture_of_the_plugin_without_it_is_none(
    session: Session, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_HTTP_SAW", str(tmp_path / "saw"))
    with pytest.raises(SessionError, match="nothing says whether the plugin was on"):
        run(msgspec.structs.replace(session, mode="plugin"), prepared)


def test_the_load_that_is_asked_is_the_most_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def began(_: object, program: Callable[[Path], list[str]], **__: object) -> None:
        program(tmp_path)
        raise CaptureFailed("enough")

    for ready in ("bench.cli.guards.require_gpu", "profiles.nsys.require", "bench.engine.imports.require"):
        monkeypatch.setattr(ready, lambda *_: None)
    monkeypatch.setattr("profiles.workflow.run_nsys", began)
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["profile", "server", "-p", "quick", "-m", "plugin-eager", "--requests", "8", "-o", str(tmp_path / "x")]
        )
    session = msgspec.json.decode((tmp_path / "session.json").read_bytes(), type=Session)
    assert end.value.code == 3 and (session.load.requests, session.captured, session.mode) == (32, 8, "plugin-eager")


def test_a_session_travels_as_json(session: Session) -> None:
    assert msgspec.json.decode(msgspec.json.encode(session), type=Session) == session
    assert sum(map(len, batches(session, 500, 9, "x"))) == 9
