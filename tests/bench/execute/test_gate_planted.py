"""The work gate against regressions planted in a copy of the tree: each caught by the command line without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import contenders
from bench.model import store
from tests.support.gate import OURS, ROOT

pytestmark = pytest.mark.timeout(600)
CHOICE = ("-c", OURS, "--case", "phase=prefill,skew=0.0")
LANES = "work_lanes = 2"
HERE = Path(__file__).parent


def tree(folder: Path, variant: str | None) -> Path:
    """A copy of the library and the suite; with `variant`, the stand-in lookup in the library's place."""
    for package in ("csgmv_embed", "bench", "profiles"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    toml = (ROOT / "bench.toml").read_text(encoding="utf-8")
    if variant is not None:
        assert LANES in toml
        toml = toml.replace(LANES, "work_lanes = 1")  # there is one point to count
        kernel = contenders.build(OURS).kernels()[0][1]
        source = (HERE / "planted_kernels.py").read_text(encoding="utf-8")
        for old, new in (('VARIANT = "good"', variant), ('KERNEL = "embedding_lora_a_tokens_kernel"', kernel)):
            assert old in source
            source = source.replace(old, f'{old.split(" = ")[0]} = "{new}"')
        (folder / "csgmv_embed" / "planted.py").write_text(source, encoding="utf-8")
        with (folder / "csgmv_embed" / "__init__.py").open("a", encoding="utf-8") as init:
            init.write("\nfrom csgmv_embed.planted import embedding_lora_a  # noqa: F811\n")
    (folder / "bench.toml").write_text(toml, encoding="utf-8")
    return folder


def bench(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent), "PYTHONPATH": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts of the stand-in without a regression."""
    folder = tree(tmp_path_factory.mktemp("good"), "good")
    path = folder / "baseline.json"
    done = bench(folder, "sweep", "-p", "gate_work", "-k", "work", *CHOICE, "-o", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {point.status for point in store.read(path).points} == {"ok"}
    return path


@pytest.mark.parametrize(
    ("variant", "figures"),
    [
        ("serial_loop", {"busiest_loads", "busiest_stores"}),
        ("lost_vectors", {"widest_load_bits", "instructions"}),
        ("extra_launch", {"launches", "programs", "load_bytes", "store_bytes"}),
        ("wrong_storage", {"load_sectors"}),
        ("spill", {"spill_bytes", "registers"}),
    ],
)
def test_a_planted_regression_is_caught(good: Path, tmp_path: Path, variant: str, figures: set[str]) -> None:
    folder = tree(tmp_path, variant)
    report = tmp_path / "report.json"
    done = bench(folder, "gate", "--clock", "work", "--baseline", good, *CHOICE, "-f", f"json={report}")
    assert done.returncode == 1, done.stdout + done.stderr
    (verdict,) = json.loads(report.read_bytes())["verdicts"]
    assert verdict["status"] == "slow"
    assert figures <= {change["figure"] for change in verdict["changes"] if change["worse"]}
    assert "REGRESSION" in done.stdout
    assert "again: python -m bench gate --clock work" in done.stdout


def test_the_stand_in_itself_passes(good: Path, tmp_path: Path) -> None:
    done = bench(tree(tmp_path, "good"), "gate", "--clock", "work", "--baseline", good, *CHOICE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unchanged_tree_passes_with_identical_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two lanes and on one, with other addresses and another hash seed: nothing of the machine is in a count."""
    folder = tree(tmp_path / "tree", None)
    some = ("-c", "csgmv_embed*", "--case", "phase=mixed,op=lookup")
    first = folder / "first.json"
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    done = bench(folder, "sweep", "-p", "gate_work", "-k", "work", *some, "-o", first)
    assert done.returncode == 0, done.stdout + done.stderr
    toml = folder / "bench.toml"
    text = toml.read_text(encoding="utf-8")
    assert LANES in text
    toml.write_text(text.replace(LANES, "work_lanes = 1"), encoding="utf-8")
    report = folder / "report.json"
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    done = bench(folder, "gate", "--clock", "work", "--baseline", first, *some, "-f", f"json={report}")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = json.loads(report.read_bytes())["verdicts"]
    assert len(verdicts) == 4
    assert {verdict["reason"] for verdict in verdicts} == {"identical"}
