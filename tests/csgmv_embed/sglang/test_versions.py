"""Every supported version: its own files hold what the table says, and the tests of the plugin pass on them.

The wheels come from `make wheels`, in a CI three from `make wheels-in-turn`. A test without its wheel is skipped.

A version can change what is hooked, how a batch is planned and what the layers hand on. It cannot change our kernels.
The tests marked `once` are of those alone, or say in another dtype or tile what a test beside them says. They run on
the installed SGLang. `make test-versions` runs them on every one all the same.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

from csgmv_embed.sglang.targets import ADAPTER, LAYERS, RELEASES, Hook, Release, known_versions
from tests.support import real_sglang as support

WHEELS = support.REPO / "build" / "wheels"
FIELDS = {"req_seg_indptr", "req_weight_indices"}
VERSIONS = [release.version for release in RELEASES]
MUST_IMPORT = ("0.5.10", support.VERSION)  # the oldest, and the installed one: its dependencies are here
LIMIT_S = 1500  # of one version: two minutes on two idle cores
WHOLE = bool(os.environ.get("VERSIONS_WHOLE"))
CHOSEN = [] if WHOLE else ["-m", "not once"]


def wheel(version: str) -> Path:
    found = sorted(WHEELS.glob(f"sglang-{version}-*.whl"))
    if not found:
        pytest.skip("needs the wheels of other SGLang versions: make test-versions")
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


EVERY = [replace(release, version=version) for release in RELEASES for version in (release.version, *release.also)]
CASES = [(release, hook) for release in EVERY for hook in release.hooks]


@pytest.mark.parametrize(("release", "hook"), CASES, ids=[f"{r.version}-{h.name}" for r, h in CASES])
def test_every_target_is_in_the_wheel_with_this_signature(release: Release, hook: Hook) -> None:
    assert parameters(function(release.version, hook.target)) == hook.parameters


@pytest.mark.parametrize("release", EVERY, ids=known_versions())
def test_the_rows_say_what_the_wheel_does(release: Release) -> None:
    info = named(parsed(release.version, "sglang.srt.lora.utils").body, "LoRABatchInfo", ast.ClassDef)
    fields = {
        node.target.id for node in info.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert release.request_fields == (fields >= FIELDS) == bool(fields & FIELDS)
    backend = ast.unparse(parsed(release.version, "sglang.srt.lora.backend.chunked_backend"))
    assert release.moe_info == ("moe_lora_info" in fields) == ("_add_moe_lora_info" in backend)
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
    assert same == [("0.5.11", "0.5.12"), ("0.5.12", "0.5.13")]


LAYER, HEAD = f"{LAYERS}.VocabParallelEmbeddingWithLoRA", f"{LAYERS}.ParallelLMHeadWithLoRA"
BASE = "sglang.srt.layers.vocab_parallel_embedding.VocabParallelEmbedding"
# What the hooks do in its place, or rely on: the versions from which on it is written otherwise. Each
# of these was read: the signature alone does not tell what a function does.
WRITTEN_ANEW = {
    # lora_active; the batch of a layout, csgmv's one; then base and LoRA handed to the backend, whose csgmv one calls
    # apply_lora on them
    f"{LAYER}.forward": ["0.5.17", "0.5.22", "0.5.23"],
    f"{LAYER}.apply_lora": ["0.5.12"],  # offsets on the host as well
    f"{LAYER}.run_lora_a_embedding": [],
    f"{HEAD}.apply_lora": ["0.5.12"],  # offsets on the host as well
    f"{HEAD}._get_lm_head_batch_info": ["0.5.22", "0.5.23"],  # words of its errors
    f"{ADAPTER}._process_weight": [],
    f"{BASE}.forward": ["0.5.13", "0.5.16", "0.5.23"],  # probe of ids; a helper; an idle batch
    "sglang.srt.layers.quantization.unquant.UnquantizedEmbeddingMethod.embedding": [],
}


@pytest.mark.parametrize("target", WRITTEN_ANEW, ids=lambda target: ".".join(target.rsplit(".", 2)[1:]))
def test_what_the_layer_hooks_replace_was_read_in_every_version(target: str) -> None:
    def body(version: str) -> str:
        found = function(version, target)
        return "\n".join(map(ast.unparse, found.body[ast.get_docstring(found) is not None :]))

    changed = [later for earlier, later in itertools.pairwise(VERSIONS) if body(earlier) != body(later)]
    assert changed == WRITTEN_ANEW[target]


def test_make_wheels_fetches_every_version() -> None:
    found = re.search(r"^SGLANG_VERSIONS := (.*)$", (support.REPO / "Makefile").read_text(encoding="utf-8"), re.M)
    assert found and found[1].split() == VERSIONS
    between = re.search(r"^SGLANG_BETWEEN := (.*)$", (support.REPO / "Makefile").read_text(encoding="utf-8"), re.M)
    assert between and [*found[1].split(), *between[1].split()] == sorted(
        known_versions(), key=lambda version: (version not in VERSIONS, version)
    )


@dataclass(frozen=True)
class Run:
    """What the tests of this folder said of another SGLang."""

    exit_status: int
    output: str
    sglang: str | None  # version and file of what was imported
    not_here: str  # why it does not import beside what is installed here; empty if it does
    served: int  # tests of test_server.py that passed


def run_on(folder: Path, report: Path, *names: str) -> Run:
    """Tests of this folder in Triton's interpreter, in a process whose sglang is the one in `folder`."""
    here = Path(__file__).parent
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
            *("-W", "ignore", "-o", "filterwarnings="),  # another SGLang under these dependencies warns
            *CHOSEN,
            *(str(here / name) for name in names),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(support.REPO)]),
            "CUDA_VISIBLE_DEVICES": "",
            "TRITON_INTERPRET": "1",
        },
        cwd=support.REPO,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    output = result.stdout[-6000:] + result.stderr[-2000:]
    assert report.exists(), output
    root = ElementTree.parse(report).getroot()
    properties = {found.get("name"): found.get("value") for found in root.iter("property")}
    skipped = [found.get("message", "") for found in root.iter("skipped")]
    cases = [case for case in root.iter("testcase") if str(case.get("classname")).endswith("test_server")]
    return Run(
        exit_status=result.returncode,
        output=output,
        sglang=properties.get("sglang"),
        not_here=next((reason for reason in skipped if reason.startswith(support.NOT_HERE)), ""),
        served=sum(
            len(case) == 0 for case in cases
        ),  # a case that did anything but pass holds the element that says so
    )


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 100)
@pytest.mark.parametrize("version", known_versions() if WHOLE else VERSIONS)
def test_the_plugin_works_on_the_wheel(version: str, tmp_path: Path) -> None:
    """Planner, lookup, layers, linear layers, SGLang's manager and pool with the plugin, on each version that imports.

    A newer one that does not is skipped with the reason: the newest that was tested is then the one before.
    """
    folder = tmp_path / "wheel"
    with zipfile.ZipFile(wheel(version)) as files:
        files.extractall(folder)
    files = ("planner", "hooks", "test_original_order.py", "test_server.py", "test_adapters.py")
    run = run_on(folder, tmp_path / "report.xml", *files)
    if run.not_here and version not in MUST_IMPORT:
        pytest.skip(f"{version}: {run.not_here}")
    assert not run.not_here and run.exit_status == 0, run.output
    assert run.sglang == f"{version} of {folder / 'sglang' / '__init__.py'}"
    assert run.served > 0


def test_a_version_that_does_not_import_says_why(tmp_path: Path) -> None:
    package = tmp_path / "wheel" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('wants another torch')")
    (tmp_path / "wheel" / "sglang-0.5.23.dist-info").mkdir()
    (tmp_path / "wheel" / "sglang-0.5.23.dist-info" / "METADATA").write_text("Name: sglang\nVersion: 0.5.23\n")
    run = run_on(tmp_path / "wheel", tmp_path / "report.xml", "test_server.py")
    assert run.not_here == f"{support.NOT_HERE}: ImportError: wants another torch"
    assert run.served == 0
