"""What code a record says was run: the commit, how a tree differs from it, hashes of sources; what git is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main as cli
from bench.execute.commits import GitSource
from bench.model import environment, git, instrument
from bench.model.config import ConfigError
from bench.model.git import GitError, commit_of
from bench.model.sources import hash_library, source_hashes
from tests.support.checkouts import TABLE, commit_all, fill, run_git, write

Change = Callable[[Path], object]


def writing(name: str, text: str) -> Change:
    return lambda root: write(root, name, text)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in the place of this one."""
    root = tmp_path / "checkout"
    fill(root)
    commit_all(root)
    monkeypatch.setattr(environment, "ROOT", root)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    return root


# --- how a tree differs from its commit ----------------------------------------------------------------------------


def test_a_committed_tree_is_clean_and_names_its_commit(checkout: Path) -> None:
    code = environment.collect_code()
    assert (code.sha, code.branch, code.dirty, code.diff_sha256) == (
        run_git(checkout, "rev-parse", "HEAD"),
        "main",
        False,
        None,
    )
    assert code.short == (code.sha or "")[:9] and code.commit_time
    assert code.bench_version == instrument.present()


@pytest.mark.parametrize(
    "change",
    [
        writing("csgmv_embed/__init__.py", "A = 2\n"),
        writing("csgmv_embed/new.py", "A = 2\n"),
        writing("csgmv_embed/new.local.py", "A = 2\n"),
        writing("csgmv_embed/tuned/Other-GPU.json", "{}\n"),
        writing(TABLE, '{"num_warps": 8}\n'),
        writing("bench/measure.py", "B = 2\n"),
        writing("bench/contenders/mine.py", "C = 1\n"),
        writing("bench.toml", "[other]\n"),
        lambda root: (root / TABLE).unlink(),
        lambda root: run_git(root, "rm", "-q", "--cached", TABLE),
    ],
    ids=[
        "edited",
        "untracked",
        "untracked and ignored",
        "untracked table",
        "edited table",
        "edited suite",
        "untracked contender",
        "configuration",
        "deleted",
        "removed from the index",
    ],
)
def test_what_figures_come_from_is_a_change(checkout: Path, change: Change) -> None:
    change(checkout)
    code = environment.collect_code()
    assert code.dirty is True and code.diff_sha256 is not None


def test_other_untracked_files_have_other_hashes(checkout: Path) -> None:
    seen = set()
    for text in ("A = 2\n", "A = 3\n"):
        write(checkout, "csgmv_embed/new.py", text)
        seen.add(environment.collect_code().diff_sha256)
    (checkout / "csgmv_embed/new.py").rename(checkout / "csgmv_embed/newer.py")
    seen.add(environment.collect_code().diff_sha256)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "name",
    [
        "bench/baselines/work-triton-3.6.json",
        "bench/baselines/new.json",
        "docs/x.md",
        "csgmv_embed/x.log",
        "bench/__pycache__/m.pyc",
    ],
)
def test_what_figures_do_not_come_from_is_no_change(checkout: Path, name: str) -> None:
    write(checkout, name, "2")
    assert environment.collect_code().dirty is False


def test_a_file_that_is_no_utf_8_is_a_change_like_any_other(checkout: Path) -> None:
    (checkout / "bench/measure.py").write_bytes(b"# gr\xfcn\n")
    assert environment.collect_code().dirty is True


def test_settings_of_the_user_hide_no_change(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("diff.external", "true"),
        ("core.excludesFile", str(tmp_path / "ignore")),
        ("color.ui", "always"),
    ):
        run_git(checkout, "config", name, value)
    (tmp_path / "ignore").write_text("*.json\n", encoding="utf-8")
    clean = environment.collect_code()
    assert clean.dirty is False
    write(checkout, TABLE, "{}")
    assert environment.collect_code().dirty is True
    run_git(checkout, "checkout", "-q", TABLE)
    write(checkout, "csgmv_embed/tuned/Other-GPU.json", "{}")
    assert environment.collect_code().dirty is True


# --- whose repository it is ----------------------------------------------------------------------------------------


def archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source archive unpacked in a folder of another repository."""
    commit_all(root)
    fill(root / "vendored")
    monkeypatch.setattr(environment, "ROOT", root / "vendored")
    return root / "vendored"


def test_an_archive_inside_another_repository_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    root = archive(tmp_path / "outer", monkeypatch)
    code = environment.collect_code()
    assert (code.sha, code.branch, code.commit_time, code.dirty) == (None, None, None, None)
    assert code.kernel_source_sha256 == hash_library(root)
    with pytest.raises(GitError, match="is not the top of a git checkout"):
        commit_of("HEAD", root)


def test_git_commit_names_the_commit_of_an_archive_and_nobody_says_that_it_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = archive(tmp_path / "outer", monkeypatch)
    monkeypatch.setenv("GIT_COMMIT", run_git(root, "rev-parse", "HEAD"))  # the outer repository's, as CI would say it
    code = environment.collect_code()
    assert code.sha == os.environ["GIT_COMMIT"] and code.dirty is None


def test_git_commit_of_this_repository_is_what_the_tree_is_compared_with(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_git(checkout, "rev-parse", "HEAD")
    write(checkout, "csgmv_embed/__init__.py", "A = 2\n")
    run_git(checkout, "commit", "-qam", "second")
    monkeypatch.setenv("GIT_COMMIT", first[:8].upper())
    code = environment.collect_code()
    assert code.sha == first and code.dirty is True
    monkeypatch.setenv("GIT_COMMIT", "0" * 40)
    code = environment.collect_code()
    assert code.sha == "0" * 40 and code.dirty is None, "of another history"


def test_variables_that_name_another_repository_are_not_followed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_all(tmp_path / "other")
    other = tmp_path / "other" / ".git"
    clean = environment.collect_code()
    monkeypatch.setenv("GIT_DIR", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    assert environment.collect_code() == clean


# --- names that are no revisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["--output={}", "-h", "HEAD", "main", "0123", "x" * 40, "0" * 65])
def test_git_commit_is_a_hash(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    victim = tmp_path / "victim"
    monkeypatch.setenv("GIT_COMMIT", named.format(victim))
    with pytest.raises(ConfigError, match="GIT_COMMIT is '.*'; expected the hash of a commit"):
        environment.collect_code()
    assert not victim.exists()


NO_REVISIONS = [
    "--output={}",
    "-n1",
    "",
    "no-such-branch",
    "^HEAD",
    "HEAD~99",
    "0" * 40,
    "a\0b",
    "HEAD\n",
    "HEAD:bench",
]


@pytest.mark.parametrize("name", NO_REVISIONS)
def test_what_is_no_commit_is_refused_by_name(checkout: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    source = GitSource(checkout)
    for ask in (lambda name: commit_of(name, checkout), source.commit, source.ancestry):
        with pytest.raises(GitError, match="expected a revision of the repository checkout"):
            ask(name.format(victim))
    assert not git.has_commit(name.format(victim), checkout)
    for line in (f"{name}..HEAD", f"HEAD..{name}", name):
        if name:  # an empty end of a line is HEAD
            with pytest.raises(GitError):
                source.line(line.format(victim))
    assert not victim.exists()


@pytest.mark.parametrize("name", ["--output={}", "no-such-branch", "a\0b"])
@pytest.mark.parametrize(
    "verb",
    [
        ("history", "show", "--commits", "{}"),
        ("history", "show", "--commits", "{}..HEAD"),
        ("history", "export", "-o", "{folder}/exported", "--commits", "HEAD..{}"),
    ],
    ids=["name", "line", "export"],
)
def test_a_revision_that_does_not_exist_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...], name: str
) -> None:
    victim = tmp_path / "victim"
    words = [part.format(name.format(victim), folder=tmp_path) for part in verb]
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("bench: ") and "expected a revision" in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --- hashes of sources ---------------------------------------------------------------------------------------------


def test_a_tuned_table_is_of_the_library_and_a_cache_is_not(checkout: Path) -> None:
    before = hash_library(checkout)
    write(checkout, "csgmv_embed/__pycache__/x.pyc", "1")
    write(checkout, "csgmv_embed/notes.txt", "1")
    assert hash_library(checkout) == before
    write(checkout, TABLE, '{"num_warps": 8}\n')
    assert hash_library(checkout) != before
    assert environment.collect_code().kernel_source_sha256 == hash_library(checkout)


def test_older_formats_hash_as_they_did(checkout: Path) -> None:
    write(checkout, "bench/environment.py", 'BENCH_FILES = ("measure.py", "clocks")\n')
    write(checkout, "bench/clocks/graph.py", "C = 1\n")
    before = source_hashes(checkout, "1.1.0")
    assert before is not None and len(before.suite) == 16
    write(checkout, TABLE, "{}")
    write(checkout, "bench/other.py", "")
    assert source_hashes(checkout, "1.1.0") == source_hashes(checkout, "1.0.0") == before, "without tables, by its list"
    write(checkout, "bench/clocks/graph.py", "C = 2\n")
    assert source_hashes(checkout, "1.1.0") != before
    now = source_hashes(checkout, "1.2.0")
    write(checkout, "bench/other.py", "x = 1\n")
    assert source_hashes(checkout, "1.2.0") != now, "all of the suite"


@pytest.mark.parametrize("text", [None, "", "BENCH_FILES = (", "BENCH_FILES = names()", 'BENCH_FILES = ("gone.py",)'])
def test_a_checkout_that_an_older_format_cannot_be_of_has_no_such_hash(checkout: Path, text: str | None) -> None:
    if text is not None:
        write(checkout, "bench/environment.py", text)
    assert source_hashes(checkout, "1.1.0") is None


def test_a_name_that_could_be_an_option_never_reaches_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "_run", lambda *arguments, root: pytest.fail(f"git was asked {arguments}"))
    for name in ("--output=x", "-n1"):
        with pytest.raises(GitError, match="is not a revision"):
            commit_of(name, checkout)
