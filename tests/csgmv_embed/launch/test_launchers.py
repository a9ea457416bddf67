"""A kernel is launched straight away where its launcher hands on what is known here, else through the front."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.amd import driver as amd
from triton.backends.nvidia import driver as nvidia
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from csgmv_embed.kernels.lookup import embedding_lora_a_tokens_kernel
from csgmv_embed.launch import direct, launchers

GRID, STREAM, POINTERS, COUNTS, CONSTANT = (7, 2, 1), 99, [1600, 3200, 4800], (5,), ("c", 1)
PARAMETERS = len(POINTERS) + len(COUNTS) + 1
ARGUMENTS = (*POINTERS, *COUNTS, CONSTANT)
SCRATCH = ("global_scratch_size", "global_scratch_align", "profile_scratch_size", "profile_scratch_align")


class Recorded:
    """What a launcher has: its options, and a function of the driver that notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.launch = lambda *arguments: self.given.append(arguments)
        self.launch_cooperative_grid, self.launch_pdl, self.num_ctas, self.warp_size = False, True, 1, 64
        self.arg_annotations, self.kernel_signature = ["annotation"], b"signature"
        for name in SCRATCH:
            setattr(self, name, 0)


class Spread(Recorded):
    """Hands on each argument of the kernel, as in Triton 3.6."""

    def __call__(self, x: Any, y: Any, z: Any, stream: Any, function: Any, *others: Any) -> None:
        self.launch(x, y, z, stream, function, self.launch_cooperative_grid, self.launch_pdl, None, None, *others)


class Packed(Recorded):
    """Hands on the arguments of the kernel as one tuple with what they are, as in Triton 3.7 to 3.9."""

    def __call__(self, x: Any, y: Any, z: Any, stream: Any, function: Any, *others: Any) -> None:
        options, told, arguments = (self.launch_cooperative_grid, self.launch_pdl), others[:4], others[4:]
        described = self.arg_annotations, self.kernel_signature
        self.launch(x, y, z, stream, function, *options, *told, None, None, *described, arguments)


class Counting(Packed):
    """One of tomorrow, which hands on a number of its own."""

    def __call__(self, *given: Any) -> None:
        launch, self.launch = self.launch, lambda *arguments: launch(*arguments, len(self.given))
        super().__call__(*given)


class Computing(Packed):
    """Another, which computes with the grid."""

    def __call__(self, x: Any, *given: Any) -> None:
        super().__call__(x + 1, *given)


def compiled(launcher: Any) -> Any:
    return SimpleNamespace(run=launcher, function=1234, packed_metadata=(4, 1, 0))


def by_the_front(launcher: Any) -> list[tuple[Any, ...]]:
    launcher(*GRID, STREAM, 1234, (4, 1, 0), None, None, None, *ARGUMENTS)
    given: list[tuple[Any, ...]] = launcher.given[:]
    launcher.given.clear()
    return given


@pytest.fixture
def a_driver():
    """One that the launchers of Triton may ask for; what they are asked here needs nothing of it."""
    before = dict(vars(driver))
    driver.set_active(SimpleNamespace())
    yield
    vars(driver).clear()
    vars(driver).update(before)


def of_triton(kind: type) -> Any:
    """A launcher of the installed Triton with the functions of this file, made without a GPU."""
    launcher = object.__new__(kind)
    vars(launcher).update(vars(Recorded()))
    launcher.given = []
    launcher.launch = lambda *arguments: launcher.given.append(arguments)
    launcher.gsan_enabled = False
    return launcher


@pytest.mark.parametrize("make", [Spread, Packed, lambda: of_triton(nvidia.CudaLauncher)])
def test_straight_hands_the_driver_what_the_front_does(a_driver: None, make: Any) -> None:
    launcher = make()
    expected = by_the_front(launcher)
    run = launchers.straight(compiled(launcher), CONSTANT, PARAMETERS)
    assert run is not None and launcher.given == []  # asking launches nothing
    run(GRID, STREAM, POINTERS, COUNTS)
    assert launcher.given == expected != []


