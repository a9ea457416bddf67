"""SGLang's linear layers with LoRA, as they are, on a stock backend object: the plugin on, against float64 and off.

Slot 0 has no adapter. What lies beyond a slot's rank in its tables is NaN: it must not be read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from csgmv_embed import lora_linear_reference
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks import linear as linear_hooks
from tests.support import real_sglang as support
from tests.support.rounding import Exact, assert_rounded

SLOTS, MAX_RANK, CAPACITY = 4, 16, 12
RANKS, SCALINGS = [0, 8, 16, 5], [0.0, 2.0, 0.75, 1.5]
FEATURES = 64
SITES = ("qkv", "gate_up", "column", "row", "replicated")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.once)], ids=str)
pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("group_of_one", "loaded")]


class Site:
    """One of SGLang's linear layers with random tables; `starts` are the first columns of its slices."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, chunk: int = 16) -> None:
        self.name, self.dtype = name, dtype
        self.backend = support.backend(SLOTS, chunk)
        base, starts = self._base(dtype)
        self.starts: tuple[int, ...] = starts
        generator = torch.Generator().manual_seed(3)
        slices, width = len(starts) - 1, base.input_size
        self.a = torch.full((SLOTS, slices * MAX_RANK, width), float("nan"), dtype=dtype)
        self.b = torch.full((SLOTS, starts[-1], MAX_RANK), float("nan"), dtype=dtype)
        for slot, rank in enumerate(RANKS):
            self.a[slot, : slices * rank] = torch.randn(slices * rank, width, generator=generator) / 8
            self.b[slot, :, :rank] = torch.randn(starts[-1], rank, generator=generator) / 4
        self.layer = self._wrapped(base)
        self.layer.set_lora_info(self.a, self.b)

    def _base(self, dtype: torch.dtype) -> tuple[Any, tuple[int, ...]]:
        linear = importlib.import_module("sglang.srt.layers.linear")
        options = {"bias": False, "params_dtype": dtype}
        if self.name == "qkv":
            return linear.QKVParallelLinear(FEATURES, 16, 4, 2, **options), (0, 64, 96, 128)
        if self.name == "gate_up":
            return linear.MergedColumnParallelLinear(FEATURES, [80, 80], **options), (0, 80, 160)
        if self.name == "replicated":
            return linear.ReplicatedLinear(FEATURES, 96, **options), (0, 96)
        kind = linear.ColumnParallelLinear if self.name == "column" else linear.RowParallelLinear
        return kind(FEATURES, 96, **options), (0, 96)

    def _wrapped(self, base: Any) -> Any:
        wrapped = importlib.import_module("sglang.srt.lora.layers")
        kind = {
            "qkv": "QKVParallelLinearWithLoRA",
            "gate_up": "MergedColumnParallelLinearWithLoRA",
            "column": "ColumnParallelLinearWithLoRA",
            "row": "RowParallelLinearWithLoRA",
            "replicated": "ReplicatedLinearWithLoRA",
        }[self.name]
        if not hasattr(wrapped, kind):
            pytest.skip(f"this SGLang has no {kind}")
        return getattr(wrapped, kind)(base, self.backend)

    def prepare(self, mode: str, lens: list[int], slots: list[int], *, graph: bool = False) -> None:
        self.backend.prepare_lora_batch(support.forward_batch(mode, lens), slots, RANKS, SCALINGS, graph)

    def expected(self, base: torch.Tensor, x: torch.Tensor, slots: torch.Tensor) -> Exact:
        def sums(of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            tensors = map(of, (x, self.a, self.b, base))
            return lora_linear_reference(*tensors, slots, torch.tensor(RANKS), torch.tensor(SCALINGS), self.starts)

        return Exact(sums(torch.clone), sums(torch.abs), terms=FEATURES + MAX_RANK + 2, inner=1)


@pytest.fixture
def on(plugin_on: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with support.on_the_cpu(support.server_args(), "sglang.srt.lora.layers"):
        yield plugin_on


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that each call of the op was given."""
    calls: list[int] = []
    op = linear_hooks.lora_linear

    def counted(x: torch.Tensor, *rest: Any) -> Any:
        calls.append(x.shape[0])
        return op(x, *rest)

    monkeypatch.setattr(linear_hooks, "lora_linear", counted)
    return calls


def batch_of(rng: np.random.Generator, mode: str) -> tuple[list[int], list[int], torch.Tensor]:
    """Tokens of each request, its slot, and the slot of each token."""
    requests = int(rng.integers(1, CAPACITY + 1))
    lens = [1] * requests if mode == "DECODE" else rng.integers(1, 12, requests).tolist()
    slots = rng.integers(0, SLOTS, requests)
    return lens, slots.tolist(), torch.from_numpy(slots.repeat(lens))


def run(site: Site, rng: np.random.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, base output, what apply_lora makes of it)."""
    x = torch.from_numpy(rng.standard_normal((rows, FEATURES))).to(site.dtype)
    base = torch.from_numpy(rng.standard_normal((rows, site.starts[-1]))).to(site.dtype)
    return x, base, site.layer.apply_lora(base.clone(), x)


@DTYPES
@pytest.mark.parametrize("mode", [pytest.param("DECODE", marks=pytest.mark.once), "EXTEND"])
@pytest.mark.parametrize("name", SITES)
def test_a_linear_layer(name: str, mode: str, dtype: torch.dtype, on: Any, used: list[int]) -> None:
    on()
    site, rng = Site(name, dtype), np.random.default_rng(5)
    for _ in range(2):
        lens, slots, of_token = batch_of(rng, mode)
        site.prepare(mode, lens, slots)
        x, base, found = run(site, rng, len(of_token))
        expected = site.expected(base, x, of_token)
        assert_rounded(found, expected)
        assert torch.equal(found[of_token == 0], base[of_token == 0])  # to the bit
    assert len(used) == 2


@pytest.mark.parametrize("name", SITES)
def test_captured_decode_follows_every_refill(name: str, on: Any, used: list[int], loaded: Any) -> None:
    on()
    site, rng = Site(name), np.random.default_rng(6)
    getattr(site.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    for _ in range(3):
        lens, slots, of_token = batch_of(rng, "DECODE")
        site.prepare("DECODE", lens, slots, graph=True)
        x, base, found = run(site, rng, CAPACITY)  # the graph has more rows than the batch
        rows = len(lens)
        assert_rounded(found[:rows], site.expected(base[:rows], x[:rows], of_token))
        assert torch.equal(found[len(lens) :], base[len(lens) :])
    assert used == [CAPACITY] * 3


@pytest.mark.parametrize("name", SITES)
def test_the_switch_gives_sglangs_function_back(name: str, on: Any, used: list[int]) -> None:
    """Which computes the same, with one rounding more: of the product of B before it is added."""
    rng = np.random.default_rng(7)
    lens, slots, of_token = batch_of(rng, "EXTEND")
    for linear in (True, False):
        on(linear=linear)
        site = Site(name)
        site.a.nan_to_num_(0.0), site.b.nan_to_num_(0.0)  # SGLang multiplies what it masks
        site.prepare("EXTEND", lens, slots)
        x, base, found = run(site, np.random.default_rng(8), len(of_token))
        exact = site.expected(base, x, of_token)
        assert_rounded(found, exact if linear else replace(exact, inner=2))
    assert len(used) == 1


class Ranks:
    """Two ranks of a row-parallel layer, one after the other: what they sum is kept, and summed in the second pass."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.halves = site, site.a.split(FEATURES // 2, dim=2)
        self.base = site.layer.base_layer
        self.base.weight = torch.nn.Parameter(torch.zeros(96, FEATURES // 2), requires_grad=False)
        self.base.tp_size, self.base.reduce_results = 2, True
        self.given: list[list[torch.Tensor]] = []
        layers = importlib.import_module("sglang.srt.lora.layers")
        monkeypatch.setattr(layers, "tensor_model_parallel_all_reduce", self._all_reduce)
        monkeypatch.setattr(layers, "get_group_rank_size", lambda group: (0, 2), raising=False)
        if not hasattr(self.base, "tp_group"):
            self.base.tp_group = None

    def _all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        self.now.append(part.clone())
        place = len(self.now) - 1
        return part if not self.summed else self.given[0][place] + self.given[1][place]

    def run(self, x: torch.Tensor, *, summed: bool = False) -> torch.Tensor:
        self.summed = summed
        found = x
        for a, part in zip(self.halves, x.split(FEATURES // 2, dim=1), strict=True):
            self.now: list[torch.Tensor] = []
            self.site.layer.set_lora_info(a.contiguous(), self.site.b)
            found, _ = self.site.layer(part.contiguous())
            self.given.append(self.now)
        return found if summed else self.run(x, summed=True)


@pytest.mark.parametrize("linear", [True, False])
def test_ranks_of_a_row_parallel_layer_sum_their_shrunk_rows(
    on: Any, monkeypatch: pytest.MonkeyPatch, linear: bool
) -> None:
    """SGLang's forward, both halves on our kernels or both on SGLang's own."""
    on(linear=linear)
    called: list[str] = []
    for name in ("lora_shrink", "lora_expand"):
        op = getattr(linear_hooks, name)
        monkeypatch.setattr(linear_hooks, name, lambda *a, op=op, name=name, **k: (called.append(name), op(*a, **k))[1])
    site, rng = Site("row"), np.random.default_rng(11)
    site.a.nan_to_num_(0.0), site.b.nan_to_num_(0.0)
    lens, slots, of_token = batch_of(rng, "EXTEND")
    site.prepare("EXTEND", lens, slots)
    x = torch.from_numpy(rng.standard_normal((len(of_token), FEATURES))).float()
    found = Ranks(site, monkeypatch).run(x)
    exact = site.expected(torch.zeros(len(of_token), 96), x, of_token)
    assert_rounded(found, replace(exact, inner=4))  # either rank's part, their sum, and with SGLang the product of B
    assert called == (["lora_shrink", "lora_expand"] * 4 if linear else [])


def test_the_halves_of_embedding_and_lm_head_stay_sglangs(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They call the same two functions of the backend, and have switches of their own."""
    on()
    monkeypatch.setattr(linear_hooks, "lora_shrink", None)  # would fail if called
    site = Site("row")
    site.a.nan_to_num_(0.0)
    site.prepare("DECODE", [1, 1], [1, 2])
    x = torch.ones(2, FEATURES)
    found = site.backend.run_lora_a_sgemm(x, site.a)
    assert torch.allclose(found[0, :8], (site.a[1, :8] @ x[0]), atol=1e-4)


def test_rows_that_pad_an_eager_batch(on: Any) -> None:
    on()
    site, rng = Site("row"), np.random.default_rng(9)
    site.prepare("EXTEND", [3, 2], [1, 2])
    _, base, found = run(site, rng, 8)
    assert torch.equal(found[5:], base[5:]) and not torch.equal(found[:5], base[:5])


def test_a_batch_of_nobody_and_no_rows(on: Any) -> None:
    on()
    site, rng = Site("qkv"), np.random.default_rng(10)
    site.prepare("DECODE", [1, 1], [0, 0])
    _, base, found = run(site, rng, 2)
    assert torch.equal(found, base)
    site.prepare("DECODE", [1, 1], [1, 2])
    assert run(site, rng, 0)[2].shape == (0, site.starts[-1])


@pytest.mark.parametrize("other", ["dtype of the output", "columns apart", "rank of the tables"])
def test_what_the_op_does_not_take_is_sglangs(other: str, on: Any) -> None:
    """SGLang's function is called with what came, and what it gives is given back."""
    on()
    site = Site("row")
    site.prepare("DECODE", [1, 1], [1, 2])
    base, x = torch.zeros(2, 96), torch.ones(2, FEATURES)
    if other == "dtype of the output":
        base = base.double()
    elif other == "columns apart":
        base = torch.zeros(2, 96, 2)[..., 0]
    else:
        site.layer.A_buffer = site.a[:, :8]
    calls: list[tuple[Any, ...]] = []
    assert linear_hooks.row(lambda *given: (calls.append(given), "theirs")[1], site.layer, base, x) == "theirs"
    assert len(calls) == 1 and all(one is another for one, another in zip(calls[0], (site.layer, base, x), strict=True))


def test_a_plan_of_sglangs_own_is_sglangs_to_run(on: Any, used: list[int], plugin_on: Callable[..., None]) -> None:
    runtime.activate(None)
    site = Site("row")
    site.a.nan_to_num_(0.0), site.b.nan_to_num_(0.0)
    site.prepare("DECODE", [1, 1], [1, 2])
    on()
    x, base = torch.ones(2, FEATURES), torch.zeros(2, 96)
    expected = site.expected(base, x, torch.tensor([1, 2]))
    found = site.layer.apply_lora(base.clone(), x)
    assert not used
    assert_rounded(found, expected)
