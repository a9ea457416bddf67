"""The linear layers that LoRA is applied to: their shapes in models, and what a case multiplies there. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from bench.model.case import Case, Model


@dataclass(frozen=True)
class Dimensions:
    """Dimensions of a model, from its config.json. q and kv are heads times head size; tp ranks share a layer."""

    hidden: int
    q: int
    kv: int
    intermediate: int
    tp: int = 1


DIMENSIONS: dict[Model, Dimensions] = {
    "135m": Dimensions(576, 576, 192, 1536),  # SmolLM2
    "1b": Dimensions(2048, 2048, 512, 8192),  # Llama 3.2
    "8b": Dimensions(4096, 4096, 1024, 14336),  # Llama 3.1
    "70b-tp8": Dimensions(8192, 8192, 1024, 28672, tp=8),  # Llama 3.1, one of eight ranks
}


@dataclass(frozen=True)
class Shape:
    """A site: columns of its input, and of the output of each of the layers stacked there."""

    features: int
    widths: tuple[int, ...]

    @property
    def slices(self) -> int:
        return len(self.widths)

    @property
    def out_features(self) -> int:
        return sum(self.widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """First column of each slice, and the end of the last."""
        return tuple(accumulate(self.widths, initial=0))


def shape_of(case: Case) -> Shape:
    """The shape for a case that has a site.

    q, k and v, and gate and up, are stacked and split by columns; o and down are split by rows.
    """
    model = DIMENSIONS[case.model]
    q, kv, intermediate = (size // model.tp for size in (model.q, model.kv, model.intermediate))
    return {
        "qkv": Shape(model.hidden, (q, kv, kv)),
        "o": Shape(q, (model.hidden,)),
        "gate_up": Shape(model.hidden, (intermediate, intermediate)),
        "down": Shape(intermediate, (model.hidden,)),
    }[case.site]


def terms(case: Case) -> int:
    """Number of products that an element of the result adds up."""
    shape = shape_of(case)
    return {"shrink": shape.features, "expand": case.rank, "linear": shape.features + case.rank}[case.op]


def out_features(case: Case) -> int:
    """Number of columns that the op writes: the shrunk rows of each slice, or the output of the site."""
    shape = shape_of(case)
    return shape.slices * case.rank if case.op == "shrink" else shape.out_features
