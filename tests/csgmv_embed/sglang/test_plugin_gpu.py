"""The plugin on a GPU, through SGLang's real backend objects: eager, captured, refilled, and loaded from a side stream.

The hooks are bound to one object each, so that SGLang's pool and layers, which want sgl_kernel, need not load.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csgmv_embed import embedding_lora_a_reference, empty_a_table, to_storage
from csgmv_embed.sglang import planner, runtime
from csgmv_embed.sglang.hooks.registry import HOOKS
from csgmv_embed.sglang.settings import Settings
from csgmv_embed.sglang.targets import release_for
from tests.support import real_sglang as support
from tests.support.batch_infos import same_info
from tests.support.plugged import CAPACITY, RANKS, SLOTS, plugged

MAX_RANK, VOCAB = 64, 32000
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def active(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Switches the hooks on with these settings; SGLang's settings come from a stand-in."""
    release = release_for(importlib.metadata.version("sglang"), any_version=True)
    with support.on_the_cpu(support.server_args(128)):  # on a GPU it only stands in for a running server's settings
        yield lambda **settings: runtime.activate(runtime.Active(release, Settings(**settings)))
    runtime.activate(None)


def table(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(1)
    return torch.randn(SLOTS, MAX_RANK, VOCAB, device="cuda", generator=generator).to(dtype)


def batch_of(rng: np.random.Generator, mode: str, limit: int = CAPACITY) -> tuple[SimpleNamespace, list[Any], Any, Any]:
    requests = int(rng.integers(1, limit + 1))
    lens = [1] * requests if mode == "DECODE" else rng.integers(1, 200, requests).tolist()
    used = rng.permutation(SLOTS)[: int(rng.integers(1, SLOTS + 1))]
    slots = rng.choice(used, requests)
    ranks = [RANKS[slot] if rng.random() < 0.9 else 0 for slot in range(SLOTS)]
    batch = support.forward_batch(mode, lens, device="cuda")
    ids = torch.from_numpy(rng.integers(0, VOCAB, sum(lens)))
    expected_slots = torch.from_numpy(slots.repeat(lens))
    return batch, [slots.tolist(), ranks, [2.0] * SLOTS], ids.cuda(), expected_slots.cuda()


def promise(ids: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    return embedding_lora_a_reference(ids, weights, slots, torch.tensor(ranks, device="cuda"), VOCAB)


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "MIXED"])
def test_eager_plan_and_lookup_equal_sglangs(mode: str, active: Any) -> None:
    active()
    ours, stock = plugged(), support.backend(SLOTS, 128, "cuda")
    weights = table()
    major = to_storage(weights, "vocab_major")
    rng = np.random.default_rng(1)
    for _ in range(30):
        batch, arguments, ids, slots = batch_of(rng, mode)
        ours.prepare_lora_batch(batch, *arguments, False)
        stock.prepare_lora_batch(batch, *arguments, False)
        same_info(ours.batch_info, stock.batch_info)
        same_info(ours.lm_head_batch_info, stock.lm_head_batch_info)
        found = ours.run_lora_a_embedding(ids, major, VOCAB)
        assert torch.equal(found, stock.run_lora_a_embedding(ids, weights, VOCAB))
        assert torch.equal(found, promise(ids, weights, slots, arguments[1]))


@pytest.mark.parametrize("storage", ["vocab_major", "rank_major"])
def test_200_batches_in_one_captured_graph(storage: Any, active: Any) -> None:
    active(storage=storage)
    backend = plugged()
    getattr(backend, runtime.active.release.decode_graph)(CAPACITY, 1)  # type: ignore[union-attr]
    weights = to_storage(table(), storage)
    ids = torch.zeros(CAPACITY, dtype=torch.int64, device="cuda")
    # SGLang captures with requests of no adapter.
    idle = support.forward_batch("DECODE", [1] * CAPACITY, device="cuda")
    backend.prepare_lora_batch(idle, [0] * CAPACITY, [0] * SLOTS, [0.0] * SLOTS, True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        backend.run_lora_a_embedding(ids, weights, VOCAB)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = backend.run_lora_a_embedding(ids, weights, VOCAB)
    rng = np.random.default_rng(2)
    for _ in range(200):
        batch, arguments, live, slots = batch_of(rng, "DECODE")
        backend.prepare_lora_batch(batch, *arguments, True)
        ids.random_(VOCAB)
        ids[: len(live)] = live
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out[: len(live)], promise(live, weights, slots, arguments[1]))
        assert not out[len(live) :].any() and not out[len(live) :].isnan().any()


