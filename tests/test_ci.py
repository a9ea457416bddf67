"""What holds the CI and the tests: pinned actions, no code of forks on our machine, every SGLang version in turn."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from csgmv_embed.sglang.targets import RELEASES

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_the_hash_of_a_commit_with_the_version_beside_it(path: Path) -> None:
    used = re.findall(r"uses:\s*(.*)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        pinned = re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
        assert pinned or (ROOT / action / "action.yml").is_file(), action


def jobs(path: Path) -> list[str]:
    """The text of each job."""
    _, _, text = path.read_text(encoding="utf-8").partition("\njobs:\n")
    return re.split(r"^  (?=\w+:$)", text, flags=re.M)[1:]


def test_a_machine_of_our_own_runs_no_code_of_a_fork() -> None:
    own = [job for path in WORKFLOWS for job in jobs(path) if "self-hosted" in job]
    assert len(own) == 1
    for job in own:
        condition = re.search(r"^    if: (.*?)^    \w", job, re.M | re.S)
        assert condition and "github.event.pull_request.head.repo.full_name == github.repository" in condition[1]
        assert re.search(r"^    environment: \w+$", job, re.M)


def test_pull_requests_run_without_the_secrets_and_the_rights_of_the_repository() -> None:
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert "pull_request_target" not in text and "\npermissions:\n  contents: read\n" in text, path.name
        assert set(re.findall(r"[\w-]+: write", text)) <= {"pull-requests: write"}, path.name


def test_no_test_edits_the_path() -> None:
    """Helpers are imported from tests.support; what a test must put on the path for a while, monkeypatch takes off."""
    edited = re.compile(r"sys\.path(\.(insert|append|extend|remove|pop)\b|\[?.*\]? \+?= )")
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    assert len(files) > 80
    assert [str(path) for path in files if edited.search(path.read_text(encoding="utf-8"))] == []


def fetched(day: int) -> list[str]:
    """The versions that a CI fetches on this day since 1970."""
    command = ["make", "--dry-run", "--assume-old=setup", "wheels-in-turn", f"DAY={day}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = re.search(r"for version in ([\d. ]+);", done.stdout)
    assert found, done.stdout
    return found[1].split()


def test_a_ci_fetches_the_oldest_the_newest_and_each_of_the_others_in_turn() -> None:
    versions = [release.version for release in RELEASES]
    days = [fetched(day) for day in range(20000, 20000 + len(versions) - 2)]
    assert all((day[0], day[-1], len(day)) == (versions[0], versions[-1], 3) for day in days)
    assert sorted(day[1] for day in days) == sorted(versions[1:-1])


@pytest.mark.parametrize("target", ["test", "gate", "sweep"])
def test_each_environment_has_a_folder_of_its_own(target: str) -> None:
    def dry(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--dry-run", "--always-make", target, *arguments]
        outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # make test ENV=...
        environment = {**outer, "ENV": "of-some-shell"}  # what a shell calls so is none of ours
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    (installed,) = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"][
        "sglang"
    ]
    usual, other = dry(), dry("ENV=sglang-9.9.9")
    assert f"'.[bench,accuracy,dev]' {installed}\n" in usual.stdout
    assert "'.[bench,accuracy,dev]' sglang==9.9.9\n" in other.stdout
    assert {word.split("/")[0] for word in re.findall(r"\S*venv\S*/bin", usual.stdout)} == {".venv"}
    assert {word.split("/")[0] for word in re.findall(r"\S*venv\S*/bin", other.stdout)} == {".venv-sglang-9.9.9"}
    assert "expected sglang-VERSION" in dry("ENV=0.5.23").stderr
