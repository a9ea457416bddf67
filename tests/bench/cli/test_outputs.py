"""What is printed and written when the place for it does not play along, and one writer a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.model import config
from bench.model.locks import only_writer
from bench.model.records import ResultsError
from bench.model.text import for_log, one_line, printable

ROOT = config.DEFAULT_PATH.parent
PUBLISHED = ROOT / "docs" / "results" / "h200-quick.json"
SHOW = f"{sys.executable} -m bench show {PUBLISHED}"
ASCII = {"PYTHONIOENCODING": "ascii"}
NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("variables", [ASCII, NO_LOCALE], ids=["encoding", "locale"])
def test_an_ascii_output_gets_every_table(variables: dict[str, str]) -> None:
    done = shell(SHOW, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and "times ours" in done.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"set -o pipefail; {SHOW} | true", ""),
        (f"{SHOW} >&-", "standard output is closed"),
        (f"{SHOW} > /dev/full", "standard output: No space left on device"),
        (f"{SHOW} > /dev/full 2>&-", ""),
    ],
)
def test_an_output_that_cannot_be_written_is_2(command: str, said: str) -> None:
    done = shell(command)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == bool(said), "a traceback"


def test_a_file_has_one_writer_and_a_killed_one_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    program = (
        "import sys, time; from pathlib import Path; from bench.model.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ResultsError, match=r"r\.json: another process is writing it"), only_writer(path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with only_writer(path):
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [], "a lock was left"


def test_text_is_one_line_and_no_command_of_a_log() -> None:
    assert one_line("a\n::error::b\x1b[31m\x85c\u2028d\u202ee\x00") == "a ::error::b?[31m c d?e?"
    assert printable("a\tb\n\x1b[0mc\r") == "a\tb\n?[0mc "
    assert for_log("::error::a\n  ::warning::b\nx ::c std::vector\n##[error]d") == (
        ": :error::a\n  : :warning::b\nx ::c std::vector\n# #[error]d"
    )
