"""Launching without the JIT front: the key of a variant says all that Triton bakes into a binary."""

from __future__ import annotations

import math

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from csgmv_embed import EmbeddingBatch, embedding_lora_a
from csgmv_embed.kernels.lookup import (
    LookupConstants,
    embedding_lora_a_segments_kernel,
    embedding_lora_a_tokens_kernel,
)
from csgmv_embed.launch import checks, direct, tiles

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
INTEGERS = [0, 1, 2, 7, 8, 16, 17, 64, 128256, 2**31 - 1, 2**31, 2**32 + 16]


def compiled_form(kernel) -> JITFunction:
    """The kernel as it is compiled, also where the tests interpret it."""
    return kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)


@st.composite
def calls(draw, kernel):
    """(tensors, counts, constants, num_warps) of a call of one of the two kernels."""
    names = compiled_form(kernel).arg_names
    segments = kernel is embedding_lora_a_segments_kernel
    ids, table = draw(st.sampled_from([torch.int32, torch.int64])), draw(st.sampled_from(DTYPES))
    plan = draw(st.sampled_from([torch.int32, torch.int64]))
    dtypes = [ids, *([plan] * 4 if segments else [torch.int32]), table, table, table]
    tensors = tuple(torch.zeros(32, dtype=dtype)[draw(st.sampled_from([0, 1, 8])) :] for dtype in dtypes)
    counts = tuple(draw(st.sampled_from([0, 1, 5, 16, 4096])) for _ in range(4 if segments else 1))
    kinds = LookupConstants.__annotations__.values()
    constants = LookupConstants(*(draw(st.booleans() if kind is bool else st.sampled_from(INTEGERS)) for kind in kinds))
    assert len(names) == len(tensors) + len(counts) + 1
    return tensors, counts, constants, draw(st.sampled_from([4, 8]))


def key_of(kernel, call):
    tensors, _, constants, num_warps = call
    return direct.variant_key(kernel, tensors, constants, num_warps, 0)


def specialisation_of(kernel, call):
    """What Triton itself would compile for: types, alignments, values of constants, options."""
    function = compiled_form(kernel)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(function.signature, function.params, backend)
    tensors, counts, constants, num_warps = call
    _, specialisation, options = bind(*tensors, *counts, constants, num_warps=num_warps)
    return str(specialisation), str(options)


def changed(draw, kernel, call):
    """The call with some parts taken from another one."""
    other = draw(calls(kernel))
    parts = []
    for mine, theirs in zip(call[:3], other[:3], strict=True):
        take = draw(st.lists(st.booleans(), min_size=len(mine), max_size=len(mine)))
        parts.append(tuple(b if taken else a for a, b, taken in zip(mine, theirs, take, strict=True)))
    parts[2] = LookupConstants(*parts[2])
    return (*parts, draw(st.sampled_from([call[3], other[3]])))


@pytest.mark.parametrize("kernel", [embedding_lora_a_tokens_kernel, embedding_lora_a_segments_kernel])
@given(data=st.data())
def test_calls_with_one_key_are_one_binary_to_triton(kernel, data):
    call = data.draw(calls(kernel))
    counts = tuple(data.draw(st.integers(0, 2**31 - 1)) for _ in call[1])
    same_key = (
        tuple(tensor.clone() if tensor.data_ptr() % 16 == 0 else tensor for tensor in call[0]),
        counts,
        *call[2:],
    )
    assert key_of(kernel, same_key) == key_of(kernel, call)
    assert specialisation_of(kernel, same_key) == specialisation_of(kernel, call)
    another = changed(data.draw, kernel, call)
    if specialisation_of(kernel, another) != specialisation_of(kernel, call):
        assert key_of(kernel, another) != key_of(kernel, call)


def test_each_part_of_a_key_matters():
    kernel = embedding_lora_a_tokens_kernel
    tensors = (torch.zeros(8, dtype=torch.int64), *(torch.zeros(8) for _ in range(4)))
    ones = LookupConstants(*(1,) * 17)
    call = (tensors, (5,), ones, 4)
    keys = {key_of(kernel, call)}
    for position in range(5):
        for other in (tensors[position][1:], tensors[position].half()):
            keys.add(key_of(kernel, ((*tensors[:position], other, *tensors[position + 1 :]), *call[1:])))
    for name in ones._fields:
        keys.add(key_of(kernel, (tensors, (5,), ones._replace(**{name: 16}), 4)))
    keys |= {key_of(kernel, (*call[:3], 8)), key_of(embedding_lora_a_segments_kernel, call)}
    keys.add(direct.variant_key(kernel, tensors, ones, 4, 1))
    assert len(keys) == 1 + 2 * 5 + 17 + 2 + 1


# What may differ between two calls of `embedding_lora_a`.
PARTS = {
    "rank": [8, 16, 20],
    "dtype": [torch.bfloat16, torch.float32],
    "tokens": [4, 5],
    "padding": [0, 4],
    "shifted": ["none", "ids", "table", "extra", "out"],  # which tensor starts elsewhere ...
    "elements": [1, 2],  # ... by so many elements
    "storage": ["rank_major", "vocab_major"],
    "id_dtype": [torch.int32, torch.int64],
    "extra": [False, True],
    "vocab": [30, 29],
    "pdl": [False, True],
    "forced": [{}, {"lookup_tokens_vocab_major": tiles.LookupTile(2, 8, 1)}],
}


def lookup_arguments(rank, dtype, tokens, padding, shifted, elements, storage, id_dtype, extra, vocab):
    def of(name, *shape, dtype=dtype):
        skipped = elements if name == shifted else 0
        return torch.zeros(math.prod(shape) + skipped, dtype=dtype)[skipped:].view(shape)

    table = of("table", 2, rank, 30) if storage == "rank_major" else of("table", 2, 30, rank).transpose(1, 2)
    batch = EmbeddingBatch.build([tokens], [0], [8, 8], device="cpu")
    out = of("out", tokens, rank + padding)[:, :rank]
    return of("ids", tokens, dtype=id_dtype), table, batch, vocab, of("extra", 2, 3, rank) if extra else None, out


@given(data=st.data())
def test_a_kept_launch_is_the_one_that_its_call_would_make(data):
    """Each call is made twice: with what earlier calls have left, and with nothing kept. Most differ in one part."""
    made = []
    parts = {name: data.draw(st.sampled_from(values)) for name, values in PARTS.items()}

    def fake(launch, tensors, pointers):
        key = direct.variant_key(launch.kernel, tensors, launch.constant, launch.num_warps, 0)
        made.append((launch.grid, launch.counts, key, launch.pdl))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct.Launch, "__call__", fake)
        patch.setattr(direct, "overlaps_launches", lambda device: True)
        patch.setattr(checks, "accept_host_tensors", True)
        kept = {}
        for name in [*PARTS, *PARTS]:
            parts[name] = data.draw(st.sampled_from(PARTS[name]))
            arguments = lookup_arguments(**{key: parts[key] for key in parts if key not in ("forced", "pdl")})
            for known in (kept, {}):
                direct.launches.clear()
                direct.launches.update(known)
                with tiles.forced(**parts["forced"]):
                    embedding_lora_a(*arguments, pdl=parts["pdl"])
                known.update(direct.launches)
            assert made[-1] == made[-2]
    direct.launches.clear()


@pytest.mark.gpu
def test_a_known_variant_skips_the_front_and_another_is_never_taken_for_it(device, monkeypatch):
    monkeypatch.setattr(direct, "_variants", {})
    direct.launches.clear()
    front = JITFunction.run
    fronted = []

    def run(self, *arguments, **options):
        fronted.append(self)
        return front(self, *arguments, **options)

    monkeypatch.setattr(JITFunction, "run", run)
    # one tile for every number of tokens, whatever this GPU's table says
    monkeypatch.setattr(tiles, "choose_lookup", lambda *_: tiles.LookupTile(8, 8, 4))
    expected_variants = 0
    for rank in (8, 16, 24, 64):  # one rank after another in one process: the fault of a key without the rank
        for dtype in (torch.bfloat16, torch.float32):
            for storage in ("vocab_major", "rank_major"):
                expected_variants += 1
                table = torch.randn(2, 50, rank, device=device).to(dtype).transpose(1, 2)
                table = table.contiguous() if storage == "rank_major" else table
                for tokens in (40, 40, 17):
                    ids = torch.randint(0, 50, (tokens,), device=device)
                    batch = EmbeddingBatch.build([tokens], [1], [rank, rank], device=device)
                    assert torch.equal(embedding_lora_a(ids, table, batch, 50), table[1][:, ids].T)
    assert len(direct._variants) == expected_variants == len(fronted)


@pytest.mark.gpu
def test_misaligned_ids_and_outputs_are_variants_of_their_own(device):
    table = torch.randn(1, 50, 16, device=device).transpose(1, 2)
    for offset in (0, 1, 2, 3, 0):
        ids = torch.randint(0, 50, (33,), device=device)[offset:]
        batch = EmbeddingBatch.build([33 - offset], [0], [16], device=device)
        memory = torch.zeros(33 * 16 + 4, device=device)
        out = memory[offset : offset + ids.numel() * 16].view(-1, 16)
        assert torch.equal(embedding_lora_a(ids, table, batch, 50, out=out), table[0][:, ids].T)


@pytest.mark.gpu
def test_a_launch_hook_is_told_of_every_launch(device):
    table, ids = torch.randn(1, 8, 50, device=device), torch.arange(5, device=device)
    batch = EmbeddingBatch.build([5], [0], [8], device=device)
    embedding_lora_a(ids, table, batch, 50)
    seen: list[str] = []

    def hook(metadata):
        seen.append(metadata.get()["name"])

    triton.knobs.runtime.launch_enter_hook.add(hook)
    try:
        embedding_lora_a(ids, table, batch, 50)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(hook)
    embedding_lora_a(ids, table, batch, 50)
    assert seen == ["embedding_lora_a_tokens_kernel"]
