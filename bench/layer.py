"""SGLang's embedding layer with the plugin on and off, in one process, on one set of weights. Prints nothing.

The layer is SGLang's VocabParallelEmbeddingWithLoRA where it imports. It wants the package sgl_kernel for kernels that
embedding LoRA does not use; where that is missing a stand-in supplies the names (stand_ins.py). Where the layer still
does not import, the calls of its forward are made one by one on the same backend objects, and the rows say so.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import msgspec
import torch
from torch.nn import functional

from bench import stand_ins
from bench.case import Case, Phase
from bench.clocks import eager, graph
from bench.contenders.base import Launch
from bench.contenders.csgmv_embed_plugin import plugged
from bench.contenders.sglang_csgmv import SglangCsgmv
from bench.process_group import start_process_group
from bench.results import Code, Environment, ResultsError
from bench.workload import Workload, make_workload

HIDDEN, VOCAB, ADAPTERS, SEED = 4096, 128256, 8, 1
KERNEL_CACHE = "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"  # off: its keys forget the rank, and several are timed here
RANKS = (16, 64, 256)
SHAPES: tuple[tuple[Phase, int, int], ...] = (
    ("decode", 1, 1),
    ("decode", 32, 1),
    ("decode", 128, 1),
    ("decode", 256, 1),
    ("prefill", 8, 512),
)
INDEX_SETS, NODES, BLOCKS, BLOCK_MS, EAGER_CALLS = 8, 24, 10, 1.0, 50
CHUNK_SIZES = (16, 128)

Forward = Callable[[torch.Tensor], torch.Tensor]
Side = Literal["on", "off"]
Clock = Literal["graph", "eager"]


class LayerRow(msgspec.Struct):
    """One case and clock: samples of a forward in us, the plugin on and off, blocks taken in turn."""

    case: Case
    chunk_size: int
    clock: Clock
    layer: str  # SGLang's class, or the calls it makes
    on_us: list[float]
    off_us: list[float]


class LayerFile(msgspec.Struct):
    """What `python -m bench layer -o` writes."""

    environment: Environment
    code: Code
    hidden: int
    rows: list[LayerRow]


def encode(rows: list[LayerRow], environment: Environment, code: Code) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(LayerFile(environment, code, HIDDEN, rows)), indent=1)


def compare() -> Iterator[LayerRow]:
    """Two rows a case, graph and eager. Raises ResultsError if on and off differ in one bit."""
    os.environ.setdefault(KERNEL_CACHE, "0")
    device = torch.device("cuda", torch.cuda.current_device())
    layers = Layers(device, VOCAB, HIDDEN, torch.bfloat16)
    for rank, chunk_size in itertools.product(RANKS, CHUNK_SIZES):
        tables: dict[Any, torch.Tensor] = {}
        for shape in SHAPES:
            case = Case(*shape, rank, adapters=ADAPTERS, vocab=VOCAB)
            workload = make_workload(case, seed=SEED, index_sets=INDEX_SETS, device=device)
            workload.tables = tables
            yield from _compared(layers, workload, chunk_size)


def _compared(layers: Layers, workload: Workload, chunk_size: int) -> Iterator[LayerRow]:
    with both(layers, workload, chunk_size) as forwards:
        yield _timed(layers, workload, chunk_size, forwards, "graph")
        yield _timed(layers, workload, chunk_size, forwards, "eager")


@contextmanager
def both(layers: Layers, workload: Workload, chunk_size: int) -> Iterator[dict[Side, Forward]]:
    """The forward with the plugin on and off, found equal. Raises ResultsError if they differ in one bit."""
    slots, rank = workload.num_slots, workload.case.rank
    generator = torch.Generator(workload.device).manual_seed(SEED)
    shape = (slots, layers.hidden, rank)
    b_table = torch.randn(shape, device=workload.device, generator=generator).to(layers.weight.dtype)
    sides: tuple[Side, Side] = ("on", "off")
    with ExitStack() as stack:
        forwards: dict[Side, Forward] = {}
        for side in sides:
            preparing = SglangCsgmv.peer.preparing(workload, static=True, chunk_size=chunk_size)
            backend, prepare = stack.enter_context(preparing)
            if side == "on":
                stack.enter_context(plugged(backend))
            prepare()
            table = workload.table("vocab_major" if side == "on" else "rank_major")
            forwards[side] = layers.forward(backend, table, b_table)
        for ids in workload.index_sets:
            if not torch.equal(forwards["on"](ids), forwards["off"](ids)):
                raise ResultsError(f"{workload.case.label}: the layer differs with the plugin on and off")
        yield forwards


def _timed(
    layers: Layers, workload: Workload, chunk_size: int, forwards: dict[Side, Forward], clock: Clock
) -> LayerRow:
    row = LayerRow(workload.case, chunk_size, clock, layers.kind, [], [])
    launches = {side: _launch(forward, workload.index_sets) for side, forward in forwards.items()}
    captured = {
        side: graph.capture(launch, index_sets=INDEX_SETS, nodes=NODES)
        for side, launch in launches.items()
        if clock == "graph"
    }
    for _ in range(BLOCKS):  # the sides in turn, so that a drift of the clocks meets both
        for side, launch in launches.items():
            samples = row.on_us if side == "on" else row.off_us
            if clock == "graph":
                samples += graph.sample(captured[side], blocks=1, block_ms=BLOCK_MS, flush=None)
            else:
                samples += eager.sample(launch, index_sets=INDEX_SETS, calls=EAGER_CALLS, blocks=1)[0]
    return row


def _launch(forward: Forward, index_sets: list[torch.Tensor]) -> Launch:
    return lambda k: forward(index_sets[k])


class Layers:
    """Makes forwards: of SGLang's layer class if it can, of its calls if not; `kind` says which."""

    def __init__(self, device: torch.device, vocab: int, hidden: int, dtype: torch.dtype) -> None:
        self.vocab, self.hidden = vocab, hidden
        generator = torch.Generator(device).manual_seed(SEED)
        self.weight = torch.randn(vocab, hidden, device=device, generator=generator).to(dtype)
        self.offset_cpu = torch.tensor([0, hidden], dtype=torch.int32, pin_memory=device.type == "cuda")
        self.offset = self.offset_cpu.to(device)
        self._base: Any = None
        try:
            stood_in = _load_layers()
            self._base = _base_layer(self.weight)
            self.kind = "VocabParallelEmbeddingWithLoRA"
            if stood_in:
                self.kind += f" ({', '.join(stood_in)} stood in)"
        except Exception as error:  # whatever SGLang's modules raise at import or construction
            self.kind = f"the calls of its forward ({type(error).__name__}: {error})"[:200]

    def forward(self, backend: Any, a_table: torch.Tensor, b_table: torch.Tensor) -> Forward:
        """ids (tokens,) to (tokens, HIDDEN)."""
        if self._base is None:
            return lambda ids: self._calls(backend, a_table, b_table, ids)
        layer = importlib.import_module("sglang.srt.lora.layers").VocabParallelEmbeddingWithLoRA(self._base, backend)
        layer.set_lora_info(None, a_table, b_table)
        forward: Forward = layer.forward
        return forward

    def _calls(self, backend: Any, a_table: torch.Tensor, b_table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        base = functional.embedding(ids.masked_fill(ids > self.vocab - 1, 0), self.weight)
        lookup = backend.run_lora_a_embedding(
            input_ids=ids, weights=a_table, vocab_size=self.vocab, extra_embeddings=None
        )
        out: torch.Tensor = backend.run_lora_b_sgemm(
            x=lookup, weights=b_table, output_offset=self.offset, output_offset_cpu=self.offset_cpu, base_output=base
        )
        return out


def _load_layers() -> list[str]:
    """Import SGLang's layers; returns the packages of kernels that stand-ins were needed for."""
    try:
        importlib.import_module("sglang.srt.lora.layers")
    except Exception:  # a missing or broken package of kernels raises what it likes
        return stand_ins.provide()
    return []


def _base_layer(weight: torch.Tensor) -> Any:
    """SGLang's base layer around the weight, in a process group of one."""
    layers = importlib.import_module("sglang.srt.lora.layers")
    start_process_group()
    with torch.device("meta"):
        base = layers.VocabParallelEmbedding(*weight.shape, params_dtype=weight.dtype)
    base.weight = torch.nn.Parameter(weight, requires_grad=False)
    return base
