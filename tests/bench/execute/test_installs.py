"""Where other versions of SGLang are found, and how a worker comes to import one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.execute import installs
from bench.model.toml import ConfigError


def folder_of(place: Path, version: str) -> Path:
    """What `pip install --no-deps --target` leaves of a version."""
    (place / "sglang").mkdir(parents=True)
    (place / "sglang" / "__init__.py").write_text(f"version = {version!r}\n")
    (place / f"sglang-{version}.dist-info").mkdir()
    (place / f"sglang-{version}.dist-info" / "METADATA").write_text(f"Name: sglang\nVersion: {version}\n")
    return place


def wheel_of(place: Path, version: str) -> Path:
    folder, wheel = folder_of(place / "content", version), place / f"sglang-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        for file in sorted(folder.rglob("*")):
            files.write(file, file.relative_to(folder))
    return wheel


def test_names_ask_for_versions_each_once() -> None:
    names = ["sglang_triton@0.5.23", "sglang_triton", "sglang_csgmv-chunk16@0.5.23", "vllm", "sglang_triton@0.5.20"]
    assert installs.wanted(names) == ["0.5.23", "0.5.20"]


def test_a_version_is_found_in_what_is_given_before_what_the_patterns_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, near = folder_of(tmp_path / "given", "0.5.23"), wheel_of(tmp_path / "wheels", "0.5.20")
    wheel_of(tmp_path / "wheels" / "again", "0.5.23")
    monkeypatch.setattr(installs, "ROOT", tmp_path)
    assert installs.find(["0.5.20", "0.5.23"], [given], ["wheels/*.whl", "wheels/again/*.whl"]) == {
        "0.5.20": near,
        "0.5.23": given,
    }
    with pytest.raises(
        ConfigError, match=r"SGLang 0\.5\.22: found 0\.5\.23, 0\.5\.20 .* or its folder or wheel with --sglang"
    ):
        installs.find(["0.5.22"], [given], ["wheels/*.whl"])
    with pytest.raises(ConfigError, match=r"is SGLang 0\.5\.23, as .*given is; expected each once"):
        installs.find(["0.5.23"], [given, folder_of(tmp_path / "other", "0.5.23")], [])


@pytest.mark.parametrize("made", ["missing", "no package", "two versions", "no wheel"])
def test_what_holds_no_sglang_is_an_error_that_names_it(made: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if made == "no package":
        (folder_of(place, "0.5.23") / "sglang" / "__init__.py").unlink()
        (place / "sglang").rmdir()
    elif made == "two versions":
        folder_of(place, "0.5.23")
        (place / "sglang-0.5.20.dist-info").mkdir()
        (place / "sglang-0.5.20.dist-info" / "METADATA").write_text("Version: 0.5.20\n")
    elif made == "no wheel":
        place.write_text("nothing")
    with pytest.raises(ConfigError, match="place: .*expected a wheel of sglang, or a folder with sglang/"):
        installs.version_in(place)


@pytest.mark.parametrize("make", [folder_of, wheel_of])
def test_a_process_imports_the_version_before_what_was_first_on_its_path(make, tmp_path: Path) -> None:
    old, new = folder_of(tmp_path / "old", "0.5.16"), make(tmp_path / "new", "0.5.23")
    code = "import sglang, importlib.metadata as m; print(sglang.version, m.version('sglang'))"
    with installs.import_paths({"0.5.23": new}) as paths:
        environment = installs.first_on_path(paths["0.5.23"], {"PYTHONPATH": str(old)})
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0.5.23", "0.5.23"]
    assert new.exists() and (paths["0.5.23"].exists() == new.is_dir())
