"""Commands are built for the installed version: what it lacks is left out and named, what is needed is demanded."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles import ncu, nsys
from profiles.capture import ProfileError
from tests.support.profiles import DATA

PROGRAM = ["python", "-m", "profiles.runner", "point"]
OUT = Path("folder/out")
# Of a version before CUDA graphs could be traced by node (2021): its help lists neither of these.
BEFORE_NODES = ("--cuda-graph-trace", "--nvtx-domain-include", "--cuda-event-trace")


def nsys_of(version: str, without: tuple[str, ...] = ()) -> nsys.Nsys:
    first, _, text = (DATA / f"nsys-{version}.txt").read_text().partition("\n")
    options = {name: words for name, words in nsys.parse_help(text).items() if name not in without}
    return nsys.Nsys(Path("/tools/nsys"), nsys.parse_version(first) or "", options, None)


def ncu_of(version: str, counters: frozenset[str] | None = None) -> ncu.Ncu:
    first, _, text = (DATA / f"ncu-{version}.txt").read_text().partition("\n")
    return ncu.Ncu(Path("/tools/ncu"), ncu.parse_version(first) or "", ncu.parse_help(text), counters)


def test_the_newest_nsys_gets_every_flag():
    command = nsys.profile_command(nsys_of("2025.3.1"), PROGRAM, OUT)
    assert command.arguments == [
        "/tools/nsys",
        "profile",
        "--trace=cuda,nvtx",
        "--sample=none",
        "--cpuctxsw=none",
        "--cuda-graph-trace=node",
        "--cuda-event-trace=false",
        "--nvtx-domain-include=csgmv_bench",
        "--force-overwrite=true",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--output=folder/out",
        *PROGRAM,
    ]
    assert command.dropped == []


def test_flags_that_a_version_lacks_are_left_out_and_named():
    command = nsys.profile_command(nsys_of("2022.4.2"), PROGRAM, OUT)
    assert not any(argument.startswith("--cuda-event-trace") for argument in command.arguments)
    assert "--cuda-graph-trace=node" in command.arguments
    assert "--nvtx-domain-include=csgmv_bench" in command.arguments, "its help writes --nvtx-domain-[include|exclude]"
    assert [flag.split("=")[0] for flag in command.dropped] == ["--cuda-event-trace"]
    older = nsys.profile_command(nsys_of("2022.4.2", BEFORE_NODES), PROGRAM, OUT)
    assert {flag.split("=")[0] for flag in older.dropped} == set(BEFORE_NODES)
    assert "kernels in a CUDA graph are one row a replay, or none" in " ".join(older.dropped)


def test_a_flag_whose_help_lacks_the_value_is_left_out():
    tool = nsys_of("2025.3.1")
    tool.options["--cuda-graph-trace"] = "--cuda-graph-trace=\nPossible values are 'graph'.\n"
    assert nsys.profile_command(tool, PROGRAM, OUT).dropped[0].startswith("--cuda-graph-trace=node")


@pytest.mark.parametrize("flag", ["--trace"])
def test_without_a_needed_flag_there_is_no_session(flag):
    with pytest.raises(ProfileError, match=rf"nsys 2022\.4\.2\.1 has no {flag}=cuda,nvtx"):
        nsys.profile_command(nsys_of("2022.4.2", (flag,)), PROGRAM, OUT)


def test_a_whole_process_needs_no_capture_range():
    command = nsys.profile_command(nsys_of("2025.3.1"), PROGRAM, OUT, whole=True)
    assert not any("capture-range" in argument for argument in command.arguments)


def test_prose_of_a_help_text_is_no_option():
    text = "\t-y, --delay=\n\n\t   See also\n\t   --kill and others.\n\t(Experimental) --enable=<plugin>\n"
    assert set(nsys.parse_help(text)) == {"--delay", "--enable"}


def test_a_text_that_is_no_help_has_no_options():
    assert nsys.parse_help("sh: nsys: not found") == {}
    assert nsys.parse_version("garbage") is None
    assert ncu.parse_help("") == frozenset()


@pytest.mark.parametrize(("cache", "control"), [("cold", "all"), ("warm", "none")])
def test_ncu_filters_our_range_and_leaves_the_clocks_alone(cache, control):
    command = ncu.profile_command(ncu_of("2025.3.1"), PROGRAM, OUT, cache)
    pairs = dict(zip(command.arguments, command.arguments[1:], strict=False))
    assert pairs["--cache-control"] == control
    assert pairs["--clock-control"] == "none"
    assert pairs["--nvtx-include"] == "csgmv_bench@sample/", "the slash makes it a push/pop range"
    assert pairs["--graph-profiling"] == "node"
    assert pairs["--profile-from-start"] == "off"
    assert pairs["--export"] == "folder/out"
    assert pairs["--metrics"].split(",") == list(ncu.METRICS)
    assert command.arguments[-len(PROGRAM) :] == PROGRAM
    assert (command.dropped, command.missing) == ([], [])


def test_an_older_ncu_goes_without_graph_profiling():
    command = ncu.profile_command(ncu_of("2022.3.0"), PROGRAM, OUT, "cold")
    assert command.dropped == ["--graph-profiling", "--import-sass"]
    assert "node" not in command.arguments and "no" not in command.arguments, "a flag goes with its value"


def test_every_metric_exists_on_gh100():
    counters = ncu.parse_metrics((DATA / "ncu-gh100-metrics.txt").read_text())
    command = ncu.profile_command(ncu_of("2025.3.1", counters), PROGRAM, OUT, "cold")
    assert command.missing == []


def test_metrics_that_a_chip_lacks_are_not_asked_for_and_named():
    counters = ncu.parse_metrics((DATA / "ncu-gh100-metrics.txt").read_text())
    assert counters is not None
    tool = ncu_of("2025.3.1", counters - {"dram__bytes_read", "lts__throughput"})
    command = ncu.profile_command(tool, PROGRAM, OUT, "cold")
    assert command.missing == ["dram__bytes_read.sum", "lts__throughput.avg.pct_of_peak_sustained_elapsed"]
    asked = command.arguments[command.arguments.index("--metrics") + 1].split(",")
    assert set(asked) == set(ncu.METRICS) - set(command.missing)


def test_a_machine_without_a_driver_lists_no_metrics():
    assert ncu.parse_metrics("==ERROR== Driver could not be loaded.") is None


def test_a_variable_that_names_no_program_is_an_error(monkeypatch):
    monkeypatch.setenv("NSYS", "/nowhere/nsys")
    with pytest.raises(ProfileError, match="NSYS=/nowhere/nsys: does not exist"):
        nsys.find()


def test_an_installation_is_probed(fake_tool):
    fake_tool("nsys", "2025.3.1")
    found = nsys.require()
    assert (found.version, found.importer) == ("2025.3.1.0", None)
    assert "--cuda-event-trace" in found.options
    fake_tool("ncu", "2022.3.0", metrics=DATA / "ncu-gh100-metrics.txt")
    counters = ncu.require()
    assert counters.version == "2022.3.0.0"
    assert counters.counters is not None and "dram__bytes_read" in counters.counters


def test_the_newest_of_several_installations_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("NSYS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for version in ("2025.2", "2025.10", "2024.11"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "nsys").touch()
    monkeypatch.setattr(nsys, "PLACES", (f"{tmp_path}/none/*/nsys", f"{tmp_path}/*/nsys"))
    found = nsys.find()
    assert found is not None and found.path.parent.name == "2025.10"
    monkeypatch.setattr(nsys, "PLACES", ())
    assert nsys.find() is None
    with pytest.raises(ProfileError, match="nsys was not found"):
        nsys.require()


def test_the_importer_of_a_whole_installation_is_found(tmp_path):
    target, importer = tmp_path / "target-linux-x64" / "nsys", tmp_path / "host-linux-x64" / "QdstrmImporter"
    for file in (target, importer):
        file.parent.mkdir()
        file.touch()
    assert nsys._importer(target) == importer
