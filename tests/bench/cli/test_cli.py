"""The command line as a user meets it: what each verb prints, and bad input as one line and exit status 2."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from bench.model import config

ROOT = config.DEFAULT_PATH.parent
PUBLISHED = ROOT / "docs" / "results" / "h200-quick.json"
SMOKE = ("-p", "smoke", "-k", "work", "-c", "csgmv_embed-*")
# Runs the suite's main module in an interpreter in which these modules cannot be imported.
LIGHT = """
import runpy, sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton", "sglang", "scipy", "matplotlib"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Heavy())
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("bench", run_name="__main__")
"""


def bench(
    *arguments: str | Path, interpreter: tuple[str, ...] = ("-m", "bench"), before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *interpreter, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, preexec_fn=before
    )


def assert_refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit status 2 and one line on stderr with these parts."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("bench: ") and done.stderr.count("\n") == 1, done.stderr
    for part in said:
        assert part in done.stderr


def test_config_prints_what_is_in_force_as_json() -> None:
    done = bench("config")
    assert (done.returncode, done.stderr) == (0, "")
    assert msgspec.json.decode(done.stdout, type=config.Config) == config.load()


def test_list_prints_every_case_and_contender_and_the_profiles() -> None:
    done = bench("list", "-p", "smoke", "-k", "work", "-a", "rank=8,16", "--case", "phase=decode,skew=0")
    assert (done.returncode, done.stderr) == (0, "")
    plan = config.make_plan(
        config.load(), "smoke", overrides=config.parse_axis_overrides(["rank=8,16"]), cases=["phase=decode"]
    )
    lines = done.stdout.splitlines()
    assert {line.strip() for line in lines} >= {point.contender for point in plan.points}
    (usual,) = (line.split("say so, ")[1].rstrip(":").split(", ") for line in lines if line.startswith("cases ("))
    listed = [line.strip().split(",") for line in lines[lines.index(next(x for x in lines if "cases (" in x)) + 1 :]]
    told = {frozenset({part.split("=")[0]: part for part in [*usual, *own]}.values()) for own in listed}
    assert told == {frozenset(point.case.key.split(",")) for point in plan.points}
    assert max(map(len, map(",".join, listed))) < 58, "a line of 60 columns holds a case"
    assert (
        "other profiles: captured, faults, full, gate_work, head, headline, hidden, history, host, layer, linear, "
        "linear_axes, peers, quick, sglang)"
        in done.stdout
        and "clocks: work" in done.stdout
    )


def test_doctor_names_each_package_and_each_contender() -> None:
    from bench.model import registry

    done = bench("doctor")
    assert done.returncode == 0, done.stderr
    for name in ("torch", "triton", "sglang", "nvtx", "GPU", *registry.names()):
        assert any(line.split()[0] == name for line in done.stdout.splitlines()), name


def test_show_prints_the_tables_of_a_published_file() -> None:
    done = bench("show", PUBLISHED)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("quick on NVIDIA H200", "decode, graph clock: us a call", "ours-rank", "times ours"):
        assert part in done.stdout


@pytest.mark.parametrize("verb", [(), ("sweep",), ("show",), ("list",), ("config",), ("doctor",)])
def test_help_says_what_there_is_and_imports_nothing_heavy(verb: tuple[str, ...]) -> None:
    done = bench(*verb, "--help", interpreter=("-c", LIGHT))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: " in done.stdout


def test_verbs_that_measure_nothing_need_no_torch() -> None:
    for arguments in (("config",), ("list", "-p", "full")):
        done = bench(*arguments, interpreter=("-c", LIGHT))
        assert (done.returncode, done.stderr) == (0, "")


def test_the_hook_of_these_tests_does_see_an_import() -> None:
    assert "was imported" in bench("doctor", interpreter=("-c", LIGHT)).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("list", "-p", "nope"),
            (
                "'nope' is unknown",
                "gate_work, head, headline, hidden, history, host, layer, linear, linear_axes, peers, quick, sglang",
            ),
        ),
        (("list", "-a", "rank="), ("--axis: rank:", "at least 1")),
        (("list", "-a", "rank=8", "-a", "rank=16"), ("rank is given twice", "rank=8,16")),
        (("list", "-c", "nope*"), ("--contender nope*",)),
        (("list", "--case", "rank"), ("--case rank:", "expected NAME=VALUE")),
        (("list", "--case", "rank=17"), ("no case has rank=17", "16, 64, 256")),
        (("list", "-k", "graf"), ("--clock graf", "graph, eager, prepare, work")),
        (("config", "--config", "absent.toml"), ("absent.toml: cannot be read",)),
        (("config", "--config", PUBLISHED), (f"{PUBLISHED}: not TOML",)),
        (("show", "absent.json"), ("absent.json: cannot be read",)),
        (("show", "bench.toml"), ("bench.toml: not a file of this suite", "expected a results file")),
        (("show", "plots"), ("plots: holds no history",)),
        (("sweep", "--resume", "absent.json"), ("absent.json: cannot be read",)),
        (
            ("sweep", "--resume", PUBLISHED, "-p", "smoke"),
            (f"--resume {PUBLISHED}:", "expected no options with it but --sglang"),
        ),
        (("sweep", "--resume", PUBLISHED, "-o", "x.json"), ("expected no options with it but --sglang",)),
        (("plot", "nope", PUBLISHED), ("figure 'nope' is unknown", "scaling, bandwidth")),
        (("plot", "scaling", "absent.json"), ("absent.json: cannot be read",)),
        (
            ("plot", "gate", PUBLISHED),
            ("figure gate: the given files have nothing to draw it from", "bench gate -f json=FILE"),
        ),
        (("plot", "history", "docs"), ("not a results file of this suite",)),
        (("report", "bench.toml"), ("bench.toml: not a file of this suite", "expected a results file")),
        (("sweep", *SMOKE, "-o", PUBLISHED), (f"{PUBLISHED}: exists", f"--resume {PUBLISHED}")),
        (("sweep", *SMOKE, "-o", "bench.toml/r.json"), ("bench.toml/r.json: cannot be written",)),
        (("sweep", *SMOKE, "-o", "x" * 300), ("cannot be written: File name too long",)),
    ],
    ids=lambda value: " ".join(map(str, value))[:60],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments: tuple[str | Path, ...], said: tuple[str, ...]) -> None:
    assert_refused(bench(*arguments), *said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune for minutes")
def test_tuning_without_a_gpu_is_one_line() -> None:
    assert_refused(bench("tune"), "tune: needs an NVIDIA GPU")


def test_a_configuration_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# caf\xe9\n")
    assert_refused(bench("config", "--config", path), f"{path}: not UTF-8")


@pytest.mark.parametrize(
    "arguments", [("nope",), ("sweep", "--nope"), ("sweep", "--rounds", "0"), ("show",), ()], ids=" ".join
)
def test_wrong_usage_is_exit_status_2_without_a_traceback(arguments: tuple[str, ...]) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_disk_that_takes_no_file_is_said_before_a_worker_starts(tmp_path: Path) -> None:
    def allow_100_bytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    file = tmp_path / "r.json"
    done = bench("sweep", *SMOKE, "-o", file, before=allow_100_bytes)
    assert_refused(done, f"{file}: cannot be written: File too large")
    assert "worker" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_newer_minor_with_a_new_axis_says_what_it_needs(tmp_path: Path) -> None:
    data = json.loads(PUBLISHED.read_bytes())
    data["schema"]["version"] = "1.9.0"
    data["points"][3]["case"]["novelty"] = 1
    file = tmp_path / "newer.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert_refused(bench("show", file), "points[3].case has the axis 'novelty'", "needs a newer version of this suite")
