"""Models and adapters of random weights: shapes that an engine loads, written once and whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from bench.engine import weights
from bench.model.config import ConfigError
from bench.model.serving import Setup
from tests.bench.engine.test_run import TINY


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return path


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def test_a_model_and_its_adapters_have_the_shapes_of_the_config(config: Path, tmp_path: Path) -> None:
    model, adapters, _ = weights.prepare(Setup(str(config), adapters=3, ranks=(4, 8)), tmp_path / "cache")
    found = shapes(model)
    assert found["model.layers.0.self_attn.k_proj.weight"] == (16, 32)
    assert found["model.layers.0.mlp.down_proj.weight"] == (32, 48)
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"] == (500, 32)
    assert json.loads((model / "config.json").read_text(encoding="utf-8")) == TINY
    assert [json.loads((item / "adapter_config.json").read_text(encoding="utf-8"))["r"] for item in adapters] == [
        4,
        8,
        4,
    ]
    one = shapes(adapters[1])
    assert one["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"] == (8, 48)
    assert one["base_model.model.model.embed_tokens.lora_embedding_A"] == (8, 500)
    assert one["base_model.model.lm_head.lora_B.weight"] == (500, 8)
    assert (adapters[0] / "adapter_model.safetensors").read_bytes() != (
        adapters[2] / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("targets", "count"), [("all", 18), ("ends", 4), ("attention", 8)])
def test_an_adapter_is_on_its_targets_alone(targets, count: int, config: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, (adapter,), _ = weights.prepare(Setup(str(config), adapters=1, targets=targets), tmp_path / "cache")
    assert len(shapes(adapter)) == count


def test_what_is_there_is_not_written_again_and_a_half_written_folder_is_never_there(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, setup = tmp_path / "cache", Setup(str(config), adapters=2)

    def breaks(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(weights, "_write_adapter", breaks)
        with pytest.raises(OSError, match="no space"):
            weights.prepare(setup, cache)
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["model"]
    model, adapters, _ = weights.prepare(setup, cache)
    before = {path: path.stat().st_mtime_ns for path in [*model.iterdir(), *adapters[0].iterdir()]}
    assert weights.prepare(setup, cache)[:2] == (model, adapters)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = weights.prepare(Setup(str(config), adapters=2, ranks=(4,)), cache)
    assert other[0] == model and not {*other[1]} & {*adapters}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected one of llama, mistral"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_a_config_that_is_none_is_refused(changed: dict[str, object], said: str, config: Path) -> None:
    config.write_text(json.dumps(TINY | changed), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        weights.model_config(str(config))


def test_a_model_is_built_in_a_config_or_a_checkpoint(config: Path, tmp_path: Path) -> None:
    assert weights.model_config("8b")[0]["hidden_size"] == 4096 and weights.model_config("1b")[1] is None
    assert weights.model_config(str(config)) == (TINY, None)
    assert weights.model_config(str(config.parent)) == (TINY, config.parent)
    with pytest.raises(ConfigError, match="70b: .*expected 8b, 1b, a config.json or a folder with one"):
        weights.model_config("70b")
