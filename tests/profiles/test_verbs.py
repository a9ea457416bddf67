"""`bench profile` with stand-ins for the tools: what is kept, what is said, exit statuses, and never half a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli import main as cli
from bench.model import store
from bench.model.records import ResultsError
from profiles import records, workflow
from profiles.capture import ProfileError
from tests.support import nsys_schema
from tests.support.profiles import DATA

ROOT = Path(__file__).parents[2]
COUNTERS = ROOT / "docs" / "experiments" / "h100-ncu.json"
CASE = "phase=decode,batch_size=8,rank=16,vocab=1000"
OURS = ("-c", "csgmv_embed-vocab_major")


@pytest.fixture
def bench(capsys):
    """Runs the command line here; (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(["profile", *map(str, arguments)])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def raw(tmp_path):
    file = tmp_path / "captured.qdstrm"
    file.write_bytes(b"raw")
    return file


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_dry_run_prints_the_command_and_runs_nothing(bench, fake_tool, tmp_path):
    fake_tool("nsys", "2022.4.2", arguments=tmp_path / "ran")
    status, out, err = bench("nsys", CASE, *OURS, "--dry-run", "-o", tmp_path / "out" / "x")
    assert status == 0
    assert "nsys profile --trace=cuda,nvtx" in out and "-m profiles.runner --launches 4 --replays 3 --seed 1" in out
    assert out.count("csgmv_embed-vocab_major|graph|adapters=8|") == 1 and out.count("\n") == 1
    assert "left out, because this version lacks it: --cuda-event-trace=false" in err
    assert not (tmp_path / "ran").exists() and left(tmp_path / "out") == []


def test_a_dry_run_of_ncu_prints_one_command_a_cache_state(bench, fake_tool):
    fake_tool("ncu", "2025.3.1")
    status, out, _ = bench("ncu", CASE, *OURS, "--dry-run")
    assert (status, out.count("\n")) == (0, 2)
    assert "--cache-control all" in out.splitlines()[0] and "--cache-control none" in out.splitlines()[1]
    assert "--launches 1 --replays 1" in out, "counters are of one launch"
    assert bench("ncu", CASE, *OURS, "--dry-run", "--cache", "warm")[1].count("\n") == 1


def test_a_dry_run_of_a_sweep_runs_the_sweep(bench, fake_tool):
    fake_tool("nsys", "2025.3.1")
    _, out, _ = bench("nsys", "--sweep", "quick", *OURS, "-k", "graph", "rank=64,phase=decode", "--dry-run")
    assert (
        "-m bench sweep -p quick --processes 1 -c csgmv_embed-vocab_major -k graph --case rank=64,phase=decode" in out
    )


def test_without_an_importer_the_raw_file_is_kept_and_named(bench, fake_tool, raw, tmp_path):
    fake_tool("nsys", "2025.3.1", capture=raw)
    status, out, _ = bench("nsys", CASE, *OURS, "-o", tmp_path / "out" / "x")
    assert status == 0
    assert left(tmp_path / "out") == ["x.json", "x.qdstrm"]
    assert "no importer" in out and str(tmp_path / "out" / "x.qdstrm") in out and "QdstrmImporter" in out
    profile = records.read(tmp_path / "out" / "x.json")
    assert (profile.tool_version, profile.files) == ("nsys 2025.3.1.0", ["x.qdstrm"])
    assert isinstance(profile.body, records.NsysBody) and profile.body.ranges is None
    assert profile.commands[0][-1].startswith("csgmv_embed-vocab_major|graph|")
    assert ".profile-" not in " ".join(profile.commands[0]), "the scratch folder is no part of the command"


def test_with_an_importer_the_ranges_are_read_and_everything_is_kept(bench, fake_tool, raw, tmp_path, monkeypatch):
    database = nsys_schema.build(tmp_path / "database.sqlite")
    fake_tool("nsys", "2025.3.1", capture=raw, database=database)
    importer = tmp_path / "importer"
    importer.write_text('#!/bin/sh\ncp "$2" "$4"\n')
    importer.chmod(0o755)
    monkeypatch.setenv("QDSTRMIMPORTER", str(importer))
    status, out, _ = bench("nsys", CASE, *OURS, "-o", tmp_path / "out" / "x.json")
    assert status == 0
    assert left(tmp_path / "out") == ["x.json", "x.nsys-rep", "x.sqlite"]
    assert "nsys-ui x.nsys-rep" in out and "warmup 4" in out
    body = records.read(tmp_path / "out" / "x.json").body
    assert isinstance(body, records.NsysBody) and body.ranges is not None
    assert {tuple(item.path): (item.eager, item.graph) for item in body.ranges}[("A", "sample")] == (1, 4)
    again = bench("show", tmp_path / "out" / "x.sqlite")
    assert again[0] == 0 and "warmup 4" in again[1]
    assert "warmup 4" in bench("show", tmp_path / "out" / "x.json")[1]


def test_a_profile_is_no_results_file(bench, fake_tool, raw, tmp_path):
    fake_tool("nsys", "2025.3.1", capture=raw)
    bench("nsys", CASE, *OURS, "-o", tmp_path / "x")
    with pytest.raises(ResultsError, match=r"schema.name is 'csgmv-bench-profile'; expected 'csgmv-bench-results'"):
        store.read(tmp_path / "x.json")
    status, _, err = bench("show", ROOT / "docs" / "results" / "h200-quick.json")
    assert status == 2 and "expected 'csgmv-bench-profile'" in err


def test_a_record_is_not_overwritten(bench, fake_tool, raw, tmp_path):
    fake_tool("nsys", "2025.3.1", capture=raw)
    assert bench("nsys", CASE, *OURS, "-o", tmp_path / "x")[0] == 0
    status, _, err = bench("nsys", CASE, *OURS, "-o", tmp_path / "x")
    assert status == 2 and "x.json: exists" in err


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_a_missing_tool_is_one_line_and_status_2(bench, tool, monkeypatch, tmp_path):
    monkeypatch.delenv(tool.upper(), raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(f"profiles.{tool}.PLACES", ())
    status, _, err = bench(tool, CASE, *OURS, "-o", tmp_path / "out" / "x")
    assert status == 2
    assert err.startswith(f"bench: {tool} was not found") and f"{tool.upper()}=PATH" in err and err.count("\n") == 1
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("tool", "version", "says", "ends", "said"),
    [
        ("nsys", "2025.3.1", "", 0, "nsys captured nothing"),
        ("nsys", "2025.3.1", "profiles.runner: wrong: error 2", 1, "ended with status 1:\nprofiles.runner: wrong"),
        (
            "ncu",
            "2025.3.1",
            "==ERROR== ERR_NVGPUCTRPERM - no permission",
            1,
            "no permission to read the GPU's counters",
        ),
        ("ncu", "2025.3.1", "==ERROR== The application returned an error code (1).", 1, "the program under ncu failed"),
        ("ncu", "2025.3.1", "==WARNING== No kernels were profiled.", 0, "ncu profiled no kernel"),
        ("ncu", "2025.3.1", "==ERROR== Driver resource was unavailable", 9, "another profiler holds"),
        ("ncu", "2025.3.1", "Traceback: boom", 1, "ended with status 1:\nTraceback: boom"),
        ("ncu", "2025.3.1", "", 0, "wrote no report"),
    ],
)
def test_a_capture_that_fails_says_why_and_leaves_nothing(bench, fake_tool, tmp_path, tool, version, says, ends, said):
    fake_tool(tool, version, says=says, status=ends)
    status, _, err = bench(tool, CASE, *OURS, "-o", tmp_path / "out" / "x")
    assert status == 3
    assert err.startswith("bench: ") and said in err
    assert left(tmp_path / "out") == []


def test_a_program_that_fails_after_its_capture_leaves_nothing_either(bench, fake_tool, raw, tmp_path):
    fake_tool("nsys", "2025.3.1", capture=raw, status=1)
    assert bench("nsys", CASE, *OURS, "-o", tmp_path / "out" / "x")[0] == 3
    assert left(tmp_path / "out") == []
    assert bench("nsys", "--sweep", "quick", *OURS, "-o", tmp_path / "out" / "x")[0] == 0, (
        "a sweep without times ends so"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle_nothing_is_left_of_files_or_processes(fake_tool, tmp_path, number):
    hangs = tmp_path / "pid"
    fake_tool("nsys", "2025.3.1", hangs=hangs)
    command = [sys.executable, "-m", "bench", "profile", "nsys", CASE, *OURS, "-o", str(tmp_path / "out" / "x")]
    bench = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a shell ignores SIGINT and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: hangs.exists() and hangs.read_text())
        bench.send_signal(number)
        _, err = bench.communicate(timeout=30)
    finally:
        bench.kill()
    assert (bench.returncode, err) == (130, "bench: interrupted; nothing was kept\n")
    assert left(tmp_path / "out") == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(hangs.read_text()), 0)


