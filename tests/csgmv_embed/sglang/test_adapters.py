"""Adapters as real PEFT saves them, through SGLang's manager, pool and layers: PEFT's result, or refused by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch

from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks import reading as reading_hooks
from tests.csgmv_embed.sglang.test_server import LOADING
from tests.support import real_sglang as support

pytest.importorskip("peft")
from safetensors.torch import load_file, save_file

from bench.accuracy import forms
from bench.accuracy.forms import FORMS, HIDDEN, HIDDEN_STATES, IDS, RANK, VOCAB, Form, Saved

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("group_of_one")]
BY_NAME = {form.name: form for form in FORMS}
# What a refusal names: the tensor or the key.
NAMED = {
    "modules_to_save of lm_head": "lm_head.weight",
    "modules_to_save of embed_tokens": "embed_tokens.weight",
    "trainable_token_indices": "trainable_tokens_delta",
    "B of embed_tokens missing": "no base_model.model.model.embed_tokens.lora_embedding_B",
    "A of lm_head missing": "no base_model.model.lm_head.lora_A.weight",
    "PiSSA": "pissa",
    "OLoRA": "olora",
    "rank_pattern": "lm_head.lora_A.weight has rank 16",
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "vocabulary enlarged": "104 rows, the model 100",
}


class Server:
    """A manager around the model that the forms are trained on."""

    def __init__(self, *, tied: bool = False, **options: Any) -> None:
        base = forms.base_model(tied=tied)
        self.model = support.TwoModules(VOCAB, HIDDEN, tied=tied, dtype=torch.float32)
        self.model.config.tie_word_embeddings = tied
        with torch.no_grad():
            self.model.model.embed_tokens.weight[:VOCAB] = base.get_input_embeddings().weight
            self.model.lm_head.weight[:VOCAB] = base.get_output_embeddings().weight
        self.manager = support.manager(self.model, **{"slots": 3, "max_rank": 2 * RANK, **options})
        self.refs: dict[str, Any] = {}

    def load(self, name: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Any:
        ref = self.reference(name, name)
        result = self.manager.load_lora_adapter_from_tensors(ref, tensors, config)
        if result.success:
            self.refs[name] = ref
        return result

    def load_folder(self, name: str, folder: Path) -> Any:
        """As a server does: SGLang's own loader reads the file."""
        ref = self.reference(name, str(folder))
        loader = importlib.import_module("sglang.srt.model_loader.loader")
        getter = "get_server_args" if hasattr(loader, "get_server_args") else "get_global_server_args"
        with patch.object(loader, getter, lambda: MagicMock(**dict.fromkeys(LOADING))):
            result = self.manager.load_lora_adapter(ref)
        if result.success:
            self.refs[name] = ref
        return result

    def reference(self, name: str, path: str) -> Any:
        found = importlib.import_module("sglang.srt.lora.lora_registry").LoRARef
        return found(lora_name=name, lora_path=path, pinned=False)

    def unload(self, name: str) -> None:
        assert self.manager.unload_lora_adapter(self.refs.pop(name)).success

    def outputs(self, name: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of IDS and logits of HIDDEN_STATES."""
        uid = None if name is None else self.refs[name].lora_id
        self.manager.fetch_new_loras({uid})
        batch = support.forward_batch("EXTEND", [len(IDS)])
        batch.lora_ids = [uid]
        self.manager.prepare_lora_batch(batch)
        return self.model.model.embed_tokens(IDS), self.model.lm_head(HIDDEN_STATES)[:, :VOCAB]

    def known(self) -> list[dict[Any, Any]]:
        manager = self.manager
        pool = manager.memory_pool
        return [dict(manager.loras), dict(manager.configs), dict(manager.lora_refs), dict(pool.uid_to_buffer_id)]


def off(found: tuple[torch.Tensor, torch.Tensor], saved: Saved) -> float:
    """The larger distance from PEFT's, in parts of the largest value."""
    pairs = zip(found, (saved.rows, saved.logits), strict=True)
    return max(float((one - right).abs().max() / right.abs().max()) for one, right in pairs)


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return load_file(folder / "adapter_model.safetensors"), config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Form], Saved]:
    """Each form once, by real PEFT."""
    made: dict[Form, Saved] = {}

    def save(form: Form) -> Saved:
        if form.name not in made:
            made[form.name] = forms.save(form, tmp_path_factory.mktemp("adapter"))
        return made[form.name]

    return save