def test_batches_prepared_ahead_of_a_busy_gpu_keep_their_own_plan(active: Any) -> None:
    """The host runs ahead: a staging buffer is not written again before its copy is done."""
    active()
    backend = plugged()
    weights = to_storage(table(), "vocab_major")
    busy = torch.randn(8192, 8192, device="cuda")
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        busy = busy @ busy / 100
        batch, arguments, ids, slots = batch_of(rng, "DECODE")
        backend.prepare_lora_batch(batch, *arguments, False)
        found.append((backend.run_lora_a_embedding(ids, weights, VOCAB), ids, slots, arguments[1]))
    for out, ids, slots, ranks in found:
        assert torch.equal(out, promise(ids, weights, slots, ranks))


def test_an_adapter_loaded_on_a_side_stream(active: Any) -> None:
    """What SGLang's loader does to a slot, its overlapped loading included: a pinned copy into the strided view."""
    active()
    backend = plugged()
    weights = empty_a_table(SLOTS, MAX_RANK, VOCAB, dtype=torch.bfloat16, device="cuda", storage="vocab_major").zero_()
    backend.prepare_lora_batch(
        support.forward_batch("DECODE", [1] * 4, device="cuda"), [4] * 4, RANKS, [1.0] * SLOTS, False
    )
    adapter = torch.randn(MAX_RANK, VOCAB).to(torch.bfloat16).pin_memory()
    stream, loaded = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        weights[4, :MAX_RANK, :VOCAB].copy_(adapter, non_blocking=True)
        loaded.record()
    torch.cuda.current_stream().wait_event(loaded)
    ids = torch.tensor([0, 7, VOCAB - 1, 12345], device="cuda")
    found = backend.run_lora_a_embedding(ids, weights, VOCAB)
    assert torch.equal(found.cpu(), adapter[:, ids.cpu()].T)


def test_a_table_past_2_31_elements(active: Any) -> None:
    slots, rank, vocab = 72, 256, 128256
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 6 GiB of GPU memory")
    active()
    module = importlib.import_module(support.BACKEND_MODULE)
    backend = module.ChunkedSgmvLoRABackend(
        max_loras_per_batch=slots, device=torch.device("cuda"), server_args=support.server_args()
    )
    weights = empty_a_table(slots, rank, vocab, dtype=torch.bfloat16, device="cuda", storage="vocab_major")
    row = torch.randn(rank, device="cuda").to(torch.bfloat16)
    weights[70, :, vocab - 1] = row
    batch = support.forward_batch("DECODE", [1], device="cuda")
    HOOKS["prepare"](type(backend).prepare_lora_batch, backend, batch, [70], [rank] * slots, [1.0] * slots, False)
    ids = torch.tensor([vocab - 1], device="cuda")
    found = HOOKS["lookup"](type(backend).run_lora_a_embedding, backend, ids, weights, vocab)
    assert torch.equal(found[0], row)


def test_the_plan_of_a_batch_is_one_copy_and_of_the_same_step_again_none(active: Any) -> None:
    active()
    backend = plugged()
    getattr(backend, runtime.active.release.decode_graph)(CAPACITY, 1)  # type: ignore[union-attr]
    rng = np.random.default_rng(5)
    batches = [batch_of(rng, "DECODE")[:2] for _ in range(2)]
    for expected in (1, 1, 0):
        batch, arguments = batches[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the profiler has advice for longer traces
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
                backend.prepare_lora_batch(batch, *arguments, True)
                torch.cuda.synchronize()
        assert hasattr(backend.batch_info, planner.BATCH)
        copies = [event.name for event in trace.events() if event.name.startswith("Memcpy")]
        assert len(copies) == expected, copies
        batches = [batches[1], batches[1]]