def wait_for(true) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("did not happen within 30 s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nsys",), "nothing to profile"),
        (("nsys", "--sweep", "nobody"), "--sweep nobody: expected one of"),
        (("nsys", "--sweep", "quick", "--recipe", "decode-step"), "expected no --recipe"),
        (("ncu", CASE, "--cache", "hot"), "--cache hot: expected one of cold, warm"),
        (("trace", CASE, *OURS), "needs an NVIDIA GPU"),
        (("show", "x.txt"), "expected a file with one of these endings: .json, .ncu-rep"),
        (("show", "x.ncu-rep"), "expected --cache cold or warm"),
        (("show", "/nowhere/x-cold.ncu-rep"), "does not exist"),
        (("show", "/nowhere/x.nsys-rep"), "does not exist"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(bench, arguments, said):
    status, _, err = bench(*arguments)
    assert status == 2
    assert err.startswith("bench: ") and said in err and err.count("\n") == 1


def test_a_report_that_is_none_is_named(bench, tmp_path):
    file = tmp_path / "x-cold.ncu-rep"
    file.write_bytes(b"no report")
    status, _, err = bench("show", file)
    assert status == 3 and "x-cold.ncu-rep" in err and "finds no kernel in it" in err and err.count("\n") == 1


def test_without_the_reader_reports_are_kept_unread(bench, fake_tool, tmp_path, monkeypatch):
    report = tmp_path / "captured.ncu-rep"
    report.write_bytes(b"a report")
    fake_tool("ncu", "2025.3.1", capture=report, metrics=DATA / "ncu-gh100-metrics.txt")
    monkeypatch.setattr("profiles.workflow.package_version", lambda name: None)
    status, out, _ = bench("ncu", CASE, *OURS, "-o", tmp_path / "out" / "x")
    assert status == 0
    assert left(tmp_path / "out") == ["x-cold.ncu-rep", "x-warm.ncu-rep", "x.json"]
    assert "kept unread" in out and "pip install" in out


def test_the_committed_counters_are_shown_beside_the_work_clock_s(bench):
    status, out, _ = bench("show", COUNTERS)
    assert status == 0
    compared = [line for line in out.splitlines() if "programs" in line and "1.000" in line]
    assert len(compared) == 9, "three cases by three contenders, equal"
    assert "not here any more" not in out


def test_show_writes_the_record_that_it_showed(bench, tmp_path):
    status, _, _ = bench("show", COUNTERS, "-o", tmp_path / "again.json")
    assert status == 0
    assert records.read(tmp_path / "again.json") == records.read(COUNTERS)


def test_counts_of_other_workloads_are_refused(bench):
    status, _, _ = bench("show", COUNTERS, "--counts", ROOT / "bench" / "baselines" / "work-triton-3.6.json")
    assert status == 0, "the baseline's seed is the profile's; it has other cases"
    profile, results = records.read(COUNTERS), store.read(ROOT / "bench" / "baselines" / "work-triton-3.6.json")
    results.run.seed += 1
    with pytest.raises(ProfileError, match="the counts have seed 2, the profile has 1"):
        workflow.add_counts(profile, results)


def test_only_counters_are_compared_with_counts(bench):
    trace = ROOT / "docs" / "experiments" / "h100-trace.json"
    status, _, err = bench("show", trace, "--counts", ROOT / "bench" / "baselines" / "work-triton-3.6.json")
    assert status == 2 and "holds no counters of ncu" in err


def test_recipes_are_listed(bench):
    status, out, _ = bench("recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "decode-step",
        "layer-and-head",
        "linear-sites",
        "side-by-side",
        "skewed-prefill",
    ]


def test_the_command_line_starts_without_torch():
    late = "{'torch', 'ncu_report'}"
    program = f"import sys; from bench.cli.main import suite; suite(); sys.exit(not {late}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
