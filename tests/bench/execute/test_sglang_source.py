"""SGLang's own history: versions and commits as a line, and a slow commit planted in one that the work clock finds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.execute import sglang_source
from bench.execute.commits import Libraries
from bench.execute.sglang_source import Checkout, Versions
from bench.model import history as records
from bench.model.toml import ConfigError
from bench.model.verdict import CannotJudge, GateError
from tests.bench.execute.test_installs import folder_of, wheel_of

ROOT = Path(__file__).parents[3]
# A contender that launches SGLang's own function and imports as little of SGLang as that needs.
SUBJECT = """
import importlib, types
import torch
from bench.workload import traffic

HOMES = ("sglang.kernels.ops.lora.dense", "sglang.kernels.ops.gemm", "sglang.srt.lora.triton_ops")


def kernels():
    for home in HOMES:
        try:
            return importlib.import_module(f"{home}.embedding_lora_a")
        except ModuleNotFoundError:
            pass


class Planted:
    name = "planted"
    kernels = ("_embedding_lora_a_kernel",)

    def setup(self, workload, *, static):
        lengths = torch.from_numpy(workload.seq_lens)
        batch = types.SimpleNamespace(
            bs=len(lengths), max_len=int(lengths.max()), seg_lens=lengths,
            seg_indptr=torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
            weight_indices=torch.from_numpy(workload.seq_slots), lora_ranks=torch.from_numpy(workload.ranks),
        )
        launch, table = kernels().embedding_lora_a_fwd, workload.table("rank_major")
        return lambda k: launch(workload.index_sets[k], table, batch, workload.case.vocab)

    def required_bytes(self, workload):
        return traffic.minimum(workload)
