"""SGLang's two layers on a GPU with the plugin: eager, captured, refilled, against float64 and against it off.

The hooks are bound to one object each; what SGLang's layers import beside the kernels of LoRA is stood in for.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.contenders.ours.plugin import plug_layer
from bench.execute import layer
from csgmv_embed import embedding_lora_reference, lora_linear_reference, to_storage
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.settings import Settings
from csgmv_embed.sglang.targets import release_for
from tests.support import real_sglang as support
from tests.support.plugged import CAPACITY, RANKS, SLOTS, plugged
from tests.support.rounding import Exact, assert_errs_no_more, assert_rounded, distance

MAX_RANK, VOCAB, HIDDEN = 64, 32000, 1024
SCALINGS = [0.0, 2.0, 0.5, 1.0, 3.0, 0.25, 1.5, 0.75]
HAS_EMBEDDING = [False, True, True, False, True, True, True, False]  # the others have LoRA on lm_head alone
EMBEDDING_RANKS = [rank if has else 0 for rank, has in zip(RANKS, HAS_EMBEDDING, strict=True)]
DEVICE = torch.device("cuda")
pytestmark = [pytest.mark.numeric, pytest.mark.gpu]


@pytest.fixture(autouse=True)
def active() -> Iterator[Callable[..., None]]:
    """Switches the hooks on with these settings; SGLang's settings come from a stand-in."""
    release = release_for(importlib.metadata.version("sglang"), any_version=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's imports are not ours to mend
        layer._load_layers()
    support.start_process_group()
    with support.on_the_cpu(support.server_args(128), "sglang.srt.lora.layers"):
        yield lambda **settings: runtime.activate(runtime.Active(release, Settings(**settings)))
    runtime.activate(None)


class Tables:
    """Weights and LoRA tables as SGLang's pool holds them: zeros where an adapter has nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.layers = layer.Layers(DEVICE, VOCAB, HIDDEN, dtype)
        generator = torch.Generator(DEVICE).manual_seed(1)

        def draw(ranks: list[int], columns: int) -> torch.Tensor:
            table = torch.zeros(SLOTS, MAX_RANK, columns, device=DEVICE, dtype=dtype)
            for slot, rank in enumerate(ranks):
                table[slot, :rank] = torch.randn(rank, columns, device=DEVICE, generator=generator).to(dtype)
            return table

        self.a, b = draw(EMBEDDING_RANKS, VOCAB), draw(EMBEDDING_RANKS, HIDDEN)
        self.head_a, head_b = draw(RANKS, HIDDEN), draw(RANKS, VOCAB)
        self.b, self.head_b = b.transpose(1, 2).contiguous(), head_b.transpose(1, 2).contiguous()
        self._scalings = torch.tensor(SCALINGS, device=DEVICE)

    def exact(self, ids: torch.Tensor, slots: torch.Tensor) -> Exact:
        factors = torch.tensor(EMBEDDING_RANKS, device=DEVICE), self._scalings

        def reference(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            tables = map(change, (self.layers.weight, self.a, self.b))
            return embedding_lora_reference(ids, *tables, slots, *factors, VOCAB)

        return Exact(reference(torch.clone), reference(torch.abs), terms=MAX_RANK + 2)

    def exact_logits(self, hidden: torch.Tensor, slots: torch.Tensor) -> Exact:
        """The logits are rounded before LoRA is added, and so is what A gives; cuBLAS may round parts of them."""
        factors = torch.tensor(RANKS, device=DEVICE), self._scalings

        def reference(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            rows, weight, a, b = map(change, (hidden, self.layers.weight, self.head_a, self.head_b))
            return lora_linear_reference(rows, a, b, rows.double() @ weight.double().T, slots, *factors)

        return Exact(reference(torch.clone), reference(torch.abs), terms=HIDDEN + MAX_RANK + 2, inner=2)


def ours_on(tables: Tables) -> SimpleNamespace:
    """The plugin's layers on a backend of their own; runtime is active."""
    backend = plugged()
    made = tables.layers.made(backend, to_storage(tables.a, "vocab_major"), tables)
    for one in made.values():
        plug_layer(one)
    state = runtime.state_of(backend)
    assert state is not None
    for slot, has in enumerate(HAS_EMBEDDING):
        state.set_slot(slot, has_embedding=has, has_head=True)
    return SimpleNamespace(backend=backend, embedding=made["layer"], head=made["lm_head"])


def stock_on(tables: Tables) -> SimpleNamespace:
    backend = support.backend(SLOTS, 128, str(DEVICE))
    made = tables.layers.made(backend, tables.a, tables)
    return SimpleNamespace(backend=backend, embedding=made["layer"], head=made["lm_head"])


def batch_of(rng: np.random.Generator, mode: str) -> tuple[SimpleNamespace, list[Any], torch.Tensor, torch.Tensor]:
    """A batch, its arguments, its ids, and the slot of each request."""
    requests = int(rng.integers(1, CAPACITY + 1))
    lens = [1] * requests if mode == "DECODE" else rng.integers(1, 200, requests).tolist()
    used = rng.permutation(SLOTS)[: int(rng.integers(1, SLOTS + 1))]
    slots = rng.choice(used, requests)
    starts = None if mode == "DECODE" or rng.random() < 0.5 else [int(rng.integers(0, n + 1)) for n in lens]
    batch = support.forward_batch(mode, lens, logprob_starts=starts, device=str(DEVICE))
    ids = torch.from_numpy(rng.integers(0, VOCAB, sum(lens)))
    return batch, [slots.tolist(), RANKS, SCALINGS], ids.to(DEVICE), torch.from_numpy(slots).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "MIXED"])
