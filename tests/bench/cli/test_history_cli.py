"""`bench history` on the command line: what it shows, adds and exports, and what it says to bad input."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main as cli
from bench.execute.commits import ExportedSource, GitSource, export
from bench.model import history as records
from bench.model import store
from bench.model.environment import collect_environment
from bench.model.records import Results
from tests.support.history import OURS, Machine, commit, entry, exported, sha

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line, in this process: (exit status, everything it wrote)."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return int(end.value.code or 0), written.out + written.err

    return run


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Fourteen commits, 10 % slower from the ninth on."""
    folder = tmp_path / "history"
    for number in range(14):
        jitter = 1 + 0.002 * ((number * 7) % 5 - 2)
        us = 2.0 * jitter * (1.1 if number >= 8 else 1.0)
        records.write(folder, entry(number, [us * 0.999, us * 1.001]))
    return folder


def results_of(number: int, **changes: object) -> Results:
    results = entry(number, [2.0, 2.1]).results
    for name, value in changes.items():
        setattr(results.code, name, value)
    return results


def saved(path: Path, results: Results) -> Path:
    store.write(path, results)
    return path


def test_show_names_the_commit_the_size_and_the_neighbours(call: Call, stored: Path) -> None:
    code, out = call("history", "show", "--store", stored)
    assert code == 0
    head, *_ = [line for line in out.splitlines() if line.startswith("000000008: ")]
    assert head.startswith("000000008: 1 worse; most: ours-vocab, decode 32 r64 +")
    assert "between 000000007 and 000000009: commit 8" in out
    rows = [line for line in out.splitlines() if "  2026-01-" in line]
    assert len(rows) == 14
    assert ["%" in row for row in rows] == [False] * 8 + [True] + [False] * 5


def test_show_says_what_is_missing_on_a_line(call: Call, stored: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "c", 16)
    code, out = call("history", "show", "--store", stored, "--commits", f"{sha(2)}..{sha(15)}", "--exported", folder)
    assert code == 0
    assert "11 commits of 000000003 to 000000015" in out
    assert "not measured: 2 of the line (000000014, 000000015)" in out


def test_show_lists_what_it_may_be_where_commits_were_not_measured(call: Call, tmp_path: Path) -> None:
    for number in (0, 1, 2, 3, 6, 7, 8, 9):
        us = (2.0 + 0.003 * (number % 2)) * (1.1 if number >= 6 else 1.0)
        records.write(tmp_path / "h", entry(number, [us * 0.999, us * 1.001]))
    folder = exported(tmp_path / "c", 10)
    line = ("--commits", "..", "--exported", folder)
    _, out = call("history", "show", "--store", tmp_path / "h", *line)
    assert "one of 000000004, 000000005, 000000006 (only the last was measured): 1 worse" in out
    _, out = call("history", "show", "--store", tmp_path / "h")
    assert "one of 000000005, 000000006 (only the last was measured): 1 worse" in out, "its parent is no neighbour"


@pytest.fixture
def crossed(tmp_path: Path) -> Path:
    """Four commits under two Tritons, the newer 20 % faster and measured first; one more by other measuring code."""
    folder = tmp_path / "crossed"
    for number in range(4):
        older = entry(number, [2.0], triton="3.6.0", env_key="old")
        records.write(folder, older)
        newer = entry(number, [1.6], triton="3.8.0", env_key="new", session="1" + older.session[1:])
        newer.results.run.started_utc = "2025-12-01T00:00:00+00:00"
        records.write(folder, newer)
    other = entry(0, [9.0], triton="3.9.0", env_key="newest", version="v2", session="2" + older.session[1:])
    records.write(folder, other)
    return folder


def test_one_commit_under_two_tritons_is_two_series(call: Call, crossed: Path) -> None:
    code, out = call("history", "show", "--store", crossed)
    assert code == 0 and out.startswith("4 commits of 000000000 to 000000003") and "no change of level" in out
    assert "new series: toolchain: triton 3.8.0 -> 3.6.0" in out


