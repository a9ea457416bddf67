"""SGLang's two layers, as they are, on a stock backend object: the plugin on, against float64 and against it off.

Slot 0 has no adapter, slot 3 one without LoRA on the embedding layer, whose tables hold NaN: it must not be read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from csgmv_embed import (
    ShapeError,
    embedding_lora_reference,
    lora_linear_reference,
    to_storage,
)
from csgmv_embed.sglang import planner, runtime
from csgmv_embed.sglang.hooks import embedding as embedding_hooks
from csgmv_embed.sglang.hooks import lm_head as head_hooks
from tests.support import real_sglang as support
from tests.support.rounding import Exact, assert_errs_no_more, assert_rounded, distance

SLOTS, MAX_RANK, VOCAB, HIDDEN, CAPACITY = 4, 16, support.VOCAB, 32, 12
RANKS, SCALINGS = [0, 8, 16, 5], [0.0, 2.0, 0.75, 1.5]
EMBEDDING, HEADS = [False, True, True, False], [False, True, True, True]
EMBEDDING_RANKS = [0, 8, 16, 0]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.once)], ids=str)
OPS = ("embedding_lora", "embedding_lora_add", "lora_linear")
pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("group_of_one", "loaded")]


class Pair:
    """The two layers around one backend, with random tables."""

    def __init__(self, dtype: torch.dtype = torch.float32, storage: Any = "vocab_major", chunk: int = 16) -> None:
        wrapped = importlib.import_module("sglang.srt.lora.layers")
        model = support.TwoModules(VOCAB, HIDDEN, tied=False, dtype=dtype)
        self.backend = support.backend(SLOTS, chunk)
        self.base, self.base_head = model.model.embed_tokens, model.lm_head
        self.base.weight.data[VOCAB:] = float("nan")  # rows of nobody
        self.embedding = wrapped.VocabParallelEmbeddingWithLoRA(self.base, self.backend)
        self.head = wrapped.ParallelLMHeadWithLoRA(self.base_head, self.backend)
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> torch.Tensor:
            table = (torch.randn(SLOTS, *shape, generator=generator) / 2).to(dtype)
            for slot, rank in enumerate(RANKS):  # as SGLang's pool: zero beyond the rank
                if MAX_RANK == shape[0] != HIDDEN:
                    table[slot, rank:] = 0
                else:
                    table[slot, :, rank:] = 0
            return table

        self.a, self.b = draw(MAX_RANK, VOCAB), draw(HIDDEN, MAX_RANK)
        self.head_a, self.head_b = draw(MAX_RANK, HIDDEN), draw(VOCAB, MAX_RANK)
        self.embedding.set_lora_info(None, to_storage(self.a, storage), self.b)
        self.head.set_lora_info(self.head_a, self.head_b)

    def told(self) -> Pair:
        """As the memory pool tells the plugin which adapters have LoRA on the two layers."""
        state = runtime.state_of(self.backend)
        assert state is not None
        for slot, (has_embedding, has_head) in enumerate(zip(EMBEDDING, HEADS, strict=True)):
            state.set_slot(slot, has_embedding=has_embedding, has_head=has_head)
        for table in (self.embedding.embedding_A_buffer, self.b):
            table[3] = float("nan")
        return self

    def prepare(self, mode: str, lens: list[int], slots: list[int], *, graph: bool = False, **options: Any) -> None:
        batch = support.forward_batch(mode, lens, **options)
        self.backend.prepare_lora_batch(batch, slots, RANKS, SCALINGS, graph)

    def expected(
        self,
        ids: torch.Tensor,
        slots: torch.Tensor,
        ranks: list[int] = EMBEDDING_RANKS,
        a: torch.Tensor | None = None,
        vocab: int = VOCAB,
    ) -> Exact:
        tables = self.base.weight[:VOCAB], self.a if a is None else a, self.b
        factors = torch.tensor(ranks), torch.tensor(SCALINGS)

        def reference(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            return embedding_lora_reference(ids, *map(change, tables), slots, *factors, vocab, missing_row=0)

        return Exact(reference(torch.clone), reference(torch.abs), terms=MAX_RANK + 2)

    def expected_logits(self, hidden: torch.Tensor, slots: torch.Tensor) -> Exact:
        """The logits are rounded before LoRA is added to them, and so is what A gives."""
        factors = torch.tensor(RANKS), torch.tensor(SCALINGS)

        def reference(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            rows, weight, a, b = map(change, (hidden, self.base_head.weight, self.head_a, self.head_b))
            return lora_linear_reference(rows, a, b, rows.double() @ weight.double().T, slots, *factors)

        return Exact(reference(torch.clone), reference(torch.abs), terms=HIDDEN + MAX_RANK + 2, inner=1)


def batch_of(rng: np.random.Generator, mode: str, most: int = CAPACITY) -> tuple[list[int], list[int], torch.Tensor]:
    """Tokens of each request, its slot, and the slot of each token."""
    requests = int(rng.integers(1, most + 1))
    lens = [1] * requests if mode == "DECODE" else rng.integers(1, 20, requests).tolist()
    slots = rng.integers(0, SLOTS, requests)
    return lens, slots.tolist(), torch.from_numpy(slots.repeat(lens))


def ids_of(rng: np.random.Generator, tokens: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, VOCAB, tokens))


@pytest.fixture
def on(plugin_on: Any) -> Iterator[Any]:
    with support.on_the_cpu(support.server_args(), "sglang.srt.lora.layers"):
        yield plugin_on


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops that the hooks call, as they do."""
    calls: list[str] = []

    def counted(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (calls.append(name), op(*args, **kwargs))[1]

    for name in OPS:
        hooks = head_hooks if name == "lora_linear" else embedding_hooks
        monkeypatch.setattr(hooks, name, counted(name, getattr(hooks, name)))
    return calls


@DTYPES
@pytest.mark.parametrize("storage", ["vocab_major", "rank_major"])
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "MIXED"])
def test_the_embedding_layer(mode: str, storage: Any, dtype: torch.dtype, on: Any, used: list[str]) -> None:
    rng = np.random.default_rng(1)
    on(storage=storage)
    ours = Pair(dtype, storage, chunk=128).told()
    for _ in range(2):
        lens, slots, token_slots = batch_of(rng, mode)
        ids = ids_of(rng, sum(lens))
        ours.prepare(mode, lens, slots)
        found = ours.embedding(ids)
        assert found.dtype == dtype
        assert_rounded(found, ours.expected(ids, token_slots))
    assert used == ["embedding_lora"] * 2


