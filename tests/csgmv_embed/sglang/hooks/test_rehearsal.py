"""After a rehearsal, prefills of any size and shape launch only what was compiled by then. Nothing is launched here."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csgmv_embed import to_storage
from csgmv_embed.launch import direct
from csgmv_embed.sglang import rehearsal, runtime
from csgmv_embed.sglang.hooks import graphs
from csgmv_embed.sglang.hooks import linear as linear_hooks
from tests.support import real_sglang as support

SLOTS, MAX_RANK, WIDTH, VOCAB = 8, 16, 4096, support.VOCAB
RANKS, SCALINGS = [16, 8, 0, 3] * 2, [1.0, 2.0] * 4
pytestmark = [pytest.mark.usefixtures("group_of_one", "loaded")]

Binaries = set[direct.Key]


@pytest.fixture
def on(plugin_on: Any) -> Iterator[Callable[..., None]]:
    with support.on_the_cpu(support.server_args(128), "sglang.srt.lora.layers"):
        yield plugin_on


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Binaries:
    """What the compiled binary of each launch depends on."""
    found: Binaries = set()

    def told(launch: direct.Launch, tensors: direct.Tensors, pointers: object) -> None:
        found.add(direct.variant_key(launch.kernel, tensors, launch.constant, launch.num_warps, 0))

    monkeypatch.setattr(direct.Launch, "__call__", told)
    return found


class Server:
    """The layers of a server that have LoRA: the embedding, one of two slices, and a row-parallel one."""

    def __init__(self, chunk: int) -> None:
        wrapped = importlib.import_module("sglang.srt.lora.layers")
        model = support.TwoModules(VOCAB, WIDTH, tied=False, dtype=torch.bfloat16)
        self.backend = support.backend(SLOTS, chunk)
        self.embedding = wrapped.VocabParallelEmbeddingWithLoRA(model.model.embed_tokens, self.backend)
        a_table = to_storage(self.empty(SLOTS, MAX_RANK, VOCAB), "vocab_major")
        self.embedding.set_lora_info(None, a_table, self.empty(SLOTS, WIDTH, MAX_RANK))
        self.stacked = self.empty(SLOTS, 2 * MAX_RANK, WIDTH), self.empty(SLOTS, 2 * WIDTH, MAX_RANK)
        self.single = self.empty(SLOTS, MAX_RANK, WIDTH), self.empty(SLOTS, WIDTH, MAX_RANK)
        state = runtime.state_of(self.backend)
        assert state is not None
        self.state = state
        self.state.set_slot(0, has_embedding=False, has_head=False)  # as a pool does that holds no adapter yet

    def load(self) -> None:
        """Every slot gets an adapter."""
        for slot in range(SLOTS):
            self.state.set_slot(slot, has_embedding=True, has_head=True)

    @staticmethod
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    def forward(self, mode: str, lens: list[int], slots: list[int], *, graph: bool = False) -> None:
        """One pass: what the layers of a model ask of LoRA, whole and in halves."""
        rows = sum(lens)
        self.backend.prepare_lora_batch(support.forward_batch(mode, lens), slots, RANKS, SCALINGS, graph)
        self.embedding(torch.zeros(rows, dtype=torch.int64))
        self.backend.run_lora_a_embedding(
            torch.zeros(rows, dtype=torch.int64), self.embedding.embedding_A_buffer, VOCAB
        )
        self.embedding.apply_lora(self.empty(rows, WIDTH), torch.zeros(rows, dtype=torch.int64))
        x, offsets = self.empty(rows, WIDTH), torch.tensor([0, WIDTH, 2 * WIDTH])
        linear_hooks.gate_up(never, self.backend, x, *self.stacked, offsets, self.empty(rows, 2 * WIDTH))
        layer = SimpleNamespace(lora_backend=self.backend)

        def halves(_: Any) -> None:
            shrunk = linear_hooks.shrink(never, self.backend, x, self.single[0])
            linear_hooks.expand(never, self.backend, shrunk, self.single[1], offsets, self.empty(rows, WIDTH))

        linear_hooks.row_forward(halves, layer)

    def capture(self, **arguments: Any) -> None:
        """As SGLang's runner does at a server's start."""
        runner = type(graphs.RUNNER, (), {})()
        manager = SimpleNamespace(lora_backend=self.backend)
        runner.model_runner = SimpleNamespace(lora_manager=manager, server_args=SimpleNamespace(**arguments))

        def every_size(_: Any) -> str:
            for size in (1, 8, 256):
                self.forward("DECODE", [1] * size, [slot % SLOTS for slot in range(size)], graph=True)
            return "captured"

        getattr(self.backend, self.state.release.decode_graph)(256, 1)
        assert graphs.capture_all(every_size, runner) == "captured"


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("SGLang's own function ran")


def prefills(most: int) -> Iterator[tuple[list[int], list[int]]]:
    """Lengths and slots of batches of every size and of uneven requests."""
    rng = np.random.default_rng(7)
    for total in np.unique(np.geomspace(1, most, 60).astype(int)):
        requests = int(rng.integers(1, min(int(total), 40) + 1))
        cuts = np.sort(rng.choice(np.arange(1, total), requests - 1, replace=False))
        lens = np.diff([0, *cuts, total])
        yield lens.tolist(), rng.integers(0, SLOTS, requests).tolist()


@pytest.mark.parametrize("chunk", [16, 128])
@pytest.mark.parametrize("most", [3000, 8192, rehearsal.MOST_TOKENS * 3 // 2])
def test_no_prefill_compiles_anything_more(most: int, chunk: int, on: Any, launched: Binaries) -> None:
    on()
    server = Server(chunk)
    server.capture(chunked_prefill_size=most)
    compiled = set(launched)
    server_without = Server(chunk)
    server_without.load()
    for lens, slots in prefills(most):
        server_without.forward("EXTEND", lens, slots)
        assert launched <= compiled, f"{sum(lens)} tokens of {len(lens)} requests"


def test_without_it_prefills_of_other_sizes_compile(on: Any, launched: Binaries) -> None:
    on(compile_ahead=False)
    server = Server(16)
    server.capture(chunked_prefill_size=8192)
    compiled = set(launched)
    server.load()
    for lens, slots in prefills(8192):
        server.forward("EXTEND", lens, slots)
    assert len(launched - compiled) >= 8, "the sizes of this test make no difference"


def test_prompts_that_are_not_cut_count_as_long_as_a_prefill_may_be() -> None:
    for size, most, expected in ((-1, 4096, 4096), (2048, 4096, 2048), (None, None, rehearsal.MOST_TOKENS)):
        arguments = SimpleNamespace(chunked_prefill_size=size, max_prefill_tokens=most)
        assert graphs._longest_prefill(arguments) == expected
    assert rehearsal.sizes(20) == [1, 2, 3, 4, 5, 8, 9, 16, 17, 20]
    assert rehearsal.sizes(1 << 20)[-3:] == [8192, 8193, 16384]


def test_the_backends_batch_stays_and_is_planned_anew(on: Any, launched: Binaries) -> None:
    on()
    server = Server(16)
    server.capture(chunked_prefill_size=1024)
    before = server.backend.batch_info
    assert before.bs == 256 and server.state.last_step is None
    server.forward("DECODE", [1] * 256, [slot % SLOTS for slot in range(256)])
    assert server.backend.batch_info.lora_ranks.tolist() == RANKS


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "no memory to compile ahead for prefills of more than 1024 tokens",
        ),
        (ValueError("ptxas"), "kernels for prefills of more than 1024 tokens could not be compiled ahead"),
    ],
    ids=["memory", "compiler"],
)
def test_what_cannot_be_rehearsed_is_left_to_requests_and_said(
    error: Exception, said: str, on: Any, launched: Binaries, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    on()
    empty = rehearsal.rows_like

    def full(tensor: torch.Tensor, rows: int) -> torch.Tensor:
        if rows > 1024:
            raise error
        return empty(tensor, rows)

    monkeypatch.setattr(rehearsal, "rows_like", full)
    with caplog.at_level(logging.INFO, rehearsal.logger.name):
        Server(16).capture(chunked_prefill_size=8192)
    assert said in caplog.text
    assert "kernels for prefills of up to 1024 tokens are compiled" in caplog.text