@pytest.mark.parametrize("make", [Counting, Computing, lambda: of_triton(amd.HIPLauncher)])
def test_a_launcher_of_another_form_is_left_to_the_front(a_driver: None, make: Any) -> None:
    assert launchers.straight(compiled(make()), CONSTANT, PARAMETERS) is None


@pytest.mark.parametrize("kind", [Spread, Packed])
@pytest.mark.parametrize(
    ("name", "value"), [("global_scratch_size", 8), ("profile_scratch_size", 8), ("gsan_enabled", True)]
)
def test_a_binary_that_wants_memory_is_left_to_the_front(kind: type[Recorded], name: str, value: object) -> None:
    launcher = kind()
    setattr(launcher, name, value)
    assert launchers.straight(compiled(launcher), CONSTANT, PARAMETERS) is None
    delattr(launcher, name)
    asked = launchers.straight(compiled(launcher), CONSTANT, PARAMETERS)
    assert (asked is None) == name.endswith("size")  # one that does not say is not trusted


class OnGpu:
    """Stands for a tensor there; a launch asks of it no more than this."""

    def __init__(self, address: int) -> None:
        self.device, self.dtype, self.data_ptr = torch.device("cuda", 0), torch.float16, lambda: address


class FakeDriver:
    """Of a GPU that is not there: device and stream."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return STREAM


@pytest.mark.parametrize(("kind", "fronted"), [(Spread, 1), (Packed, 1), (Counting, 3)])
def test_the_second_call_of_a_variant_needs_no_front_if_its_form_is_known(
    monkeypatch: pytest.MonkeyPatch, kind: type[Recorded], fronted: int
) -> None:
    monkeypatch.setattr(direct, "_variants", {})
    monkeypatch.setattr(direct, "driver", SimpleNamespace(active=FakeDriver()))
    launcher, asked = kind(), []

    def front(self: JITFunction[Any], *arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return compiled(launcher)

    monkeypatch.setattr(JITFunction, "run", front)
    jitted = embedding_lora_a_tokens_kernel
    kernel = jitted if isinstance(jitted, JITFunction) else JITFunction(jitted.fn)
    tensors: Any = tuple(OnGpu(address) for address in POINTERS)
    launch = direct.Launch(kernel, GRID, COUNTS, CONSTANT, 4, pdl=True)
    for _ in range(2):
        launch(tensors, POINTERS)
    direct.Launch(kernel, (1, 1, 1), COUNTS, CONSTANT, 4, pdl=True)(tensors, POINTERS)  # another grid, the same variant
    assert [options.get("launch_pdl") for options in asked] == [True] * fronted
    if fronted == 1:
        assert [given[:3] for given in launcher.given] == [GRID, (1, 1, 1)]


GPU = torch.device("cuda", 0)


@pytest.fixture
def unknown_gpu(monkeypatch: pytest.MonkeyPatch):
    """A GPU of compute capability 9.0, about which nothing is known yet."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for cached in (direct._why_no_overlap, direct._warn_once):
        cached.cache_clear()
    yield
    for cached in (direct._why_no_overlap, direct._warn_once):
        cached.cache_clear()


def test_overlap_is_there_where_gpu_and_triton_have_it(unknown_gpu: None) -> None:
    assert direct.overlaps_launches(GPU) and direct.overlaps_or_warns(GPU)


@pytest.mark.parametrize(
    ("owner", "name", "value", "why"),
    [
        (torch.version, "hip", "7.0", "AMD GPUs have none"),
        (torch.cuda, "get_device_capability", lambda device: (8, 9), "compute capability 9.0"),
        (direct, "_triton_has_pdl", lambda: False, f"Triton {triton.__version__} has no option launch_pdl"),
    ],
)
def test_where_overlap_cannot_be_had_that_is_said_once(
    unknown_gpu: None, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, value: object, why: str
) -> None:
    monkeypatch.setattr(owner, name, value)
    assert not direct.overlaps_launches(GPU)
    with pytest.warns(RuntimeWarning, match=f"pdl=True has no effect: .*{why}"):
        assert not direct.overlaps_or_warns(GPU)
    assert not direct.overlaps_or_warns(GPU)  # a second warning would be an error


def test_an_interpreted_call_is_not_told_of_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not direct.overlaps_or_warns(torch.device("cpu"))
