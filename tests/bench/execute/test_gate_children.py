"""The forks of a worker: they get ready, wait, work, and how they end is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bench.execute.children import Child


def fails(state: object) -> None:
    raise ValueError("of no use")


def killed(state: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_is_ready_before_it_works_with_what_made_it_ready(tmp_path: Path) -> None:
    ready, done = tmp_path / "ready", tmp_path / "done"

    def work(state: str) -> None:
        done.write_text(f"{state} {os.getpid()}")

    child = Child(lambda: ready.write_text("ready") and "state", work)
    assert child.is_ready() and ready.exists() and not done.exists()
    assert child.finish() is None
    state, pid = done.read_text().split()
    assert state == "state" and int(pid) != os.getpid()


@pytest.mark.parametrize(("work", "ending"), [(fails, "exit status 1: ValueError: of no use"), (killed, "by SIGKILL")])
def test_how_a_child_ended_is_told(work: object, ending: str) -> None:
    child = Child(lambda: None, work)  # type: ignore[arg-type]
    assert child.is_ready()
    assert (child.finish() or "").endswith(ending)


def test_a_child_that_cannot_get_ready_is_known(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child(lambda: fails(None), lambda state: None)
    assert not child.is_ready()
    assert (child.finish() or "").endswith("exit status 1: ValueError: of no use")
    assert "ValueError: of no use" in capfd.readouterr().err


def test_a_child_that_waits_can_be_ended(tmp_path: Path) -> None:
    child = Child(lambda: None, lambda state: (tmp_path / "worked").write_text("no") and None)
    assert child.is_ready()
    child.end()
    assert not (tmp_path / "worked").exists()
    with pytest.raises(ProcessLookupError):  # waited for: no process of that id is left
        child.end()
