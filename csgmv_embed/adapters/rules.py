"""What an adapter's configuration and tensor names mean to PEFT. Pure: reads no file and needs no model.

A plain adapter is `out + alpha / r * B(A(x))` on each of its modules. Servers serve that and ignore every other key of
the configuration. This module gives each of these keys its meaning, or the reason why it cannot be served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from csgmv_embed.errors import CsgmvEmbedError

Config = Mapping[str, Any]  # adapter_config.json

EMBEDDING, HEAD = "embed_tokens", "lm_head"  # the two modules beside the linear layers
MERGE = "merge it into the model, or train plain LoRA"
CONVERT = "python -m csgmv_embed convert makes a plain adapter of it"
# Initial values of A and B that leave the model's own weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ,
# LoRA-GA) take something out of them, and PEFT takes it out of the model again when it loads the adapter.
PLAIN_INITS = (True, False, None, "true", "gaussian", "eva", "orthogonal", "mica")
# Keys that make something else of a forward, where they are set: what that is.
OTHER_FORWARDS = {
    "use_dora": "is DoRA, which has a magnitude beside A and B",
    "lora_bias": "has a bias beside B (lora_bias)",
    "kasa_config": "is KaSA, which changes the model's own weights",
    "use_bdlora": "is BD-LoRA, whose A and B are blocks",
    "use_qalora": "is QA-LoRA, whose A reads means of its input",
    "arrow_config": "chooses among other adapters for each token (arrow_config)",
    "alora_invocation_tokens": "is activated LoRA, which begins at a token of the prompt",
    "layer_replication": "has layers that the model does not have (layer_replication)",
}
_LORA = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<side>[AB])"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.weight)?"  # some trainers leave the name of the adapter in
)
_FULL = re.compile(
    rf"(?:base_model\.model\.)?(?P<module>.*?(?P<last>{EMBEDDING}|{HEAD}))(?P<base>\.base_layer)?\.weight"
)
_SIDE = re.compile(r"(\.lora_(?:embedding_)?)([AB])(?=\.|$)")


class AdapterError(CsgmvEmbedError, ValueError):
    """An adapter cannot be served as PEFT means it. The message names the adapter, the tensor or key, and a remedy."""


class LoraTensor(NamedTuple):
    """The A or B of a module. `module` is its path in the model, which PEFT matches patterns against."""

    module: str
    side: str  # A or B

    @property
    def last(self) -> str:
        return self.module.rpartition(".")[2]


class FullWeight(NamedTuple):
    """The whole weight of embed_tokens or lm_head. With `base`, it is the weight that LoRA was trained on top of."""

    module: str
    last: str
    base: bool


def lora_tensor(name: str) -> LoraTensor | None:
    """The module and side that a tensor's name means. None if it is neither A nor B, such as the bias of a B."""
    found = _LORA.fullmatch(name)
    return LoraTensor(found["module"], found["side"]) if found else None


def full_weight(name: str) -> FullWeight | None:
    """The module that a tensor's name means. None if it is not the weight of embed_tokens or lm_head."""
    found = _FULL.fullmatch(name)
    return FullWeight(found["module"], found["last"], found["base"] is not None) if found else None


def partner(name: str) -> str:
    """The name of the B for an A, or of the A for a B."""
    return _SIDE.sub(lambda found: found[1] + ("B" if found[2] == "A" else "A"), name)


def other_than_lora(name: str) -> str:
    """A description of a tensor that is neither A nor B."""
    if "trainable_tokens" in name:
        return "has rows of their own for some tokens (trainable_token_indices)"
    if "magnitude" in name:
        return "is a magnitude of DoRA"
    if name.endswith(".bias"):
        return "is a bias"
    return "is a weight trained in full (modules_to_save, or a vocabulary that was resized)"


def require_lora(name: str, config: Config) -> None:
    """Raises AdapterError if the configuration of the adapter `name` is not plain A and B."""
    for key, what in OTHER_FORWARDS.items():
        if config.get(key):
            raise AdapterError(f"adapter {name}: {what}; {MERGE}")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        raise AdapterError(
            f"adapter {name}: its init ({init}) changes the model's own weights; save it with PEFT's "
            f"path_initial_model_for_weight_conversion, or {MERGE}"
        )


def rank(config: Config, module: str) -> int:
    """The rank of a module: from rank_pattern, otherwise the adapter's."""
    found: int = _own(config.get("rank_pattern") or {}, module, config["r"])
    return found


def scale(config: Config, module: str | None = None) -> float:
    """The factor by which PEFT multiplies B(A(x)) in a module. Without a module: where no pattern matches."""
    alpha, r = config["lora_alpha"], config["r"]
    if module is not None:
        alpha, r = _own(config.get("alpha_pattern") or {}, module, alpha), rank(config, module)
    found: float = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    return found


def _own(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first pattern that is the module's path, or the end of it behind a dot, as a regex."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)
