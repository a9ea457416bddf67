"""The work gate against regressions planted in a copy of the tree: each caught by the command line without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import contenders
from bench.model import store
from tests.support.gate import OURS, ROOT

pytestmark = pytest.mark.timeout(600)
LANES = "work_lanes = 2"
HERE = Path(__file__).parent
# A case each, told apart by its number of tokens: variant of the stand-in -> what the gate must see of it.
PLANTED = {
    "serial_loop": {"busiest_loads", "busiest_stores"},
    "lost_vectors": {"widest_load_bits", "instructions"},
    "extra_launch": {"launches", "programs", "load_bytes", "store_bytes"},
    "wrong_storage": {"load_sectors"},
    "spill": {"spill_bytes", "registers"},
}
TOKENS = dict(zip(("good", *PLANTED), range(380, 404, 4), strict=True))
PROFILE = f"""
[profiles.planted]
clocks = ["work"]
contenders = ["csgmv_embed"]

[profiles.planted.axes]
vocab = [1000]

[[profiles.planted.grids]]
phase = ["prefill"]
batch_size = [4]
seq_len = {[tokens // 4 for tokens in TOKENS.values()]}

[[profiles.planted.grids]]
op = ["layer"]
phase = ["mixed"]
batch_size = [16]
seq_len = [16]
rank = [16]
rank_mix = ["ladder"]
base_fraction = [0.25]
hidden = [256]
"""
CHOICE = ("-p", "planted", "-c", OURS)


def tree(folder: Path, variants: dict[int, str]) -> Path:
    """A copy of the library and the suite, with the stand-in in the place of its lookup."""
    for package in ("csgmv_embed", "bench", "profiles"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    kernel = contenders.build(OURS).kernels()[0][1]
    source = (HERE / "planted_kernels.py").read_text(encoding="utf-8")
    given = {"VARIANTS: dict[int, str] = {}": variants, 'KERNEL = "embedding_lora_a_tokens_kernel"': kernel}
    for old, new in given.items():
        assert old in source
        source = source.replace(old, f"{old.split(' = ')[0]} = {new!r}")
    (folder / "csgmv_embed" / "planted.py").write_text(source, encoding="utf-8")
    with (folder / "csgmv_embed" / "__init__.py").open("a", encoding="utf-8") as init:
        init.write("\nfrom csgmv_embed.planted import embedding_lora_a  # noqa: F811\n")
    (folder / "bench.toml").write_text((ROOT / "bench.toml").read_text(encoding="utf-8") + PROFILE, encoding="utf-8")
    return folder


def bench(folder: Path, *arguments: object, hash_seed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent), "PYTHONPATH": str(folder)}
    environment["PYTHONHASHSEED"] = hash_seed
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the gate printed of the stand-in with every regression against that without one; variant -> its verdict.

    `untouched` is a case of the library's own layer, in whose place there is no stand-in.
    """
    good = tree(tmp_path_factory.mktemp("good"), {})
    baseline = good / "baseline.json"
    done = bench(good, "sweep", "-k", "work", *CHOICE, "-o", baseline, hash_seed="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {point.status for point in store.read(baseline).points} == {"ok"}
    folder = tree(tmp_path_factory.mktemp("planted"), {TOKENS[variant]: variant for variant in PLANTED})
    toml = (folder / "bench.toml").read_text(encoding="utf-8")
    assert LANES in toml
    (folder / "bench.toml").write_text(toml.replace(LANES, "work_lanes = 1"), encoding="utf-8")
    report = folder / "report.json"
    asked = ("gate", "--clock", "work", "--baseline", baseline, *CHOICE, "-f", f"json={report}")
    done = bench(folder, *asked, hash_seed="2")
    assert done.returncode == 1, done.stdout + done.stderr
    verdicts = json.loads(report.read_bytes())["verdicts"]
    by_tokens = {item["case"]["batch_size"] * item["case"]["seq_len"]: item for item in verdicts}
    assert len(by_tokens) == len(verdicts) == len(TOKENS) + 1
    found = {variant: by_tokens.pop(tokens) for variant, tokens in TOKENS.items()}
    return done.stdout, found | {"untouched": by_tokens.popitem()[1]}


@pytest.mark.parametrize("variant", PLANTED)
def test_a_planted_regression_is_caught(judged: tuple[str, dict[str, Any]], variant: str) -> None:
    verdict = judged[1][variant]
    assert verdict["status"] == "slow"
    assert PLANTED[variant] <= {change["figure"] for change in verdict["changes"] if change["worse"]}


def test_the_gate_says_so_and_how_to_see_it_again(judged: tuple[str, dict[str, Any]]) -> None:
    assert f"REGRESSION ({len(PLANTED)} slow, 2 pass" in judged[0]
    assert "again: python -m bench gate --clock work" in judged[0]


@pytest.mark.parametrize("same", ["good", "untouched"])
def test_what_is_unchanged_has_identical_counts(judged: tuple[str, dict[str, Any]], same: str) -> None:
    """On two lanes and on one, with other addresses and another hash seed: nothing of the machine is in a count."""
    assert (judged[1][same]["status"], judged[1][same]["reason"]) == ("pass", "identical")
