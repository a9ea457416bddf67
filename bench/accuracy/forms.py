"""The forms that people train and save adapters in, and what happens to each when it is served.

Each form is made with PEFT on a small random model: given random values, saved, and loaded again by PEFT, whose output
is right by definition. Then SGLang's manager, pool and two layers serve the folder, as installed and with the plugin.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from bench.accuracy import models
from bench.accuracy.models import MODULES, AccuracyError
from bench.accuracy.run import PathName, plugin_on
from bench.accuracy.serving import Server
from bench.accuracy.sglang_host import hosted
from bench.contenders.sglang.harness import forward_batch

VOCAB, HIDDEN, RANK = 100, 32, 8
LIMIT = 1e-5  # of the largest value; sums of at most VOCAB terms of float32 stay below
Verdict = Literal["right", "wrong", "refused", "fails"]
PATHS: tuple[PathName, ...] = ("csgmv", "plugin")  # SGLang as installed comes first: the plugin's hooks stay


@dataclass(frozen=True)
class Form:
    """A way to train and save an adapter.

    `options` go to PEFT's LoraConfig, with rank 8, alpha 16 and both modules. `spoil` changes the saved tensors in
    place. `expected`: what the plugin should do with it.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    expected: Verdict = "right"
    tied: bool = False
    added: int = 0  # rows by which the vocabulary was enlarged before the training
    spoil: Callable[[dict[str, torch.Tensor]], None] | None = None


def _without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return spoil


EMBED, HEAD = ["embed_tokens"], ["lm_head"]
FORMS = (
    Form("plain"),
    Form("embed_tokens alone", {"target_modules": EMBED}),
    Form("lm_head alone", {"target_modules": HEAD}),
    Form("tied model, both", tied=True),
    Form("exclude_modules", {"exclude_modules": HEAD}),
    Form("lora_alpha below 0", {"lora_alpha": -16}),
    Form("use_rslora", {"use_rslora": True}),
    Form("alpha_pattern of embed_tokens", {"alpha_pattern": {"embed_tokens": 64}}),
    Form("alpha_pattern of lm_head", {"alpha_pattern": {"lm_head": 3}}),
    Form("use_rslora and alpha_pattern", {"use_rslora": True, "alpha_pattern": {"lm_head": 5}}),
    Form("ensure_weight_tying of embed_tokens", {"target_modules": EMBED, "ensure_weight_tying": True}, tied=True),
    Form("ensure_weight_tying of lm_head", {"target_modules": HEAD, "ensure_weight_tying": True}, tied=True),
    Form(
        "ensure_weight_tying and alpha_pattern",
        {"target_modules": EMBED, "ensure_weight_tying": True, "alpha_pattern": {"lm_head": 64}},
        tied=True,
    ),
    Form("modules_to_save of lm_head", {"target_modules": EMBED, "modules_to_save": HEAD}, "refused"),
    Form("modules_to_save of embed_tokens", {"target_modules": HEAD, "modules_to_save": EMBED}, "refused"),
    Form("trainable_token_indices", {"target_modules": HEAD, "trainable_token_indices": [3, 4]}, "refused"),
    Form("B of embed_tokens missing", expected="refused", spoil=_without("lora_embedding_B")),
    Form("A of lm_head missing", expected="refused", spoil=_without("lm_head.lora_A")),
    Form("PiSSA", {"init_lora_weights": "pissa"}, "refused"),
    Form("OLoRA", {"init_lora_weights": "olora", "target_modules": HEAD}, "refused"),
    Form("rank_pattern", {"rank_pattern": {"lm_head": 16}}, "refused"),
    Form("use_dora", {"use_dora": True}, "refused"),
    Form("lora_bias", {"lora_bias": True, "target_modules": HEAD}, "refused"),
    Form("vocabulary enlarged", expected="refused", added=4),
)