@pytest.mark.once
def test_on_average_both_layers_err_no_more_than_sglangs(on: Any) -> None:
    """In float16, where ours round less often. In float32 both sides sum and round alike: there is nothing to claim."""
    rng = np.random.default_rng(1)
    stock = Pair(torch.float16)
    on()
    ours = Pair(torch.float16).told()
    stock.a[3] = stock.b[3] = 0  # what SGLang's pool holds there
    stock.embedding.embedding_A_buffer = stock.a
    errors: dict[str, tuple[list[float], list[float]]] = {"layer": ([], []), "lm_head": ([], [])}
    for _ in range(10):
        lens, slots = rng.integers(3, 10, CAPACITY).tolist(), rng.permutation([0, 1, 2, 3] * (CAPACITY // 4))
        token_slots = torch.from_numpy(slots.repeat(lens))
        ids = ids_of(rng, sum(lens))
        hidden = torch.from_numpy(rng.standard_normal((len(lens), HIDDEN))).half()
        exact = {
            "layer": ours.expected(ids, token_slots),
            "lm_head": ours.expected_logits(hidden, torch.from_numpy(slots)),
        }
        for side, pair in enumerate((ours, stock)):
            on() if pair is ours else runtime.activate(None)
            pair.prepare("EXTEND", lens, slots.tolist())
            for name, found in (("layer", pair.embedding(ids)), ("lm_head", pair.head(hidden))):
                errors[name][side].append(distance(found, exact[name]))
    for both in errors.values():
        assert_errs_no_more(*both)


def test_captured_decode_follows_every_refill(on: Any, used: list[str], loaded: Any) -> None:
    """Rows behind the batch get their base rows, and their logits stay what the product gave."""
    on()
    ours = Pair().told()
    getattr(ours.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    rng = np.random.default_rng(2)
    for _ in range(8):
        lens, slots, token_slots = batch_of(rng, "DECODE")
        ours.prepare("DECODE", lens, slots, graph=True)
        ids, rows = ids_of(rng, CAPACITY), len(lens)
        found = ours.embedding(ids)
        assert_rounded(found[:rows], ours.expected(ids[:rows], token_slots))
        assert torch.equal(found[rows:], ours.base.weight[ids[rows:]])
        hidden = torch.randn(CAPACITY, HIDDEN)
        logits = ours.head(hidden)
        assert_rounded(logits[:rows], ours.expected_logits(hidden[:rows], token_slots))
        assert torch.equal(logits[rows:], functional.linear(hidden, ours.base_head.weight)[rows:])
    assert used == ["embedding_lora", "lora_linear"] * 8


@pytest.mark.parametrize("chunk", [pytest.param(16, marks=pytest.mark.once), 128])
def test_captured_decode_of_more_rows_than_a_tile(chunk: int, on: Any, loaded: Any) -> None:
    """Segments of a slot lie side by side, and a program takes as many as the chunk size of the batch says."""
    on()
    ours = Pair(chunk=chunk).told()
    rows = 70
    getattr(ours.backend, loaded[1].release.decode_graph)(rows, 1)
    ids, hidden = torch.arange(rows), torch.randn(rows, HIDDEN)
    for slots in ([1] * rows, [2] * 60 + [1] * 10, [1] * 20):
        count = len(slots)
        ours.prepare("DECODE", [1] * count, slots, graph=True)
        expected = ours.expected(ids[:count], torch.tensor(slots))
        assert_rounded(ours.embedding(ids)[:count], expected)
        expected = ours.expected_logits(hidden[:count], torch.tensor(slots))
        assert_rounded(ours.head(hidden)[:count], expected)


def test_a_replay_with_smaller_chunks_than_its_capture(on: Any, loaded: Any) -> None:
    """64 requests are captured in chunks of 32, 63 replayed in chunks of 16: that can be more segments."""
    on()
    ours = Pair(chunk=128).told()
    getattr(ours.backend, loaded[1].release.decode_graph)(64, 1)
    slots = [0, *[1] * 60, 2, 3]
    ours.prepare("DECODE", [1] * 63, slots, graph=True)
    batch = getattr(ours.backend.batch_info, planner.BATCH)
    assert batch.chunk_size == 16
    batch.chunk_size = 32  # of the capture, and so of its grid
    ids, hidden = torch.arange(64), torch.randn(64, HIDDEN)
    assert_rounded(ours.embedding(ids)[:63], ours.expected(ids[:63], torch.tensor(slots)))
    logits = ours.head(hidden)[:63]
    assert_rounded(logits, ours.expected_logits(hidden[:63], torch.tensor(slots)))


def test_captured_prefill_follows_every_refill(on: Any, used: list[str], loaded: Any) -> None:
    parameters = loaded[1].release.prefill_graph
    if not parameters:
        pytest.skip("this SGLang does not capture prefill with LoRA")
    on()
    ours = Pair().told()
    tokens = 20 * CAPACITY
    sizes = {"max_num_tokens": tokens, "max_num_requests": CAPACITY}
    ours.backend.init_prefill_cuda_graph_batch_info(**{name: sizes[name] for name in parameters[1:]})
    rng = np.random.default_rng(4)
    for _ in range(4):
        lens, slots, token_slots = batch_of(rng, "EXTEND")
        batch = support.forward_batch("EXTEND", lens)
        ours.backend.prepare_lora_batch(batch, slots, RANKS, SCALINGS, False, use_prefill_cuda_graph=True)
        ids, rows = ids_of(rng, tokens), sum(lens)
        found = ours.embedding(ids)
        assert_rounded(found[:rows], ours.expected(ids[:rows], token_slots))
        assert torch.equal(found[rows:], ours.base.weight[ids[rows:]])
        hidden = torch.randn(len(lens), HIDDEN)  # lm_head runs behind the graph, on the last token of each
        assert_rounded(ours.head(hidden), ours.expected_logits(hidden, torch.tensor(slots)))
    assert used == ["embedding_lora", "lora_linear"] * 4


def test_a_batch_that_was_captured_again_keeps_no_adapter_of_the_last(on: Any, loaded: Any) -> None:
    on()
    ours = Pair().told()
    getattr(ours.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    ids = torch.arange(CAPACITY)
    ours.prepare("DECODE", [1] * CAPACITY, [1, 2] * (CAPACITY // 2), graph=True)
    assert not torch.equal(ours.embedding(ids), ours.base.weight[ids])
    idle = support.forward_batch("DECODE", [1] * CAPACITY)
    ours.backend.prepare_lora_batch(idle, [0] * CAPACITY, [0] * SLOTS, [0.0] * SLOTS, True)
    assert torch.equal(ours.embedding(ids), ours.base.weight[ids])


def test_an_adapter_that_comes_goes_and_comes_back(on: Any, loaded: Any) -> None:
    """The ranks that the segments see follow the words; equal steps are sent once, and not once too few."""
    on()
    ours = Pair().told()
    state = runtime.state_of(ours.backend)
    assert state is not None
    getattr(ours.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    ids, slots = torch.arange(4), [2, 1, 2, 0]
    for graph in (False, True):
        for has in (True, True, False, False, True):
            state.set_slot(2, has_embedding=has, has_head=True)
            ours.prepare("DECODE", [1] * 4, slots, graph=graph)
            expected = ours.expected(ids, torch.tensor(slots), [0, 8, 16 if has else 0, 0])
            padded = torch.cat([ids, torch.zeros(CAPACITY - 4, dtype=torch.int64)]) if graph else ids
            assert_rounded(ours.embedding(padded)[:4], expected)


def test_without_adapters_the_base_layer_runs_alone(on: Any, used: list[str], monkeypatch: Any) -> None:
    on()
    ours = Pair().told()
    ids = torch.tensor([1, 5, VOCAB - 1])
    for slots in ([0, 0, 0], [3, 0, 3]):  # nobody at all; an adapter of lm_head alone
        ranks = [rank if slot in slots else 0 for slot, rank in enumerate(RANKS)]
        ours.backend.prepare_lora_batch(support.forward_batch("DECODE", [1] * 3), slots, ranks, SCALINGS, False)
        monkeypatch.setattr(ours.backend, "run_lora_a_embedding", None)
        monkeypatch.setattr(ours.backend, "run_lora_b_sgemm", None)
        assert torch.equal(ours.embedding(ids), ours.base.weight[ids])
    assert used == []


def test_rows_that_pad_an_eager_batch(on: Any, used: list[str]) -> None:
    on()
    ours = Pair().told()
    lens, slots, token_slots = batch_of(np.random.default_rng(8), "DECODE")
    ours.prepare("DECODE", lens, slots)
    ids, rows = ids_of(np.random.default_rng(9), len(lens) + 5), len(lens)
    found = ours.embedding(ids)
    assert_rounded(found[:rows], ours.expected(ids[:rows], token_slots))
    assert torch.equal(found[rows:], ours.base.weight[ids[rows:]])
    hidden = torch.randn(rows + 5, HIDDEN)
    logits = ours.head(hidden)
    assert_rounded(logits[:rows], ours.expected_logits(hidden[:rows], token_slots))
    assert torch.equal(logits[rows:], functional.linear(hidden, ours.base_head.weight)[rows:])
    assert used == ["embedding_lora_add", "lora_linear"]
    with pytest.raises(ShapeError):
        ours.embedding(ids[: rows - 1])
    with pytest.raises(ShapeError):
        ours.head(hidden[: rows - 1])


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("mode", ["EXTEND", "DECODE"])
def test_no_rows_go_through_both_layers_whatever_is_planned(mode: str, told: bool, on: Any, loaded: Any) -> None:
    """A rank that idles under data-parallel attention runs its layers so while the last batch is still planned.

    SGLang 0.5.23 counts lm_head's rows in `forward` already, before anything of ours is called.
    """
    on()
    ours = Pair().told() if told else Pair()
    getattr(ours.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    nobody, ids, slots = torch.zeros(0, dtype=torch.int64), torch.tensor([4, 9]), torch.tensor([1, 2])
    for graph in (False, True) if mode == "DECODE" else (False,):
        for of_requests in ([1, 2], [0, 0]):
            ours.prepare(mode, [1, 1], of_requests, graph=graph)
            assert ours.embedding(nobody).shape == (0, HIDDEN)
            logits = torch.zeros(0, ours.base_head.weight.shape[0])
            assert ours.head.apply_lora(logits, torch.randn(0, HIDDEN)) is logits
    ours.prepare(mode, [1, 1], [1, 2])
    ours.embedding(nobody)
    assert_rounded(ours.embedding(ids), ours.expected(ids, slots))  # the batch is as it was


def test_no_rows_before_any_batch(on: Any) -> None:
    on()
    ours = Pair()
    state = runtime.state_of(ours.backend)
    assert state is not None
    base, logits = torch.zeros(0, HIDDEN), torch.zeros(0, VOCAB)
    assert embedding_hooks._embedding_add(state, ours.embedding, base, torch.zeros(0, dtype=torch.int64)) is base
    assert head_hooks._lm_head(state, ours.head, logits, base) is logits


def test_ids_outside_the_vocabulary(on: Any) -> None:
    """Their base row is that of id 0, as SGLang has it, not one of the rows that pad the weight; no LoRA is added."""
    on()
    ours = Pair().told()
    ids = torch.tensor([5, VOCAB, VOCAB + 3, VOCAB + 27, 10**9])
    ours.prepare("EXTEND", [len(ids)], [2])
    found = ours.embedding(ids)
    assert_rounded(found, ours.expected(ids, torch.full((len(ids),), 2)))
    assert torch.equal(found[1:], ours.base.weight[:1].expand(4, HIDDEN))
    assert torch.equal(ours.embedding(ids.int()), found)


def test_added_tokens_are_columns_behind_the_vocabulary(on: Any, used: list[str]) -> None:
    on()
    ours = Pair().told()
    wide = torch.cat([ours.a, torch.randn(SLOTS, MAX_RANK, 3)], dim=2)
    ours.embedding.embedding_A_buffer = to_storage(wide, "vocab_major")
    ids = torch.tensor([5, VOCAB, VOCAB + 2, VOCAB + 3])
    slots = torch.full((4,), 2)
    ours.prepare("EXTEND", [4], [2])
    expected = ours.expected(ids, slots, RANKS, wide, VOCAB + 3)
    assert_rounded(ours.embedding(ids), expected)
    # SGLang does not support new rows of the base embedding, and says so.
    ours.embedding.new_embeddings_buffer = torch.zeros(SLOTS, 3, HIDDEN)
    with pytest.raises(NotImplementedError):
        ours.embedding(ids)
    ours.embedding.new_embeddings_buffer = None
    ours.embedding.base_layer.forward = lambda ids: functional.embedding(ids, ours.base.weight)  # another layer's
    ours.embedding.__dict__.pop(embedding_hooks.PLAIN)
    assert_rounded(ours.embedding(ids), expected)
    assert used == ["embedding_lora", "embedding_lora_add"]


class Doubled:
    """A quantised base layer, as far as the plugin can see."""

    def embedding(self, layer: Any, input_: torch.Tensor) -> torch.Tensor:
        return 2 * functional.embedding(input_, layer.weight)


class Other(torch.nn.Module):
    """Another base layer, of the same interface."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.weight = base.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * functional.embedding(ids, self.weight)


def _quantised(ours: Pair, _: Any) -> float:
    ours.base.quant_method = Doubled()
    return 2


def _replaced(ours: Pair, _: Any) -> float:
    ours.base.forward = lambda ids: 2 * functional.embedding(ids, ours.base.weight)
    return 2


def _wrapped(ours: Pair, patch: Any) -> float:
    """As SGLang's own plugins wrap it."""
    kind, original = type(ours.base), type(ours.base).forward
    wrapper = lambda layer, ids: 2 * original(layer, ids)  # noqa: E731
    wrapper.__wrapped__ = original  # type: ignore[attr-defined]
    patch.setattr(kind, "forward", wrapper)
    return 2


def _other_method(ours: Pair, patch: Any) -> float:
    method = ours.base.quant_method
    patch.setattr(method, "embedding", lambda layer, ids: 2 * functional.embedding(ids, layer.weight), raising=False)
    return 2


def _other_layer(ours: Pair, _: Any) -> float:
    ours.embedding.base_layer = Other(ours.base)
    return 2


def _two_ranks(ours: Pair, patch: Any) -> float:
    """The sum over the ranks, of which the other one has the same rows."""
    ours.base.tp_size = 2
    module = importlib.import_module("sglang.srt.layers.vocab_parallel_embedding")
    patch.setattr(module, "get_masked_input_and_mask", lambda ids, *_: (ids, ids < 0))  # SGLang's is compiled
    patch.setattr(module, "tensor_model_parallel_all_reduce", lambda rows: 2 * rows)
    return 2


def _attention_ranks(ours: Pair, _: Any) -> float:
    ours.base.use_attn_tp_group = True
    return 1


def _replicated(ours: Pair, _: Any) -> float:
    ours.base.enable_tp = False
    return 1


def _of_another_dtype(ours: Pair, _: Any) -> float:
    """As SGLang has it from 0.5.20 on; here it is the same one."""
    ours.base.output_dtype = ours.base.weight.dtype
    return 1


def _probed(ours: Pair, patch: Any) -> float:
    patch.setenv(embedding_hooks.PROBES, "1")
    return 1


@pytest.mark.parametrize(
    "alter",
    [
        _quantised,
        _replaced,
        _wrapped,
        _other_method,
        _other_layer,
        _two_ranks,
        _attention_ranks,
        _replicated,
        _of_another_dtype,
        _probed,
    ],
    ids=lambda alter: alter.__name__,
)
def test_a_base_layer_that_does_more_runs_itself(
    alter: Callable[[Pair, Any], float], on: Any, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on()
    ours = Pair().told()
    factor = alter(ours, monkeypatch)
    lens, slots, token_slots = batch_of(np.random.default_rng(5), "EXTEND")
    ids = ids_of(np.random.default_rng(6), sum(lens))
    ours.prepare("EXTEND", lens, slots)
    expected = ours.expected(ids, token_slots) + (factor - 1) * ours.base.weight[ids].double()
    assert_rounded(ours.embedding(ids), expected)
    assert used == ["embedding_lora_add"]


def test_the_rows_follow_the_weight(on: Any) -> None:
    """Weights are updated in place, moved, and replaced."""
    on()
    ours = Pair().told()
    ids = torch.tensor([3, 4])
    ours.prepare("DECODE", [1, 1], [2, 0])

    def check() -> None:
        assert_rounded(ours.embedding(ids), ours.expected(ids, torch.tensor([2, 0])))

    check()
    ours.base.weight.data.mul_(3)
    check()
    ours.base.weight.data = torch.randn_like(ours.base.weight)
    check()
    ours.base.weight = torch.nn.Parameter(torch.randn_like(ours.base.weight), requires_grad=False)
    check()
    ours.embedding.base_layer = Other(ours.base)  # on the same weight
    with pytest.raises(AssertionError):
        check()


@DTYPES
@pytest.mark.parametrize("logprobs", ["none", "some", "passes"])
def test_lm_head_of_a_prefill(
    logprobs: str, dtype: torch.dtype, on: Any, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row a request, or the rows that log-probabilities keep, all at once or in passes as SGLang cuts them."""
    if logprobs == "passes":
        for name in ("LOGPROB", "LOGITS_PROCESSER"):  # the second until 0.5.13
            monkeypatch.setenv(f"SGLANG_ENABLE_{name}_CHUNK", "1")
            monkeypatch.setenv(f"SGLANG_{name}_CHUNK_SIZE", "20")
    on()
    ours = Pair(dtype).told()
    rng = np.random.default_rng(3)
    passes = 0
    for _ in range(3):
        lens, slots, _ = batch_of(rng, "EXTEND")
        starts = None if logprobs == "none" else [int(rng.integers(0, length + 1)) for length in lens]
        kept = [1] * len(lens) if starts is None else [max(n - s, 1) for n, s in zip(lens, starts, strict=True)]
        row_slots = torch.tensor(slots).repeat_interleave(torch.tensor(kept))
        hidden = torch.from_numpy(rng.standard_normal((sum(kept), HIDDEN))).to(dtype)
        on()
        ours.prepare("EXTEND", lens, slots, logprob_starts=starts)
        found = ours.head(hidden)
        expected = ours.expected_logits(hidden, row_slots)
        assert found.dtype == dtype
        assert_rounded(found, expected)
        for at, info in enumerate(ours.backend.lm_head_pass_batch_infos or ()):
            start = at * 20
            part = hidden[start : start + info.expected_tokens]
            ours.head.set_lm_head_pass(at)
            passed = ours.head(part)
            ours.head.reset_lm_head_pass()
            assert_rounded(passed, expected[start : start + len(part)])
            passes += 1
        with pytest.raises(RuntimeError, match="expects"):  # SGLang's own check
            ours.head(hidden[:-1] if len(hidden) > 1 else hidden.repeat(2, 1))
    assert (passes > 3) == (logprobs == "passes")
    assert set(used) == {"lora_linear"} and len(used) == 3 + passes


def test_lm_head_takes_one_view_of_a_batch(on: Any, monkeypatch: pytest.MonkeyPatch, loaded: Any) -> None:
    """Made with the plan, also of a step that is not sent again."""
    on()
    ours = Pair().told()
    seen: list[Any] = []
    op = head_hooks.lora_linear
    monkeypatch.setattr(head_hooks, "lora_linear", lambda *args: (seen.append(args[-1]), op(*args))[1])
    getattr(ours.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    for graph in (False, True):
        for _ in range(2):
            ours.prepare("DECODE", [1] * CAPACITY, [1, 2] * (CAPACITY // 2), graph=graph)
            ours.head(torch.randn(CAPACITY, HIDDEN))
    assert seen[0] is seen[1] and seen[2] is seen[3]


@pytest.mark.parametrize("mode", ["eager decode", "captured decode", "prefill"])
def test_an_adapter_without_lora_on_lm_head_costs_nothing_there(
    mode: str, on: Any, used: list[str], loaded: Any
) -> None:
    """Its tables are not read, and where no adapter of the batch has LoRA there nothing is launched."""
    on()
    ours = Pair().told()
    state = runtime.state_of(ours.backend)
    assert state is not None
    getattr(ours.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    graph = mode == "captured decode"
    base_of = partial(functional.linear, weight=ours.base_head.weight)
    for has in (True, False, False, True):  # the same step again, with another adapter in slot 2
        state.set_slot(2, has_embedding=True, has_head=has)
        tables = [table.clone() for table in (ours.head_a, ours.head_b)]
        for slots in ([0, 1, 2], [2, 2, 2]):
            ours.prepare("EXTEND" if mode == "prefill" else "DECODE", [1] * 3, slots, graph=graph)
            hidden = torch.randn(3, HIDDEN)
            expected = ours.expected_logits(hidden, torch.tensor(slots))
            if not has:
                ours.head_a[2], ours.head_b[2] = float("nan"), float("nan")
            used.clear()
            found = ours.head(hidden)
            ours.head_a.copy_(tables[0]), ours.head_b.copy_(tables[1])
            with_lora = torch.tensor([slot == 1 or (slot == 2 and has) for slot in slots])
            assert_rounded(found[with_lora], expected[with_lora])
            assert torch.equal(found[~with_lora], base_of(hidden)[~with_lora])
            assert used == (["lora_linear"] if graph or with_lora.any() else [])


def test_a_plan_of_sglangs_own(on: Any, used: list[str]) -> None:
    """Prepared while the plugin was off: the layer reads it as it is, lm_head is SGLang's."""
    ours = Pair()
    lens, slots, token_slots = batch_of(np.random.default_rng(6), "EXTEND")
    ours.prepare("EXTEND", lens, slots)
    on()
    ids = ids_of(np.random.default_rng(7), sum(lens))
    assert_rounded(ours.embedding(ids), ours.expected(ids, token_slots, RANKS))
    assert used == ["embedding_lora"]


def _both(pair: Pair, graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
    pair.prepare("DECODE", [1] * CAPACITY, [1, 2, 0, 3] * (CAPACITY // 4), graph=graph)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(CAPACITY, HIDDEN, generator=generator).to(pair.a.dtype)
    return pair.embedding(torch.arange(CAPACITY)), pair.head(hidden)


@DTYPES
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("switch", ["layer", "lm_head"])
def test_a_switch_that_is_off_gives_sglangs_function_back(
    switch: str, graph: bool, dtype: torch.dtype, on: Any, used: list[str], loaded: Any
) -> None:
    """To the bit. The lookup is the plugin's still, which equals SGLang's."""

    def pair() -> Pair:
        made = Pair(dtype, "rank_major")
        getattr(made.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
        return made

    stock = _both(pair(), graph)
    on(**{switch: False}, storage="rank_major")
    found = _both(pair(), graph)
    assert used == {"layer": ["lora_linear"], "lm_head": ["embedding_lora"]}[switch]
    for name, ours, theirs in zip(("layer", "lm_head"), found, stock, strict=True):
        if switch == name:
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("absent", OPS)
def test_without_one_of_the_hooks_the_others_work(absent: str, loaded: Any, on: Any, used: list[str]) -> None:
    name = {"embedding_lora": "layer", "embedding_lora_add": "layer_add", "lora_linear": "lm_head"}[absent]
    on()
    active = runtime.active
    assert active is not None
    runtime.activate(active._replace(absent=frozenset({name})))
    ours = Pair()
    embedding, logits = _both(ours, graph=False)
    slots = torch.tensor([1, 2, 0, 3] * (CAPACITY // 4))
    assert_rounded(embedding, ours.expected(torch.arange(CAPACITY), slots, RANKS))
    assert absent not in used and len(used) == {"layer": 2, "layer_add": 2, "lm_head": 1}[name]
    assert logits.shape == (CAPACITY, ours.base_head.weight.shape[0])


def test_what_the_ops_do_not_take_is_sglangs(on: Any, used: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    on()
    ours = Pair()
    monkeypatch.setattr(ours.head, "_get_lm_head_batch_info", lambda _: None)
    rows, ids, logits = torch.zeros(1, HIDDEN), torch.tensor([1]), torch.zeros(1, VOCAB)

    def original(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return args, kwargs

    def check(hook: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
        """SGLang's function gets what it was called with."""
        assert hook(original, layer, *args, **kwargs) == ((layer, *args), kwargs)

    def check_all() -> None:
        check(embedding_hooks.forward, ours.embedding, input_=ids)
        check(embedding_hooks.apply, ours.embedding, rows, ids, None)
        check(head_hooks.apply, ours.head, logits, hidden_states=rows)

    check_all()  # nothing was prepared
    ours.prepare("DECODE", [1], [1])
    check(embedding_hooks.forward, ours.embedding, ids[None])
    check(embedding_hooks.forward, ours.embedding, ids.short())
    check(embedding_hooks.apply, ours.embedding, rows.half(), ids)
    check(embedding_hooks.apply, ours.embedding, rows, ids[None])
    check(head_hooks.apply, ours.head, logits, rows.half())
    check(head_hooks.apply, ours.head, logits[:, : VOCAB - 1], rows)
    check(head_hooks.apply, ours.head, logits[0], rows)
    with monkeypatch.context() as patch:
        patch.setattr(ours.embedding, "set_lora", False)
        check(embedding_hooks.forward, ours.embedding, ids)
    for layer in (ours.embedding, ours.head):
        layer.lora_backend = object()  # of another kind
    check_all()
    assert used == []


def test_planned_batches_carry_what_both_ops_need(on: Any) -> None:
    """Ranks of 0 in the layer's batch where the words are 0; a tile for each slot that lm_head has work for."""
    on()
    ours = Pair().told()
    ours.prepare("EXTEND", [2, 3], [3, 2])
    batch = getattr(ours.backend.batch_info, planner.BATCH)
    head = getattr(ours.backend.lm_head_batch_info, planner.HEAD)
    assert batch.ranks.tolist() == EMBEDDING_RANKS and batch.scalings.tolist() == SCALINGS
    words = head.tile_words.reshape(-1, 2)
    assert words[:, 0].tolist() == [2 << 16 | RANKS[2], 3 << 16 | RANKS[3]]
    assert words[:, 1].contiguous().view(torch.float32).tolist() == [SCALINGS[2], SCALINGS[3]]
    assert (batch.num_tokens, head.num_tokens) == (5, 2)
