"""`sweep --gpus`, `--one-at-a-time` and `--ray`: what is refused, and how an interrupted sweep goes on there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import measure
from bench.model.gpus import Gpu
from tests.support.gate import Outcome

Run = Callable[..., Outcome]
COUNTED = ("sweep", "-p", "smoke", "-k", "work")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--ray", "local", "--gpus", "0"),
            "--ray local: takes every GPU of the cluster; expected neither --gpus nor --sglang",
        ),
        (("--ray", "local", "--sglang", "0.5.16"), "--ray local: takes"),
        (("--one-at-a-time",), "--one-at-a-time: only one GPU measures anyway; expected --gpus with it"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_file_is_begun(
    arguments: tuple[str, ...], said: str, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    done = run(*COUNTED, *arguments, "-o", file)
    assert done.code == 2 and said in done.err and not file.exists()


def test_without_ray_its_install_line_is_told_and_no_file_is_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file = tmp_path / "results.json"
    done = run(*COUNTED, "--ray", "local", "-o", file)
    assert (done.code, done.err) == (
        2,
        "bench: --ray needs the extra ray; expected pip install 'csgmv-embed[ray]'\n",
    )
    assert not file.exists()


def test_an_interrupted_sweep_goes_on_where_it_was() -> None:
    gpus = [Gpu(0, "GPU-a", "NVIDIA H200"), Gpu(2, "GPU-c", "NVIDIA H200")]
    assert measure._where("auto", [], one_at_a_time=False) == ["--ray auto"]
    assert measure._where(None, gpus, one_at_a_time=True) == ["--gpus 0,2", "--one-at-a-time"]
    assert measure._where(None, [], one_at_a_time=False) == []
