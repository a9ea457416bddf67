"""The SGLang plugin: SGLang's own backend object, whose batch is planned and looked up by the plugin's hooks.

Compared with `sglang_csgmv` of the same chunk size, this shows the plugin on against off: one process, one backend
class.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.contenders.base import KernelRef, Launch, Preparation
from bench.contenders.ours.lookup import CsgmvEmbed
from bench.contenders.sglang.csgmv import SglangCsgmv
from bench.contenders.sglang.peers import DEFAULT_CHUNK_SIZE
from bench.workload.tensors import Workload


class CsgmvEmbedPlugin(SglangCsgmv):
    """`chunk_size` is the server's --max-lora-chunk-size. It prepares for both modules, as SGLang does.

    Each batch is planned as if it were new. `steady`: planned as the decode step after an equal one, which is not sent
    again.
    """

    def __init__(self, chunk_size: int = DEFAULT_CHUNK_SIZE, steady: bool = False) -> None:
        super().__init__(chunk_size)
        self.name = f"csgmv_embed_plugin{'_steady' if steady else ''}-chunk{chunk_size}"
        self._steady = steady
        self._kernel = CsgmvEmbed("vocab_major", "tokens")

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        with (
            self.peer.preparing(workload, static=static, chunk_size=self.chunk_size) as (backend, prepare),
            plugged(backend),
        ):
            prepare()
        return self.launch_on(backend, workload)

    @contextmanager
    def preparation(self, workload: Workload) -> Iterator[Preparation]:
        from csgmv_embed.sglang import planner

        with (
            self.peer.preparing(workload, static=True, chunk_size=self.chunk_size) as (backend, prepare),
            plugged(backend),
        ):
            state = getattr(backend, planner.STATE)

            def prepare_anew() -> None:
                state.last_step = None
                prepare()

            yield Preparation(prepare if self._steady else prepare_anew, self.launch_on(backend, workload))

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        from csgmv_embed.sglang import planner
        from csgmv_embed.sglang.hooks.lookup import run_lookup

        state = getattr(backend, planner.STATE)
        ids, table, vocab = workload.index_sets, workload.table("vocab_major"), workload.case.vocab
        return lambda k: run_lookup(state, ids[k], table, vocab)

    def required_bytes(self, workload: Workload) -> int:
        return self._kernel.required_bytes(workload)

    def kernels(self) -> list[KernelRef]:
        return self._kernel.kernels()


def plug_layer(layer: Any) -> None:
    """Apply to this one layer object what the hooks do to SGLang's layer classes. Its backend has to be plugged."""
    from csgmv_embed.sglang.hooks.registry import HOOKS

    kind = type(layer)
    hooks = {"apply_lora": HOOKS["lm_head"]}
    if kind.__name__ == "VocabParallelEmbeddingWithLoRA":
        hooks = {"forward": HOOKS["layer"], "apply_lora": HOOKS["layer_add"]}
    for name, hook in hooks.items():
        setattr(layer, name, partial(hook, getattr(kind, name), layer))


@contextmanager
def plugged(backend: Any) -> Iterator[None]:
    """Apply to this one object what the hooks do to a backend class. Other contenders of the process keep SGLang's.

    Its methods are the plugin's inside the context, and SGLang's own after it.
    """
    from csgmv_embed.sglang import planner, runtime
    from csgmv_embed.sglang.hooks.registry import HOOKS
    from csgmv_embed.sglang.settings import Settings
    from csgmv_embed.sglang.targets import release_for

    release = release_for(importlib.metadata.version("sglang"), any_version=True)
    state = planner.attach(backend, release, head=True)
    for name in ("cuda_graph_batch_info", "prefill_cuda_graph_batch_info"):
        if getattr(backend, name, None) is not None:
            planner.pack(state, getattr(backend, name))
    backend.prepare_lora_batch = partial(HOOKS["prepare"], type(backend).prepare_lora_batch, backend)
    backend.run_lora_a_embedding = partial(HOOKS["lookup"], type(backend).run_lora_a_embedding, backend)
    before = runtime.active
    runtime.activate(runtime.Active(release, Settings()))
    try:
        yield
    finally:
        runtime.activate(before)
