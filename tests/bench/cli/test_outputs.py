"""What is printed and written when the place for it does not play along, and one writer a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.model import config
from bench.model.locks import only_writer
from bench.model.text import for_log, one_line, printable
from tests.support.gate import Outcome

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


BENCH = f"{sys.executable} -m bench"
AA = ROOT / "docs" / "results" / "h200-aa.json"
PLANTED = ROOT / "docs" / "experiments" / "planted-slow"
NCU = ROOT / "docs" / "experiments" / "h100-ncu.json"
TABLES = {
    f"{BENCH} show {PUBLISHED}": "times ours",
    f"{BENCH} compare {AA} {AA}": "48 points in both",
    f"{BENCH} gate --baseline {AA} {AA}": "pass",
    f"{BENCH} list -p quick": "decode",
    f"{BENCH} history show --store {PLANTED} -k graph": "9 commits of",
    f"{BENCH} profile show {NCU}": "sectors",
    f"{BENCH} sweep --help": "--resume",
}


@pytest.mark.parametrize(("command", "has"), TABLES.items(), ids=[" ".join(c.split()[3:5]) for c in TABLES])
def test_an_ascii_output_gets_every_table(command: str, has: str) -> None:
    done = shell(command, **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and has in done.stdout


def test_a_locale_without_names_gets_a_table() -> None:
    done = shell(SHOW, **NO_LOCALE)
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


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A file that another process writes, until it is killed."""
    path = tmp_path / "r.json"
    program = (
        "import sys, time; from pathlib import Path; from bench.model.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    yield path
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with only_writer(path):
        assert not path.exists(), "the killed one keeps nobody out"
    assert list(tmp_path.iterdir()) == [], "a lock was left"


@pytest.mark.parametrize(
    "verb",
    [
        ("sweep", "-k", "work", "--case", "batch_size=1", "-o"),
        ("gate", "--clock", "work", PUBLISHED, "-o"),
        ("history", "run", "-k", "work", "--commits", "HEAD", "--store"),
    ],
    ids=["sweep", "gate", "history"],
)
def test_a_file_and_a_store_have_one_writer(verb: tuple[object, ...], run: Callable[..., Outcome], held: Path) -> None:
    done = run(*verb, held)
    assert done.code == 2
    assert "r.json: another process is writing it; expected it to end first" in done.err


def test_text_is_one_line_and_no_command_of_a_log() -> None:
    assert one_line("a\n::error::b\x1b[31m\x85c\u2028d\u202ee\x00") == "a ::error::b?[31m c d?e?"
    assert printable("a\tb\n\x1b[0mc\r") == "a\tb\n?[0mc "
    assert for_log("::error::a\n  ::warning::b\nx ::c std::vector\n##[error]d") == (
        ": :error::a\n  : :warning::b\nx ::c std::vector\n# #[error]d"
    )
