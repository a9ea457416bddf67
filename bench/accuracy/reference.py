"""The reference: Hugging Face's model with PEFT's adapters, one adapter active at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.accuracy.generation import LeftPadded, Request
from bench.accuracy.models import AccuracyError, Adapter, quiet


@dataclass
class _Group:
    """The requests of one adapter: their numbers in the batch, and how far they are."""

    rows: list[int]
    batch: LeftPadded
    cache: Any


class HuggingFace:
    """A copy of the model and its adapters that computes in `dtype`.

    Weights keep the values of the model's own dtype.
    """

    def __init__(self, model: Any, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        from peft import PeftModel

        # PEFT 0.21 ties lm_head's LoRA for the first adapter of a model alone.
        tied = [adapter.name for adapter in adapters if adapter.config.get("ensure_weight_tying")]
        if len(tied) > 1:
            raise AccuracyError(
                f"adapters {', '.join(tied)}: both have ensure_weight_tying; expected at most one such adapter"
            )
        first, *others = sorted(adapters, key=lambda adapter: adapter.name not in tied)
        options: dict[str, Any] = {"autocast_adapter_dtype": False}
        with quiet():
            self._model = PeftModel.from_pretrained(
                copy.deepcopy(model), first.folder, adapter_name=first.name, **options
            )
            for other in others:
                self._model.load_adapter(other.folder, adapter_name=other.name, **options)
        self._model.eval()
        # Adapters are served in the model's dtype: what is compared is rounding while computing, not of the weights.
        self.cast(model.dtype)
        self.cast(dtype)
        self._device = model.device
        self._groups: dict[str | None, _Group] = {}

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in another dtype from now on.

        Buffers keep their dtype, because transformers computes rotary angles in float32 whatever the model's dtype is.
        """
        for weight in self._model.parameters():
            weight.data = weight.data.to(dtype)

    def prefill(self, requests: Sequence[Request]) -> torch.Tensor:
        """See generation.Engine."""
        self._groups = {}
        found: dict[int, torch.Tensor] = {}
        for name in dict.fromkeys(request.adapter for request in requests):
            rows = [k for k, request in enumerate(requests) if request.adapter == name]
            batch = LeftPadded([len(requests[k].ids) for k in rows], self._device)
            ids = torch.tensor([token for k in rows for token in requests[k].ids], device=self._device)
            with self._active(name):
                where = {"attention_mask": batch.mask, "position_ids": batch.positions}
                out = self._model(input_ids=batch.rows(ids), use_cache=True, **where)
            self._groups[name] = _Group(rows, batch, out.past_key_values)
            found |= dict(zip(rows, batch.flat(out.logits).split([len(requests[k].ids) for k in rows]), strict=True))
        return torch.cat([found[k] for k in range(len(requests))])

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See generation.Engine."""
        found: dict[int, torch.Tensor] = {}
        for name, group in self._groups.items():
            ids = tokens[group.rows].to(self._device)[:, None]
            with self._active(name):
                out = self._model(input_ids=ids, past_key_values=group.cache, use_cache=True, **group.batch.grow())
            found |= dict(zip(group.rows, out.logits[:, -1], strict=True))
        return torch.stack([found[k] for k in range(len(tokens))])

    @contextmanager
    def without(self, modules: Sequence[str]) -> Iterator[None]:
        """Within this context, adapters do nothing at modules with these names: their B is zero."""
        ends = tuple(f".{module}.lora_{kind}B." for module in modules for kind in ("", "embedding_"))
        kept = {
            weight: weight.data.clone()
            for name, weight in self._model.named_parameters()
            if any(end in name for end in ends)
        }
        assert kept, f"no adapter is on {' or '.join(modules)}"
        for weight in kept:
            weight.data.zero_()
        try:
            yield
        finally:
            for weight, data in kept.items():
                weight.data.copy_(data)

    @contextmanager
    def _active(self, name: str | None) -> Iterator[None]:
        if name is None:
            with self._model.disable_adapter():
                yield
            return
        self._model.set_adapter(name)
        yield
