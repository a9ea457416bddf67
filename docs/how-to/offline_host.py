"""Packs today's peers and Triton for a GPU host without a network, as an archive small enough to carry.

`python docs/how-to/offline_host.py peers.tar.xz sglang==0.5.23 vllm==0.33.0` fetches each wheel for Linux on x86-64,
leaves out what the suite does not run, and writes one archive with a folder each: sglang-0.5.23/, vllm-0.33.0/. Where
`--part-mib` is reached it writes peers.tar.xz.00, .01, ... docs/how-to/measure-offline.md says how the host uses them.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

GLIBC = (17, 24, 27, 28, 31, 34, 35, 38, 39)
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC))
MIB = 1 << 20
DICTIONARY_MIB = 256


@dataclass(frozen=True)
class Recipe:
    """What of a wheel is left out, and which empty modules stand in for it. Names are patterns; `kept` wins."""

    left_out: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    # Entry points whose modules were left out: Triton imports every backend that is named there.
    entry_points_without: tuple[str, ...] = ()


RECIPES = {
    "triton": Recipe(
        left_out=(
            "triton/backends/amd/*",
            "triton/backends/nvidia/lib/cupti*",
            "triton/backends/nvidia/include/*",
            "triton/backends/nvidia/bin/ptxas-blackwell",
            "triton/backends/nvidia/bin/cuobjdump",
            "triton/backends/nvidia/bin/nvdisasm",
            "triton/_C/libproton*",
            "triton/FileCheck",
            "triton/instrumentation/*",
            "triton/plugins/*",
        ),
        # The launcher of a kernel is compiled on the host, against this header.
        kept=("triton/backends/nvidia/include/cuda.h",),
        entry_points_without=("amd",),
    ),
    "sglang": Recipe(
        left_out=(
            "*.so",
            "sglang/multimodal_gen/*",
            "sglang/test/*",
            "sglang/benchmark/*",
            "sglang/srt/models/*",
            "*/triton_configs/*",
        ),
    ),
    "vllm": Recipe(
        left_out=(
            "*.so",
            "*.hpp",
            "*.cuh",
            "*.h",
            "vllm/vllm-rs",
            "vllm/third_party/*",
            "vllm/model_executor/models/*",
        ),
        kept=("vllm/third_party/__init__.py", "vllm/third_party/pynvml.py"),
        empty=("vllm/_C_stable_libtorch.py", "vllm/_C.py", "vllm/_moe_C.py"),
    ),
}


def is_kept(name: str, recipe: Recipe) -> bool:
    if any(fnmatch.fnmatch(name, pattern) for pattern in recipe.kept):
        return True
    return not any(fnmatch.fnmatch(name, pattern) for pattern in recipe.left_out)


def fetch(requirement: str, python: str, folder: Path) -> Path:
    """The wheel of one requirement, none of its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, requirement], check=True)
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, recipe: Recipe, into: Path) -> None:
    """The kept files of a wheel, libraries without their symbols."""
    with zipfile.ZipFile(wheel) as archive:
        names = [info for info in archive.infolist() if is_kept(info.filename, recipe)]
        for info in names:
            path = Path(archive.extract(info, into))
            if info.external_attr >> 16 & 0o111 and path.is_file():
                path.chmod(0o755)  # zipfile leaves the bit out, and ptxas is run
    for name in recipe.empty:
        (into / name).touch()
    for listed in into.glob("*.dist-info/entry_points.txt"):
        lines = listed.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.split("=")[0].strip() not in recipe.entry_points_without]
        listed.write_text("\n".join(kept) + "\n", encoding="utf-8")
    for library in [*into.rglob("*.so"), *into.glob("triton/backends/nvidia/bin/ptxas")]:
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=True)


def pack(folder: Path, archive: Path, part_mib: int) -> list[Path]:
    """The folder as one archive, or as parts that `cat` joins again where it is larger than a part may be.

    Versions of a package share most of their text: the dictionary is large enough to find it in the one before.
    """
    packed = io.BytesIO()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": DICTIONARY_MIB * MIB}]
    with lzma.open(packed, "wb", filters=filters) as compressed, tarfile.open(fileobj=compressed, mode="w|") as tar:
        tar.add(folder, arcname=".")
    content, size = packed.getvalue(), part_mib * MIB
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    if len(parts) == 1:
        written = [archive]
    else:
        written = [archive.with_name(f"{archive.name}.{number:02}") for number in range(len(parts))]
    for path, part in zip(written, parts, strict=True):
        path.write_bytes(part)
    return written


def recipes_of(requirements: list[str]) -> dict[str, Recipe]:
    """The recipe of each NAME==VERSION. Raises ValueError for what there is none for."""
    found = {}
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        if name not in RECIPES or not version:
            raise ValueError(f"{requirement}: expected NAME==VERSION of one of {', '.join(RECIPES)}")
        found[requirement] = RECIPES[name]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path, help="the file to write, .tar.xz")
    parser.add_argument("requirements", nargs="+", help=f"NAME==VERSION of {', '.join(RECIPES)}")
    parser.add_argument("--python", default="3.12", help="the host's Python (%(default)s)")
    parser.add_argument("--part-mib", type=int, default=1024, help="the largest part, in MiB (%(default)s)")
    chosen = parser.parse_args()
    try:
        recipes = recipes_of(chosen.requirements)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary, "site")
        for requirement, recipe in recipes.items():
            folder = requirement.replace("==", "-")
            unpack(fetch(requirement, chosen.python, Path(temporary, "wheels", folder)), recipe, site / folder)
        for part in pack(site, chosen.archive, chosen.part_mib):
            sys.stdout.write(f"{part} {part.stat().st_size / MIB:.1f} MiB\n")


if __name__ == "__main__":
    main()
