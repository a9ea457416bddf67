"""Nothing about this repository's kernel is special to the instrument: without csgmv_embed it measures the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.model import store
from bench.model.environment import package_version

ROOT = Path(__file__).parents[1]
# In every process of the copy an installed library is not to be found either.
NOWHERE = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "csgmv_embed":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
"""
# Times need a GPU; that torch's lookup is right, and so could be timed, does not.
VERIFY = """
import torch
from bench import contenders
from bench.execute.measure import verify_eager
from bench.model.case import Case
from bench.workload.tensors import make_workload
for op in ("lookup", "layer"):
    case = Case("decode", 5, 1, 8, adapters=3, vocab=97, op=op, hidden=16 if op == "layer" else 0)
    workload = make_workload(case, seed=1, index_sets=2, device=torch.device("cpu"))
    contender = contenders.build("torch_gather", op)
    assert verify_eager(contender, workload, contender.setup(workload, static=False)).passed
assert "csgmv_embed is not here" in contenders.unavailable(contenders.build("csgmv_embed-vocab_major"))
"""


def test_without_the_library_sglang_is_measured_against_torch(tmp_path: Path) -> None:
    if package_version("sglang") is None:
        pytest.skip("needs SGLang: make setup")
    for name in ("bench", "plots", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "baselines"))
    toml = (ROOT / "bench.toml").read_text(encoding="utf-8").replace("work_lanes = 2 ", "work_lanes = 1 ")
    (tmp_path / "bench.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(NOWHERE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-c", VERIFY)
    chosen = ["-c", "sglang_triton", "-c", "torch_gather", "--case", "op=lookup,phase=decode", "-o", "r.json"]
    run("-m", "bench", "sweep", "-p", "smoke", "-k", "work", *chosen)
    found = {point.contender: point for point in store.read(tmp_path / "r.json").points}
    assert found["sglang_triton"].status == "ok" and found["sglang_triton"].work is not None
    assert found["torch_gather"].reason == "the work clock counts Triton kernels; this contender launches none"
    assert "triton" in run("-m", "bench", "show", "r.json")
