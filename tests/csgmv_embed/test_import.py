"""What `import csgmv_embed` may load and touch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "csgmv_embed").glob("*.py"))
ALLOWED = {"csgmv_embed", "torch", "triton", "numpy"}

IMPORT_WITHOUT_SGLANG = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sglang", "bench"):
            raise ImportError(f"blocked: {name}")

sys.meta_path.insert(0, Blocker())
import csgmv_embed
import torch

assert not {"sglang", "bench"} & {name.partition(".")[0] for name in sys.modules}
assert not torch.cuda.is_initialized(), "importing the library initialised CUDA"
for name in csgmv_embed.__all__:
    getattr(csgmv_embed, name)
"""


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["compiled", "interpreted"])
def test_import_needs_neither_sglang_nor_bench_and_leaves_cuda_alone(interpret: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": interpret}
    command = [sys.executable, "-c", IMPORT_WITHOUT_SGLANG]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


WITHOUT_TORCH = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
import csgmv_embed
assert not hasattr(csgmv_embed, "no_such_name")
try:
    csgmv_embed.embedding_lora
except ModuleNotFoundError as error:
    print(error)
sys.argv = ["csgmv_embed", "doctor"]
runpy.run_module("csgmv_embed", run_name="__main__")
"""


def test_without_torch_the_doctor_says_what_to_install() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    name, plugin = done.stdout.splitlines()
    assert name == "csgmv_embed.embedding_lora needs torch: pip install torch"
    assert plugin.startswith("plugin       off: torch not installed; pip install torch")


def imported_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("csgmv_embed" if node.level else (node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.name)
def test_module_imports_only_torch_triton_numpy_and_the_standard_library(path: Path) -> None:
    assert imported_packages(path.read_text()) - set(sys.stdlib_module_names) <= ALLOWED
