"""SGLang's real classes without a GPU or a server: what they need around them, and nothing in their place.

Works for every supported version, in this process or in one of its own. Stand-ins: memory is not pinned,
devices are the CPU, a process group of one, and a namespace for the server's arguments.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bench.contenders.sglang.harness import forward_batch as forward_batch
from bench.contenders.sglang.harness import server_args as server_args
from bench.contenders.sglang.harness import standalone
from bench.contenders.sglang.harness import start_process_group as start_process_group
from bench.model.environment import suite_version
from csgmv_embed.sglang.targets import Release

REPO = Path(__file__).parents[2]
GROUP = "sglang.srt.plugins"
# Asked before a test puts a folder with our entry point on the path.
INSTALLED = any(point.name == "csgmv_embed" for point in importlib.metadata.entry_points(group=GROUP))
BACKEND_MODULE = "sglang.srt.lora.backend.chunked_backend"
NOT_HERE = "SGLang's server classes do not load here"  # why a test is skipped

VERSION = importlib.metadata.version("sglang") if importlib.util.find_spec("sglang") is not None else None
OLDEST = VERSION == "0.5.10"
# SGLang 0.5.10 resolves "all" among its server's arguments; from 0.5.11 on the manager does.
BOTH_MODULES = ("embed_tokens", "lm_head") if OLDEST else ("all",)
VOCAB = 100  # the layers pad these rows to 128


@contextmanager
def on_the_cpu(args: SimpleNamespace, *modules: str) -> Iterator[None]:
    """The backend's module and the named ones work outside a server, on the CPU unless there is a GPU."""
    found = [importlib.import_module(name) for name in (BACKEND_MODULE, *modules)]
    with standalone(*found, args=args, device=torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        yield


def backend(slots: int = 4, chunk_size: int = 16, device: str = "cpu") -> Any:
    """A stock csgmv backend; inside on_the_cpu."""
    module = importlib.import_module(BACKEND_MODULE)
    return module.ChunkedSgmvLoRABackend(
        max_loras_per_batch=slots, device=torch.device(device), server_args=server_args(chunk_size)
    )


def entry_point_files(folder: Path) -> None:
    """Write what `pip install` would of this checkout's entry points, unless the package is installed."""
    if INSTALLED:
        return
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"csgmv_embed-{suite_version()}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: csgmv-embed\nVersion: {suite_version()}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"][GROUP].items()]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")


def has_plugins() -> bool:
    """Whether the SGLang here loads plugins: 0.5.11 and later."""
    return importlib.util.find_spec("sglang.srt.plugins") is not None


def load_plugin() -> None:
    """As a server process does at its start, which finds the entry point on its path; SGLang 0.5.10 by the call."""
    if not has_plugins():
        importlib.import_module("csgmv_embed.sglang").install()
        return
    importlib.import_module("sglang.srt.plugins").load_plugins()


def unload_plugin(release: Release) -> None:
    """SGLang's own functions again, wherever a module holds them by name: for other tests of this process."""
    own = {}
    for hook in release.hooks:
        path, name = hook.target.rsplit(".", 1)
        holder = pkgutil.resolve_name(path)
        hooked = getattr(holder, name)
        own[id(hooked)] = hooked.__wrapped__
        setattr(holder, name, hooked.__wrapped__)
    for module in filter(inspect.ismodule, list(sys.modules.values())):
        for name, value in list(vars(module).items()):
            if id(value) in own:
                setattr(module, name, own[id(value)])
    if has_plugins():
        plugins = importlib.import_module("sglang.srt.plugins")
        plugins._plugins_loaded = False
        plugins.HookRegistry.reset()


def server_classes() -> str | None:
    """Why SGLang's layers, pool and manager do not load here; None if they do."""
    try:
        importlib.import_module("sglang.srt.lora.lora_manager")
    except Exception as error:  # they want sgl_kernel, which wants its own libraries
        return f"{type(error).__name__}: {error}"[:200]
    return None


class TwoModules(nn.Module):
    """A model of an embedding layer and an lm_head, tied or not."""

    def __init__(self, vocab: int, hidden: int, *, tied: bool, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        layers = importlib.import_module("sglang.srt.layers.vocab_parallel_embedding")
        self.config = SimpleNamespace(
            vocab_size=vocab, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=1, intermediate_size=hidden
        )
        self.model = nn.Module()
        self.model.embed_tokens = layers.VocabParallelEmbedding(vocab, hidden, params_dtype=dtype)
        self.lm_head = self.model.embed_tokens if tied else layers.ParallelLMHead(vocab, hidden, params_dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                weight.zero_()
                weight[:vocab] = torch.randn(vocab, hidden, generator=generator).to(dtype)


def manager(
    model: TwoModules, *, slots: int, max_rank: int, chunk_size: int = 16, modules: tuple[str, ...] = BOTH_MODULES
) -> Any:
    """SGLang's LoRAManager around the model; inside on_the_cpu(..., "sglang.srt.lora.layers")."""
    found = importlib.import_module("sglang.srt.lora.lora_manager").LoRAManager
    load_config = importlib.import_module("sglang.srt.configs.load_config").LoadConfig
    options = {
        "base_model": model,
        "base_hf_config": model.config,
        "max_loras_per_batch": slots,
        "load_config": load_config(),
        "dtype": next(model.parameters()).dtype,
        "server_args": server_args(chunk_size),
        "lora_backend": "csgmv",
        "max_lora_rank": max_rank,
        "target_modules": set(modules),
    }
    accepted = inspect.signature(found).parameters
    return found(**{name: value for name, value in options.items() if name in accepted})


def adapter(
    rank: int, vocab: int, hidden: int, seed: int, modules: tuple[str, ...] = ("embed_tokens", "lm_head")
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """PEFT's tensors and configuration of an adapter; lora_alpha is twice the rank, so its scale is 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 4

    tensors = {}
    if "embed_tokens" in modules:
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = draw(rank, vocab)
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = draw(hidden, rank)
    if "lm_head" in modules:
        tensors["base_model.model.lm_head.lora_A.weight"] = draw(rank, hidden)
        tensors["base_model.model.lm_head.lora_B.weight"] = draw(vocab, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(modules)}
    return tensors, config
