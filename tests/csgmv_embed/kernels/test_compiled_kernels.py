"""What the compiler makes of the kernels for every GPU generation, without one. This file is also the worker."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import msgspec
import pytest
import torch

from tests.support import packed_shifts
from tests.support.compiled_worker import figures_from, kernels_of

CAPABILITIES = (80, 86, 89, 90, 100, 120)  # A100; A10, RTX 30; L4, L40, RTX 40; H100, H200; B200; RTX 50
MAX_REGISTERS = 64  # 1024 threads of a multiprocessor stay resident

# name -> (tokens, max_rank, storage, plan, options), (widest load, widest store) in bits.
# Tiles of 512 elements give a thread 4 of them, of 2 bytes: 64 bits; larger ones 128, the widest there is.
KERNELS: dict[str, tuple[tuple[int, int, str, str, dict[str, Any]], tuple[int, int]]] = {
    "decode": ((32, 64, "vocab_major", "tokens", {}), (64, 64)),
    "prefill": ((4096, 64, "vocab_major", "tokens", {}), (128, 128)),
    "wide prefill": ((16384, 256, "vocab_major", "tokens", {}), (128, 128)),
    "segments": ((4096, 64, "vocab_major", "segments", {}), (128, 128)),
    "extra tokens": ((4096, 64, "vocab_major", "tokens", {"extra": True}), (128, 128)),
    "programmatic": ((4096, 64, "vocab_major", "tokens", {"pdl": True}), (128, 128)),
    # SGLang's storage: values of a row lie a vocabulary apart, one at a time; ids of 32 bits are the widest load
    "rank-major": ((4096, 64, "rank_major", "tokens", {}), (32, 64)),
}


def work() -> None:
    from bench.clocks.work.compiled import compile_launch
    from csgmv_embed import EmbeddingBatch, embedding_lora_a, empty_a_table
    from csgmv_embed.launch import checks

    checks.accept_host_tensors = True
    figures: dict[str, dict[str, Any]] = {}
    for name, ((tokens, rank, storage, plan, options), _) in KERNELS.items():
        table = empty_a_table(2, rank, 64, dtype=torch.bfloat16, device="cpu", storage=storage)  # type: ignore[arg-type]
        ids = torch.zeros(tokens, dtype=torch.int32)
        batch = EmbeddingBatch.build([tokens], [0], [rank, rank], segments=plan == "segments", device="cpu")
        batch = batch.without_token_words() if plan == "segments" else batch
        extra = torch.zeros(2, 4, rank, dtype=torch.bfloat16) if options.get("extra") else None

        launch = partial(embedding_lora_a, ids, table, batch, 64, extra, pdl=options.get("pdl", False))
        figures[name] = {str(capability): compile_launch(launch, capability).kernels for capability in CAPABILITIES}
        figures[name]["shifts"] = packed_shifts.distances(kernels_of(launch))
    sys.stdout.buffer.write(msgspec.json.encode(figures))


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return figures_from(__name__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_no_spills_few_registers_and_wide_accesses(figures: dict[str, Any], name: str, capability: int) -> None:
    (figure,) = figures[name][str(capability)]
    assert figure["capability"] == capability
    assert (figure["spill_bytes"], figure["registers"] <= MAX_REGISTERS) == (0, True), figure
    assert (figure["widest_load_bits"], figure["widest_store_bits"]) == KERNELS[name][1], figure


@pytest.mark.parametrize("name", KERNELS)
def test_no_half_of_a_vector_is_shifted_into_the_other(figures: dict[str, Any], name: str) -> None:
    assert max(figures[name]["shifts"], default=0) <= packed_shifts.MOST


def test_only_generations_that_have_it_wait_for_their_predecessors(figures: dict[str, Any]) -> None:
    ordinary, programmatic = figures["prefill"], figures["programmatic"]
    waits = {c: programmatic[c][0]["instructions"] > ordinary[c][0]["instructions"] for c in map(str, CAPABILITIES)}
    assert waits == {"80": False, "86": False, "89": False, "90": True, "100": True, "120": True}


if __name__ == "__main__":
    work()
