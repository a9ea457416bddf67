"""SGLang's triton_v2 equals the oracle in every op, where its version is installed or first on the path."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
import torch

from bench import contenders
from bench.clocks.work.interpreter import faithful
from bench.contenders.ours import lookup
from bench.contenders.sglang import peers
from bench.execute import installs, measure
from bench.model import registry
from bench.model.case import Case
from bench.model.paths import ROOT
from bench.workload.tensors import make_workload
from tests.support.small_sites import shrink_models

VERSION = "0.5.23"
DECODE = Case("decode", 6, 1, 16, adapters=3, rank_mix="ladder", base_fraction=0.3, vocab=97)
MIXED = msgspec.structs.replace(DECODE, phase="mixed", batch_size=9, seq_len=20)
SITE = msgspec.structs.replace(DECODE, op="linear", site="qkv", model="135m", cache="cold", vocab=128256)
CASES = [
    DECODE,
    *(msgspec.structs.replace(case, op="layer", hidden=48) for case in (DECODE, MIXED)),
    msgspec.structs.replace(DECODE, op="head", hidden=48),
    msgspec.structs.replace(DECODE, op="expand"),
    *(msgspec.structs.replace(SITE, op=op) for op in ("linear", "shrink", "expand")),
    *(msgspec.structs.replace(SITE, op=op, phase="prefill", batch_size=4, seq_len=9) for op in ("linear", "shrink")),
]
NEW, OLD = ("sglang_triton_v2", "sglang_tokens"), ("sglang_triton", "sglang_csgmv-chunk16")
POINTS = [(name, case) for case in CASES for name in NEW if registry.provides(name, case.op, case.site)]
POINTS += [(name, case) for case in CASES if case.phase == "decode" and case.op in ("head", "linear") for name in OLD]


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, slices_on_the_cpu: None) -> None:
    shrink_models(monkeypatch)
    for module in (peers, lookup):
        monkeypatch.setattr(module, "DECODE_GRAPH_CAPACITY", 12)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs kernels on the CPU: TRITON_INTERPRET=1")
@pytest.mark.parametrize(("name", "case"), POINTS, ids=[f"{name}-{case.label}" for name, case in POINTS])
def test_it_equals_the_oracle(name: str, case: Case, request: pytest.FixtureRequest) -> None:
    contender = contenders.build(f"{name}@{VERSION}", case.op, case.site)
    if (reason := contenders.unavailable(contender)) is not None:
        pytest.skip(reason)
    request.getfixturevalue("on_the_cpu")
    workload = make_workload(case, seed=3, index_sets=2, device=torch.device("cpu"), reuse_bytes=1 << 40)
    with faithful():
        launch = contender.setup(workload, static=case.phase == "decode")
        assert measure.verify_eager(contender, workload, launch).passed


def test_a_process_that_finds_the_version_first_runs_all_of_them() -> None:
    try:
        found = installs.find([VERSION], [], ["build/wheels/sglang-*.whl"])
    except installs.ConfigError:
        pytest.skip("needs the wheels of other SGLang versions: make wheels")
    with installs.import_paths(found) as paths:
        environment = os.environ | installs.first_on_path(paths[VERSION], {"TRITON_INTERPRET": "1"})
        command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-n", "0", __file__]
        run = subprocess.run(
            [*command, "-k", "oracle"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    assert run.returncode == 0 and "skipped" not in run.stdout, run.stdout[-2000:]
