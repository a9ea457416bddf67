"""Captures a second decode graph for steps in which no request has an adapter.

A captured graph launches LoRA's kernels whether a step needs them or not. In a model of 32 layers, launches that find
nothing to do take a tenth of a small step. SGLang's decode runner can capture each batch size a second time, as the
variant "nolora", and choose by the requests of a step, but does not use that for csgmv. This hook asks for it. During
that capture the LoRA layers are told that no adapter is set, as before the first one is loaded.

Data-parallel attention gets no second graph: ranks with different batches share the layers behind it, and a
row-parallel layer with LoRA sums over the ranks once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from csgmv_embed.sglang import rehearsal, runtime
from csgmv_embed.sglang.hooks.common import Original
from csgmv_embed.sglang.planner.state import State

WITHOUT_LORA = "nolora"  # SGLang's word for the variant
RUNNER = "DecodeCudaGraphRunner"  # the runners of draft models derive from it, and want none of this
VARIANT = 3  # where capture_one_shape takes it, behind the runner: size, forward, stream_idx, variant_label


def capture_all(original: Original, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `_capture_one_stream`: captures every batch size, in one variant or in two, and rehearses prefills."""
    if _wanted(runner):
        runner.record_nolora_graph = True
    state = _rehearsing(runner)
    if state is None:
        return original(runner, *args, **kwargs)
    with rehearsal.listening() as launched:
        result = original(runner, *args, **kwargs)
    rehearsal.rehearse(state, launched, _longest_prefill(runner.model_runner.server_args))
    return result


def capture_one(original: Original, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `capture_one_shape`: captures one batch size in one variant."""
    variant = kwargs.get("variant_label", args[VARIANT] if len(args) > VARIANT else None)
    if variant != WITHOUT_LORA or not _wanted(runner):
        return original(runner, *args, **kwargs)
    with _unset(_lora_layers(runner.model_runner.lora_manager)):
        return original(runner, *args, **kwargs)


def _rehearsing(runner: Any) -> State | None:
    """The plugin's state of the backend whose prefills are rehearsed; None if none are."""
    return _state_of(runner) if runtime.active is not None and runtime.active.settings.compile_ahead else None


def _state_of(runner: Any) -> State | None:
    manager = getattr(runner.model_runner, "lora_manager", None) if type(runner).__name__ == RUNNER else None
    return None if manager is None else runtime.state_of(manager.lora_backend)


def _longest_prefill(arguments: Any) -> int:
    """Tokens of the longest prefill that SGLang runs at once."""
    chunked = getattr(arguments, "chunked_prefill_size", None) or -1  # -1: prompts are not cut
    return int(chunked if chunked > 0 else getattr(arguments, "max_prefill_tokens", None) or rehearsal.MOST_TOKENS)


def _wanted(runner: Any) -> bool:
    if not (runtime.serves("base_graph") and runtime.serves("base_capture")) or _state_of(runner) is None:
        return False
    arguments = runner.model_runner.server_args
    sizes = (getattr(arguments, name, 1) for name in ("dp_size", "attn_dp_size"))
    return not getattr(arguments, "enable_dp_attention", False) and all(size in (None, 1) for size in sizes)


def _lora_layers(manager: Any) -> list[Any]:
    """Every layer that may have LoRA."""
    layers = [layer for modules in manager.lora_modules for layer in modules.values()]
    ends = (manager.embed_tokens_module, manager.lm_head_module)
    return layers + [layer for layer in ends if layer is not None]


@contextmanager
def _unset(layers: list[Any]) -> Iterator[None]:
    """Within, no adapter is set."""
    set_before = [layer.set_lora for layer in layers]
    for layer in layers:
        layer.set_lora = False
    try:
        yield
    finally:
        for layer, was_set in zip(layers, set_before, strict=True):
            layer.set_lora = was_set
