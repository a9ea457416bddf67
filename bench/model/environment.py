"""The fingerprint of a run: what must be equal for a comparison, what is only worth knowing, and which code ran."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bench.model import git, gpus, instrument
from bench.model.config import ConfigError
from bench.model.paths import ROOT as ROOT
from bench.model.records import Code, Environment, Scalar
from bench.model.sources import LIBRARY_SUFFIXES, hash_library, hash_sources, hash_suite

VERSION_PACKAGES = ("torch", "triton", "sglang")
# What a peer's figures come from, relative to its package: only recorded, as is the version of one that is no identity.
PEER_FILES = {"sglang": ("srt/lora", "kernels/ops/lora", "kernels/ops/gemm"), "vllm": ("lora",)}
VARIED_SGLANG, VARIED = "BENCH_SGLANG_VARIES", "varied"
CODE_VARIABLES = ("CUDA_", "TRITON_", "TORCH_", "PYTORCH_", "SGLANG_", "CSGMV_")
# What figures come from, as pathspecs; baselines are figures.
MEASURED = ("csgmv_embed", "bench", "bench.toml", ":(exclude)bench/baselines")


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def suite_version() -> str:
    """The version of this checkout, read from csgmv_embed/__init__.py. It is not imported, because that needs torch."""
    file = ROOT / "csgmv_embed" / "__init__.py"
    if not file.exists():  # the suite stands without the library
        return "0"
    text = file.read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def command_line() -> list[str]:
    """How this process was started, without paths of the machine."""
    return ["bench", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])]


def attached_profiler() -> str | None:
    """The profiler under which this process runs (nsys or ncu), told by what it injects. None without one."""
    if "NSYS_PROFILING_SESSION_ID" in os.environ:
        return "nsys"
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    injected = [line for line in mapped.splitlines() if "njection" in line.rsplit("/", 1)[-1]]
    return None if not injected else "nsys" if any("ToolsInjection" in line for line in injected) else "ncu"


def collect_environment(device_type: str, *, sglang_varies: bool = False) -> Environment:
    """Fingerprint of this process. Imports torch, and initialises CUDA if `device_type` is cuda.

    sglang_varies: the version of SGLang is what is measured, so it does not identify the machine. An environment
    variable can say the same.
    """
    identity: dict[str, Scalar] = {name: package_version(name) for name in VERSION_PACKAGES}
    identity["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    volatile: dict[str, Scalar] = {
        "hostname": platform.node(),
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "python_full": platform.python_version(),
    }
    volatile |= {name: value for name, value in sorted(os.environ.items()) if name.startswith(CODE_VARIABLES)}
    volatile["vllm"] = package_version("vllm")
    if VARIED_SGLANG in os.environ or sglang_varies:
        volatile["sglang"], identity["sglang"] = identity["sglang"], VARIED
    volatile |= {f"{name}_lora_sha256": _peer_hash(name) for name in PEER_FILES}
    if device_type == "cuda":
        gpu_identity, gpu_volatile = _gpu()
        identity |= gpu_identity
        volatile |= gpu_volatile
    else:
        identity["gpu"] = None
    return _keyed(identity, volatile)


def with_installed_sglang(environment: Environment) -> Environment:
    """The environment of a worker that imports another SGLang, as it would be with the installed one."""
    volatile = environment.volatile | {"sglang_lora_sha256": _peer_hash("sglang")}
    return _keyed(environment.identity | {"sglang": package_version("sglang")}, volatile)


def _keyed(identity: dict[str, Scalar], volatile: dict[str, Scalar]) -> Environment:
    digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()
    return Environment(identity, digest[:16], volatile)


def _peer_hash(package: str) -> str | None:
    """Of a peer's LoRA code and tables; None where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    root = Path(found.submodule_search_locations[0])
    folders = [root / folder for folder in PEER_FILES[package]]
    present = [folder for folder in folders if folder.is_dir()]
    return hash_sources(*present, root=root, suffixes=LIBRARY_SUFFIXES)