def test_two_toolchains_are_compared_on_request(call: Call, crossed: Path, stored: Path) -> None:
    code, out = call("history", "show", "--store", crossed, "--toolchains")
    assert code == 0 and out.startswith("triton 3.6.0 -> 3.8.0: 4 commits, 000000000 to 000000003")
    assert "ours-vocab, us a call: -20.0 % in the geometric mean of 4, 0 equal" in out and "3.9.0" not in out
    rows = [line.split() for line in out.splitlines() if line.lstrip().startswith("00000000")]
    assert [(row[0], row[-3:]) for row in rows] == [(f"{n:09d}", ["2.00", "1.60", "0.800"]) for n in range(4)]
    code, out = call("history", "show", "--store", stored, "--toolchains")
    assert code == 2 and "--toolchains: no commit was measured with two toolchains" in out


def test_several_gpus_make_no_series(call: Call, stored: Path) -> None:
    records.write(stored, entry(20, 2.0, gpu="Other GPU"))
    code, out = call("history", "show", "--store", stored)
    assert code == 2
    assert "has results of Fake GPU, Other GPU, which cannot share a series; expected --gpu NAME" in out
    assert call("history", "show", "--store", stored, "--gpu", "other")[0] == 0
    code, out = call("history", "show", "--store", stored, "--gpu", "B200")
    assert code == 2 and "--gpu B200" in out and "Fake GPU, Other GPU; expected a part of one of these names" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "--store", "{tmp}/none"], "holds no history; make one with: python -m bench history run"),
        (["show", "--store", "{stored}", "-k", "eager"], "--clock eager: "),
        (["show", "--store", "{stored}", "-k", "graph", "-k", "eager"], "a series has one clock"),
        (["show", "--store", "{stored}", "-c", "nobody"], "no point of these commits has this contender and case"),
        (["show", "--store", "{stored}", "--commits", "{other}", "--exported", "{more}"], "none of the commits"),
        (
            ["show", "--store", "{stored}", "--commits", "zzz", "--exported", "{more}"],
            "zzz: is not exactly one commit of",
        ),
        (["show", "--store", "{stored}", "--commits", "no-such-branch"], "expected a revision of"),
        (["run", "--store", "{tmp}/h", "--commits", "HEAD..HEAD"], "names no commit; expected A..B"),
        (["run", "--store", "{tmp}/h", "--commits", "HEAD", "-k", "wrk"], "--clock wrk: expected one of"),
        (
            ["run", "--store", "{tmp}/h", "--commits", "HEAD", "-k", "work", "-k", "graph"],
            "--clock work counts instead of timing",
        ),
        (["run", "--store", "{tmp}/h", "--commits", "HEAD", "-k", "work", "-c", "csgmv_embed*", "-p", "x"], "profile"),
        (
            ["export", "--commits", "HEAD", "-o", "{tmp}/x"],
            "expected A..B, where A is the last commit known to be good",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    call: Call, stored: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    more = exported(tmp_path / "more", 40)
    names = {"tmp": tmp_path, "stored": stored, "more": more, "other": f"{sha(20)}..{sha(25)}"}
    code, out = call("history", *(text.format(**names) for text in arguments))
    assert code == 2, out
    assert words in out and out.count("\n") == 1 and out.startswith("bench: ")


def test_a_foreign_or_broken_file_in_the_store_is_named(call: Call, stored: Path) -> None:
    saved(stored / "fake-gpu" / "results.json", results_of(3))
    code, out = call("history", "show", "--store", stored)
    assert code == 2 and "results.json: schema.name is 'csgmv-bench-results'; expected 'csgmv-bench-history'" in out
    (stored / "fake-gpu" / "results.json").write_text('{"schema": {"name"', encoding="utf-8")
    code, out = call("history", "show", "--store", stored)
    assert code == 2 and "results.json: not a results file of this suite" in out


def test_results_made_elsewhere_are_added_and_are_there_once(call: Call, stored: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "ci.json", results_of(14))
    for _ in range(2):
        code, out = call("history", "add", file, "--store", stored)
        assert code == 0 and "1 points of 000000014" in out
    found = [item for item in records.read_all(stored) if item.commit.sha == sha(14)]
    assert len(found) == 1 and found[0].anchor is None
    assert [item.blocks_us for item in found[0].results.points[0].rounds] == [[2.0], [2.1]]
    assert "15 commits" in call("history", "show", "--store", stored)[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha": None}, "does not say which commit it measured"),
        ({"dirty": True}, "measured on a tree with uncommitted changes; expected a commit"),
    ],
)
def test_results_of_no_commit_are_refused_and_nothing_is_written(
    call: Call, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    good = saved(tmp_path / "good.json", results_of(1))
    bad = saved(tmp_path / "bad.json", results_of(2, **changes))
    code, out = call("history", "add", good, bad, "--store", tmp_path / "h")
    assert code == 2 and words in out and "bad.json" in out
    assert not (tmp_path / "h").exists()


def test_a_run_counts_and_then_has_nothing_left(call: Call, machine: Machine, tmp_path: Path) -> None:
    machine.env_key = collect_environment("cpu").env_key
    folder = exported(tmp_path / "c", 3, same={2: 1})
    arguments = ("history", "run", "--commits", "..", "-k", "work", "-c", OURS, "--exported", folder)
    arguments += ("--store", tmp_path / "h")
    code, out = call(*arguments)
    assert code == 0
    assert "000000002 commit 2: its library is that of 000000001, and so are its counts" in out
    code, out = call(*arguments)
    assert code == 0 and "nothing left to measure: all 3 commits" in out


@pytest.mark.parametrize("name", ["../../../../x", "\0", "--output=x", "HEAD", "", "A" * 40])
def test_a_result_is_added_under_the_hash_of_a_commit_and_no_other_name(call: Call, tmp_path: Path, name: str) -> None:
    file = saved(tmp_path / "r.json", results_of(1, sha=name, short=name[:9]))
    code, out = call("history", "add", file, "--store", tmp_path / "deep" / "store")
    assert code == 2
    assert out.startswith(f"bench: {file}: ") and "hash of a commit" in out and "Traceback" not in out
    assert list(tmp_path.iterdir()) == [file]


# --- git -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three commits on a line, one of which has no library, and a merge of a side branch."""
    root = tmp_path_factory.mktemp("repository")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)

    def change(name: str, text: str, message: str) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        git("add", "-A")
        git("commit", "-q", "-m", message)

    git("init", "-q", "-b", "main")
    change("README", "1", "no library yet")
    change("csgmv_embed/__init__.py", "A = 1\n", "the library")
    git("checkout", "-q", "-b", "side")
    change("csgmv_embed/__init__.py", "A = 2\n", "on the side")
    git("checkout", "-q", "main")
    change("README", "2", "words: | and 'quotes'")
    git("merge", "-q", "--no-ff", "-m", "merged", "side")
    return root


