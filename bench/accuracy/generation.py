"""Requests, greedy generation and outputs. All paths that are compared use the same loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Request:
    """`ids`: the prompt's tokens. `adapter` None means the base model."""

    prompt: str
    adapter: str | None
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Output:
    """Float32 on the CPU.

    `prefill` (prompt tokens, vocab): the logprobs after each prompt token. `decode` (steps, vocab): row k holds the
    logprobs that token k of `tokens` was the largest of. The first row is the last of the prefill.
    """

    request: Request
    prefill: torch.Tensor
    decode: torch.Tensor
    tokens: tuple[int, ...]


class Engine(Protocol):
    """One way to run the model on a batch of requests."""

    def prefill(self, requests: Sequence[Request]) -> torch.Tensor:
        """Begin a new batch. Returns logits (tokens of all requests, vocab), in the order of the requests."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (requests, vocab) after the next token of each request. tokens (requests,), int64."""


@torch.inference_mode()
def generate(engine: Engine, requests: Sequence[Request], steps: int) -> list[Output]:
    """Prefill all requests in one batch, then decode `steps` tokens of each greedily."""
    lens = [len(request.ids) for request in requests]
    prefill = logprobs(engine.prefill(requests)).split(lens)
    last = torch.stack([rows[-1] for rows in prefill])
    chosen, decode = [last.argmax(-1)], [last]
    for _ in range(steps - 1):
        decode.append(logprobs(engine.step(chosen[-1])))
        chosen.append(decode[-1].argmax(-1))
    tokens = torch.stack(chosen, dim=1).tolist()
    return [
        Output(request, prefill[k].clone(), torch.stack([rows[k] for rows in decode]), tuple(tokens[k]))
        for k, request in enumerate(requests)
    ]


def logprobs(logits: torch.Tensor) -> torch.Tensor:
    """Log softmax over the vocabulary of logits (rows, vocab) of any dtype, float32 on the CPU.

    Logits in float64 are computed in float64, so that a reference wider than float32 is rounded once, at its end.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, dim=-1).float().cpu()


class LeftPadded:
    """Converts a batch between a flat run of tokens and the rows (requests, longest) that transformers wants."""

    def __init__(self, lens: Sequence[int], device: torch.device) -> None:
        longest = max(lens)
        starts = torch.tensor([longest - length for length in lens], device=device)
        self.mask = (torch.arange(longest, device=device) >= starts[:, None]).long()
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self._live = self.mask.bool()

    def rows(self, flat: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) to (requests, longest, ...), with zeros in front."""
        out = flat.new_zeros(*self.mask.shape, *flat.shape[1:])
        out[self._live] = flat
        return out

    def flat(self, rows: torch.Tensor) -> torch.Tensor:
        """(requests, longest, ...) to (tokens, ...)."""
        return rows[self._live]

    def grow(self) -> dict[str, torch.Tensor]:
        """Add one token to each request.

        Returns the mask of all tokens and the new token's position, as keyword arguments.
        """
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self.positions = self.positions[:, -1:] + 1
        return {"attention_mask": self.mask, "position_ids": self.positions}


class Body:
    """transformers' decoder of a model between the embedding and the lm_head: hidden states in, hidden states out."""

    def __init__(self, model: Any) -> None:
        self._decoder = model.get_decoder()
        self._batch: LeftPadded | None = None
        self._cache: Any = None

    def prefill(self, embeds: torch.Tensor, lens: Sequence[int]) -> torch.Tensor:
        """(tokens, hidden) to (tokens, hidden), after the last norm. Begins a new batch."""
        from transformers import DynamicCache

        self._batch, self._cache = LeftPadded(lens, embeds.device), DynamicCache()
        where = {"attention_mask": self._batch.mask, "position_ids": self._batch.positions}
        return self._batch.flat(self._run(self._batch.rows(embeds), where))

    def step(self, embeds: torch.Tensor) -> torch.Tensor:
        """(requests, hidden) to (requests, hidden), one token further."""
        assert self._batch is not None, "step before prefill"
        return self._run(embeds[:, None], self._batch.grow())[:, 0]

    def _run(self, embeds: torch.Tensor, where: dict[str, torch.Tensor]) -> torch.Tensor:
        out = self._decoder(inputs_embeds=embeds, past_key_values=self._cache, use_cache=True, **where)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden
