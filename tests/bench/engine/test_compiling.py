"""Triton's compilations are timed where they happen: what is compiled, not what is found on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from bench.engine import compiling, stamps

ROOT = Path(__file__).parents[3]
WORKER = """
import sys
from bench.engine import compiling
compiling.install()
assert compiling.MODULE not in sys.modules
import torch
from bench.clocks.work.compiled import compile_launch
from csgmv_embed import EmbeddingBatch, embedding_lora_a
from csgmv_embed.launch import checks
checks.accept_host_tensors = True
batch = EmbeddingBatch.build([3, 2], [0, 1], [8, 8], device="cpu")
for rank in map(int, sys.argv[1:]):
    ids, table = torch.zeros(5, dtype=torch.int64), torch.zeros(2, rank, 64)
    compile_launch(lambda: embedding_lora_a(ids, table, batch, 64))
"""


def compiled(cache: Path, folder: Path, *ranks: int) -> list[compiling.Compilation]:
    """What a process of its own compiled for tables of these ranks."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {compiling.FOLDER: str(folder), "TRITON_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", WORKER, *map(str, ranks)]
    began = time.monotonic_ns()
    subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, check=True)
    return compiling.between(folder, began, time.monotonic_ns())


def test_what_is_compiled_is_timed_and_what_is_on_disk_is_not(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = compiled(cache, tmp_path / "first", 8, 16)
    assert len(first) == 2 and all(1e4 < item.took_us < 1e8 for item in first)
    assert {item.kernel for item in first} == {"embedding_lora_a_tokens_kernel"}
    assert len(compiled(cache, tmp_path / "second", 8, 16, 32)) == 1


def test_a_listener_that_was_there_is_told_too(tmp_path: Path) -> None:
    seen = []
    before = compiling._Listener(tmp_path, lambda **told: seen.append(told))
    before(times=type("Times", (), {"total": 1500})(), cache_hit=False, src=SimpleNamespace(name="kernel"))
    before(times=None, cache_hit=True, src=SimpleNamespace(name="other"))
    assert [told["cache_hit"] for told in seen] == [False, True] and seen[0]["src"].name == "kernel"
    assert compiling.between(tmp_path, 0, time.monotonic_ns()) == [("kernel", 1500.0)]
    (file,) = tmp_path.glob("compile-*")
    with file.open("a") as cut_off:
        cut_off.write("1 20000 ker")
    assert len(compiling.between(tmp_path, 0, time.monotonic_ns())) == 1


def test_calls_are_told_by_name_and_by_when_they_began(tmp_path: Path) -> None:
    times = stamps.Stamps(tmp_path, "one")
    assert [times.add(100, 7000), times.add(200, 9000), times.add(300, 0)] == [True, False, False]
    stamps.Stamps(tmp_path, "another").add(150, 1000)
    (file,) = tmp_path.glob("one-*")
    file.write_bytes(file.read_bytes() + b"\x01\x02")
    assert stamps.between(tmp_path, "one", 0, 1000) == [7.0, 9.0]
    assert stamps.between(tmp_path, "one", 150, 1000) == [9.0]
