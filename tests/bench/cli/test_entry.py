"""Exit status 1 is a finding of a verb and nothing else: whatever goes wrong on the way is 2, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench.cli import entry
from bench.model.records import ResultsError
from bench.model.verdict import CannotJudge, GateError
from tests.support.gate import ROOT, FakeGpu, Outcome


def ended(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """How a command line ends whose only verb raises this."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def verb() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as end:
        entry.run(app, [])
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return Outcome(end.value.code, captured.out, captured.err)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (typer.Exit(1), 1, ""),
        (typer.Exit(3), 3, ""),
        (GateError("no such thing"), 2, "bench: no such thing\n"),
        (ResultsError("no file"), 2, "bench: no file\n"),
        (CannotJudge("no GPU"), 3, "bench: no GPU\n"),
        (ImportError("gone"), 2, "bench: ImportError: gone\n"),
        (KeyboardInterrupt(), 130, ""),
        (RuntimeError("a fault"), 2, "bench: unexpected RuntimeError: a fault\n"),
        (MemoryError(), 2, "unexpected MemoryError"),
        (RecursionError("too deep"), 2, "unexpected RecursionError: too deep"),
        (EOFError("the pipe is closed"), 2, "unexpected EOFError: the pipe is closed"),
        (BrokenPipeError(32, "Broken pipe"), 2, ""),
        (typer.BadParameter("wrong"), 2, "wrong"),
    ],
)
def test_how_a_command_line_ends(
    error: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = ended(error, capsys)
    assert done.code == status
    assert done.err.endswith(said) if said.endswith("\n") else said in done.err
    assert ("Traceback" in done.err) == ("unexpected" in said)


def bench(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    search = f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": search}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", ["msgspec", "typer", "rich"])
def test_a_suite_that_cannot_be_imported_is_2_without_a_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise ImportError('gone')\n", encoding="utf-8")
    done = bench("gate", "--clock", "work", path=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("ImportError: gone\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["a=" + "[" * 20_000 + "]" * 20_000, "a=" + "{b=" * 20_000])
def test_a_configuration_nested_too_deep_is_2_without_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(text, encoding="utf-8")
    done = bench("gate", "--clock", "work", "--config", path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"bench: {path}: ") and done.stderr.count("\n") == 1


def test_a_wrong_revision_is_named_before_the_missing_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.cli import main as cli
    from bench.execute.trees import commit_of

    machine = FakeGpu().instrument(has_gpu=lambda: False, commit_of=commit_of)
    with pytest.raises(SystemExit) as end:
        cli.main(["gate", "--against", "no-such-branch"], machine)
    assert end.value.code == 2
    assert "no-such-branch" in capsys.readouterr().err