def test_a_line_follows_first_parents_and_knows_equal_libraries(repository: Path) -> None:
    line = GitSource(repository).line("main~3..main")
    assert [item.subject for item in line] == ["the library", "words: | and 'quotes'", "merged"]
    assert line[0].library == line[1].library != line[2].library
    assert [item.parent for item in line[1:]] == [item.sha for item in line[:-1]]
    first = GitSource(repository).commit("main~3")
    assert (first.library, first.parent) == (None, None)
    assert [item.subject for item in GitSource(repository).line("side,main")] == ["on the side", "merged"]


def test_an_export_brings_each_commits_own_library(repository: Path, tmp_path: Path) -> None:
    source = GitSource(repository)
    line = [source.commit("main~3"), *source.line("main~3..main")]
    export(source, line, tmp_path / "e")
    known = ExportedSource(tmp_path / "e")
    assert known.line("..") == line
    assert known.line(f"{line[1].short}..{line[3].short}") == line[2:]
    texts = [(known.fetch(item, tmp_path) / "csgmv_embed" / "__init__.py") for item in line]
    assert [path.read_text() if path.exists() else None for path in texts] == [None, "A = 1\n", "A = 1\n", "A = 2\n"]
    worktrees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(worktrees.stdout.splitlines()) == 1, "no worktree is left behind"
    assert commit(1).short == "000000001"
