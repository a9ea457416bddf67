"""Which GPUs `--gpus` means, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.model import environment, gpus
from bench.model.config import ConfigError
from bench.model.gpus import Gpu

H200 = [Gpu(0, "GPU-a", "NVIDIA H200"), Gpu(1, "GPU-b", "NVIDIA H200"), Gpu(2, "GPU-c", "NVIDIA H200")]


@pytest.mark.parametrize(("text", "found"), [("all", [0, 1, 2]), ("1", [1]), ("2,0", [2, 0]), ("0, 1", [0, 1])])
def test_gpus_are_named_by_number(text: str, found: list[int]) -> None:
    assert [gpu.index for gpu in gpus.chosen(text, H200)] == found


@pytest.mark.parametrize(
    ("text", "present", "said"),
    [
        ("3", H200, r"--gpus 3: there is no GPU 3; expected all, or some of 0 \(NVIDIA H200\), 1"),
        ("0,", H200, r"there is no GPU \(nothing\)"),
        ("GPU-a", H200, "there is no GPU GPU-a"),
        ("1,1", H200, "names GPU 1 twice; expected each once"),
        ("all", [], "no NVIDIA GPU was found"),
        ("all", [H200[0], Gpu(1, "GPU-x", "NVIDIA H100")], "GPU 0 is NVIDIA H200, GPU 1 is NVIDIA H100; .* one model"),
        ("0", [Gpu(0, "GPU-m", "NVIDIA H200", mig=True)], "GPU 0 is split into MIG instances; expected whole GPUs"),
    ],
)
def test_what_no_run_can_be_on_is_refused(text: str, present: list[Gpu], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        gpus.chosen(text, present)


def test_one_of_two_models_may_be_chosen() -> None:
    present = [H200[0], Gpu(1, "GPU-x", "NVIDIA H100")]
    assert gpus.chosen("1", present) == (present[1],)


UUIDS = ("GPU-a", "GPU-b", "GPU-c")


def nvml() -> SimpleNamespace:
    """NVML of three GPUs; the second cannot be cut, the third is."""

    def by_index(index: int) -> str:
        if index > 2:
            raise RuntimeError
        return UUIDS[index]

    def by_uuid(uuid: str) -> str:
        if uuid not in UUIDS:
            raise RuntimeError
        return uuid

    def mig(handle: str) -> list[int]:
        if handle == "GPU-b":
            raise RuntimeError("not supported")
        return [int(handle == "GPU-c"), 0]

    return SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=by_index,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetUUID=lambda handle: handle.encode(),
        nvmlDeviceGetName=lambda handle: "NVIDIA H200",
        nvmlDeviceGetMigMode=mig,
    )


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        (None, ["GPU-a", "GPU-b", "GPU-c"]),
        ("2,0", ["GPU-c", "GPU-a"]),
        ("GPU-b", ["GPU-b"]),
        ("1,-1,0", ["GPU-b"]),
        ("", []),
    ],
)
def test_only_what_this_process_may_see_is_there_and_clocks_are_of_its_first(
    listed: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "library", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    found = gpus.visible()
    assert [(gpu.index, gpu.uuid) for gpu in found] == list(enumerate(seen))
    assert all(gpu.mig == (gpu.uuid == "GPU-c") for gpu in found)
    environment.nvml_device.cache_clear()
    try:
        device = environment.nvml_device()
        assert (device and device[1]) == (seen[0] if seen else None)
    finally:
        environment.nvml_device.cache_clear()
