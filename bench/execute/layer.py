"""Times SGLang's embedding layer and lm_head with the plugin on and off, in one process with one set of weights.

Prints nothing. The layers are SGLang's VocabParallelEmbeddingWithLoRA and ParallelLMHeadWithLoRA. They import the
package sgl_kernel for kernels that LoRA on these layers does not use. If it is missing, a stand-in supplies the names
(stand_ins.py).
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import torch

from bench.clocks import eager, graph
from bench.contenders.base import Launch
from bench.contenders.ours.plugin import plug_layer, plugged
from bench.contenders.sglang import stand_ins
from bench.contenders.sglang.csgmv import SglangCsgmv
from bench.contenders.sglang.harness import start_process_group
from bench.model.case import Case, Phase
from bench.model.records import Code, Environment, ResultsError
from bench.model.store import readable
from bench.workload.tensors import Workload, make_workload
from csgmv_embed.reference import embedding_lora_reference, lora_linear_reference

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
HEAD_SETS, HEAD_NODES, HEAD_CALLS = 2, 4, 10  # a call writes up to 66 MB of logits
CHUNK_SIZES = (16, 128)
# How much further from the exact result than SGLang's the plugin's may be, root mean square over all elements: orders
# of summation differ.
WORSE = 1.02

Forward = Callable[[torch.Tensor], torch.Tensor]
Side = Literal["on", "off"]
SIDES: tuple[Side, Side] = ("on", "off")
Clock = Literal["graph", "eager"]
Part = Literal["layer", "lm_head"]
PARTS: tuple[Part, Part] = ("layer", "lm_head")


class LayerRow(msgspec.Struct):
    """One case, part and clock: samples of a forward in us with the plugin on and off, in blocks taken in turn.

    The errors are root mean squares of the differences from float64, relative to the exact result's root mean square.
    """

    case: Case
    part: Part
    chunk_size: int
    clock: Clock
    layer: str  # SGLang's class
    on_error: float
    off_error: float
    on_us: list[float]
    off_us: list[float]


class LayerFile(msgspec.Struct):
    """The file that `python -m bench layer -o` writes."""

    environment: Environment
    code: Code
    hidden: int
    rows: list[LayerRow]


def encode(rows: list[LayerRow], environment: Environment, code: Code) -> bytes:
    """The file's bytes."""
    return readable(LayerFile(environment, code, HIDDEN, rows))


def compare() -> Iterator[LayerRow]:
    """Yields four rows for each case: each part, in a graph and eagerly.

    Raises ResultsError if the plugin's result is further from the exact one than SGLang's, or if SGLang's layers do not
    load.
    """
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
    with both(layers, workload, chunk_size) as pairs:
        for part, pair in pairs.items():
            errors = pair.checked(f"{workload.case.label}, {part}")
            for clock in CLOCKS:
                row = LayerRow(workload.case, part, chunk_size, clock, layers.names[part], *errors, [], [])
                yield _timed(row, pair)


CLOCKS: tuple[Clock, Clock] = ("graph", "eager")


@dataclass
class Pair:
    """One part with the plugin on and off, its inputs, and the exact result for each."""

    inputs: list[torch.Tensor]
    exact: Callable[[torch.Tensor], torch.Tensor]
    nodes: int  # of a graph
    calls: int  # of an eager block
    forwards: dict[Side, Forward] = field(default_factory=dict)

    def checked(self, what: str) -> tuple[float, float]:
        """The errors of both sides, the largest over the inputs. Raises ResultsError if `on` is worse than `off`."""
        errors: dict[Side, float] = dict.fromkeys(SIDES, 0.0)
        for given in self.inputs:
            exact = self.exact(given)
            size = exact.square().mean().sqrt()
            found = {}
            for side, forward in self.forwards.items():
                found[side] = float((forward(given).double() - exact).square().mean().sqrt() / size)
                errors[side] = max(errors[side], found[side])
            if not found["on"] <= WORSE * found["off"]:  # a NaN is not
                on, off = (f"{found[side]:.2e}" for side in SIDES)
                raise ResultsError(
                    f"{what}: differs from the exact result by {on} with the plugin on, by {off} with it off"
                )
        return errors["on"], errors["off"]


@contextmanager
def both(layers: Layers, workload: Workload, chunk_size: int) -> Iterator[dict[Part, Pair]]:
    """Both parts, each with the plugin on and off."""
    tables = Tables(layers, workload)
    generator = torch.Generator(workload.device).manual_seed(SEED)
    # lm_head takes every token of a decode step, and the last one of each request of a prefill.
    shape = (len(workload.seq_slots), layers.hidden)
    hidden = [
        torch.randn(shape, device=workload.device, generator=generator).to(layers.weight.dtype)
        for _ in workload.index_sets[:HEAD_SETS]
    ]
    pairs: dict[Part, Pair] = {
        "layer": Pair(workload.index_sets, tables.exact_layer, NODES, EAGER_CALLS),
        "lm_head": Pair(hidden, tables.exact_logits, HEAD_NODES, HEAD_CALLS),
    }
    with ExitStack() as stack:
        for side in SIDES:
            preparing = SglangCsgmv.peer.preparing(workload, static=True, chunk_size=chunk_size)
            backend, prepare = stack.enter_context(preparing)
            if side == "on":
                stack.enter_context(plugged(backend))
            prepare()
            a_table = workload.table("vocab_major" if side == "on" else "rank_major")
            made = layers.made(backend, a_table, tables)
            for part, layer in made.items():
                if side == "on":
                    plug_layer(layer)
                pairs[part].forwards[side] = layer.forward
        yield pairs


