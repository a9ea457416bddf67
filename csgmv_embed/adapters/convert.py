"""`python -m csgmv_embed convert`: writes an equivalent plain adapter and checks it against PEFT on random inputs.

Needs safetensors and peft. use_rslora and alpha_pattern are multiplied into B. rank_pattern is padded with zeros to one
rank. A module that ensure_weight_tying added is named. B is rounded to its dtype once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from csgmv_embed.adapters import rules
from csgmv_embed.adapters.reading import Reading
from csgmv_embed.adapters.rules import AdapterError, FullWeight

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEEDS = "convert needs safetensors and peft: pip install 'csgmv-embed[convert]'"
Tensors = dict[str, torch.Tensor]


def convert(source: Path, target: Path) -> float:
    """Convert the adapter in the folder `source` to a plain one in the new folder `target`.

    Returns the largest difference from the original that PEFT shows, relative to the largest value. Raises AdapterError
    if there is no plain form, if the result differs by more than rounding to its dtype explains, or if `target` exists.
    """
    try:
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise AdapterError(NEEDS) from error
    if target.exists():
        raise AdapterError(f"{target} exists; expected the name of a new folder")
    try:
        config: dict[str, Any] = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(source / WEIGHTS)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{source} cannot be read: {error}; expected {CONFIG} and {WEIGHTS}") from error
    made, made_config = plain(source.name, tensors, config)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "made"
        folder.mkdir()
        save_file(made, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(made_config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        off = difference(source, folder, tensors, tied=bool(config.get("ensure_weight_tying")))
        allowed = 8 * max(torch.finfo(tensor.dtype).eps for tensor in made.values())
        if not off <= allowed:
            raise AdapterError(
                f"{source}: the converted adapter differs from it by {off:.1e}, more than the allowed {allowed:.1e}"
            )
        shutil.copytree(folder, target)
    return off


def plain(name: str, tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and configuration of a plain adapter. Raises AdapterError."""
    largest = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    # Every module has the largest rank; what of the scale that changes goes into B with the rest of its own scale.
    common = config["lora_alpha"] / largest or 1.0
    reading = Reading(name, config | {"r": largest, "rank_pattern": {}}, _base_stays)
    made = {}
    for key, tensor in tensors.items():
        reading.take(key, tensor)  # what it refuses has no plain form
        found = rules.lora_tensor(key)
        if found is None:
            made[key] = tensor  # the model's own, that LoRA was trained beside
            continue
        short = largest - rules.rank(config, found.module)
        padding = (0, 0, 0, short) if found.side == "A" else (0, short)
        ratio = rules.scale(config, found.module) / common if found.side == "B" else 1.0
        made[key] = nn.functional.pad(tensor * ratio if ratio != 1 else tensor, padding).contiguous()
    reading.finish()
    alpha = config["lora_alpha"] or largest
    targets = _targets(config["target_modules"], made)
    off: dict[str, Any] = {"use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}, "ensure_weight_tying": False}
    return made, config | off | {"r": largest, "lora_alpha": alpha, "target_modules": targets}


def _base_stays(weight: FullWeight, tensor: torch.Tensor) -> str:
    """Without the model nothing can be compared: the server does that."""
    return "" if weight.base else "it was trained in full"


def _targets(given: Any, tensors: Tensors) -> list[str]:
    """The last names of all modules that have LoRA; a regex, which servers do not take, becomes such a list."""
    named = [] if isinstance(given, str) else list(given)
    found = {tensor.last for tensor in map(rules.lora_tensor, tensors) if tensor}
    return sorted({name.rpartition(".")[2] for name in named} | found)


def difference(first: Path, second: Path, tensors: Tensors, *, tied: bool = False) -> float:
    """How much the outputs of two adapters differ in PEFT on random inputs, relative to a module's largest value.

    The surrounding model has zeros where LoRA is added, and the shapes come from `tensors`. With `tied`, its lm_head
    has the weight of its embedding. Raises AdapterError.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise AdapterError(NEEDS) from error
    outputs = []
    for folder in (first, second):
        model = _Skeleton(tensors, tied=tied)
        found = PeftModel.from_pretrained(model, str(folder), torch_device="cpu").eval().base_model.model
        outputs.append(found.run())
    pairs = [(one, outputs[1][name]) for name, one in outputs[0].items()]
    return max(float((one - other).abs().max() / one.abs().max().clamp(min=1e-30)) for one, other in pairs)


class _Skeleton(nn.Module):
    """A model of nothing but the modules that LoRA is on, for PEFT to load an adapter into."""

    def __init__(self, tensors: Tensors, *, tied: bool) -> None:
        super().__init__()
        self.shapes: dict[str, dict[str, torch.Size]] = {}
        embeddings = set()
        for name, tensor in tensors.items():
            if found := rules.lora_tensor(name):
                self.shapes.setdefault(found.module, {})[found.side] = tensor.shape
                embeddings |= {found.module} if "lora_embedding" in name else set()
        self.config = SimpleNamespace(tie_word_embeddings=tied, model_type="skeleton", to_dict=dict)
        for module, shapes in self.shapes.items():
            inputs, outputs = shapes["A"][-1], shapes["B"][0]
            made: nn.Module = (
                nn.Embedding(inputs, outputs) if module in embeddings else nn.Linear(inputs, outputs, False)
            )
            nn.init.zeros_(made.weight)  # type: ignore[arg-type]
            self._place(module, made)
        ends = {module.rpartition(".")[2]: module for module in self.shapes}
        if tied and {rules.EMBEDDING, rules.HEAD} <= ends.keys():
            embedding, head = ends[rules.EMBEDDING], ends[rules.HEAD]
            # What PEFT asks a tied model for.
            self._tied_weights_keys = {f"{head}.weight": f"{embedding}.weight"}
            self.get_submodule(head).weight = self.get_submodule(embedding).weight
            self.get_input_embeddings = lambda: self.get_submodule(embedding)

    def _place(self, path: str, module: nn.Module) -> None:
        *parts, last = path.split(".")
        at: nn.Module = self
        for part in parts:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(last, module)

    def run(self) -> dict[str, torch.Tensor]:
        """The output of each module on random inputs, which are the same in every call."""
        generator = torch.Generator().manual_seed(1)
        found = {}
        with torch.inference_mode():
            for path, shapes in self.shapes.items():
                module, inputs = self.get_submodule(path), shapes["A"][-1]
                ids = torch.randint(0, inputs, (64,), generator=generator)
                hidden = torch.randn(4, inputs, generator=generator)
                embeds = isinstance(getattr(module, "base_layer", module), nn.Embedding)
                found[path] = module(ids if embeds else hidden).detach().float()
        return found
