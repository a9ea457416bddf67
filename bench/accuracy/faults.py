"""Planted faults: what a broken plan, pool or lookup would do. Each must make the comparison fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.accuracy.models import AccuracyError
from bench.accuracy.serving import Server

Plan = dict[str, Any]  # the arguments of a backend's prepare_lora_batch, by name


def slot_off(plan: Plan) -> None:
    """Every request is served from the next slot."""
    plan["weight_indices"] = [(slot + 1) % len(plan["lora_ranks"]) for slot in plan["weight_indices"]]


def ranks_swapped(plan: Plan) -> None:
    """The adapters have each other's rank."""
    slots = [slot for slot, rank in enumerate(plan["lora_ranks"]) if rank]
    ranks = [plan["lora_ranks"][slot] for slot in slots]
    for slot, rank in zip(slots, reversed(ranks), strict=True):
        plan["lora_ranks"][slot] = rank


def scaling_lost(plan: Plan) -> None:
    """B is not multiplied by alpha / rank."""
    plan["scalings"] = [1.0] * len(plan["scalings"])


@contextmanager
def _planned(server: Server, spoil: Callable[[Plan], None]) -> Iterator[None]:
    backend, prepare = server.backend, server.backend.prepare_lora_batch
    parameters = inspect.signature(prepare)  # the manager of SGLang 0.5.16 names them, that of 0.5.23 does not

    def spoiled(*args: Any, **kwargs: Any) -> None:
        plan: Plan = parameters.bind(*args, **kwargs).arguments
        plan |= {name: list(plan[name]) for name in ("weight_indices", "lora_ranks", "scalings")}
        spoil(plan)
        prepare(**plan)

    with _replaced(backend, "prepare_lora_batch", spoiled):
        yield


@contextmanager
def _permutation_dropped(server: Server) -> Iterator[None]:
    """Segments are of grouped tokens, but the tokens are taken in their own order."""
    backend, prepare = server.backend, server.backend.prepare_lora_batch

    def spoiled(*args: Any, **kwargs: Any) -> None:
        prepare(*args, **kwargs)
        for name in ("batch_info", "sgemm_batch_info"):
            permutation = getattr(getattr(backend, name, None), "permutation", None)
            if permutation is not None:
                permutation.copy_(torch.arange(len(permutation), device=permutation.device))

    with _replaced(backend, "prepare_lora_batch", spoiled):
        yield


@contextmanager
def _extra_row(server: Server) -> Iterator[None]:
    """The A table has a row too many in front: each id reads its neighbour's."""
    layer: Any = server.shell.model.get_submodule("embed_tokens")
    embed = server.embed

    def spoiled(ids: torch.Tensor) -> torch.Tensor:
        table = layer.embedding_A_buffer
        layer.embedding_A_buffer = table.roll(-1, dims=2)
        try:
            return embed(ids)
        finally:
            layer.embedding_A_buffer = table

    with _replaced(server, "embed", spoiled):
        yield


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The method of this one object."""
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)


FAULTS = ("slot_off", "ranks_swapped", "extra_row", "scaling_lost", "permutation_dropped")


@contextmanager
def planted(server: Server, fault: str) -> Iterator[None]:
    """Within this context the server has this fault, for eager batches. Raises AccuracyError for an unknown fault."""
    plans = {found.__name__: found for found in (slot_off, ranks_swapped, scaling_lost)}
    if fault in plans:
        with _planned(server, plans[fault]):
            yield
    elif fault == "extra_row":
        with _extra_row(server):
            yield
    elif fault == "permutation_dropped":
        with _permutation_dropped(server):
            yield
    else:
        raise AccuracyError(f"fault {fault!r} is unknown; expected one of {', '.join(FAULTS)}")
