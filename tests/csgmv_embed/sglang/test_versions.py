"""Every supported version: its own files hold what the table says, and the tests of the plugin pass on them.

The wheels come from `make wheels`; without them these tests are skipped.
"""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import support

from csgmv_embed.sglang.targets import RELEASES, Hook, Release

WHEELS = support.REPO / "build" / "wheels"
FIELDS = {"req_seg_indptr", "req_weight_indices", "moe_lora_info"}
VERSIONS = [release.version for release in RELEASES]


def wheel(version: str) -> Path:
    found = sorted(WHEELS.glob(f"sglang-{version}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of sglang {version} in {WHEELS}: run `make wheels` with a network")
    return found[0]


@cache
def parsed(version: str, module: str) -> ast.Module:
    with zipfile.ZipFile(wheel(version)) as files:
        return ast.parse(files.read(module.replace(".", "/") + ".py"))


def function(version: str, target: str) -> ast.FunctionDef:
    """The definition at a dotted path of module, class and method, or of module and function."""
    module, name = target.rsplit(".", 1)
    body: list[ast.stmt]
    if module.rsplit(".", 1)[1][0].isupper():
        module, holder = module.rsplit(".", 1)
        body = named(parsed(version, module).body, holder, ast.ClassDef).body
    else:
        body = parsed(version, module).body
    found = named(body, name, ast.FunctionDef)
    assert isinstance(found, ast.FunctionDef)
    return found


def named(body: list[ast.stmt], name: str, kind: type[ast.ClassDef] | type[ast.FunctionDef]) -> ast.ClassDef:
    found = [node for node in body if isinstance(node, kind) and node.name == name]
    assert len(found) == 1, f"{name}: {len(found)} definitions"
    return found[0]  # type: ignore[return-value]


def parameters(definition: ast.FunctionDef) -> tuple[str, ...]:
    arguments = definition.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [arguments.vararg.arg] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    return (*names, *([arguments.kwarg.arg] if arguments.kwarg else []))


CASES = [(release, hook) for release in RELEASES for hook in release.hooks]


@pytest.mark.parametrize(("release", "hook"), CASES, ids=[f"{r.version}-{h.name}" for r, h in CASES])
def test_every_target_is_in_the_wheel_with_this_signature(release: Release, hook: Hook) -> None:
    assert parameters(function(release.version, hook.target)) == hook.parameters


@pytest.mark.parametrize("release", RELEASES, ids=VERSIONS)
def test_the_rows_say_what_the_wheel_does(release: Release) -> None:
    info = named(parsed(release.version, "sglang.srt.lora.utils").body, "LoRABatchInfo", ast.ClassDef)
    fields = {
        node.target.id for node in info.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert release.request_fields == (fields >= FIELDS) == bool(fields & FIELDS)
    backend = ast.unparse(parsed(release.version, "sglang.srt.lora.backend.chunked_backend"))
    assert release.request_fields == ("_add_moe_lora_info" in backend)
    assert bool(release.prefill_graph) == ("def init_prefill_cuda_graph_batch_info" in backend)
    head = ast.unparse(function(release.version, f"{backend_class()}._build_lm_head_batch_info"))
    assert release.lm_head_eager == ("use_cuda_graph=False" in head)
    with zipfile.ZipFile(wheel(release.version)) as files:
        assert release.has_plugins == ("sglang/srt/plugins/hook_registry.py" in files.namelist())


def backend_class() -> str:
    return RELEASES[0].hooks[0].target.rsplit(".", 1)[0]


def test_no_two_versions_could_share_a_row_unnoticed() -> None:
    """The rows differ in what they say, or are neighbours that nothing tells apart."""
    tables = {release.version: [(hook.target, hook.parameters) for hook in release.hooks] for release in RELEASES}
    same = [(a, b) for a, b in itertools.pairwise(VERSIONS) if tables[a] == tables[b]]
    assert same == [("0.5.10", "0.5.11"), ("0.5.11", "0.5.13")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_plugin_works_on_the_wheel(version: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The other tests of this folder, in a process whose sglang is the wheel's."""
    folder = tmp_path_factory.mktemp("sglang")
    with zipfile.ZipFile(wheel(version)) as files:
        files.extractall(folder)
    here = Path(__file__).parent
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"),
            *("-W", "ignore", "-o", "filterwarnings="),  # an older SGLang under newer dependencies warns
            *(str(here / name) for name in ("test_planner.py", "test_lookup.py", "test_server.py")),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(support.REPO)])},
        cwd=support.REPO,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    (support.REPO / "build").mkdir(exist_ok=True)
    (support.REPO / "build" / f"versions-{version}.txt").write_text(result.stdout, encoding="utf-8")
