"""Whether a result that does not say it was clean is of the commit it names: its hashes are those of that commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.execute import trees
from bench.execute.provenance import refuse_unproven
from bench.model import environment
from bench.model.records import Results, Schema
from bench.model.sources import OLD_FORMATS, source_hashes
from bench.model.verdict import GateError
from tests.support.checkouts import TABLE, commit_all, fill, run_git, write
from tests.support.gate import Outcome, aa, saved

NEW = Schema().version
FORMATS = [*OLD_FORMATS, NEW]
Run = Callable[..., Outcome]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in the place of this one, two commits of which are of today's files and one is not."""
    root = tmp_path / "checkout"
    write(root, "csgmv_embed/__init__.py", "A = 0\n")
    commit_all(root)
    fill(root)
    write(root, "bench/environment.py", 'BENCH_FILES = ("measure.py",)\n')
    commit_all(root)
    for module in (environment, trees):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    return root


def of_commit(root: Path, version: str) -> Results:
    """A result as a machine without git makes it of the checkout's last commit."""
    results = aa()
    hashes = source_hashes(root, version)
    assert hashes is not None
    results.schema.version = version
    code = results.code
    code.sha, code.dirty, code.kernel_source_sha256 = run_git(root, "rev-parse", "HEAD"), None, hashes.library
    code.short = code.sha[:9]
    code.bench_version, code.suite_source_sha256 = ("2", hashes.suite) if version == NEW else (hashes.suite, None)
    return results


@pytest.mark.parametrize("version", FORMATS)
def test_the_hashes_of_its_commit_prove_a_result(checkout: Path, version: str) -> None:
    results = of_commit(checkout, version)
    write(checkout, "csgmv_embed/__init__.py", "A = 2\n")
    commit_all(checkout)
    refuse_unproven(results, None)
    assert results.code.dirty is False
    worktrees = run_git(checkout, "worktree", "list")
    assert len(worktrees.splitlines()) == 1, "no worktree is left behind"


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("name", ["csgmv_embed/__init__.py", "bench/measure.py", TABLE, "bench/show.py"])
def test_other_sources_prove_nothing(checkout: Path, version: str, name: str) -> None:
    """A format sees what it hashed: the tables and all of the suite from 1.2.0 on."""
    write(checkout, name, "C = 1\n")
    results = of_commit(checkout, version)
    if version != NEW and name in (TABLE, "bench/show.py"):
        refuse_unproven(results, None)
        return
    with pytest.raises(GateError, match="its sources differ from those of the commit"):
        refuse_unproven(results, None)


@pytest.mark.parametrize("sha", ["0" * 40, None, "--output=victim", "\0", "HEAD~1", "HEAD~99"])
@pytest.mark.parametrize("version", FORMATS)
def test_a_commit_that_is_unknown_or_of_other_files_is_wrong_usage(
    run: Run, checkout: Path, tmp_path: Path, version: str, sha: str | None
) -> None:
    results = of_commit(checkout, version)
    results.code.sha = run_git(checkout, "rev-parse", sha) if sha == "HEAD~1" else sha
    done = run("baseline", saved(tmp_path / "result.json", results), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert "Traceback" not in done.err + done.out
    assert done.err.startswith("bench: ") and "expected" in done.err.lower()
    assert not (tmp_path / "baseline.json").exists() and not (checkout / "victim").exists()


def test_a_commit_whose_files_git_has_lost_is_named(run: Run, checkout: Path, tmp_path: Path) -> None:
    """As in a shallow clone, or after a disk's fault."""
    results = of_commit(checkout, NEW)
    tree = run_git(checkout, "rev-parse", "HEAD^{tree}")
    write(checkout, "csgmv_embed/__init__.py", "A = 2\n")
    commit_all(checkout)
    (checkout / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    done = run("baseline", saved(tmp_path / "result.json", results), "-o", tmp_path / "baseline.json")
    assert done.code == 2
    assert "Traceback" not in done.err and "unable to read tree" in done.err and "expected" in done.err
    assert not (tmp_path / "baseline.json").exists()


def test_a_baseline_is_made_of_a_proven_result(run: Run, checkout: Path, tmp_path: Path) -> None:
    done = run("baseline", saved(tmp_path / "result.json", of_commit(checkout, NEW)), "-o", tmp_path / "baseline.json")
    assert done.code == 0, done.err


def uncommitted(root: Path) -> None:
    write(root, "csgmv_embed/tuned/Another-GPU.json", "{}")


def outer(root: Path) -> None:
    (root / ".git").rename(root.parent / ".git")


@pytest.mark.parametrize(
    ("change", "said"), [(uncommitted, "the tree has uncommitted changes"), (outer, "this is not a git checkout")]
)
def test_a_baseline_is_made_in_a_committed_tree_of_a_checkout(
    run: Run, checkout: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    result = saved(tmp_path / "result.json", of_commit(checkout, NEW))
    change(checkout)
    done = run("baseline", result, "-o", tmp_path / "baseline.json")
    assert done.code == 2 and said in done.err
    assert not (tmp_path / "baseline.json").exists()
