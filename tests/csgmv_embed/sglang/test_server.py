"""LoRAManager, memory pool and the two layers of SGLang, as they are, around a small model, the plugin loaded.

Every forward is compared with the dense formula, and the lookup with SGLang's own kernel, bit for bit.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from safetensors.torch import save_file

from csgmv_embed import ShapeError
from csgmv_embed.sglang import planner, runtime
from csgmv_embed.sglang.hooks import pool as pool_hooks
from tests.support import real_sglang as support
from tests.support.rounding import Exact, assert_rounded

VOCAB, HIDDEN, SLOTS, MAX_RANK = support.VOCAB, 32, 3, 16
pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("group_of_one")]

# What SGLang's checkpoint loader asks a running server; all off.
LOADING = (
    "model_checksum",
    "weight_loader_disable_mmap",
    "weight_loader_prefetch_checkpoints",
    "weight_loader_prefetch_num_threads",
    "weight_loader_drop_cache_after_load",
)

Adapter = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Server:
    """A manager, its model and the adapters that were loaded by name."""

    def __init__(self, *, tied: bool = False, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.model = support.TwoModules(VOCAB, HIDDEN, tied=tied, dtype=dtype)
        self.base = self.model.model.embed_tokens.weight[:VOCAB].detach().clone()
        self.head = self.model.lm_head.weight[:VOCAB].detach().clone()
        self.manager = support.manager(self.model, **{"slots": SLOTS, "max_rank": MAX_RANK, **options})
        self.pool = self.manager.memory_pool
        self.adapters: dict[str, Adapter] = {}
        self.refs: dict[str, Any] = {}

    @property
    def table(self) -> torch.Tensor:
        return self.pool.embedding_A_buffer["embed_tokens"]

    def load(self, name: str, adapter: Adapter) -> Any:
        ref = self.reference(name)
        result = self.manager.load_lora_adapter_from_tensors(ref, *adapter)
        if result.success:
            self.adapters[name], self.refs[name] = adapter, ref
        return result

    def reference(self, name: str, path: str | None = None) -> Any:
        from sglang.srt.lora.lora_registry import LoRARef

        return LoRARef(lora_name=name, lora_path=path or name, pinned=False)

    def unload(self, name: str) -> None:
        assert self.manager.unload_lora_adapter(self.refs.pop(name)).success
        del self.adapters[name]

    def forward(self, names: list[str | None], lens: list[int], seed: int = 0) -> None:
        """One prefill through both layers, checked against the dense formula and SGLang's lookup."""
        uids = [None if name is None else self.refs[name].lora_id for name in names]
        self.manager.fetch_new_loras(set(uids))
        batch = support.forward_batch("EXTEND", lens)
        batch.lora_ids = uids
        self.manager.prepare_lora_batch(batch)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, VOCAB, (sum(lens),), generator=generator)
        hidden = torch.randn(len(lens), HIDDEN, generator=generator).to(self.base.dtype)

        layer = self.model.model.embed_tokens
        lookup = layer.run_lora_a_embedding(ids, None)
        assert torch.equal(lookup, self._stock_lookup(batch, ids, names, lens))
        assert_rounded(layer(ids), self._embedding(ids, names, lens))
        if self.manager.lm_head_module is not None:
            assert_rounded(self.model.lm_head(hidden)[:, :VOCAB], self._logits(hidden, names))

    def _stock_lookup(self, batch: Any, ids: torch.Tensor, names: list[str | None], lens: list[int]) -> torch.Tensor:
        """SGLang's kernel on its own plan, on tables made from the adapters' weights."""
        active = runtime.active
        runtime.activate(None)
        try:
            loaded = [name for name in dict.fromkeys(names) if name is not None]
            slot_of = {None: 0, **{name: k + 1 for k, name in enumerate(loaded)}}
            weights = torch.zeros(len(loaded) + 1, MAX_RANK, VOCAB, dtype=self.base.dtype)
            ranks = [0] * len(slot_of)
            for name in loaded:
                a, _ = self._weights(name, "embed_tokens")
                ranks[slot_of[name]] = self.adapters[name][1]["r"]
                weights[slot_of[name], : a.shape[0]] = a.to(weights.dtype)
            stock = support.backend(len(slot_of))
            stock.prepare_lora_batch(batch, [slot_of[name] for name in names], ranks, [1.0] * len(ranks), False)
            found: torch.Tensor = stock.run_lora_a_embedding(ids, weights, VOCAB)
            return found
        finally:
            runtime.activate(active)

    def _weights(self, name: str, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of an adapter, of zeros where it has none."""
        tensors, config = self.adapters[name]
        found = [tensor for key, tensor in tensors.items() if module in key]
        rows = (VOCAB, HIDDEN) if module == "embed_tokens" else (HIDDEN, VOCAB)
        return tuple(found) if found else (torch.zeros(config["r"], rows[0]), torch.zeros(rows[1], config["r"]))

    def _embedding(self, ids: torch.Tensor, names: list[str | None], lens: list[int]) -> Exact:
        sums = torch.stack([self.base[ids].double(), self.base[ids].double().abs()])
        start = 0
        for name, length in zip(names, lens, strict=True):
            if name is not None:
                a, b = (weight.to(self.base.dtype).double() for weight in self._weights(name, "embed_tokens"))
                rows = slice(start, start + length)
                sums[0, rows] += 2 * (a[:, ids[rows]].T @ b.T)
                sums[1, rows] += 2 * (a[:, ids[rows]].T.abs() @ b.T.abs())
            start += length
        return Exact(*sums, terms=MAX_RANK + 2)

    def _logits(self, hidden: torch.Tensor, names: list[str | None]) -> Exact:
        """The logits are rounded before LoRA is added to them, and so is what A gives."""
        hidden, head = hidden.double(), self.head.double()
        sums = torch.stack([hidden @ head.T, hidden.abs() @ head.T.abs()])
        for row, name in enumerate(names):
            if name is not None:
                a, b = (weight.to(self.base.dtype).double() for weight in self._weights(name, "lm_head"))
                sums[0, row] += 2 * (hidden[row] @ a.T @ b.T)
                sums[1, row] += 2 * (hidden[row].abs() @ a.T.abs() @ b.T.abs())
        return Exact(*sums, terms=HIDDEN + MAX_RANK + 2, inner=1)


def draw(rank: int, seed: int, modules: tuple[str, ...] = ("embed_tokens", "lm_head")) -> Adapter:
    return support.adapter(rank, VOCAB, HIDDEN, seed, modules)


@pytest.fixture
def on(plugin_on: Any) -> Iterator[Any]:
    with support.on_the_cpu(support.server_args(), "sglang.srt.lora.layers"):
        yield plugin_on


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.once)], ids=str)
@pytest.mark.parametrize("storage", ["vocab_major", "rank_major"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_server_serves_adapters_of_both_modules(tied: bool, storage: Any, dtype: torch.dtype, on: Any) -> None:
    on(storage=storage)
    server = Server(tied=tied, dtype=dtype)
    assert server.manager.target_modules == {"embed_tokens", "lm_head"}
    assert server.table.stride(1) == (1 if storage == "vocab_major" else VOCAB)
    server.forward([None, None], [3, 2])  # before any adapter
    for name, rank in (("a", 8), ("b", 16)):
        assert server.load(name, draw(rank, seed=rank)).success
    server.forward(["a", None, "b", "a"], [5, 1, 4, 17])
    server.forward(["b"], [1])


def test_eviction_slot_reuse_unload_reload_and_update(on: Any) -> None:
    on()
    server = Server()
    address = server.table.data_ptr()
    for k, name in enumerate("abcde"):
        assert server.load(name, draw((16, 4, 8, 1, 12)[k], seed=k)).success
    for names in (["a", "b", None], ["c", None], ["d", "e", "a"], ["b", "c"], ["e", None]):
        server.forward(list(names), list(range(2, 2 + len(names))))
    server.unload("a")
    server.forward(["b", None], [3, 3])
    assert server.load("a", draw(4, seed=77)).success  # the same name, other weights and another rank
    server.forward(["a", "b"], [9, 2])
    assert server.table.data_ptr() == address and server.table.stride(1) == 1


def test_a_slot_keeps_nothing_of_the_adapter_it_held_before(on: Any) -> None:
    """SGLang clears the tables of an adapter without both modules; with one of them, the other stayed."""
    on()
    server = Server(slots=2)
    for name, modules in (("both", ("embed_tokens", "lm_head")), ("head", ("lm_head",)), ("embed", ("embed_tokens",))):
        assert server.load(name, draw(8, seed=len(name), modules=modules)).success
    for name in ("both", "head", "both", "embed", "head", "embed"):
        server.forward([name, name], [4, 2])
    server.forward(["head", None], [4, 2])
    state = runtime.state_of(server.manager.lora_backend)
    assert state is not None and state.slot_has_embedding is not None and not state.slot_has_embedding.any()
    assert getattr(server.manager.lora_backend.batch_info, planner.BATCH) is None
    assert state.slot_has_head is not None
    slot_of = server.pool.uid_to_buffer_id
    assert state.slot_has_head.tolist() == [slot_of[server.refs["head"].lora_id] == slot for slot in range(2)]
    version = state.words_version
    server.forward(["embed", None], [4, 2])
    assert not state.slot_has_head.any() and state.words_version > version  # a decode step is not the last one again


def test_memory_equals_sglangs_to_the_byte(on: Any) -> None:
    def bytes_of(server: Server) -> dict[str, int]:
        buffers = ("embedding_A_buffer", "embedding_B_buffer", "lm_head_A_buffer", "lm_head_B_buffer")
        return {
            f"{name}.{module}": tensor.untyped_storage().nbytes()
            for name in buffers
            for module, tensor in getattr(server.pool, name).items()
        }

    on(storage="rank_major")
    stock = bytes_of(Server())
    on()
    server = Server()
    assert bytes_of(server) == stock
    assert server.table.untyped_storage().nbytes() == SLOTS * MAX_RANK * VOCAB * 4
    assert server.manager.embed_tokens_module.embedding_A_buffer is server.table


def test_the_table_is_the_memory_that_sglang_allocated(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy, not even in passing: on a GPU that could hold only one it would fail."""
    on()
    monkeypatch.setattr(pool_hooks, "_read_by_csgmv", lambda model: True)
    table, pool = torch.zeros(2, 4, 6), SimpleNamespace(embedding_A_buffer={})
    pool_hooks.init_buffers(lambda pool, _: pool.embedding_A_buffer.update(embed_tokens=table), pool, torch.nn.Module())
    found = pool.embedding_A_buffer["embed_tokens"]
    assert found.data_ptr() == table.data_ptr()
    assert found.shape == table.shape and found.stride() == (24, 1, 4)


def test_only_what_is_targeted_is_prepared(on: Any) -> None:
    on()
    embedding = Server(modules=("embed_tokens",))
    assert embedding.load("a", draw(8, 1, ("embed_tokens",))).success
    embedding.forward(["a", None], [3, 2])
    backend = embedding.manager.lora_backend
    state = runtime.state_of(backend)
    assert state is not None and state.embedding_targeted and not state.lm_head_targeted
    assert backend.lm_head_batch_info is None
    assert getattr(backend.batch_info, planner.BATCH) is not None

    head = Server(modules=("lm_head",))
    assert head.load("a", draw(8, 1, ("lm_head",))).success
    uid = head.refs["a"].lora_id
    head.manager.fetch_new_loras({uid})
    batch = support.forward_batch("EXTEND", [3])
    batch.lora_ids = [uid]
    head.manager.prepare_lora_batch(batch)
    assert head.manager.lora_backend.lm_head_batch_info is not None
    assert getattr(head.manager.lora_backend.batch_info, planner.BATCH) is None
    state = runtime.state_of(head.manager.lora_backend)
    assert state is not None and state.embedding_targeted is False and state.lm_head_targeted
    hidden = torch.randn(1, HIDDEN)
    assert_rounded(head.model.lm_head(hidden)[:, :VOCAB], head._logits(hidden, ["a"]))


def test_an_adapter_from_a_folder(on: Any, tmp_path: Path) -> None:
    on()
    server = Server()
    tensors, config = draw(8, 3)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    ref = server.reference("disk", str(tmp_path))
    loader = importlib.import_module("sglang.srt.model_loader.loader")
    getter = "get_server_args" if hasattr(loader, "get_server_args") else "get_global_server_args"
    with patch.object(loader, getter, lambda: MagicMock(**dict.fromkeys(LOADING))):
        assert server.manager.load_lora_adapter(ref).success
    server.adapters["disk"], server.refs["disk"] = (tensors, config), ref
    server.forward(["disk", None], [6, 2])


def spoiled(**change: torch.Tensor | int) -> Adapter:
    """An adapter of rank 8 with one tensor, or the rank, replaced."""
    tensors, config = draw(8, 9)
    keys = {"embed_A": 0, "embed_B": 1, "head_A": 2, "head_B": 3}
    for name, value in change.items():
        if name == "r":
            config["r"] = value
        else:
            tensors[list(tensors)[keys[name]]] = value
    return tensors, config


BAD = [
    spoiled(embed_A=torch.zeros(8, VOCAB + 1)),
    spoiled(embed_A=torch.zeros(MAX_RANK + 1, VOCAB)),
    spoiled(embed_B=torch.zeros(HIDDEN, 4)),
    spoiled(head_A=torch.zeros(8, HIDDEN + 1)),
    spoiled(head_B=torch.zeros(VOCAB - 1, 8)),
    support.adapter(MAX_RANK + 1, VOCAB, HIDDEN, 1),
]


@pytest.mark.parametrize("bad", range(len(BAD)))
def test_an_adapter_that_does_not_fit_changes_nothing(bad: int, on: Any) -> None:
    on()
    server = Server()
    assert server.load("a", draw(8, 1)).success and server.load("b", draw(8, 2)).success
    server.forward(["a", "b", None], [2, 2, 2])
    manager, pool = server.manager, server.pool
    before = [dict(manager.loras), dict(manager.configs), dict(manager.lora_refs), dict(pool.uid_to_buffer_id)]
    table, slots = server.table.clone(), list(pool.buffer_id_to_uid)
    result = server.load("bad", BAD[bad])
    assert not result.success and ("shape" in result.error_message or "rank" in result.error_message)
    after = [dict(manager.loras), dict(manager.configs), dict(manager.lora_refs), dict(pool.uid_to_buffer_id)]
    assert after == before and torch.equal(server.table, table) and pool.buffer_id_to_uid == slots
    server.forward(["a", None, "b"], [1, 2, 3])


def test_the_pool_refuses_an_adapter_before_it_evicts(on: Any) -> None:
    on()
    server = Server(slots=2)
    assert server.load("a", draw(8, 1)).success and server.load("b", draw(8, 2)).success
    server.forward(["a", "b"], [2, 2])
    uid = server.refs["a"].lora_id
    assert server.load("c", draw(8, 3)).success
    broken = server.manager.loras[server.refs["c"].lora_id]
    key = next(iter(broken.embedding_layers))
    broken.embedding_layers[key] = broken.embedding_layers[key][:, :-1]
    residents, table = dict(server.pool.uid_to_buffer_id), server.table.clone()
    with pytest.raises(ShapeError, match="embed_tokens LoRA A"):
        server.manager.fetch_new_loras({server.refs["c"].lora_id})
    assert server.pool.uid_to_buffer_id == residents and torch.equal(server.table, table)
    with pytest.raises(ShapeError):
        server.pool.load_lora_weight_to_buffer(
            "c", 0, broken, server.manager.lora_modules, server.manager.embed_tokens_module, None
        )
    assert torch.equal(server.table, table) and uid in server.pool.uid_to_buffer_id


def test_another_backends_pool_keeps_its_storage(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on()
    real = support.manager
    monkeypatch.setattr(runtime, "state_of", lambda backend: None)  # as for a backend that is not csgmv
    model = support.TwoModules(VOCAB, HIDDEN, tied=False, dtype=torch.float32)
    manager = real(model, slots=SLOTS, max_rank=MAX_RANK)
    assert manager.memory_pool.embedding_A_buffer["embed_tokens"].is_contiguous()