@pytest.fixture
def on(plugin_on: Any) -> Iterator[Any]:
    with support.on_the_cpu(support.server_args(), "sglang.srt.lora.layers"):
        yield plugin_on


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_served_as_peft_or_refused_by_name(form: Form, on: Any, saved: Any) -> None:
    on()
    server, adapter = Server(tied=form.tied), saved(form)
    before = server.known()
    result = server.load("a", *read(adapter.folder))
    if form.expected == "right":
        assert result.success, result.error_message
        assert off(server.outputs("a"), adapter) < forms.LIMIT
        return
    assert not result.success and NAMED[form.name] in result.error_message
    assert "adapter a" in result.error_message or "load a" in result.error_message
    assert server.known() == before


@pytest.mark.parametrize("name", ["use_rslora and alpha_pattern", "ensure_weight_tying of lm_head"])
def test_a_form_from_a_folder(name: str, on: Any, saved: Any) -> None:
    on()
    form = BY_NAME[name]
    server, adapter = Server(tied=form.tied), saved(form)
    assert server.load_folder("a", adapter.folder).success
    assert off(server.outputs("a"), adapter) < forms.LIMIT


def test_a_file_that_lacks_a_tensor_is_refused_from_a_folder(on: Any, saved: Any) -> None:
    on()
    server = Server()
    before = server.known()
    result = server.load_folder("a", saved(BY_NAME["A of lm_head missing"]).folder)
    assert not result.success and "lora_A" in result.error_message and server.known() == before


def test_eviction_and_a_name_that_is_used_again(on: Any, saved: Any) -> None:
    on()
    server = Server(slots=2)
    first, second, third = (saved(BY_NAME[name]) for name in ("use_rslora", "plain", "alpha_pattern of lm_head"))
    for name, adapter in (("a", first), ("b", second), ("c", third)):
        assert server.load(name, *read(adapter.folder)).success
    for name, adapter in (("a", first), ("b", second), ("c", third), ("a", first), ("b", second)):
        assert off(server.outputs(name), adapter) < forms.LIMIT
    base = [found.clone() for found in server.outputs(None)]
    server.unload("a")
    assert not server.load("a", *read(saved(BY_NAME["PiSSA"]).folder)).success
    assert server.load("a", *read(third.folder)).success
    assert off(server.outputs("a"), third) < forms.LIMIT
    assert all(map(torch.equal, server.outputs(None), base))


def test_the_models_own_weights_are_compared_not_trusted(on: Any, saved: Any) -> None:
    """PEFT saves them beside LoRA. Equal ones, in another dtype too, change nothing; others would be PEFT's base."""
    on()
    server, adapter = Server(), saved(BY_NAME["plain"])
    tensors, config = read(adapter.folder)
    name = "base_model.model.lm_head.base_layer.weight"
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        assert server.load(str(number), {**tensors, name: tensors[name].to(dtype)}, config).success
        assert off(server.outputs(str(number)), adapter) < forms.LIMIT
        assert name not in server.manager.loras[server.refs[str(number)].lora_id].embedding_layers
    for other in (tensors[name] * 1.02, tensors[name].roll(1, dims=0), tensors[name] * float("nan")):
        result = server.load("other", {**tensors, name: other}, config)
        assert not result.success and f"{name} is not the model's own weight" in result.error_message


def test_what_sglang_has_no_place_for_is_refused(on: Any, saved: Any) -> None:
    on()
    server, adapter = Server(), saved(BY_NAME["embed_tokens alone"])
    tensors, config = read(adapter.folder)
    extra = {"base_model.model.visual.q_proj.lora_A.weight": torch.ones(RANK, HIDDEN)}
    extra |= {"base_model.model.visual.q_proj.lora_B.weight": torch.ones(HIDDEN, RANK)}
    result = server.load("a", {**tensors, **extra}, config)
    assert not result.success and "SGLang has no place for base_model.model.visual" in result.error_message
    head, _ = read(saved(BY_NAME["lm_head alone"]).folder)  # LoRA that target_modules does not name, and no tie
    result = server.load("a", {**tensors, **head}, config)
    assert not result.success and "SGLang has no place for base_model.model.lm_head.lora_" in result.error_message
    norm = {"base_model.model.model.norm.weight": torch.ones(HIDDEN)}
    result = server.load("a", {**tensors, **norm}, config)
    assert not result.success and "norm.weight" in result.error_message and "merge" in result.error_message


def test_a_tie_of_which_the_file_has_one_half(on: Any, saved: Any) -> None:
    on()
    server, adapter = Server(tied=True), saved(BY_NAME["ensure_weight_tying of embed_tokens"])
    tensors, config = read(adapter.folder)
    half = {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}
    result = server.load("a", half, config)
    assert not result.success and "no tensor of lm_head" in result.error_message