"""
LOAD = "emb_values = tl.load(weight_ptr, mask=rank_mask, other=0.0)"


def git(repository: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(repository), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def committed(repository: Path, subject: str) -> str:
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", subject)
    return git(repository, "rev-parse", "HEAD")


def kernels_of(version: str, into: Path) -> Path:
    """An SGLang with the lookup's kernel of a version and nothing else. Without its wheel: the installed kernel."""
    shutil.rmtree(into, ignore_errors=True)
    found = next((ROOT / "build" / "wheels").glob(f"sglang-{version}-*.whl"), None)
    if found is not None:
        with zipfile.ZipFile(found) as files:
            name = _kernel_among(files.namelist())
            text = files.read(name).decode()
    else:
        spec = importlib.util.find_spec("sglang")
        if spec is None or spec.origin is None:
            pytest.skip("needs SGLang, installed or as a wheel in build/wheels: make setup")
        installed = Path(spec.origin).parents[1]
        name = _kernel_among([str(path.relative_to(installed)) for path in installed.glob("sglang/**/*.py")])
        text = (installed / name).read_text(encoding="utf-8")
    for file, content in ((name, text), ("sglang/srt/lora/utils.py", "class LoRABatchInfo: ...\n")):
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        (into / file).write_text(content, encoding="utf-8")
    for folder in [path for path in into.rglob("*") if path.is_dir()]:
        (folder / "__init__.py").touch()
    (into / "sglang" / "version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    return into / name


def _kernel_among(files: Sequence[str]) -> str:
    """Where an SGLang has the kernel; in 0.5.23 the old one beside the one that is used."""
    kernels = [name for name in files if name.endswith("/embedding_lora_a.py")]
    return next((name for name in kernels if "/dense/" in name), kernels[0])


def test_a_slow_commit_planted_in_sglang_is_found_by_its_counts(tmp_path: Path) -> None:
    repository = tmp_path / "sglang-repository"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    kernels_of("0.5.16", repository / "python")
    committed(repository, "a version")
    kernel = kernels_of("0.5.23", repository / "python")
    newer = committed(repository, "the next version")
    (repository / "README.md").write_text("words\n", encoding="utf-8")
    words = committed(repository, "words alone")
    text = kernel.read_text(encoding="utf-8")
    assert text.count(LOAD) == 1
    kernel.write_text(text.replace(LOAD, f"again = {LOAD.split(' = ', 1)[1]}; {LOAD}"), encoding="utf-8")
    slow = committed(repository, "loads twice")
    (tmp_path / "mine.py").write_text(SUBJECT, encoding="utf-8")
    bench_toml = (ROOT / "bench.toml").read_text(encoding="utf-8").replace("work_lanes = 2 ", "work_lanes = 1 ")
    (tmp_path / "bench.toml").write_text(bench_toml, encoding="utf-8")
    command = [sys.executable, "-m", "bench", "history"]
    store = ["--store", str(tmp_path / "h"), "--config", str(tmp_path / "bench.toml")]
    run = ["run", "--sglang-checkout", str(repository), "--commits", f"{newer}..HEAD", "-k", "work"]
    chosen = ["--contender-file", str(tmp_path / "mine.py"), "--subject", "planted", "-c", "planted"]
    case = ["--case", "op=lookup,phase=decode,rank=16"]
    done = subprocess.run(
        [*command, *run, *chosen, *case, *store], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run([*command, "show", *store], cwd=ROOT, capture_output=True, text=True, check=False)
    blamed = [line for line in shown.stdout.splitlines() if line.startswith(f"{slow[:9]}: ")]
    assert len(blamed) == 1 and " worse; most: planted#" in blamed[0], shown.stdout
    entries = {entry.commit.sha: entry for entry in records.read_all(tmp_path / "h")}
    assert [entries[sha].commit.subject for sha in (words, slow)] == ["words alone", "loads twice"]
    loads = {sha: entry.results.points[0].work.counts.load_bytes for sha, entry in entries.items()}  # type: ignore[union-attr]
    assert loads[slow] == loads[words] + 32 * 16 * 2, "each element of 32 tokens of rank 16 once more"
    assert git(repository, "worktree", "list").count("\n") == 0 and not git(repository, "status", "--porcelain")


def lora(folder: Path, text: str = "x = 1\n") -> Path:
    """An SGLang with something in it that counts as its LoRA code."""
    (folder / "sglang" / "srt" / "lora").mkdir(parents=True)
    (folder / "sglang" / "srt" / "lora" / "a.py").write_text(text, encoding="utf-8")
    return folder


def test_versions_are_a_line_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    old, new = folder_of(tmp_path / "old", "0.5.9"), wheel_of(tmp_path / "new", "0.5.10")
    source = Versions(f"{new},{old}", [])
    assert [(commit.short, commit.depth) for commit in source.line("..")] == [("0.5.9", 5009), ("0.5.10", 5010)]
    assert [commit.short for commit in source.line("0.5.9..")] == ["0.5.10"]
    assert source.commit("0.5.9").library == source.commit("0.5.10").library, "neither has LoRA code"
    with pytest.raises(GateError, match="0.5.11: unknown version; expected one of 0.5.9, 0.5.10"):
        source.commit("0.5.11")
    with Libraries(source) as libraries:
        trees = [libraries.tree(commit) for commit in source.line("..")]
        paths = [tree.environment()["PYTHONPATH"].split(os.pathsep) for tree in trees]
        assert paths[0][1] == str(old) and (Path(paths[1][1]) / "sglang" / "__init__.py").exists()


def test_a_range_is_what_the_patterns_find_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.5.9", "0.5.10", "0.5.11"):
        wheel_of(tmp_path / version, version)
    monkeypatch.setattr(sglang_source, "ROOT", tmp_path)
    assert [commit.short for commit in Versions("0.5.10..0.5.12", ["*/*.whl"]).line("..")] == ["0.5.10", "0.5.11"]
    with pytest.raises(
        ConfigError, match=r"no such version was found; sglang_files in bench.toml finds 0.5.9, 0.5.10, 0.5.11"
    ):
        Versions("0.6.0..0.7.0", ["*/*.whl"])


def test_the_same_version_with_other_lora_code_is_another_one(tmp_path: Path) -> None:
    one, other = folder_of(tmp_path / "a", "0.5.23"), folder_of(tmp_path / "b", "0.5.23")
    (other / "sglang" / "srt" / "lora").mkdir(parents=True)
    (other / "sglang" / "srt" / "lora" / "a.py").write_text("x = 1\n", encoding="utf-8")
    commits = [Versions(str(path), []).line("..")[0] for path in (one, other)]
    assert commits[0].sha != commits[1].sha and commits[0].library != commits[1].library


def test_a_commit_of_a_checkout_says_its_version_itself_or_by_the_tag_before_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    lora(tmp_path / "python")
    committed(tmp_path, "no version")
    git(tmp_path, "tag", "v0.5.20")
    (tmp_path / "python" / "sglang" / "other.py").write_text("", encoding="utf-8")
    committed(tmp_path, "after the tag")
    (tmp_path / "python" / "sglang" / "version.py").write_text('__version__ = "0.5.21.dev1"\n', encoding="utf-8")
    committed(tmp_path, "says it")
    shutil.rmtree(tmp_path / "python")
    committed(tmp_path, "without a package")
    source = Checkout(tmp_path)
    commits = [source.commit(name) for name in ("HEAD~2", "HEAD~1", "HEAD")]
    assert commits[0].library == commits[1].library is not None and commits[2].library is None
    with Libraries(source) as libraries:
        roots = [libraries.tree(commit).sglang for commit in commits[:2]]
        found = [next(root.glob("*.dist-info")).name for root in roots if root]
        assert found == ["sglang-0.5.20.dist-info", "sglang-0.5.21.dev1.dist-info"]
        with pytest.raises(CannotJudge, match="has no sglang/, so there is nothing to measure"):
            libraries.tree(commits[2])
    with pytest.raises(ConfigError, match="--sglang-checkout .*: is not a git checkout"):
        Checkout(tmp_path / "python")