def _gpu() -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    identity: dict[str, Scalar] = {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "mem_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }
    nvml = nvml_device()
    if nvml is None:
        return identity, {"nvml": "unavailable"}
    module, handle = nvml
    driver = gpus.text(module.nvmlSystemGetDriverVersion())
    identity["driver"] = ".".join(driver.split(".")[:2])
    identity["mig"] = _query(lambda: bool(module.nvmlDeviceGetMigMode(handle)[0]))
    volatile: dict[str, Scalar] = {
        "driver_full": driver,
        "gpu_uuid": _query(lambda: gpus.text(module.nvmlDeviceGetUUID(handle))),
        "pci_bus": _query(lambda: gpus.text(module.nvmlDeviceGetPciInfo(handle).busId)),
        "vbios": _query(lambda: gpus.text(module.nvmlDeviceGetVbiosVersion(handle))),
        "power_limit_w": _query(lambda: module.nvmlDeviceGetPowerManagementLimit(handle) / 1000),
        "max_sm_mhz": _query(lambda: module.nvmlDeviceGetMaxClockInfo(handle, module.NVML_CLOCK_SM)),
        "max_mem_mhz": _query(lambda: module.nvmlDeviceGetMaxClockInfo(handle, module.NVML_CLOCK_MEM)),
        "ecc": _query(lambda: bool(module.nvmlDeviceGetEccMode(handle)[0])),
        "persistence": _query(lambda: bool(module.nvmlDeviceGetPersistenceMode(handle))),
        "temperature_c": _query(lambda: module.nvmlDeviceGetTemperature(handle, module.NVML_TEMPERATURE_GPU)),
    }
    return identity, volatile


@cache
def nvml_device() -> tuple[Any, Any] | None:
    """(pynvml, handle of CUDA's first GPU), or None if there is none that can be queried."""
    nvml = gpus.library()
    if nvml is None:
        return None
    named = gpus.named()
    handle = gpus.handle_of(nvml, "0" if named is None else named[0]) if named != [] else None
    return None if handle is None else (nvml, handle)


def has_gpu() -> bool:
    """Whether this process can see an NVIDIA GPU."""
    return nvml_device() is not None


def utc_now() -> str:
    """The time in UTC in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _query(read: Any) -> Scalar:
    try:
        value: Scalar = read()
    except Exception:  # NVML answers "not supported" per field and GPU
        return None
    return value


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def collect_code() -> Code:
    """The commit, the tree's difference from it, and hashes of the library's and the suite's sources.

    Raises ConfigError if GIT_COMMIT is not a hash.
    """
    sha = _commit()
    changes, dirty = None, None
    if sha is not None and git.has_commit(sha, ROOT):
        changes = git.changes_since(sha, MEASURED, ROOT)
        dirty = changes is not None
    return Code(
        sha=sha,
        short=sha[:9] if sha else None,
        branch=_told("rev-parse", "--abbrev-ref", "HEAD"),
        commit_time=_told("show", "-s", "--format=%cI", sha) if dirty is not None and sha else None,
        dirty=dirty,
        diff_sha256=changes,
        kernel_source_sha256=hash_library(ROOT),
        bench_version=instrument.present(),
        suite_source_sha256=hash_suite(ROOT),
    )


def _commit() -> str | None:
    """The commit of this tree: what GIT_COMMIT says where it is set, for a tree copied away from its repository."""
    named = os.environ.get("GIT_COMMIT", "").lower()
    if named and not git.HASH.fullmatch(named):
        raise ConfigError(f"GIT_COMMIT is {named!r}; expected the hash of a commit, 7 to 64 hexadecimal digits")
    try:
        return git.commit_of(named or "HEAD", ROOT)
    except git.GitError:  # a source archive, another history, or no git: the hashes of the sources still tell the code
        return named or None


def _told(*arguments: str) -> str | None:
    """What git says of this checkout, if it is one."""
    try:
        return git.git(*arguments, root=ROOT) if git.is_checkout(ROOT) else None
    except git.GitError:
        return None
