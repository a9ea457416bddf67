"""Trains two adapters for a model, and the small model itself. Yields the training steps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from bench.accuracy import text
from bench.accuracy.models import MODULES, Source, load, quiet
from bench.model.environment import ROOT
from bench.model.store import readable, write_bytes

ATTENTION = ("q_proj", "v_proj")
IGNORED = -100  # label of a position that is not learned
SEED = 1
SCRATCH = ROOT / "build" / "accuracy"
# A text learnt by heart drives logits apart without end, until float32 cannot be compared to 1e-4. Smoothed labels hold
# them together, as much text does in a large model.
SMOOTHING = 0.1


@dataclass(frozen=True)
class Recipe:
    """One adapter. The two differ in rank, scale (alpha / rank) and text, so that mixing them up shows."""

    name: str
    rank: int
    alpha: int
    texts: tuple[str, ...]


RECIPES = (Recipe("sea", 8, 16, text.SEA), Recipe("kitchen", 16, 48, text.KITCHEN))


class Step(NamedTuple):
    """`loss`: mean cross-entropy of a token with label smoothing, in nats, before the step's update."""

    what: str
    step: int
    steps: int
    loss: float


class Curve(msgspec.Struct):
    """The contents of training.json, which lies beside the trained adapter or model."""

    model: str
    seed: int
    learning_rate: float
    torch: str
    losses: list[float]


def train_adapter(
    source: Source, recipe: Recipe, folder: Path, *, steps: int, learning_rate: float, seed: int, attention: bool
) -> Iterator[Step]:
    """Train LoRA on embed_tokens and lm_head, with `attention` also on q_proj and v_proj; write it to `folder`.

    All texts form one batch, in their order, so the seed decides only the initial values. The folder appears, complete,
    after the last step. On one machine and with one number of threads, runs are equal to the bit.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model, tokenizer = load(source, torch.float32)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=[*MODULES, *(ATTENTION if attention else ())],
    )
    with quiet():
        peft = get_peft_model(model, config)
    peft.peft_config["default"].base_model_name_or_path = source.name  # and not a path of this machine
    batch = _batch(tokenizer, recipe.texts)
    losses: list[float] = []
    for loss in _descend(peft, lambda _: batch, steps, learning_rate):
        losses.append(loss)
        yield Step(recipe.name, len(losses), steps, loss)
    _place(folder, lambda place: _save_adapter(peft, place), Curve(source.name, seed, learning_rate, *_made(losses)))


def train_small(folder: Path, *, steps: int = 500, learning_rate: float = 4e-3, seed: int = SEED) -> Iterator[Step]:
    """Train the small model: its own tokenizer, and a Llama of half a million weights that speaks the grammar."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    corpus = text.passages(4000, seed)
    tokenizer = _tokenizer([*corpus, *text.SEA, *text.KITCHEN])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    batches = [_batch(tokenizer, corpus[start : start + 16]) for start in range(0, len(corpus), 16)]
    losses: list[float] = []
    for loss in _descend(model, lambda step: batches[step % len(batches)], steps, learning_rate):
        losses.append(loss)
        yield Step("small", len(losses), steps, loss)

    def save(place: Path) -> None:
        with quiet():
            model.to(torch.float16).save_pretrained(place)
            tokenizer.save_pretrained(place)

    _place(folder, save, Curve("small", seed, learning_rate, *_made(losses)))


def _descend(model: Any, batch_of: Any, steps: int, learning_rate: float) -> Iterator[float]:
    """Losses of AdamW with a cosine schedule; the model is left in evaluation mode."""
    from transformers import get_cosine_schedule_with_warmup

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, steps // 10, steps)
    model.train()
    for step in range(steps):
        loss = _loss(model, batch_of(step))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        yield float(loss.detach())
    model.eval()


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the next token, labels smoothed."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=SMOOTHING,
    )


def _batch(tokenizer: Any, texts: list[str] | tuple[str, ...]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, (texts, longest); padded on the right, padding not learned."""
    rows = [tokenizer(text).input_ids for text in texts]
    longest = max(map(len, rows))
    shape = (len(rows), longest)
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row)
        mask[k, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def _tokenizer(corpus: list[str]) -> Any:
    """Byte-level BPE that knows every word of the corpus as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted({*"".join(corpus), "\u0120"} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=1001, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _save_adapter(peft: Any, place: Path) -> None:
    with quiet():
        peft.save_pretrained(place, save_embedding_layers=False)
    (place / "README.md").unlink(missing_ok=True)  # a model card of nothing but placeholders


def _made(losses: list[float]) -> tuple[str, list[float]]:
    return str(torch.__version__), [round(loss, 5) for loss in losses]


def _place(folder: Path, save: Any, curve: Curve) -> None:
    """Put a folder in place whole: an interrupted run leaves the old one, or none."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:  # never beside sources, whatever becomes of the process
        made = Path(scratch) / folder.name
        made.mkdir()
        save(made)
        write_bytes(made / "training.json", readable(curve))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, folder)
