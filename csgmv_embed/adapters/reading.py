"""Reads an adapter tensor by tensor so that serving gives PEFT's result, or refuses the adapter."""

from __future__ import annotations

from collections.abc import Callable

import torch

from csgmv_embed.adapters import rules
from csgmv_embed.adapters.rules import MERGE, AdapterError, Config, FullWeight

# What is different about a whole weight of the adapter and the model's own; empty: nothing.
Difference = Callable[[FullWeight, torch.Tensor], str]


class Reading:
    """One adapter that is being read.

    Call `take` for each tensor once, then `finish`. All modules are served at the one `scale`. For a module of another
    scale, the ratio of the two is multiplied into its B.
    """

    def __init__(self, name: str, config: Config, difference: Difference, *, tied: bool = False) -> None:
        """tied: lm_head has the model's embedding weight. Raises AdapterError for what is not LoRA."""
        rules.require_lora(name, config)
        self.name, self.config = name, config
        self.scale = rules.scale(config) or 1.0  # of alpha 0 no other scale is a multiple
        self._difference, self._tied = difference, tied
        self._names: set[str] = set()

    def take(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor to serve, in its own dtype. None if the weight is the model's own. Raises AdapterError."""
        found = rules.lora_tensor(name)
        if found is None:
            self._require_models_own(name, tensor)
            return None
        self._names.add(name)
        own_rank = rules.rank(self.config, found.module)
        if own_rank != self.config["r"]:
            raise self.error(f"{name} has rank {own_rank} (rank_pattern), others {self.config['r']}; {rules.CONVERT}")
        ratio = rules.scale(self.config, found.module) / self.scale
        return tensor * ratio if found.side == "B" and ratio != 1 else tensor

    def finish(self) -> None:
        """Raises AdapterError if the A or the B of a module is missing."""
        for name in sorted(self._names):
            if rules.partner(name) not in self._names:
                raise self.error(f"has {name} and no {rules.partner(name)}; save or download it again")
        modules = {found.last for found in map(rules.lora_tensor, self._names) if found}
        ends = {rules.EMBEDDING, rules.HEAD}
        if self._tied and self.config.get("ensure_weight_tying") and modules & ends:
            for missing in sorted(ends - modules):
                raise self.error(f"ties lm_head's LoRA to embed_tokens' and has no tensor of {missing}; save it again")

    def error(self, what: str) -> AdapterError:
        """The error to raise about this adapter."""
        return AdapterError(f"adapter {self.name}: {what}")

    def _require_models_own(self, name: str, tensor: torch.Tensor) -> None:
        weight = rules.full_weight(name)
        if weight is None:
            raise self.error(f"{name} {rules.other_than_lora(name)}; {MERGE}")
        if different := self._difference(weight, tensor):
            raise self.error(f"{name} is not the model's own weight: {different}; {MERGE}")


def differs(found: torch.Tensor, own: torch.Tensor) -> str:
    """How a weight (rows, columns) differs from the model's own. Empty if rounding to either dtype explains it.

    A model in float16 and an adapter in bfloat16 may both come from one checkpoint in float32.
    """
    if found.shape != own.shape:
        return f"it has shape {tuple(found.shape)}, the model's {tuple(own.shape)}"
    if not own.is_floating_point():
        return f"the model's is stored as {own.dtype}, so the two cannot be compared"
    coarsest = max((torch.finfo(tensor.dtype) for tensor in (found, own)), key=lambda info: info.eps)
    for part, own_part in zip(found.split(4096), own.split(4096), strict=True):
        wide, own_wide = part.to(own.device).float(), own_part.float()
        off = (wide - own_wide).abs()
        allowed = coarsest.eps * own_wide.abs() + coarsest.smallest_normal
        if not bool((off <= allowed).all()):  # nor with a NaN
            return f"it is up to {float(off.max() / own_wide.abs().max()):.1%} of the largest value off"
    return ""
