"""The public call: checks, choice of plan, launch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from triton.runtime.interpreter import InterpretedFunction

from csgmv_embed import tuning
from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.checks import check_axes, check_memory
from csgmv_embed.errors import DeviceError, DtypeError, ShapeError
from csgmv_embed.host_plan import integer
from csgmv_embed.kernels.lookup import (
    LookupConstants,
    embedding_lora_a_segments_kernel,
    embedding_lora_a_tokens_kernel,
)
from csgmv_embed.launch import ALIGNMENT, Again, launch, overlaps_launches

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ID_DTYPES = (torch.int32, torch.int64)
VECTOR_BYTES = 16  # the widest load of one thread
# Programs, for each block of ranks, that write the zero rows of a captured batch. Mostly there are few such rows: as
# many programs as all tokens need nearly doubled the time of a full prefill in small tiles.
MAX_PADDING_PROGRAMS = 64
MAX_LAYOUTS = 1024  # kept checks; a serving process has one or two tables
MAX_LAUNCHES = 1024  # kept launches of a table: decode steps come in few sizes

# Host tensors make sense where nothing is launched on a GPU: in the interpreter, or in a tool that only compiles.
accept_host_tensors = isinstance(embedding_lora_a_tokens_kernel, InterpretedFunction)


def embedding_lora_a(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    vocab_size: int,
    extra_embeddings: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    pdl: bool = False,
) -> torch.Tensor:
    """The A side of LoRA on an embedding layer: out[t, :r] = A[slot, :r, id], out[t, r:] = 0.

    slot is the adapter slot of token t by `batch`, r = rank[slot], id = input_ids[t].

    input_ids         (tokens,) int32 or int64, contiguous. Ids in [vocab_size, vocab_size + extra) read
                      extra_embeddings; any other id outside [0, vocab_size) gives a zero row.
    a_table           (slots, max_rank, >= vocab_size) fp16, bf16 or fp32, of any strides.
    batch             the adapters of these tokens. A static batch may hold fewer tokens than input_ids, but not more:
                      the rows behind them are zero. No tokens go with any batch.
    extra_embeddings  (slots, extra, max_rank), dtype of a_table, of any strides.
    out               (tokens, max_rank), dtype of a_table, rows contiguous; may be uninitialised: every
                      element is written. Allocated if None.
    pdl               programmatic dependent launch: set up while the kernel before still runs, which it waits for
                      before it reads. Ignored before compute capability 9.0. Pays where the neighbours are launched
                      so too; between ordinary kernels it costs (docs/measured.md).

    Returns out, outside autograd. One kernel launch, no synchronisation; safe to capture in a CUDA graph with a
    static batch. Raises ShapeError, DtypeError, DeviceError, CapacityError.
    """
    if type(vocab_size) is not int:
        vocab_size = integer("vocab_size", vocab_size)
    layout = _layout(input_ids, a_table, vocab_size, extra_embeddings)
    tokens = input_ids.shape[0]
    if batch.device != layout.device:
        raise DeviceError(f"batch is on {batch.device}; expected {layout.device}, where a_table is")
    batch.check_fits(tokens, layout.slots, layout.max_rank, "input_ids")
    if out is None:
        out = a_table.new_empty(tokens, layout.max_rank)
    else:
        _check_out(out, tokens, a_table)
    if tokens > 0 and layout.max_rank > 0:
        pdl = pdl and overlaps_launches(layout.device)
        _launch(input_ids, a_table, batch, extra_embeddings, out, layout, pdl)
    return out


@dataclass(slots=True)
class _Layout:
    """What calls with equal shapes, strides and dtypes share: that they are right, and the constants of the kernel.

    `group` is the most elements of the table that may be read as one by shapes and strides alone, a power of two
    dividing all that places a row, `out_group` the most of out that may be written as one (kernels.py, GROUP and
    OUT_GROUP). The addresses of a call and the stride of its out may allow less.
    """

    slots: int
    max_rank: int
    device: torch.device
    rows_contiguous: bool
    element_bytes: int
    group: int
    out_group: int
    fixed: LookupConstants  # but for widths, tile and stride of out
    gpu: str  # its name, empty for none
    constants: dict[tuple[object, ...], LookupConstants] = field(default_factory=dict)
    launches: dict[tuple[object, ...], Again] = field(default_factory=dict)  # of the token words


_layouts: dict[tuple[object, ...], _Layout] = {}


def _layout(
    input_ids: torch.Tensor, a_table: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None
) -> _Layout:
    """The checked layout of these tensors. Checking costs more than the launch, so equal layouts are checked once."""
    key: tuple[object, ...] = (
        input_ids.dtype,
        input_ids.device,
        input_ids.ndim == 1 and input_ids.is_contiguous(),
        input_ids.is_neg(),
        a_table.is_neg(),
        a_table.dtype,
        a_table.device,
        a_table.shape,
        a_table.stride(),
        vocab_size,
        accept_host_tensors,
    )
    if extra_embeddings is not None:
        extra = extra_embeddings
        key += (extra.dtype, extra.device, extra.shape, extra.stride(), extra.is_neg())
    found = _layouts.get(key)
    if found is None:
        _check(input_ids, a_table, vocab_size, extra_embeddings)
        if len(_layouts) >= MAX_LAYOUTS:
            _layouts.clear()
        found = _layouts[key] = _new_layout(a_table, vocab_size, extra_embeddings)
    return found


def _new_layout(a_table: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None) -> _Layout:
    slots, max_rank, _ = a_table.shape
    rows_contiguous = a_table.stride(1) == 1
    size = a_table.element_size()
    out_group = math.gcd(VECTOR_BYTES // size, max_rank)
    group = math.gcd(out_group, a_table.stride(0), a_table.stride(2)) if rows_contiguous else 1
    extra = a_table if extra_embeddings is None else extra_embeddings  # never read when there is none
    num_extra = 0 if extra_embeddings is None else extra.shape[1]
    fixed = LookupConstants(
        vocab_size=vocab_size,
        num_extra=num_extra,
        a_stride_slot=a_table.stride(0),
        a_stride_rank=a_table.stride(1),
        a_stride_vocab=a_table.stride(2),
        extra_stride_slot=extra.stride(0),
        extra_stride_token=extra.stride(1),
        extra_stride_rank=extra.stride(2),
        out_stride_token=0,
        max_rank=max_rank,
        has_extra=extra_embeddings is not None,
        has_permutation=False,
        pdl=False,
        a_width=1,
        out_width=1,
        block_m=1,
        block_n=1,
    )
    gpu = torch.cuda.get_device_name(a_table.device) if a_table.is_cuda else ""
    return _Layout(slots, max_rank, a_table.device, rows_contiguous, size, group, out_group, fixed, gpu)


def _launch(
    input_ids: torch.Tensor,
    a_table: torch.Tensor,
    batch: EmbeddingBatch,
    extra_embeddings: torch.Tensor | None,
    out: torch.Tensor,
    layout: _Layout,
    pdl: bool,
) -> None:
    extra = a_table if extra_embeddings is None else extra_embeddings
    if batch.token_adapters is not None:
        _launch_tokens((input_ids, batch.token_adapters, a_table, extra, out), layout, pdl)
        return
    tokens = input_ids.shape[0]
    config, constants, tiles, rank_blocks = _tiling("segments", tokens, a_table, out, layout, pdl)
    permutation, seg_indptr, seg_slots, ranks = batch.permutation, batch.seg_indptr, batch.seg_slots, batch.ranks
    assert seg_indptr is not None and seg_slots is not None and ranks is not None
    segment_tiles = max(1, -(-min(batch.chunk_size, tokens) // config.block_tokens))
    # Rows behind the last segment: none if the batch was built for these tokens, any number at some later replay.
    exact = not batch.static and batch.num_tokens == tokens
    padding_programs = 0 if exact else min(tiles, MAX_PADDING_PROGRAMS)
    launch(
        embedding_lora_a_segments_kernel,
        (batch.num_segments * segment_tiles + padding_programs, rank_blocks, 1),
        (
            input_ids,
            seg_indptr if permutation is None else permutation,
            seg_indptr,
            seg_slots,
            ranks,
            a_table,
            extra,
            out,
        ),
        (tokens, min(layout.slots, batch.slots), batch.num_segments, segment_tiles),
        (constants._replace(has_permutation=permutation is not None),),
        config.num_warps,
        pdl,
    )


def _launch_tokens(tensors: tuple[torch.Tensor, ...], layout: _Layout, pdl: bool) -> None:
    """tensors: the kernel's, in order. What the layout leaves open of a launch is the key of the launches it keeps."""
    input_ids, words, a_table, extra, out = tensors
    tokens = input_ids.shape[0]
    ids_at, words_at, table_at, out_at = input_ids.data_ptr(), words.data_ptr(), a_table.data_ptr(), out.data_ptr()
    extra_at = table_at if extra is a_table else extra.data_ptr()
    pointers = (ids_at, words_at, table_at, extra_at, out_at)
    misaligned: object = (ids_at | words_at | table_at | extra_at | out_at) % ALIGNMENT  # 0 tells of all five
    if misaligned:
        misaligned = tuple([pointer % ALIGNMENT for pointer in pointers])
    key = (tokens, out.stride()[0], words.dtype, pdl, tuning.forced_config(), misaligned)
    again = layout.launches.get(key)
    if again is not None and again(pointers):
        return
    config, constants, tiles, rank_blocks = _tiling("tokens", tokens, a_table, out, layout, pdl)
    grid = (tiles, rank_blocks, 1)
    again = launch(embedding_lora_a_tokens_kernel, grid, tensors, (tokens,), (constants,), config.num_warps, pdl)
    if again is not None:
        if len(layout.launches) >= MAX_LAUNCHES:
            layout.launches.clear()
        layout.launches[key] = again


