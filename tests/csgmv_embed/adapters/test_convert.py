"""The converter, on adapters of real PEFT: a plain adapter that PEFT gives the same outputs for, or a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from csgmv_embed.__main__ import main
from csgmv_embed.adapters import convert as converter
from csgmv_embed.adapters import rules
from csgmv_embed.adapters.convert import convert, plain
from csgmv_embed.adapters.rules import AdapterError

pytest.importorskip("peft")
from safetensors.torch import load_file

from bench.accuracy import forms, models
from bench.accuracy.forms import FORMS, HIDDEN_STATES, IDS, VOCAB, Form

pytestmark = pytest.mark.filterwarnings("ignore")
CONVERTIBLE = [form for form in FORMS if form.expected == "right" or form.name == "rank_pattern"]
OTHERS = [form for form in FORMS if form not in CONVERTIBLE and form.name != "vocabulary enlarged"]


def outputs(folder: Path, *, tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
    from peft import PeftModel

    with models.quiet(), torch.no_grad():
        found = PeftModel.from_pretrained(forms.base_model(tied=tied), folder).eval().base_model.model
        return found.get_input_embeddings()(IDS), found.get_output_embeddings()(HIDDEN_STATES)


@pytest.mark.parametrize("form", CONVERTIBLE, ids=lambda form: form.name)
def test_what_is_written_is_plain_and_the_same_to_peft(form: Form, tmp_path: Path) -> None:
    saved = forms.save(form, tmp_path / "given")
    assert main(["convert", str(saved.folder), str(tmp_path / "made")]) == 0
    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert not any(config[key] for key in ("use_rslora", "alpha_pattern", "rank_pattern", "ensure_weight_tying"))
    tensors = load_file(tmp_path / "made" / "adapter_model.safetensors")
    named = {found.last for found in map(rules.lora_tensor, tensors) if found}
    assert named <= set(config["target_modules"])
    for found, right in zip(outputs(tmp_path / "made", tied=form.tied), (saved.rows, saved.logits), strict=True):
        assert float((found[..., :VOCAB] - right).abs().max() / right.abs().max()) < forms.LIMIT


@pytest.mark.parametrize("form", OTHERS, ids=lambda form: form.name)
def test_what_has_no_plain_form_is_said(form: Form, tmp_path: Path, capsys: Any) -> None:
    saved = forms.save(form, tmp_path / "given")
    assert main(["convert", str(saved.folder), str(tmp_path / "made")]) == 1
    assert "adapter given: " in capsys.readouterr().err and not (tmp_path / "made").exists()


def test_the_check_against_peft_finds_a_wrong_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = forms.save(Form("", {"use_rslora": True}), tmp_path / "given")

    def wrong(*given: Any) -> Any:
        tensors, config = plain(*given)
        return {name: tensor * 1.001 for name, tensor in tensors.items()}, config

    monkeypatch.setattr(converter, "plain", wrong)
    with pytest.raises(AdapterError, match="differs from it by"):
        convert(saved.folder, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="exists; expected"):
        convert(tmp_path, tmp_path)
    with pytest.raises(AdapterError, match="cannot be read"):
        convert(tmp_path, tmp_path / "new")
    assert main(["convert", "one"]) == 2


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_are_pefts_own(rslora: bool) -> None:
    """Of every module, with patterns that are names, paths and regexes, and one that ends like another's name."""
    from peft import LoraConfig, get_peft_model

    patterns = {"q_proj": 3, r"layers\.0\.mlp\..*": 5, "model.embed_tokens": 7, "head": 11, "lm_head": 13, r".*v_.*": 2}
    options = {"r": 8, "lora_alpha": 6, "use_rslora": rslora, "alpha_pattern": patterns, "rank_pattern": {"o_proj": 2}}
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"]
    with models.quiet():
        model = get_peft_model(forms.base_model(tied=False), LoraConfig(**options, target_modules=modules))
    found = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    assert len(found) == len(modules)
    assert {name: rules.scale(options, name) for name in found} == pytest.approx(found)
