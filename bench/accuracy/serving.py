"""A model served by SGLang's LoRA: SGLang's manager, memory pool and two layers around transformers' body.

The model's embed_tokens and lm_head become SGLang's layers, unchanged. Between them runs transformers' decoder, so a
difference from the reference comes from the two layers, the pool or the batch's plan. The layers' decode can run in
CUDA graphs, which are captured once and replayed for every step on refilled buffers. The body between them is eager.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from bench.accuracy.generation import Body, Request
from bench.accuracy.models import MODULES, AccuracyError, Adapter
from bench.contenders.sglang.harness import forward_batch, server_args

Backend = Literal["triton", "csgmv"]


class Shell(nn.Module):
    """The part of a model that SGLang's manager looks at: SGLang's two layers with the model's weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        layers = importlib.import_module("sglang.srt.layers.vocab_parallel_embedding")
        embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        self.config = model.config
        self.model = nn.Module()
        self.model.embed_tokens = _filled(layers.VocabParallelEmbedding, embed)
        self.lm_head = self.model.embed_tokens if head is embed else _filled(layers.ParallelLMHead, head)


def _filled(kind: Any, weight: torch.Tensor) -> Any:
    """SGLang's layer, whose rows are padded to a multiple of 64, with these weights."""
    with weight.device:
        layer = kind(*weight.shape, params_dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[: len(weight)] = weight
    return layer.requires_grad_(False)


class Server:
    """Serves requests of any loaded adapters in one batch, as a generation.Engine. Used inside sglang_host.hosted.

    `slots` includes the base model's. `graph_requests`: decode in CUDA graphs of this many requests; 0 means eager.
    """

    def __init__(self, model: Any, backend: Backend, *, slots: int, max_rank: int, graph_requests: int = 0) -> None:
        self.vocab: int = model.config.vocab_size
        self.device: torch.device = model.device
        self.shell = Shell(model)
        self.body = Body(model)
        self.manager = _manager(self.shell, model, backend, slots, max_rank)
        self.refs: dict[str, Any] = {}
        self._uids: list[str | None] = []
        self._graphs: Graphs | None = None
        if graph_requests:
            self.manager.init_cuda_graph_batch_info(max_bs_in_cuda_graph=graph_requests, num_tokens_per_req=1)
            self._graphs = Graphs(self, model, graph_requests)

    @property
    def backend(self) -> Any:
        """SGLang's LoRA backend."""
        return self.manager.lora_backend

    def load(self, adapter: Adapter, name: str | None = None) -> None:
        """Make an adapter known to the manager. Raises AccuracyError with SGLang's reason if SGLang refuses it."""
        registry = importlib.import_module("sglang.srt.lora.lora_registry")
        name = name or adapter.name
        ref = registry.LoRARef(lora_name=name, lora_path=name, pinned=False)
        result = self.manager.load_lora_adapter_from_tensors(ref, dict(adapter.tensors), dict(adapter.config))
        if not result.success:
            raise AccuracyError(f"adapter {name}: SGLang refused it: {result.error_message}")
        self.refs[name] = ref

    def unload(self, name: str) -> None:
        """Make the manager forget an adapter. Raises AccuracyError if it is not loaded, or if SGLang refuses."""
        if name not in self.refs:
            raise AccuracyError(f"adapter {name}: is not loaded; expected one of {', '.join(self.refs) or 'none'}")
        result = self.manager.unload_lora_adapter(self.refs.pop(name))
        if not result.success:
            raise AccuracyError(f"adapter {name}: SGLang did not unload it: {result.error_message}")

    def prefill(self, requests: Sequence[Request]) -> torch.Tensor:
        """See generation.Engine.

        Adapters that are not in a slot are loaded into one, and others are evicted for them.
        """
        lens = [len(request.ids) for request in requests]
        self._uids = [None if request.adapter is None else self.refs[request.adapter].lora_id for request in requests]
        self.manager.fetch_new_loras(set(self._uids))
        self.prepare(forward_batch("EXTEND", lens, logprob_starts=[0] * len(lens), device=self.device), self._uids)
        ids = torch.tensor([token for request in requests for token in request.ids], device=self.device)
        return self.head(self.body.prefill(self.embed(ids), lens))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See generation.Engine."""
        tokens = tokens.to(self.device)
        if self._graphs is not None:
            return self._graphs.step(tokens, self._uids)
        self.prepare(forward_batch("DECODE", [1] * len(tokens)), self._uids)
        return self.head(self.body.step(self.embed(tokens)))

    def prepare(self, batch: SimpleNamespace, uids: Sequence[str | None]) -> None:
        """SGLang's plan of a batch."""
        batch.lora_ids = list(uids)
        self.manager.prepare_lora_batch(batch)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """SGLang's embedding layer: (tokens,) to (tokens, hidden)."""
        out: torch.Tensor = self.shell.model.get_submodule("embed_tokens")(ids)
        return out

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """SGLang's lm_head: (tokens, hidden) to (tokens, vocab), without padding."""
        out: torch.Tensor = self.shell.get_submodule("lm_head")(hidden)
        return out[:, : self.vocab]


class Graphs:
    """The two layers' decode in CUDA graphs, for up to `capacity` requests.

    They are captured with requests of the base model only, and replayed for any requests. The body cannot be part of a
    graph, because its cache grows. SGLang's backends fill the same buffers for every batch.
    """

    def __init__(self, server: Server, model: Any, capacity: int) -> None:
        self._server, self._capacity = server, capacity
        self._ids = torch.zeros(capacity, dtype=torch.int64, device=server.device)
        self._hidden = torch.zeros(capacity, model.config.hidden_size, dtype=model.dtype, device=server.device)
        with torch.inference_mode():
            server.prepare(forward_batch("DECODE", [1] * capacity), [None] * capacity)
            self._embed = _captured(lambda: server.embed(self._ids))
            self._head = _captured(lambda: server.head(self._hidden))

    def step(self, tokens: torch.Tensor, uids: Sequence[str | None]) -> torch.Tensor:
        """Server.step with the layers replayed. Raises AccuracyError for more requests than were captured."""
        count = len(tokens)
        if count > self._capacity:
            raise AccuracyError(f"the batch has {count} requests; the graph holds at most {self._capacity}")
        self._server.prepare(forward_batch("DECODE", [1] * count), uids)
        self._ids[:count] = tokens
        hidden = self._server.body.step(self._embed()[:count])
        self._hidden[:count] = hidden
        return self._head()[:count].clone()


def _captured(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The call as a graph: replays it and returns its output buffer, poisoned before each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and sizes what a capture cannot
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> torch.Tensor:
        out.fill_(float("nan"))
        graph.replay()
        return out

    return replay


def _manager(shell: Shell, model: Any, backend: Backend, slots: int, max_rank: int) -> Any:
    found = importlib.import_module("sglang.srt.lora.lora_manager").LoRAManager
    load_config = importlib.import_module("sglang.srt.configs.load_config").LoadConfig
    manager = found(
        base_model=shell,
        base_hf_config=model.config,
        max_loras_per_batch=slots,
        load_config=load_config(),
        dtype=model.dtype,
        server_args=server_args(),
        lora_backend=backend,
        max_lora_rank=max_rank,
        target_modules={"all"},
    )
    if missing := set(MODULES) - manager.target_modules:
        raise AccuracyError(f"SGLang does not apply LoRA to {', '.join(sorted(missing))} in this model")
    return manager