def _tiling(
    plan: tuning.Plan, tokens: int, a_table: torch.Tensor, out: torch.Tensor, layout: _Layout, pdl: bool
) -> tuple[tuning.LaunchConfig, LookupConstants, int, int]:
    """The configuration, the kernel's constants, and how many tiles cover tokens and ranks."""
    max_rank = layout.max_rank
    config = tuning.choose(plan, tokens, max_rank, layout.rows_contiguous, layout.element_bytes, layout.gpu)
    constants = _constants(layout, a_table, out, config, pdl)
    return config, constants, -(-tokens // config.block_tokens), -(-max_rank // config.block_rank)


def _constants(
    layout: _Layout, a_table: torch.Tensor, out: torch.Tensor, config: tuning.LaunchConfig, pdl: bool
) -> LookupConstants:
    """The kernel's constants."""
    stride = out.stride(0)
    group = aligned(layout.group, a_table.data_ptr(), layout.element_bytes)
    out_group = aligned(layout.out_group, out.data_ptr(), layout.element_bytes)
    while stride % out_group:
        out_group //= 2
    key = (stride, group, out_group, config, pdl)
    found = layout.constants.get(key)
    if found is None:
        found = layout.constants[key] = layout.fixed._replace(
            out_stride_token=stride,
            a_width=group,
            out_width=out_group,
            block_m=config.block_tokens,
            block_n=config.block_rank,
            pdl=pdl,
        )
    return found


def aligned(group: int, address: int, element_bytes: int) -> int:
    """The largest power of two up to `group` elements at whose multiple of bytes the address lies."""
    while group > 1 and address % (group * element_bytes):
        group //= 2
    return group


def check_ids(input_ids: torch.Tensor) -> None:
    """Raises ShapeError, DtypeError."""
    if input_ids.ndim != 1 or not input_ids.is_contiguous():
        raise ShapeError(
            f"input_ids has shape {tuple(input_ids.shape)}, strides {input_ids.stride()}; expected contiguous (tokens,)"
        )
    if input_ids.dtype not in ID_DTYPES:
        raise DtypeError(f"input_ids is {input_ids.dtype}; expected torch.int32 or torch.int64")
    check_memory("input_ids", input_ids)


def check_runs_here(name: str, tensor: torch.Tensor) -> None:
    """Raises DeviceError unless kernels can be launched, or interpreted, where the tensor is."""
    if tensor.device.type != "cuda" and not (accept_host_tensors and tensor.device.type == "cpu"):
        raise DeviceError(
            f"{name} is on {tensor.device}; expected a CUDA device, or TRITON_INTERPRET=1 set before the import"
        )


def _check(
    input_ids: torch.Tensor, a_table: torch.Tensor, vocab_size: int, extra_embeddings: torch.Tensor | None
) -> None:
    check_ids(input_ids)
    check_axes("a_table", a_table, 3, "(slots, max_rank, vocab)")
    if a_table.dtype not in FLOAT_DTYPES:
        raise DtypeError(f"a_table is {a_table.dtype}; expected one of {', '.join(map(str, FLOAT_DTYPES))}")
    check_memory("a_table", a_table)
    slots, max_rank, columns = a_table.shape
    if not 0 <= vocab_size <= columns:
        raise ShapeError(f"vocab_size is {vocab_size}; expected 0 to {columns}, the last extent of a_table")
    if extra_embeddings is not None:
        if extra_embeddings.ndim != 3 or extra_embeddings.shape[0] < slots or extra_embeddings.shape[2] != max_rank:
            raise ShapeError(
                f"extra_embeddings has shape {tuple(extra_embeddings.shape)}; expected ({slots}, extra, {max_rank})"
            )
        if extra_embeddings.dtype != a_table.dtype:
            raise DtypeError(f"extra_embeddings is {extra_embeddings.dtype}; expected {a_table.dtype}, as a_table")
        check_memory("extra_embeddings", extra_embeddings)
    _check_devices(input_ids, a_table, extra_embeddings)


def _check_devices(input_ids: torch.Tensor, a_table: torch.Tensor, extra_embeddings: torch.Tensor | None) -> None:
    device = a_table.device
    check_runs_here("a_table", a_table)
    others = {"input_ids": input_ids.device}
    if extra_embeddings is not None:
        others["extra_embeddings"] = extra_embeddings.device
    for name, other in others.items():
        if other != device:
            raise DeviceError(f"{name} is on {other}; expected {device}, where a_table is")


def _check_out(out: torch.Tensor, tokens: int, a_table: torch.Tensor) -> None:
    max_rank = a_table.shape[1]
    strides = out.stride()  # one call for both
    if out.shape != (tokens, max_rank) or (max_rank > 1 and strides[1] != 1) or (tokens > 1 and strides[0] < max_rank):
        raise ShapeError(
            f"out has shape {tuple(out.shape)}, strides {out.stride()}; "
            f"expected ({tokens}, {max_rank}), rows contiguous and apart"
        )
    if out.dtype != a_table.dtype:
        raise DtypeError(f"out is {out.dtype}; expected {a_table.dtype}, as a_table")
    if out.is_neg():
        check_memory("out", out)
    if out.device != a_table.device:
        raise DeviceError(f"out is on {out.device}; expected {a_table.device}, where a_table is")
