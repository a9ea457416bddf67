"""The ops as torch knows them: `torch.ops.csgmv_embed.*`, for torch.compile, FakeTensor and other tracing.

An op of torch takes tensors and numbers, so a batch is taken apart (`parts`) and put together again. Each op writes
into a tensor that it is given and returns nothing. Calls that nothing traces do not go through here.

The contents of a static batch change with every refill, so they are not part of what is compiled. Under torch.compile
the batch's number of tokens and its largest rank are not checked against the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from csgmv_embed.batch import Contents, EmbeddingBatch
from csgmv_embed.batch.batch import ARRAYS, SIZES
from csgmv_embed.launch.checks import check_autograd, check_axes

# A batch as an op takes it: its arrays, its sizes, and what the host knows of its contents.
CONTENTS = ("num_tokens", "max_rank", "adapted")
PARTS = (*ARRAYS, *SIZES, *CONTENTS)
_TYPES = (
    {"adapted": "bool"} | dict.fromkeys(ARRAYS, "Tensor?") | dict.fromkeys(("max_tokens", *CONTENTS[:2]), "SymInt?")
)
BATCH = ", ".join(f"{_TYPES.get(name, 'SymInt')} {name}" for name in PARTS)
_listeners = torch._C._len_torch_dispatch_stack
_plain = (torch.Tensor, torch.nn.Parameter)
_ops: dict[str, Any] = {}


def traces(tensor: torch.Tensor) -> bool:
    """Whether torch wants to see this call: it compiles, or a mode or a tensor subclass intercepts calls."""
    return is_dynamo_compiling() or _listeners() > 0 or type(tensor) not in _plain


def parts(batch: EmbeddingBatch) -> tuple[Any, ...]:
    """The fields of a batch as the ops of torch take them: PARTS."""
    changing = batch.static
    return (
        batch.token_adapters,
        batch.permutation,
        batch.seg_indptr,
        batch.seg_slots,
        batch.ranks,
        batch.scalings,
        batch.tile_words,
        batch.tile_rows,
        batch.tile_block,
        batch.slots,
        batch.chunk_size,
        batch.max_tokens,
        batch.num_segments,
        None if changing else batch.num_tokens,
        None if changing else batch.max_rank,
        batch.adapted,
    )


def _batch(given: Sequence[Any]) -> EmbeddingBatch:
    """The batch of these PARTS."""
    *made, num_tokens, max_rank, adapted = given
    named = dict(zip((*ARRAYS, *SIZES), made, strict=True))
    return EmbeddingBatch(**named, contents=Contents(num_tokens, max_rank, adapted))


def register(
    name: str, operands: str, written: str, run: Callable[..., object], axes: dict[str, int], options: str = ""
) -> None:
    """Make `torch.ops.csgmv_embed.<name>(operands, batch, options) -> ()`.

    operands: the tensors of the schema; the op writes to `written`. run(operands, batch, options) does the work. axes:
    the number of axes of each operand, which the fake implementation checks.
    """
    names = [operand.split()[-1] for operand in operands.split(", ")]
    count = len(names)

    def real(*arguments: Any) -> None:
        behind = count + len(PARTS)
        run(*arguments[:count], _batch(arguments[count:behind]), *arguments[behind:])

    def fake(*arguments: Any) -> None:
        for operand, tensor in zip(names, arguments, strict=False):
            if tensor is not None:
                check_axes(operand, tensor, axes[operand], f"{axes[operand]} axes")

    schema = f"({operands}, {BATCH}{', ' + options if options else ''}) -> ()"
    op = torch.library.custom_op(f"csgmv_embed::{name}", real, mutates_args=(written,), schema=schema)
    op.register_fake(fake)
    _ops[name] = op


def call(name: str, operands: Mapping[str, torch.Tensor | None], batch: EmbeddingBatch, *options: object) -> None:
    """Call the op of this name through torch, if torch wants to see the call. Raises GradError."""
    for operand, tensor in operands.items():
        if tensor is not None:
            check_autograd(operand, tensor)
    _ops[name](*operands.values(), *parts(batch), *options)