def test_a_module_that_the_server_does_not_target(on: Any, saved: Any) -> None:
    """The tied partner is not in target_modules, so SGLang's own check lets it pass."""
    on()
    server = Server(tied=True, modules=("embed_tokens",))
    result = server.load("a", *read(saved(BY_NAME["ensure_weight_tying of embed_tokens"]).folder))
    assert not result.success and "lm_head" in result.error_message and "--lora-target-modules" in result.error_message


def test_adapters_of_the_start_are_held_against_the_pool(on: Any, saved: Any) -> None:
    """They are read before there is a pool."""
    on()
    server = Server()
    assert server.load("a", *read(saved(BY_NAME["plain"]).folder)).success
    server.manager.update_lora_info()
    broken = server.manager.loras[server.refs["a"].lora_id].embedding_layers
    key = next(name for name in broken if "lora_embedding_A" in name)
    broken[key] = broken[key][:, 1:]
    with pytest.raises(ValueError, match="embed_tokens LoRA A of shape"):
        server.manager.update_lora_info()


def test_every_other_module_has_its_own_scale_too(on: Any, saved: Any) -> None:
    """q, k and v are one tensor for SGLang: each has its ratio before they are merged. The rest is the scale of all."""
    on()
    server = Server()
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"base_model.model.model.layers.0.self_attn.{name}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        for side, shape in (("A", (4, HIDDEN)), ("B", (HIDDEN, 4)))
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True}
    config |= {"target_modules": "all-linear", "alpha_pattern": {"q_proj": 16, r"0\.self_attn\.v_proj": 2}}
    assert server.load("a", tensors, config).success
    adapter = server.manager.loras[server.refs["a"].lora_id]
    weights = {name.rpartition("self_attn.")[2]: found for name, found in adapter.layers[0].weights.items()}

    def b(name: str) -> torch.Tensor:
        return tensors[f"base_model.model.model.layers.0.self_attn.{name}.lora_B.weight"]

    scaled = torch.cat([b("q_proj") * 16 / 2, b("k_proj") * 8 / 2, b("v_proj") * 2 / 2])
    torch.testing.assert_close(weights["qkv_proj.lora_B.weight"] * adapter.scaling, scaled)
    torch.testing.assert_close(weights["o_proj.lora_B.weight"] * adapter.scaling, b("o_proj") * 8 / 2)


def test_a_scale_of_nothing_but_patterns(on: Any, saved: Any, tmp_path: Path) -> None:
    on()
    adapter = forms.save(Form("", {"lora_alpha": 0, "alpha_pattern": {"lm_head": 24}}), tmp_path)
    server = Server()
    assert server.load("a", *read(adapter.folder)).success
    assert off(server.outputs("a"), adapter) < forms.LIMIT


def test_without_the_plugin_sglang_reads_as_it_does(on: Any, saved: Any) -> None:
    """What the hooks change is what they are for: off, they change nothing, and other backends are left alone."""
    on()
    runtime.activate(None)
    server, adapter = Server(), saved(BY_NAME["use_rslora"])
    assert server.load("a", *read(adapter.folder)).success
    assert off(server.outputs("a"), adapter) > 0.1


def test_ranks_of_tensor_parallelism_compare_their_own_rows(on: Any) -> None:
    model = support.TwoModules(VOCAB, HIDDEN, tied=False, dtype=torch.float32)
    layer = model.model.embed_tokens
    whole = layer.weight[:VOCAB].detach().clone()
    shard = layer.shard_indices
    with (
        patch.object(layer, "weight", torch.nn.Parameter(layer.weight.detach()[64:].clone())),
        patch.object(
            layer, "shard_indices", MagicMock(wraps=shard, org_vocab_start_index=64, org_vocab_end_index=VOCAB)
        ),
    ):
        assert reading_hooks._difference(model, "embed_tokens", whole) == ""
        assert "off" in reading_hooks._difference(model, "embed_tokens", whole.roll(1, dims=0))
    assert reading_hooks._difference(torch.nn.Module(), "embed_tokens", whole) == ""  # another rank's


def test_a_tensor_in_bfloat16_keeps_its_dtype(on: Any, saved: Any, tmp_path: Path) -> None:
    on()
    tensors, config = read(saved(BY_NAME["use_rslora and alpha_pattern"]).folder)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    server = Server()
    assert server.load("a", load_file(tmp_path / "adapter_model.safetensors"), config).success
    kept = server.manager.loras[server.refs["a"].lora_id].embedding_layers
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