def test_eager_is_right_and_on_average_no_worse_than_sglangs(mode: str, dtype: torch.dtype, active: Any) -> None:
    tables = Tables(dtype)
    active()
    ours, stock = ours_on(tables), stock_on(tables)
    rng = np.random.default_rng(1)
    errors: dict[str, tuple[list[float], list[float]]] = {"layer": ([], []), "lm_head": ([], [])}
    for _ in range(16):
        batch, arguments, ids, slots = batch_of(rng, mode)
        ours.backend.prepare_lora_batch(batch, *arguments, False)
        stock.backend.prepare_lora_batch(batch, *arguments, False)
        lens = torch.tensor(batch.extend_seq_lens_cpu or [1] * batch.batch_size, device=DEVICE)
        exact = tables.exact(ids, slots.repeat_interleave(lens))
        found = ours.embedding(ids)
        assert_rounded(found, exact)
        errors["layer"][0].append(distance(found, exact))
        errors["layer"][1].append(distance(stock.embedding(ids), exact))

        info = ours.backend.lm_head_batch_info
        kept = lens
        if info is not None and batch.extend_logprob_start_lens_cpu is not None:
            kept = (lens - torch.tensor(batch.extend_logprob_start_lens_cpu, device=DEVICE)).clamp(min=1)
        elif info is not None:
            kept = torch.ones_like(lens)
        row_slots = slots.repeat_interleave(kept)
        hidden = torch.randn(len(row_slots), HIDDEN, device=DEVICE).to(dtype)
        exact = tables.exact_logits(hidden, row_slots)
        errors["lm_head"][0].append(distance(ours.head(hidden), exact))
        errors["lm_head"][1].append(distance(stock.head(hidden), exact))
    for both in errors.values():
        assert_errs_no_more(*both)


def test_100_batches_in_one_captured_graph(active: Any) -> None:
    tables = Tables(torch.bfloat16)
    active()
    ours = ours_on(tables)
    getattr(ours.backend, runtime.active.release.decode_graph)(CAPACITY, 1)  # type: ignore[union-attr]
    ids = torch.zeros(CAPACITY, dtype=torch.int64, device=DEVICE)
    hidden = torch.zeros(CAPACITY, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
    # SGLang captures with requests of no adapter.
    idle = support.forward_batch("DECODE", [1] * CAPACITY, device=str(DEVICE))
    ours.backend.prepare_lora_batch(idle, [0] * CAPACITY, [0] * SLOTS, [0.0] * SLOTS, True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours.embedding(ids), ours.head(hidden)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, logits = ours.embedding(ids), ours.head(hidden)
    rng = np.random.default_rng(2)
    for _ in range(100):
        batch, arguments, live, slots = batch_of(rng, "DECODE")
        ours.backend.prepare_lora_batch(batch, *arguments, True)
        count = len(live)
        ids.random_(VOCAB)
        ids[:count] = live
        hidden.normal_()
        rows.fill_(float("nan")), logits.fill_(float("nan"))
        graph.replay()
        assert_rounded(rows[:count], tables.exact(live, slots))
        assert torch.equal(rows[count:], tables.layers.weight[ids[count:]])
        assert_rounded(logits[:count], tables.exact_logits(hidden[:count], slots))
        assert torch.equal(logits[count:], functional.linear(hidden, tables.layers.weight)[count:])


def test_batches_prepared_ahead_of_a_busy_gpu_keep_their_own_plan(active: Any) -> None:
    tables = Tables(torch.bfloat16)
    active()
    ours = ours_on(tables)
    busy = torch.randn(8192, 8192, device=DEVICE)
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        busy = busy @ busy / 100
        batch, arguments, ids, slots = batch_of(rng, "DECODE")
        ours.backend.prepare_lora_batch(batch, *arguments, False)
        hidden = torch.randn(len(ids), HIDDEN, device=DEVICE).bfloat16()
        found.append((ours.embedding(ids), ours.head(hidden), ids, hidden, slots))
    for rows, logits, ids, hidden, slots in found:
        assert_rounded(rows, tables.exact(ids, slots))
        assert_rounded(logits, tables.exact_logits(hidden, slots))


def kernels_of(call: Callable[[], object]) -> list[str]:
    """Names of what runs on the GPU."""
    call()  # compiled
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler has advice for longer traces
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            call()
            torch.cuda.synchronize()
    return [event.name for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def test_the_embedding_layer_is_one_kernel(active: Any) -> None:
    tables = Tables(torch.bfloat16)
    active()
    ours = ours_on(tables)
    ids = torch.arange(32, device=DEVICE)
    batch = support.forward_batch("DECODE", [1] * 32, device=str(DEVICE))
    ours.backend.prepare_lora_batch(batch, [1, 2, 0, 4] * 8, RANKS, SCALINGS, False)
    assert kernels_of(lambda: ours.embedding(ids)) == ["embedding_lora_kernel"]
    names = kernels_of(lambda: ours.head(torch.zeros(32, HIDDEN, device=DEVICE, dtype=torch.bfloat16)))
    assert [name for name in names if name.startswith("lora_")] == ["lora_shrink_kernel", "lora_expand_kernel"]
    # Without an adapter: what the base layer runs, nothing else.
    ours.backend.prepare_lora_batch(batch, [0] * 32, [0] * SLOTS, SCALINGS, False)
    base = kernels_of(lambda: ours.embedding.base_layer.forward(ids.masked_fill(ids > VOCAB - 1, 0)))
    assert kernels_of(lambda: ours.embedding(ids)) == base
