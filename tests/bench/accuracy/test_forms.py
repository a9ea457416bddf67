"""What becomes of each form of adapter: the command, the table in the docs, and what `bench accuracy` refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.accuracy import forms, models
from bench.accuracy.forms import FORMS, Form, FormRow
from bench.accuracy.models import AccuracyError
from bench.model.environment import ROOT

for package in ("peft", "sglang"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

HEADER = "| form | SGLang | with the plugin | why |\n"


def verdicts(table: str) -> dict[str, list[str]]:
    """Form: what SGLang and the plugin do, without the figures, which are a machine's own."""
    lines = [line.split(" | ") for line in table.partition(HEADER)[2].splitlines()[1:] if line.startswith("| ")]
    return {line[0].removeprefix("| "): [cell.partition(",")[0] for cell in line[1:3]] for line in lines}


@pytest.mark.numeric
@pytest.mark.timeout(600)
def test_the_table_in_the_docs_is_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "forms", "--format", "markdown"],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(done.stdout)
    page = (ROOT / "docs" / "explanation" / "accuracy.md").read_text(encoding="utf-8")
    assert found == verdicts(page.partition("\n\n## Without")[0])
    assert {form: plugin for form, (_, plugin) in found.items()} == {form.name: form.expected for form in FORMS}
    assert found["use_rslora"] == ["wrong", "right"] and found["PiSSA"] == ["wrong", "refused"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_comparison_begins_with_what_can_be_served_alone(form: Form, tmp_path: Path) -> None:
    adapter = models.adapter(forms.save(form, tmp_path).folder)
    if form.expected == "right":
        models.require_servable(adapter, forms.base_model(tied=form.tied))
        return
    with pytest.raises(AccuracyError, match=f"refused: adapter {tmp_path.name}: "):
        models.require_servable(adapter, forms.base_model(tied=form.tied))


def test_only_the_plugin_is_judged() -> None:
    row = FormRow("a", "plugin", "wrong", 1.0, "", "right")
    assert not row.passed
    assert FormRow("a", "csgmv", "wrong", 1.0, "", "right").passed
    assert not FormRow("a", "plugin", "right", 0.0, "", "refused").passed  # it cannot be: something was not compared
