"""A composite GitHub Action run as shell, as far as that goes without the service: its expressions and its steps."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.S)
NAME = re.compile(r"'[^']*'|\b(?:inputs|github|steps)(?:\.[\w-]+)+|\balways\(\)")


class Action:
    """One run of an action: `context` has what `github.` names hold, `given` the inputs."""

    def __init__(self, folder: Path, given: Mapping[str, str], context: Mapping[str, Any], work: Path) -> None:
        self.folder, self.work = folder, work
        self.description = yaml.safe_load((folder / "action.yml").read_text(encoding="utf-8"))
        self.context = {**context, "action_path": str(folder)}
        self.outputs: dict[str, dict[str, str]] = {}
        self.log = ""
        self.ran: list[str] = []
        self.succeeded = True
        declared = self.description["inputs"]
        assert given.keys() <= declared.keys(), "inputs that the action does not have"
        self.inputs = {name: self.filled(item.get("default", "")) for name, item in declared.items()} | dict(given)

    def value(self, name: str) -> object:
        """Of a name in an expression."""
        scope, *parts = name.split(".")
        if scope == "inputs":
            return self.inputs[".".join(parts)]
        if scope == "steps":
            return self.outputs.get(parts[0], {}).get(parts[2], "")
        found: Any = self.context
        for part in parts:
            found = found.get(part, "") if isinstance(found, Mapping) else ""
        return found

    def evaluated(self, expression: str) -> object:
        """`&&`, `||`, `==` and `!=` of names and texts mean what they mean in Python."""

        def literal(found: re.Match[str]) -> str:
            if found[0].startswith("'"):
                return found[0]
            return "True" if found[0] == "always()" else repr(self.value(found[0]))

        words = NAME.sub(literal, " ".join(expression.split()))
        return eval(words.replace("&&", " and ").replace("||", " or "), {"__builtins__": {}})

    def filled(self, text: str) -> str:
        """A text with the values of its expressions."""
        return EXPRESSION.sub(lambda found: str(self.evaluated(found[1])), str(text))

    def run(self, environment: Mapping[str, str]) -> None:
        """Every step whose condition holds, as the runner would."""
        for index, step in enumerate(self.description["runs"]["steps"]):
            condition = step.get("if", "")
            if not (self.evaluated(condition) if condition else True) or not (
                self.succeeded or "always()" in condition
            ):
                continue
            self.ran.append(step["name"])
            output = self.work / f"output-{index}"
            output.touch()
            own = {name: self.filled(value) for name, value in step.get("env", {}).items()}
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", self.filled(step["run"])],
                env={**os.environ, **environment, **own, "GITHUB_OUTPUT": str(output)},
                cwd=self.work, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
            )  # fmt: skip
            self.log += done.stdout
            self.succeeded &= done.returncode == 0
            lines = output.read_text(encoding="utf-8").splitlines()
            self.outputs[step.get("id", str(index))] = dict(line.split("=", 1) for line in lines)
