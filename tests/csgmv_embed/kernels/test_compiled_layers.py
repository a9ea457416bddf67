"""What the compiler makes of the kernels that multiply, without a GPU. This file is also the worker."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import msgspec
import pytest
import torch

from csgmv_embed.launch import tiles
from tests.support import early_loads, packed_shifts, store_layouts
from tests.support.compiled_worker import figures_from, kernels_of

CAPABILITIES = (89, 90)  # the least shared memory that a GPU of today has; H100
MOST_SHARED_BYTES = 99 << 10  # of a program, on compute capabilities 8.6 and 8.9

# name -> (op, tokens, max_rank), bytes that may spill
KERNELS: dict[str, tuple[tuple[str, int, int], int]] = {
    "decode of one": (("layer", 1, 64), 0),
    "decode": (("layer", 128, 16), 0),
    "decode of odd ranks": (("layer", 128, 24), 0),
    "decode of rank 32": (("layer", 51, 32), 0),
    "decode of rank 128": (("layer", 51, 128), 0),
    "large decode": (("layer", 256, 64), 0),
    "larger decode": (("layer", 512, 64), 0),
    "prefill": (("layer", 4096, 16), 16),
    "prefill of rank 64": (("layer", 4096, 64), 0),
    "prefill of rank 256": (("layer", 4096, 256), 0),
    "large prefill": (("layer", 16384, 64), 32),
    "large prefill of rank 256": (("layer", 16384, 256), 64),
    "a site of odd ranks": (("linear", 128, 24), 0),
    "a site in a prefill": (("linear", 4096, 64), 0),
    "stacked sites in a decode": (("stacked", 32, 64), 0),
    "stacked sites in a prefill": (("stacked", 4096, 64), 0),
    "stacked sites' shrink alone": (("shrink", 32, 64), 0),
    "lm_head of rank 64": (("head", 512, 64), 0),
}
OF_TILES = [name for name, ((op, *_), _) in KERNELS.items() if op != "layer"]  # two kernels that walk the batch's tiles


def run(op: str, tokens: int, rank: int) -> object:
    import csgmv_embed as library

    zeros = partial(torch.zeros, dtype=torch.bfloat16)
    batch = library.EmbeddingBatch.allocate(max_tokens=tokens, slots=8, segments=True, tiles=True, device="cpu")
    if op == "shrink":
        return library.lora_shrink(zeros(tokens, 4096), zeros(8, 3 * rank, 4096), batch, slices=3)
    if op != "layer":
        columns = {"linear": (0, 4096), "stacked": (0, 4096, 5120, 6144), "head": (0, tiles.VOCABULARY)}[op]
        stacked = (len(columns) - 1) * rank
        b_table, out = zeros(1, columns[-1], rank).expand(8, -1, -1), zeros(tokens, columns[-1])
        return library.lora_linear(zeros(tokens, 4096), zeros(8, stacked, 4096), b_table, out, batch, columns)
    ids, a_table = torch.zeros(tokens, dtype=torch.int64), library.to_storage(zeros(8, rank, 64), "vocab_major")
    return library.embedding_lora(ids, zeros(64, 4096), a_table, zeros(8, 4096, rank), batch, 64)


def work() -> None:
    from bench.clocks.work.compiled import compile_launch
    from csgmv_embed.launch import checks

    checks.accept_host_tensors = True
    figures: dict[str, dict[str, Any]] = {}
    for name, (call, _) in KERNELS.items():
        launch = partial(run, *call)
        figures[name] = {str(capability): compile_launch(launch, capability).kernels for capability in CAPABILITIES}
        kernels = kernels_of(launch)
        figures[name]["shifts"] = packed_shifts.distances(kernels)
        figures[name]["axes"] = store_layouts.axes(kernels)
        figures[name]["early"] = early_loads.counts(kernels)
    sys.stdout.buffer.write(msgspec.json.encode(figures))


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return figures_from(__name__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_tiles_fit_every_gpu_and_move_wide(figures: dict[str, Any], name: str, capability: int) -> None:
    (op, *_), most_spilled = KERNELS[name]
    found = figures[name][str(capability)]
    assert len(found) == (1 if op == "layer" else 2)  # a shrink and an expand
    for figure in found:
        assert figure["shared_bytes"] <= MOST_SHARED_BYTES, figure
        assert figure["spill_bytes"] <= most_spilled, figure
        # A shrunk row is written, and its parts are added, an element a thread.
        assert figure["kernel"] == "lora_shrink_sum_kernel" or figure["widest_load_bits"] == 128, figure
        if figure["kernel"] == "lora_expand_kernel":
            assert figure["widest_store_bits"] == 128, figure
        elif op in ("stacked", "shrink"):  # the hint on their order is no promise that two columns may be one store
            assert figure["widest_store_bits"] <= 32, figure


COLUMNS = {"lora_shrink_kernel": 0, "lora_shrink_sum_kernel": 1, "lora_expand_kernel": 1}  # axis of what they write


@pytest.mark.parametrize("name", OF_TILES)
def test_threads_side_by_side_write_columns_side_by_side(figures: dict[str, Any], name: str) -> None:
    axes = figures[name]["axes"]
    assert len(axes) == 2
    for kernel, found in axes.items():
        assert set(found) == {COLUMNS[kernel]}, (kernel, found)


@pytest.mark.parametrize("name", OF_TILES)
def test_a_tile_s_rows_are_asked_for_before_its_word_has_arrived(figures: dict[str, Any], name: str) -> None:
    early = figures[name]["early"]
    assert len(early) == 2
    assert all(loads > 1 for loads in early.values()), early  # the word alone decides whether a program ends


@pytest.mark.parametrize("name", KERNELS)
def test_no_half_of_a_vector_is_shifted_into_the_other(figures: dict[str, Any], name: str) -> None:
    """tiles.block_k says what such a shift does."""
    assert max(figures[name]["shifts"], default=0) <= packed_shifts.MOST


def test_such_a_shift_is_found() -> None:
    line = "  %375 = shl nuw nsw <2 x i32> %373, <i32 24, i32 1>, !dbg !120\n  %1 = shl nsw <2 x i32> %2, splat (i32 2)"
    assert packed_shifts.in_llir(line) == [24, 1]


if __name__ == "__main__":
    work()
