"""What a real SGLang engine takes for a decode step and a prefill, by mode: needs a GPU and SGLang 0.5.16 or later.

    python docs/experiments/engine_step.py MODE OUT.json [--shape 8b] [--decode 1,32,128,256] [--root FOLDER]

MODE is none (no LoRA), triton, csgmv, or plugin (csgmv with csgmv_embed). Weights are random in the shapes of Llama
3.1; 8 adapters of ranks 16 and 64 in turn are on every module, requests take them in turn. Weights and adapters are
written below the root on first use (16 GB). One process is one engine: start the modes one after another on a machine.

A decode step is the difference of 144 and 16 new tokens over 128, three times; a prefill is one new token for 8 prompts
of 512 tokens, three times. The tokens and logprobs of 16 short prompts are kept, to be compared between modes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

# Every process that the engine spawns runs this file from its top, with the same arguments.
os.environ["CSGMV_EMBED_DISABLE"] = "0" if "plugin" in sys.argv else "1"
if "plugin" in sys.argv:
    import csgmv_embed.sglang

    csgmv_embed.sglang.install()

SHAPES = {  # hidden, layers, heads, heads of k and v, intermediate
    "8b": (4096, 32, 32, 8, 14336),
    "1b": (2048, 16, 32, 8, 8192),
}
VOCAB, ADAPTERS, RANKS = 128256, 8, (16, 64)
CAPTURED = [1, 8, 32, 64, 128, 256]


def linear_shapes(shape: str) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer."""
    hidden, _, heads, kv_heads, inner = SHAPES[shape]
    kv = hidden // heads * kv_heads
    names = {"q": hidden, "k": kv, "v": kv, "o": hidden}
    found = {f"self_attn.{name}_proj": (rows, hidden) for name, rows in names.items()}
    found |= {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
    return {**found, "mlp.down_proj": (hidden, inner)}


def write(shape: str, root: Path) -> Path:
    """Random weights and adapters, once."""
    import torch
    from safetensors.torch import save_file

    folder = root / shape
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    hidden, layers, heads, kv_heads, inner = SHAPES[shape]

    def draw(*size: int, scale: float = 0.02) -> torch.Tensor:
        return (torch.randn(size, device="cuda") * scale).bfloat16().cpu()

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    ends = {f"{name}.weight": draw(VOCAB, hidden) for name in ("model.embed_tokens", "lm_head")}
    save_file({**ends, "model.norm.weight": torch.ones(hidden).bfloat16()}, folder / "model-0.safetensors")
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": draw(*size) for name, size in linear_shapes(shape).items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(hidden).bfloat16()
        save_file(tensors, folder / f"model-{layer + 1}.safetensors")
    for adapter in range(ADAPTERS):
        rank, tensors = RANKS[adapter % len(RANKS)], {}
        for layer in range(layers):
            for name, (rows, columns) in linear_shapes(shape).items():
                prefix = f"base_model.model.model.layers.{layer}.{name}."
                tensors[f"{prefix}lora_A.weight"] = draw(rank, columns, scale=columns**-0.5)
                tensors[f"{prefix}lora_B.weight"] = draw(rows, rank, scale=0.005)
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = draw(rank, VOCAB)
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = draw(hidden, rank)
        tensors["base_model.model.lm_head.lora_A.weight"] = draw(rank, hidden, scale=hidden**-0.5)
        tensors["base_model.model.lm_head.lora_B.weight"] = draw(VOCAB, rank, scale=0.005)
        modules = [name.rsplit(".", 1)[1] for name in linear_shapes(shape)] + ["embed_tokens", "lm_head"]
        (folder / f"a{adapter}").mkdir(exist_ok=True)
        save_file(tensors, folder / f"a{adapter}" / "adapter_model.safetensors")
        described = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules, "bias": "none"}
        (folder / f"a{adapter}" / "adapter_config.json").write_text(json.dumps(described))
    (folder / "done").touch()
    return folder


def start(folder: Path, mode: str):
    import sglang

    options = {
        "model_path": str(folder),
        "skip_tokenizer_init": True,
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_radix_cache": True,
        "disable_prefill_cuda_graph": True,
        "cuda_graph_bs_decode": CAPTURED,
        "mem_fraction_static": 0.6,
        "max_running_requests": CAPTURED[-1],
        "chunked_prefill_size": 16384,
        "context_length": 4096,
        "dtype": "bfloat16",
        "log_level": "error",
    }
    if mode != "none":
        options |= {
            "enable_lora": True,
            "max_loras_per_batch": ADAPTERS,
            "max_lora_rank": max(RANKS),
            "lora_target_modules": ["all"],
            "lora_paths": {f"a{index}": str(folder / f"a{index}") for index in range(ADAPTERS)},
            "lora_backend": "triton" if mode == "triton" else "csgmv",
        }
    return sglang.Engine(**options)


class Server:
    """An engine that answers prompts of random ids."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.lora = mode != "none"
        began = time.perf_counter()
        self.engine = start(folder, mode)
        self.start_s = time.perf_counter() - began

    def seconds(self, prompts: list[list[int]], new: int, *, adapters: bool = True) -> float:
        began = time.perf_counter()
        self.answers(prompts, new, adapters=adapters)
        return time.perf_counter() - began

    def answers(self, prompts: list[list[int]], new: int, *, adapters: bool = True, logprobs: bool = False):
        sampling = {"max_new_tokens": new, "ignore_eos": True, "temperature": 0.0}
        options = {"return_logprob": True} if logprobs else {}
        if self.lora:
            names = [f"a{index % ADAPTERS}" if adapters else None for index in range(len(prompts))]
            options["lora_path"] = names
        return self.engine.generate(input_ids=prompts, sampling_params=sampling, **options)

    def step_ms(self, prompts: list[list[int]], *, adapters: bool = True) -> float:
        short, long = (self.seconds(prompts, new, adapters=adapters) for new in (16, 144))
        return (long - short) / 128 * 1000


def measure(mode: str, folder: Path, decode: list[int]) -> dict[str, object]:
    server, rng = Server(folder, mode), random.Random(1)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(3, VOCAB) for _ in range(length)] for _ in range(count)]

    found: dict[str, object] = {"mode": mode, "start_s": server.start_s}
    steps = {}
    for requests in decode:
        batch = prompts(requests, 16)
        server.seconds(batch, 8)
        steps[str(requests)] = [server.step_ms(batch) for _ in range(3)]
    found["decode_ms"] = steps
    batches = [prompts(8, 512) for _ in range(4)]
    found["prefill_8x512_ms"] = [server.seconds(batch, 1) * 1000 for batch in batches][1:]
    if server.lora:
        batch = prompts(32, 16)
        server.seconds(batch, 8, adapters=False)
        found["decode_32_without_adapter_ms"] = server.step_ms(batch, adapters=False)
    rng = random.Random(5)
    answers = server.answers(prompts(16, 24), 12, logprobs=True)
    found["tokens"] = [answer["output_ids"] for answer in answers]
    found["logprobs"] = [[entry[0] for entry in answer["meta_info"]["output_token_logprobs"]] for answer in answers]
    server.engine.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["none", "triton", "csgmv", "plugin"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--decode", default="1,32,128,256")
    parser.add_argument("--root", type=Path, default=Path("build/engine"))
    given = parser.parse_args()
    folder = write(given.shape, given.root.resolve())
    found = measure(given.mode, folder, [int(value) for value in given.decode.split(",")])
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("tokens", "logprobs")}, indent=1))


if __name__ == "__main__":
    main()
