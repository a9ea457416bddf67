"""The ops as torch knows them: `torch.ops.csgmv_embed.*`, for torch.compile, FakeTensor and other tracing.

An op of torch takes tensors and numbers, so a batch is taken apart (`parts`) and put together again. Each writes into a
tensor that it is given and returns nothing. Where nothing traces, a call of the library goes past all this.

What a static batch holds changes with every refill, so it is no part of what is compiled: under torch.compile the
number of its tokens and its largest rank are not checked against the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from csgmv_embed.batch import Contents, EmbeddingBatch
from csgmv_embed.launch.checks import check_autograd, check_axes

BATCH = (
    "Tensor? token_adapters, Tensor? permutation, Tensor? seg_indptr, Tensor? seg_slots, Tensor? ranks, "
    "Tensor? scalings, SymInt slots, SymInt chunk_size, SymInt? max_tokens, SymInt num_segments, SymInt? num_tokens, "
    "SymInt? max_rank, bool adapted"
)
BATCH_PARTS = 13
_listeners = torch._C._len_torch_dispatch_stack
_plain = (torch.Tensor, torch.nn.Parameter)
_ops: dict[str, Any] = {}


def traces(tensor: torch.Tensor) -> bool:
    """Whether this call is one that torch wants to see: it compiles, or a mode or a tensor of another class listens."""
    return is_dynamo_compiling() or _listeners() > 0 or type(tensor) not in _plain


def parts(batch: EmbeddingBatch) -> tuple[Any, ...]:
    """A batch as the ops of torch take it."""
    changing = batch.static
    return (
        batch.token_adapters,
        batch.permutation,
        batch.seg_indptr,
        batch.seg_slots,
        batch.ranks,
        batch.scalings,
        batch.slots,
        batch.chunk_size,
        batch.max_tokens,
        batch.num_segments,
        None if changing else batch.num_tokens,
        None if changing else batch.max_rank,
        batch.adapted,
    )


def _batch(
    token_adapters: torch.Tensor | None,
    permutation: torch.Tensor | None,
    seg_indptr: torch.Tensor | None,
    seg_slots: torch.Tensor | None,
    ranks: torch.Tensor | None,
    scalings: torch.Tensor | None,
    slots: int,
    chunk_size: int,
    max_tokens: int | None,
    num_segments: int,
    num_tokens: int | None,
    max_rank: int | None,
    adapted: bool,
) -> EmbeddingBatch:
    return EmbeddingBatch(
        token_adapters=token_adapters,
        permutation=permutation,
        seg_indptr=seg_indptr,
        seg_slots=seg_slots,
        ranks=ranks,
        scalings=scalings,
        slots=slots,
        chunk_size=chunk_size,
        max_tokens=max_tokens,
        num_segments=num_segments,
        contents=Contents(num_tokens, max_rank, adapted),
    )


def register(
    name: str, operands: str, written: str, run: Callable[..., object], axes: dict[str, int], options: str = ""
) -> None:
    """Make `torch.ops.csgmv_embed.<name>(operands, batch, options) -> ()`.

    operands: the tensors of the schema, of which `written` is written. run(operands, batch, options) does it. axes: of
    each operand, which the fake implementation checks.
    """
    names = [operand.split()[-1] for operand in operands.split(", ")]
    count = len(names)

    def real(*arguments: Any) -> None:
        run(*arguments[:count], _batch(*arguments[count : count + BATCH_PARTS]), *arguments[count + BATCH_PARTS :])

    def fake(*arguments: Any) -> None:
        for operand, tensor in zip(names, arguments, strict=False):
            if tensor is not None:
                check_axes(operand, tensor, axes[operand], f"{axes[operand]} axes")

    schema = f"({operands}, {BATCH}{', ' + options if options else ''}) -> ()"
    op = torch.library.custom_op(f"csgmv_embed::{name}", real, mutates_args=(written,), schema=schema)
    op.register_fake(fake)
    _ops[name] = op


def call(name: str, operands: Mapping[str, torch.Tensor | None], batch: EmbeddingBatch, *options: object) -> None:
    """Call the op of this name where torch sees it. Raises GradError."""
    for operand, tensor in operands.items():
        if tensor is not None:
            check_autograd(operand, tensor)
    _ops[name](*operands.values(), *parts(batch), *options)
