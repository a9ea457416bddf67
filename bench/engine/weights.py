"""Models of random weights in known shapes, and random adapters for them, written once below a folder.

The shapes of Llama 3.1 8B and Llama 3.2 1B are built in; a config.json of the same architecture gives others. Weights
are N(0, 0.02), and the A of an adapter is N(0, 1/inputs). Its B is scaled so that the adapter adds an eighth to the
output of a layer, as much again to an embedding, and half to lm_head's. If a site's LoRA were lost, the answers would
show it. Each folder is written completely or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.model.config import ConfigError
from bench.model.locks import only_writer
from bench.model.serving import Setup, Targets

Writer = Callable[[Path], None]
MAKER = "2"  # of the folders' names: raise it when what is written changes
SCALE = 0.02  # of weights
SHARE, HEAD_SHARE = 1 / 8, 1 / 2  # of a layer's output, that its adapter adds; of lm_head's, which nothing amplifies
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": LLAMA | {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "head_dim": 128},
    "1b": LLAMA | {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "head_dim": 64},
}
RANDOM = ("llama", "mistral")  # architectures whose layers are named as below, and have no other
ADAPTED = (*RANDOM, "qwen2", "qwen3")
MODULES: dict[Targets, tuple[str, ...]] = {
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"),
    "ends": ("embed_tokens", "lm_head"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def model_config(name: str) -> tuple[dict[str, Any], Path | None]:
    """The config of a model, and the folder of its checkpoint (None: make random weights). Raises ConfigError."""
    if name in SHAPES:
        return SHAPES[name], None
    path = Path(name)
    folder = path if path.is_dir() else None
    file = path / "config.json" if folder else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(SHAPES)
        raise ConfigError(f"model {name}: {error}; expected {known}, a config.json or a folder with one") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model {name}: {file.name} is not a JSON object; expected the config.json of a model")
    missing = [key for key in NEEDED if not isinstance(config.get(key), int)]
    if missing:
        raise ConfigError(f"model {name}: {file.name} lacks {', '.join(missing)}; expected whole numbers there")
    known_types = ADAPTED if folder else RANDOM
    if config.get("model_type") not in known_types:
        found = config.get("model_type")
        raise ConfigError(f"model {name}: model_type is {found!r}; expected one of {', '.join(known_types)}")
    return config, folder


def refuse_ranks(config: dict[str, Any], tp: int) -> None:
    """Raises ConfigError for a model that cannot be split over this many GPUs."""
    for name in ("num_attention_heads", "intermediate_size"):
        if config[name] % tp:
            raise ConfigError(f"tp {tp}: the model's {name} is {config[name]}; expected a number that divides it")


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer of a block."""
    hidden, heads, inner = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // heads
    all_heads, kv = heads * width, (config.get("num_key_value_heads") or heads) * width
    found = {"self_attn.q_proj": (all_heads, hidden), "self_attn.o_proj": (hidden, all_heads)}
    found |= {f"self_attn.{name}_proj": (kv, hidden) for name in ("k", "v")}
    found |= {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
    return {**found, "mlp.down_proj": (hidden, inner)}


def prepare(setup: Setup, cache: Path) -> tuple[Path, list[Path], dict[str, Any]]:
    """Folders of the model and of each adapter, and the model's config. Missing folders are written.

    Raises ConfigError for an unsupported model, and ResultsError while another process writes there.
    """
    config, folder = model_config(setup.model)
    named = json.dumps([MAKER, config], sort_keys=True)
    if folder is None:
        folder = _once(cache / f"model-{_digest(named)}", partial(_write_model, config))
    adapters = []
    for index in range(setup.adapters):
        rank = setup.ranks[index % len(setup.ranks)]
        name = f"adapter-{_digest(named, setup.targets, rank, index)}"
        adapters.append(_once(cache / name, partial(_write_adapter, config, setup.targets, rank, index)))
    return folder, adapters, config


def tokenizer(name: str, folder: Path, cache: Path) -> Path:
    """A folder with a tokenizer: the checkpoint's own, or one with a word for each id, made below the cache."""
    config, _ = model_config(name)
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        return folder
    vocab = int(config["vocab_size"])
    return _once(cache / f"tokenizer-{_digest(MAKER, vocab)}", partial(_write_tokenizer, config))


def _write_tokenizer(config: dict[str, Any], folder: Path) -> None:
    """Words t0, t1, ..., of which no two are one text: SGLang decodes every id to something, and it is cheap."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {f"t{index}": index for index in range(config["vocab_size"])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"), pretty=False)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")  # by which a library knows its kind


def _digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()[:12]


def _once(folder: Path, write: Writer) -> Path:
    """The folder, written beside its place and then put there in one step."""
    with only_writer(folder):
        if folder.is_dir():
            return folder
        for left in folder.parent.glob(f".{folder.name}.[0-9]*"):  # by one that was killed: 16 GB, perhaps
            shutil.rmtree(left)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            temporary.rename(folder)
        finally:
            with suppress(OSError):
                shutil.rmtree(temporary)
    return folder


class _Draws:
    """Random tensors of one seed, drawn on a GPU where there is one, which is faster."""

    def __init__(self, seed: int) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._generator = torch.Generator(self._device).manual_seed(seed)

    def __call__(self, *size: int, scale: float) -> Any:
        import torch

        drawn = torch.randn(size, device=self._device, generator=self._generator) * scale
        return drawn.bfloat16().cpu()


def _write_model(config: dict[str, Any], folder: Path) -> None:
    """A config.json and a file of safetensors for the ends and for each block, and the index of these files."""
    import torch
    from safetensors.torch import save_file

    draw, hidden = _Draws(1), config["hidden_size"]
    index: dict[str, str] = {}

    def write(tensors: dict[str, Any], name: str) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    ends = ["model.embed_tokens"] + ([] if config.get("tie_word_embeddings") else ["lm_head"])
    tensors = {f"{name}.weight": draw(config["vocab_size"], hidden, scale=SCALE) for name in ends}
    write({**tensors, "model.norm.weight": torch.ones(hidden).bfloat16()}, "model-0.safetensors")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        block = {f"{prefix}{name}.weight": draw(*size, scale=SCALE) for name, size in linear_shapes(config).items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            block[f"{prefix}{name}.weight"] = torch.ones(hidden).bfloat16()
        write(block, f"model-{layer + 1}.safetensors")
    described = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(described, encoding="utf-8")


def _write_adapter(config: dict[str, Any], targets: Targets, rank: int, seed: int, folder: Path) -> None:
    """An adapter as PEFT writes it."""
    from safetensors.torch import save_file

    save_file(dict(_adapter_tensors(config, targets, rank, seed)), folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(MODULES[targets]),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def _adapter_tensors(config: dict[str, Any], targets: Targets, rank: int, seed: int) -> Iterator[tuple[str, Any]]:
    draw, hidden, vocab = _Draws(1000 + seed), config["hidden_size"], config["vocab_size"]
    wanted = MODULES[targets]
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in linear_shapes(config).items():
            if name.rsplit(".", 1)[1] in wanted:
                prefix = f"base_model.model.model.layers.{layer}.{name}."
                yield f"{prefix}lora_A.weight", draw(rank, columns, scale=columns**-0.5)
                yield f"{prefix}lora_B.weight", draw(rows, rank, scale=SHARE * SCALE * (columns / rank) ** 0.5)
    if "embed_tokens" in wanted:
        yield "base_model.model.model.embed_tokens.lora_embedding_A", draw(rank, vocab, scale=SCALE)
        yield "base_model.model.model.embed_tokens.lora_embedding_B", draw(hidden, rank, scale=rank**-0.5)
    if "lm_head" in wanted:
        yield "base_model.model.lm_head.lora_A.weight", draw(rank, hidden, scale=hidden**-0.5)
        yield (
            "base_model.model.lm_head.lora_B.weight",
            draw(vocab, rank, scale=HEAD_SHARE * SCALE * (hidden / rank) ** 0.5),
        )
