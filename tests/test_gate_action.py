"""The CI products, as far as they can be tried without the services: the action's steps as shell, GitLab's job."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.support.composite_action import EXPRESSION, Action
from tests.support.gate import AA, OURS, aa, first, jittered, saved, scaled

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "actions" / "gate"


def event(head: str = "me/kernels") -> dict[str, Any]:
    """What GitHub says of a pull request whose branch lies in `head`."""
    pull = {"number": 7, "head": {"repo": {"full_name": head}}}
    return {"repository": "me/kernels", "token": "secret", "event": {"pull_request": pull}}


def tool(folder: Path, name: str, script: str) -> None:
    """A program on the path of the steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}", encoding="utf-8")
    (folder / name).chmod(0o755)


class GitHub:
    """A repository with one pull request, whose token may do what `contents` says."""

    def __init__(self, work: Path) -> None:
        self.work, self.state = work, work / "state.json"
        tool(work / "bin", "gh", f'exec {sys.executable} {ROOT / "tests/support/fake_gh.py"} "$@"\n')
        self.set({"calls": [], "refs": {}, "comments": {}, "contents": "write"})
        self.slow = saved(work / "slow.json", scaled(jittered(aa()), 1.10, first(aa())))

    def set(self, state: dict[str, Any]) -> None:
        self.state.write_text(json.dumps(state), encoding="utf-8")

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        return found

    def act(self, head: str = "me/kernels", **given: str) -> Action:
        """Run the action on a result that is 10 % slower in one of 16 points."""
        inputs = {"python": sys.executable, "clock": "graph", "baseline": str(AA), "options": f"'{self.slow}'"}
        action = Action(FOLDER, inputs | given, event(head), self.work)
        action.run(
            {
                "PATH": f"{self.work / 'bin'}:{os.environ['PATH']}",
                "GH_STATE": str(self.state),
                "GITHUB_WORKSPACE": str(self.work),
                "GITHUB_STEP_SUMMARY": str(self.work / "summary.md"),
                "GITHUB_REPOSITORY": "me/kernels",
                "GITHUB_SERVER_URL": "https://github.com",
            }
        )
        return action


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> GitHub:
    return GitHub(tmp_path_factory.mktemp("github"))


@pytest.fixture(scope="module")
def action(github: GitHub) -> Action:
    done = github.act(name="my gate", subject=OURS, **{"picture-branch": "pictures"})
    shutil.copy(github.work / "results" / "gate.json", github.work / "report.json")  # other runs replace theirs
    return done


def html(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_the_action_judges_and_comments_with_the_table_and_the_picture(github: GitHub, action: Action) -> None:
    assert action.ran == ["judge", "tell"], action.log
    assert not action.succeeded
    assert action.outputs["judge"] == {"exit-code": "3"}, "a slowdown against a file alone is not confirmed"
    assert "::error title=slow%3A csgmv_embed-vocab_major|graph" in action.log
    assert "CANNOT JUDGE" in (github.work / "summary.md").read_text(encoding="utf-8")
    state = github.get()
    (body,) = state["comments"].values()
    rendered, commit = html(body), state["refs"]["heads/pictures/7"]
    assert f'src="https://github.com/me/kernels/blob/{commit}/gate.png?raw=true"' in rendered
    assert base64.b64decode(state["blob"]).startswith(b"\x89PNG")
    flagged, folded = rendered.split("<details>", 1)
    assert re.findall(r"<td>(slow|pass)</td>", flagged) == ["slow"] and "<td>+10." in flagged
    assert folded.count("<td>pass</td>") == 15 and "<summary>15 pass</summary>" in folded


def test_the_next_run_edits_the_comment_and_without_the_right_to_write_has_no_picture(
    github: GitHub, action: Action
) -> None:
    before = github.get()
    github.set(before | {"contents": "read", "comments": before["comments"] | {"5": "a person's"}})
    again = github.act(name="my gate", **{"picture-branch": "pictures"})
    assert "expected the permission contents: write" in again.log
    state = github.get()
    assert state["comments"].keys() == {*before["comments"], "5"} and state["comments"]["5"] == "a person's"
    (mine,) = (body for body in state["comments"].values() if body != "a person's")
    assert "<img" not in html(mine) and "<table>" in html(mine)


def test_wrong_usage_is_the_actions_failure_with_the_gates_message(github: GitHub) -> None:
    before = github.get()
    action = github.act(profile="nope")
    assert action.outputs["judge"] == {"exit-code": "2"} and not action.succeeded
    assert "bench: profile 'nope' is unknown" in action.log and "::warning title=gate::there is no report" in action.log
    assert github.get() == before, "nothing was commented"


@pytest.mark.parametrize(
    ("head", "comment", "number"), [("me/kernels", "true", "7"), ("a/fork", "true", ""), ("me/kernels", "false", "")]
)
def test_code_of_a_fork_is_not_commented_on(head: str, comment: str, number: str) -> None:
    action = Action(FOLDER, {"comment": comment}, event(head), ROOT)
    tell = action.description["runs"]["steps"][2]
    assert action.filled(tell["env"]["PULL_REQUEST"]) == number


def test_inputs_reach_the_shell_as_variables_alone() -> None:
    steps = Action(FOLDER, {}, event(), ROOT).description["runs"]["steps"]
    assert len(steps) == 3
    assert not any(EXPRESSION.search(step["run"]) for step in steps), "a name of a branch could run as code"
    assert all(step["shell"] == "bash" for step in steps)


def gitlab_job() -> dict[str, Any]:
    """The job of docs/how-to/run-in-a-ci.md."""
    text = (ROOT / "docs" / "how-to" / "run-in-a-ci.md").read_text(encoding="utf-8").partition("\n## GitLab\n")[2]
    job: dict[str, Any] = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["gate"]
    return job


def test_gitlabs_job_of_the_docs_leaves_a_note_with_the_picture(github: GitHub, action: Action, tmp_path: Path) -> None:
    """Its script. The gate and the plot leave what the action's made; the comment is made, `curl` is stood in for."""
    report, bin_folder = github.work / "report.json", tmp_path / "bin"
    stand_in = f'case "$3" in gate) cp {report} results/gate.json; exit 3 ;; plot) cp {report} results/gate.png ;; '
    tool(tmp_path / ".venv" / "bin", "python", f'{stand_in} *) exec {sys.executable} "$@" ;; esac\n')
    tool(bin_folder, "make", "mkdir -p results\n")
    tool(bin_folder, "curl", 'echo "$@" >> curl.log\necho \'{"full_path": "/-/project/1/uploads/2/gate.png"}\'\n')
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CI_API_V4_URL": "https://git.test/api/v4",
        "CI_PROJECT_ID": "1",
        "CI_SERVER_URL": "https://git.test",
        "CI_MERGE_REQUEST_IID": "5",
        "GATE_TOKEN": "t",
    }

    def script(part: str) -> int:
        command = ["bash", "-eo", "pipefail", "-c", "\n".join(gitlab_job()[part])]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=120).returncode

    assert [script("script"), script("after_script")] == [3, 0]
    body = (tmp_path / "results" / "comment.md").read_text(encoding="utf-8")
    assert 'src="https://git.test/-/project/1/uploads/2/gate.png"' in html(body)
    upload, note = (tmp_path / "curl.log").read_text(encoding="utf-8").splitlines()
    assert upload.endswith("-F file=@results/gate.png https://git.test/api/v4/projects/1/uploads")
    assert note.endswith("body@results/comment.md https://git.test/api/v4/projects/1/merge_requests/5/notes")
