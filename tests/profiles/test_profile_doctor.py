"""What `bench doctor` says of profiling: tools, ranges that come back, traps of versions."""

from __future__ import annotations

import pytest

from bench.model import environment
from profiles import doctor, ncu, nsys
from tests.support import nsys_schema
from tests.support.profiles import DATA


@pytest.fixture
def versions(monkeypatch):
    """Versions of installed packages, as told."""
    told: dict[str, str] = {}
    monkeypatch.setattr(doctor, "package_version", told.get)
    return told


def lines() -> str:
    return "\n".join(doctor.findings())


def without_tools(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in (ncu, nsys):
        monkeypatch.setattr(tool, "PLACES", ())


def test_missing_tools_are_named_with_the_remedy(monkeypatch, tmp_path, versions):
    without_tools(monkeypatch, tmp_path)
    said = lines()
    assert "ncu           not found: install Nsight Compute" in said
    assert "nsys          not found: install Nsight Systems" in said
    assert "ncu-report    missing" in said and "pip install" in said


def test_an_older_reader_is_a_trap(fake_tool, versions):
    fake_tool("ncu", "2025.3.1")
    versions["ncu-report"] = "2025.2.0"
    assert "older than ncu 2025.3.1.0, cannot read its files" in lines()
    versions["ncu-report"] = "2025.3.1"
    assert "older" not in lines()


def test_nsight_python_and_cupti_traps(fake_tool, versions):
    fake_tool("ncu", "2025.3.1")
    versions.update({"nsight-python": "1.1.0", "cupti-python": "13.4.0", "nvidia-cuda-cupti": "13.0.85"})
    said = lines()
    assert "nsight-python 1.1.0 needs ncu 2026.2.1" in said
    assert "cupti-python 13.4.0 beside torch's CUPTI 13.0.85" in said
    versions["cupti-python"] = "13.0.2"
    assert "beside torch's CUPTI" not in lines()


def test_counters_a_chip_lacks_are_named(fake_tool, tmp_path):
    metrics = tmp_path / "metrics"
    metrics.write_text((DATA / "ncu-gh100-metrics.txt").read_text().replace("dram__bytes_read", "dram__other"))
    fake_tool("ncu", "2025.3.1", metrics=metrics)
    assert "lacks dram__bytes_read.sum" in lines()


@pytest.mark.parametrize(
    ("admin_only", "user", "said"), [(1, 1000, "for root alone"), (1, 0, "readable"), (0, 9, "readable")]
)
def test_the_driver_s_word_on_counters(monkeypatch, tmp_path, admin_only, user, said):
    parameters = tmp_path / "params"
    parameters.write_text(f"ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: {admin_only}\n")
    monkeypatch.setattr(doctor, "DRIVER_PARAMETERS", parameters)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: user)
    assert said in "\n".join(doctor._permission())


def capturing(fake_tool, tmp_path, version="2025.3.1", raw=b"raw", **behaviour):
    capture = tmp_path / f"captured.{behaviour.pop('suffix', 'nsys-rep')}"
    capture.write_bytes(raw)
    fake_tool("nsys", version, capture=capture, **behaviour)


def test_ranges_that_come_back_are_counted(fake_tool, tmp_path):
    database = nsys_schema.build(tmp_path / "database.sqlite")  # holds five, so the three of the round trip are not it
    capturing(fake_tool, tmp_path, database=database)
    assert "5 of 3 ranges seen: its captures cannot be attributed" in lines()
    lost = nsys_schema.build(tmp_path / "lost.sqlite", domain="another")
    capturing(fake_tool, tmp_path, database=lost)
    assert "0 of 3 ranges seen: its captures cannot be attributed" in lines()


@pytest.mark.parametrize(
    ("raw", "said"), [(b"..round-trip..", "names them"), (b"..", "does not name them: probably lost")]
)
def test_without_an_importer_the_raw_file_is_searched(fake_tool, tmp_path, raw, said):
    capturing(fake_tool, tmp_path, suffix="qdstrm", raw=raw)
    found = lines()
    assert "without an importer: captures stay raw" in found and said in found


def test_the_name_searched_for_is_not_in_the_command():
    assert doctor.NAME not in doctor.ROUND_TRIP


def test_a_capture_that_fails_is_a_finding(fake_tool):
    fake_tool("nsys", "2025.3.1", status=1)
    assert "the capture of 3 ranges failed" in lines()


def test_an_nsys_that_loses_python_s_ranges_is_named(fake_tool, tmp_path, versions):
    versions["nvtx"] = "0.2.17"
    capturing(fake_tool, tmp_path, version="2022.4.2", suffix="qdstrm")
    assert "nsys 2022.4.2.1 loses the ranges of python's nvtx 0.2.17" in lines()
    capturing(fake_tool, tmp_path, version="2025.3.1", suffix="qdstrm")
    assert "loses the ranges" not in lines()


def test_a_process_under_a_profiler_knows_it(monkeypatch):
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
    assert environment.attached_profiler() is None
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    assert environment.attached_profiler() == "nsys"
    assert "this process runs under nsys" in lines()
