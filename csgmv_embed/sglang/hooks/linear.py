"""Replaces LoRA on linear layers: q, k and v, gate and up, and layers of one slice.

A layer of one slice calls the backend for the shrink and for the expand. If the layer is hooked as a whole, its shrink
can leave the parts of its long sum to the expand. Under tensor parallelism, a row-parallel layer sums the shrunk rows
over the ranks in between, so there the two halves run apart. Each hook falls back to SGLang's own function whenever it
cannot do everything that function does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.linear import lora_expand, lora_linear, lora_shrink
from csgmv_embed.sglang import rehearsal, runtime
from csgmv_embed.sglang.hooks.common import Original, planned_rows
from csgmv_embed.sglang.planner.views import LINEAR

STARTS = "csgmv_embed_starts"  # attribute of a layer's offsets on the device: the same on the host


def qkv(original: Original, backend: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `run_qkv_lora`: stacked slices of any widths, added to the base output in place."""
    batch = _batch("qkv", backend)
    found = None if batch is None else _qkv(batch, *args, **kwargs)
    return original(backend, *args, **kwargs) if found is None else found


def gate_up(original: Original, backend: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `run_gate_up_lora`: two slices of the same width."""
    batch = _batch("gate_up", backend)
    found = None if batch is None else _gate_up(batch, *args, **kwargs)
    return original(backend, *args, **kwargs) if found is None else found


def column(original: Original, layer: Any, base_output: torch.Tensor, x: torch.Tensor) -> Any:
    """Replaces `ColumnParallelLinearWithLoRA.apply_lora`: one slice."""
    return _one_slice("column", original, layer, base_output, x)


def row(original: Original, layer: Any, base_output: torch.Tensor, x: torch.Tensor) -> Any:
    """Replaces `RowParallelLinearWithLoRA.apply_lora`: one slice, before a sum over several ranks."""
    return _one_slice("row", original, layer, base_output, x)


def replicated(original: Original, layer: Any, base_output: torch.Tensor, x: torch.Tensor) -> Any:
    """Replaces `ReplicatedLinearWithLoRA.apply_lora`: one slice, or two that go through `run_qkv_lora`."""
    if layer.first_output_dim:
        return original(layer, base_output, x)
    return _one_slice("replicated", original, layer, base_output, x)


def row_forward(original: Original, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `RowParallelLinearWithLoRA.forward`: marks the backend's shrink and expand as a linear layer's.

    Outside it they also serve the embedding and lm_head, which have hooks and switches of their own.
    """
    state = runtime.state_of(layer.lora_backend) if runtime.serves("row_forward") else None
    if state is None:
        return original(layer, *args, **kwargs)
    before, state.in_row_layer = state.in_row_layer, True
    try:
        return original(layer, *args, **kwargs)
    finally:
        state.in_row_layer = before


def shrink(original: Original, backend: Any, x: torch.Tensor, weights: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Replaces `run_lora_a_sgemm` in a row-parallel layer: each rank's part of the shrunk rows."""
    batch = None if args or kwargs else _half("shrink", backend)
    if batch is None or not (x.dim() == 2 and x.shape[0] and x.stride(1) == 1 and x.dtype == weights.dtype):
        return original(backend, x, weights, *args, **kwargs)
    out = x.new_empty(x.shape[0], weights.shape[1])
    rows = planned_rows(batch, x.shape[0])
    lora_shrink(x[:rows], weights, batch, out=out[:rows])
    if rehearsal.noted is not None:
        rehearsal.note(partial(_shrink_again, x, weights), "shrink", weights.shape, weights.stride(), x.stride())
    return out


def expand(
    original: Original,
    backend: Any,
    x: torch.Tensor,
    weights: torch.Tensor,
    output_offset: torch.Tensor,
    base_output: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Replaces `run_lora_b_sgemm` in a row-parallel layer: adds the product with the ranks' sum to the base output."""
    batch = None if args or kwargs.keys() - {"output_offset_cpu"} else _half("expand", backend)
    if batch is None or not _fit_expand(x, weights, base_output):
        return original(backend, x, weights, output_offset, base_output, *args, **kwargs)
    assert base_output is not None
    rows = planned_rows(batch, x.shape[0])
    lora_expand(x[:rows], weights, base_output[:rows], batch)
    if rehearsal.noted is not None:
        key = ("expand", weights.shape, weights.stride(), x.stride(), base_output.stride())
        rehearsal.note(partial(_expand_again, x, weights, base_output), *key)
    return base_output


def _shrink_again(x: torch.Tensor, weights: torch.Tensor, info: Any, tokens: int) -> None:
    rows = rehearsal.rows_like(x, tokens)
    lora_shrink(rows, weights, getattr(info, LINEAR), out=rows.new_empty(tokens, weights.shape[1]))


def _expand_again(x: torch.Tensor, weights: torch.Tensor, out: torch.Tensor, info: Any, tokens: int) -> None:
    rows = rehearsal.rows_like(x, tokens)
    lora_expand(rows, weights, rehearsal.rows_like(out, tokens), getattr(info, LINEAR))


def _half(hook: str, backend: Any) -> EmbeddingBatch | None:
    """The backend's batch, if a row-parallel layer calls; both halves have to be hooked."""
    state = runtime.state_of(backend) if runtime.serves("shrink") and runtime.serves("expand") else None
    return _batch(hook, backend) if state is not None and state.in_row_layer else None


def _fit_expand(x: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None) -> bool:
    return (
        out is not None
        and x.dim() == out.dim() == 2
        and x.shape[0] > 0
        and x.stride(1) == out.stride(1) == 1
        and x.dtype == weights.dtype == out.dtype
        and x.shape[1] == weights.shape[2]
        and out.shape[1] >= weights.shape[1]
    )


def _batch(hook: str, backend: Any) -> EmbeddingBatch | None:
    """The backend's batch; None where SGLang's own function is to run."""
    if not runtime.serves(hook) or runtime.state_of(backend) is None:
        return None
    return getattr(getattr(backend, "batch_info", None), LINEAR, None)


def _one_slice(hook: str, original: Original, layer: Any, base_output: torch.Tensor, x: torch.Tensor) -> Any:
    batch = _batch(hook, layer.lora_backend)
    found = None if batch is None else _applied(batch, x, layer.A_buffer, layer.B_buffer, base_output, None)
    return original(layer, base_output, x) if found is None else found


def _qkv(
    batch: EmbeddingBatch,
    x: torch.Tensor,
    qkv_lora_a: torch.Tensor,
    qkv_lora_b: torch.Tensor,
    output_offset: torch.Tensor,
    max_qkv_out_dim: int,
    base_output: torch.Tensor | None = None,
    *_: Any,
    output_offset_cpu: torch.Tensor | None = None,
    **__: Any,
) -> torch.Tensor | None:
    return _applied(batch, x, qkv_lora_a, qkv_lora_b, base_output, _starts(output_offset, output_offset_cpu))


def _gate_up(
    batch: EmbeddingBatch,
    x: torch.Tensor,
    gate_up_lora_a: torch.Tensor,
    gate_up_lora_b: torch.Tensor,
    output_offset: torch.Tensor,
    base_output: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor | None:
    features = gate_up_lora_b.shape[1]
    return _applied(batch, x, gate_up_lora_a, gate_up_lora_b, base_output, (0, features // 2, features))


def _applied(
    batch: EmbeddingBatch,
    x: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    base_output: torch.Tensor | None,
    starts: tuple[int, ...] | None,
) -> torch.Tensor | None:
    """base_output with LoRA added; None if these tensors are not what the kernels take."""
    if x.shape[0] == 0 and base_output is not None:
        return base_output  # an idle rank under data-parallel attention calls so
    if base_output is None or not _fit(x, a_table, b_table, base_output, 1 if starts is None else len(starts) - 1):
        return None
    rows = planned_rows(batch, x.shape[0])
    lora_linear(x[:rows], a_table, b_table, base_output[:rows], batch, starts)
    if rehearsal.noted is not None:
        tables = (a_table.shape, a_table.stride(), b_table.shape, b_table.stride())
        again = partial(_again, x, a_table, b_table, base_output, starts)
        rehearsal.note(again, "linear", *tables, starts, x.stride(), base_output.stride())
    return base_output


def _again(
    x: torch.Tensor,
    a_table: torch.Tensor,
    b_table: torch.Tensor,
    out: torch.Tensor,
    starts: tuple[int, ...] | None,
    info: Any,
    tokens: int,
) -> None:
    rows = rehearsal.rows_like(x, tokens)
    lora_linear(rows, a_table, b_table, rehearsal.rows_like(out, tokens), getattr(info, LINEAR), starts)


def _fit(x: torch.Tensor, a_table: torch.Tensor, b_table: torch.Tensor, out: torch.Tensor, slices: int) -> bool:
    return (
        x.dim() == out.dim() == 2
        and x.stride(1) == out.stride(1) == 1
        and x.dtype == a_table.dtype == b_table.dtype == out.dtype
        and a_table.shape[1] == slices * b_table.shape[2]
        and out.shape[1] >= b_table.shape[1]
    )


def _starts(output_offset: torch.Tensor, on_host: torch.Tensor | None) -> tuple[int, ...]:
    """First column of each slice, and the end of the last: read once a layer."""
    found: tuple[int, ...] | None = getattr(output_offset, STARTS, None)
    if found is None:
        found = tuple((output_offset if on_host is None else on_host).tolist())
        setattr(output_offset, STARTS, found)
    return found