class FormRow(msgspec.Struct):
    """The result of a form on a path.

    `difference`: how much the outputs of the two layers differ from PEFT's, relative to the largest value. If nothing
    was served it is infinite, written as the largest float. `fails`: the adapter was loaded, and its first request
    ended in an error.
    """

    form: str
    path: PathName
    verdict: Verdict
    difference: float
    reason: str
    expected: Verdict

    @property
    def passed(self) -> bool:
        """Whether the row is as expected. Only the plugin has something to fulfil; SGLang is taken as it is."""
        return self.path != "plugin" or self.verdict == self.expected


@dataclass(frozen=True)
class Saved:
    """A form in a folder, with PEFT's rows of IDS and logits of HIDDEN_STATES for the adapter in that folder."""

    form: Form
    folder: Path
    rows: torch.Tensor
    logits: torch.Tensor


IDS = torch.tensor([3, 5, 7, 0, VOCAB - 1, 42])
HIDDEN_STATES = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(3))


def base_model(*, tied: bool, seed: int = 0) -> Any:
    """A random Llama of one layer, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)).eval()


def save(form: Form, folder: Path, seed: int = 7) -> Saved:
    """Train, save and reload an adapter with PEFT."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file, save_file

    def base() -> Any:
        model = base_model(tied=form.tied)
        if form.added:
            with torch.random.fork_rng():
                torch.manual_seed(seed)  # the rows are random
                model.resize_token_embeddings(VOCAB + form.added)
        return model

    options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(MODULES), **form.options}
    with models.quiet(), torch.random.fork_rng():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's advice on most of these forms; quiet restores them
        torch.manual_seed(seed)
        trained = get_peft_model(base(), LoraConfig(**options)).eval()
        with torch.no_grad():
            for weight in trained.parameters():
                if weight.requires_grad:
                    weight.copy_(torch.randn_like(weight) / 4)
        trained.save_pretrained(folder)
        file = folder / "adapter_model.safetensors"
        if form.spoil is not None:
            tensors = load_file(file)
            form.spoil(tensors)
            save_file(tensors, file)
        found = PeftModel.from_pretrained(base(), folder).eval().base_model.model
    with torch.no_grad():
        rows, logits = found.get_input_embeddings()(IDS), found.get_output_embeddings()(HIDDEN_STATES)
    return Saved(form, folder, rows, logits[:, :VOCAB])


def forms() -> Iterator[FormRow]:
    """Run each form on each path, in Triton's interpreter."""
    with tempfile.TemporaryDirectory() as scratch, hosted(torch.device("cpu")):
        made = [save(form, Path(scratch) / str(number)) for number, form in enumerate(FORMS)]
        for path in PATHS:
            with plugin_on() if path == "plugin" else nullcontext():
                for saved in made:
                    yield served(saved, path)


@torch.inference_mode()
def served(saved: Saved, path: PathName) -> FormRow:
    """Serve a saved form with SGLang, inside sglang_host.hosted."""

    def row(verdict: Verdict, reason: str = "", difference: float = torch.finfo(torch.float32).max) -> FormRow:
        return FormRow(saved.form.name, path, verdict, difference, reason, saved.form.expected)

    server = Server(base_model(tied=saved.form.tied), "csgmv", slots=2, max_rank=2 * RANK)
    try:
        server.load(models.adapter(saved.folder), "a")
    except AccuracyError as error:
        return row("refused", str(error).partition("refused it: ")[2] or str(error))
    uid = server.refs["a"].lora_id
    try:
        server.manager.fetch_new_loras({uid})
        server.prepare(forward_batch("EXTEND", [len(IDS)]), [uid])
        pairs = ((server.embed(IDS), saved.rows), (server.head(HIDDEN_STATES), saved.logits))
    except Exception as error:  # what SGLang asserts when it first puts the adapter into a slot
        return row("fails", f"{type(error).__name__}: {error}")
    worst = max(float((found - right).abs().max() / right.abs().max()) for found, right in pairs)
    return row("right" if worst <= LIMIT else "wrong", "", worst)