def _timed(row: LayerRow, pair: Pair) -> LayerRow:
    launches = {side: _launch(forward, pair.inputs) for side, forward in pair.forwards.items()}
    sets = len(pair.inputs)
    captured = {
        side: graph.capture(launch, index_sets=sets, nodes=pair.nodes)
        for side, launch in launches.items()
        if row.clock == "graph"
    }
    for _ in range(BLOCKS):  # the sides in turn, so that a drift of the clocks meets both
        for side, launch in launches.items():
            samples = row.on_us if side == "on" else row.off_us
            if row.clock == "graph":
                samples += graph.sample(captured[side], blocks=1, block_ms=BLOCK_MS, flush=None)
            else:
                samples += eager.sample(launch, index_sets=sets, calls=pair.calls, blocks=1)[0]
    return row


def _launch(forward: Forward, inputs: list[torch.Tensor]) -> Launch:
    return lambda k: forward(inputs[k])


class Tables:
    """LoRA tables and scalings of a workload, and the exact results with them."""

    def __init__(self, layers: Layers, workload: Workload) -> None:
        self._layers, self._workload = layers, workload
        device, slots, rank = workload.device, workload.num_slots, workload.case.rank
        generator = torch.Generator(device).manual_seed(SEED)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(slots, *shape, device=device, generator=generator).to(layers.weight.dtype)

        self.b = draw(layers.hidden, rank)
        self.head_a, self.head_b = draw(rank, layers.hidden), draw(layers.vocab, rank)
        self._factors = (
            torch.from_numpy(workload.ranks).to(device),
            torch.tensor(workload.scalings, device=device),
        )

    def exact_layer(self, ids: torch.Tensor) -> torch.Tensor:
        """The embedding layer in float64."""
        slots = torch.from_numpy(self._workload.token_slots()).to(ids.device)
        tables = self._layers.weight, self._workload.table("vocab_major"), self.b
        return embedding_lora_reference(ids, *tables, slots, *self._factors, self._layers.vocab)

    def exact_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """lm_head's LoRA in float64, added to the product with the weight.

        Both sides get that product rounded to its dtype.
        """
        slots = torch.from_numpy(self._workload.seq_slots).to(hidden.device)
        logits = torch.nn.functional.linear(hidden, self._layers.weight)
        return lora_linear_reference(hidden, self.head_a, self.head_b, logits, slots, *self._factors)


class Layers:
    """SGLang's two base layers on one weight, as a model with tied embeddings has them, and the LoRA layers on them."""

    def __init__(self, device: torch.device, vocab: int, hidden: int, dtype: torch.dtype) -> None:
        self.vocab, self.hidden = vocab, hidden
        generator = torch.Generator(device).manual_seed(SEED)
        self.weight = torch.randn(vocab, hidden, device=device, generator=generator).to(dtype)
        try:
            stood_in = _load_layers()
            bases = importlib.import_module("sglang.srt.layers.vocab_parallel_embedding")
        except Exception as error:  # whatever SGLang's modules raise at import
            raise ResultsError(f"SGLang's layers do not load: {type(error).__name__}: {error}"[:300]) from error
        start_process_group()
        self._bases: dict[Part, Any] = {
            "layer": _base_layer(bases.VocabParallelEmbedding, self.weight),
            "lm_head": _base_layer(bases.ParallelLMHead, self.weight),
        }
        note = f" ({', '.join(stood_in)} stood in)" if stood_in else ""
        self.names: dict[Part, str] = {part: f"{name}{note}" for part, name in CLASSES.items()}

    def made(self, backend: Any, a_table: torch.Tensor, tables: Tables) -> dict[Part, Any]:
        """SGLang's two LoRA layers on a backend."""
        module = importlib.import_module("sglang.srt.lora.layers")
        made: dict[Part, Any] = {
            part: getattr(module, name)(self._bases[part], backend) for part, name in CLASSES.items()
        }
        made["layer"].set_lora_info(None, a_table, tables.b)
        made["lm_head"].set_lora_info(tables.head_a, tables.head_b)
        return made


CLASSES: dict[Part, str] = {"layer": "VocabParallelEmbeddingWithLoRA", "lm_head": "ParallelLMHeadWithLoRA"}


def _load_layers() -> list[str]:
    """Import SGLang's layers; returns the packages of kernels that stand-ins were needed for."""
    try:
        importlib.import_module("sglang.srt.lora.layers")
    except Exception:  # a missing or broken package of kernels raises what it likes
        found = stand_ins.provide()
        importlib.import_module("sglang.srt.lora.layers")
        return found
    return []


def _base_layer(kind: Any, weight: torch.Tensor) -> Any:
    """SGLang's base layer around the weight."""
    with torch.device("meta"):
        base = kind(*weight.shape, params_dtype=weight.dtype)
    base.weight = torch.nn.Parameter(weight, requires_grad=False)
    return base
