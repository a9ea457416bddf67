"""The planner's LoRABatchInfo equals the one of SGLang's own method, field by field, on random batches."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csgmv_embed import CapacityError, ShapeError, SlotError
from csgmv_embed.batch.staging import Staging
from csgmv_embed.sglang import planner, runtime
from csgmv_embed.sglang.hooks import backend as backend_hooks
from csgmv_embed.sglang.planner import heads
from csgmv_embed.sglang.settings import Settings
from tests.support import real_sglang as support
from tests.support.batch_infos import same_info

SLOTS = 5
CAPACITY = 24
REQUEST_ARRAYS = ("req_seg_indptr", "req_weight_indices")
VERIFY = 3  # draft tokens a request
pytestmark = pytest.mark.usefixtures("on_the_cpu", "loaded")


def random_batch(rng: np.random.Generator, mode: str, requests: int | None = None) -> tuple[SimpleNamespace, list[Any]]:
    """A ForwardBatch and the other arguments of prepare_lora_batch."""
    requests = int(rng.integers(1, CAPACITY + 1)) if requests is None else requests
    lens = {"DECODE": [1] * requests, "TARGET_VERIFY": [VERIFY] * requests}.get(mode)
    lens = rng.integers(1, 70, requests).tolist() if lens is None else lens
    starts = [int(rng.integers(0, length + 1)) for length in lens] if rng.random() < 0.5 else None
    batch = support.forward_batch(mode, lens, logprob_starts=starts)
    ranks = rng.choice([0, 4, 8, 16], SLOTS).tolist()
    slots = rng.integers(0, SLOTS, requests).tolist()
    return batch, [slots, ranks, rng.random(SLOTS).tolist()]


def expected_words(slots: list[int], ranks: list[int], lens: list[int]) -> list[int]:
    return [
        slot << 16 | ranks[slot] if ranks[slot] else 0 for slot, n in zip(slots, lens, strict=True) for _ in range(n)
    ]


def lens_of(batch: SimpleNamespace) -> list[int]:
    if batch.extend_seq_lens_cpu is not None:
        return batch.extend_seq_lens_cpu
    return [1 if batch.spec_info is None else batch.spec_info.draft_token_num] * batch.batch_size


@pytest.fixture
def pair(loaded: Any) -> Any:
    """A stock backend, and one with the plugin's state."""
    return lambda chunk: (
        support.backend(SLOTS, chunk),
        planner.attach(support.backend(SLOTS, chunk), loaded[1].release),
    )


@pytest.mark.parametrize("chunk", [16, 128])
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "MIXED", "TARGET_VERIFY"])
def test_eager_batch_info_equals_sglangs(mode: str, chunk: int, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGPROB", "LOGITS_PROCESSER"):  # the second until 0.5.13
        monkeypatch.setenv(f"SGLANG_ENABLE_{name}_CHUNK", "1")
        monkeypatch.setenv(f"SGLANG_{name}_CHUNK_SIZE", "50")
    stock, state = pair(chunk)
    rng = np.random.default_rng(7)
    passes = 0
    for _ in range(60):
        batch, arguments = random_batch(rng, mode)
        stock.prepare_lora_batch(batch, *arguments, False)
        planner.prepare(state, batch, *arguments)
        same_info(state.backend.batch_info, stock.batch_info)
        same_info(state.backend.lm_head_batch_info, stock.lm_head_batch_info)
        ours, theirs = state.backend.lm_head_pass_batch_infos, stock.lm_head_pass_batch_infos
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or (), theirs or (), strict=True):
            same_info(one, other)
        passes += len(theirs or ())
        words = getattr(state.backend.batch_info, planner.BATCH)
        expected = expected_words(*arguments[:2], lens_of(batch))
        assert (words is None) == (not any(arguments[1]))
        if words is not None:
            assert words.token_adapters.tolist() == expected
            assert words.num_tokens == len(expected)
    assert bool(passes) == (mode in ("EXTEND", "MIXED"))


@pytest.mark.parametrize("mode", ["DECODE", "TARGET_VERIFY"])
def test_captured_batch_info_equals_sglangs(mode: str, pair: Any, loaded: Any) -> None:
    stock, state = pair(128)
    init = loaded[1].release.decode_graph
    for one in (stock, state.backend):
        getattr(one, init)(CAPACITY, VERIFY if mode == "TARGET_VERIFY" else 1)
    planner.pack(state, state.backend.cuda_graph_batch_info)
    addresses = {name: getattr(state.backend.cuda_graph_batch_info, name).data_ptr() for name in planner.ARRAYS[:3]}
    rng = np.random.default_rng(11)
    for _ in range(60):
        batch, arguments = random_batch(rng, mode)
        stock.prepare_lora_batch(batch, *arguments, True)
        planner.prepare(state, batch, *arguments, static_info=state.backend.cuda_graph_batch_info)
        assert state.backend.batch_info is state.backend.cuda_graph_batch_info
        same_info(state.backend.batch_info, stock.batch_info)
        same_info(state.backend.lm_head_batch_info, stock.lm_head_batch_info)
        words = getattr(state.backend.batch_info, planner.BATCH)
        expected = expected_words(*arguments[:2], lens_of(batch))
        assert words.static and words.num_tokens == len(expected)
        assert words.token_adapters.tolist() == expected + [0] * (words.token_adapters.shape[0] - len(expected))
    assert addresses == {name: getattr(state.backend.batch_info, name).data_ptr() for name in addresses}


def test_captured_prefill_equals_sglangs(pair: Any, loaded: Any) -> None:
    parameters = loaded[1].release.prefill_graph
    if not parameters:
        pytest.skip("this SGLang does not capture prefill with LoRA")
    stock, state = pair(128)
    sizes = {"max_num_tokens": 70 * CAPACITY, "max_num_requests": CAPACITY}
    for one in (stock, state.backend):
        one.init_prefill_cuda_graph_batch_info(**{name: sizes[name] for name in parameters[1:]})
    planner.pack(state, state.backend.prefill_cuda_graph_batch_info)
    rng = np.random.default_rng(13)
    for _ in range(40):
        batch, arguments = random_batch(rng, "EXTEND")
        stock.prepare_lora_batch(batch, *arguments, False, use_prefill_cuda_graph=True)
        planner.prepare(state, batch, *arguments, static_info=state.backend.prefill_cuda_graph_batch_info)
        same_info(state.backend.batch_info, stock.batch_info)
        head = state.backend.lm_head_batch_info
        same_info(head, stock.lm_head_batch_info, shared=REQUEST_ARRAYS)
        assert all(getattr(head, name) is getattr(state.backend.batch_info, name) for name in REQUEST_ARRAYS)
        words = getattr(state.backend.batch_info, planner.BATCH)
        expected = expected_words(*arguments[:2], lens_of(batch))
        assert words.token_adapters.tolist() == expected + [0] * (words.token_adapters.shape[0] - len(expected))


def test_merged_chunks_equal_sglangs() -> None:
    chunks = importlib.import_module("sglang.srt.lora.utils").merge_and_chunk_segments
    rng = np.random.default_rng(5)
    for _ in range(300):
        requests = int(rng.integers(1, 12))
        slots, lens = rng.integers(0, 3, requests), rng.integers(0, 40, requests)
        theirs = chunks(slots.tolist(), lens.tolist(), chunk_size=16)
        ours_slots, bounds = heads.merged_chunks(slots, lens, 16)
        assert (ours_slots.tolist(), np.diff(bounds).tolist()) == theirs


def test_what_is_not_needed_is_not_made(pair: Any, loaded: Any) -> None:
    _, state = pair(16)
    batch, arguments = support.forward_batch("EXTEND", [3, 4]), [[1, 2], [0, 8, 8, 0, 0], [1.0] * SLOTS]
    planner.prepare(state, batch, *arguments)
    assert state.backend.lm_head_batch_info is not None
    assert getattr(state.backend.batch_info, planner.BATCH) is not None

    state.lm_head_targeted = False
    planner.prepare(state, batch, *arguments)
    assert state.backend.lm_head_batch_info is None and state.backend.lm_head_pass_batch_infos is None

    state.set_slot(2, has_embedding=True, has_head=True)  # slot 1 has none
    planner.prepare(state, batch, *arguments)
    words = getattr(state.backend.batch_info, planner.BATCH).token_adapters
    assert words.tolist() == [0, 0, 0, *[2 << 16 | 8] * 4]

    state.set_slot(2, has_embedding=False, has_head=True)
    planner.prepare(state, batch, *arguments)
    assert getattr(state.backend.batch_info, planner.BATCH) is None

    state.set_slot(2, has_embedding=True, has_head=True)
    state.embedding_targeted = False
    planner.prepare(state, batch, *arguments)
    assert getattr(state.backend.batch_info, planner.BATCH) is None


def test_captured_words_become_neutral_and_stay_so(pair: Any, loaded: Any) -> None:
    _, state = pair(16)
    getattr(state.backend, loaded[1].release.decode_graph)(4, 1)
    info = state.backend.cuda_graph_batch_info
    planner.pack(state, info)
    batch = support.forward_batch("DECODE", [1, 1])
    arguments = [[1, 1], [0, 8, 0, 0, 0], [1.0] * SLOTS]
    for flag, expected in ((True, [1 << 16 | 8] * 2), (False, [0, 0]), (False, [0, 0]), (True, [1 << 16 | 8] * 2)):
        state.set_slot(1, has_embedding=flag, has_head=True)
        planner.prepare(state, batch, *arguments, static_info=info)
        assert getattr(info, planner.BATCH).token_adapters.tolist() == [*expected, 0, 0]
        assert info.weight_indices.tolist()[:1] == [1]


class Sends:
    """How often a State's buffers have gone to the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        send = Staging.send

        def counted(staging: Staging, target: torch.Tensor) -> None:
            self.count += 1
            send(staging, target)

        monkeypatch.setattr(Staging, "send", counted)


@pytest.mark.parametrize("captured", [True, False])
def test_only_an_equal_decode_step_is_not_sent_again(
    captured: bool, pair: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random walk that repeats, alters one thing at a time and comes back, against SGLang's own method."""
    stock, state = pair(16)
    info = None
    if captured:
        for one in (stock, state.backend):
            getattr(one, loaded[1].release.decode_graph)(CAPACITY, 1)
        info = state.backend.cuda_graph_batch_info
        planner.pack(state, info)
    sends = Sends(monkeypatch)
    rng = np.random.default_rng(11)
    known = [random_batch(rng, "DECODE", 6) for _ in range(2)]  # few, so that the walk comes back to each
    (batch, arguments), last = known[0], None
    repeats = 0
    for _ in range(200):
        what = rng.choice(["again", "other", "slots", "ranks", "scalings", "adapter", "verify", "eager", "refused"])
        if what == "other":
            batch, arguments = known[int(rng.integers(2))]
        elif what in ("slots", "ranks", "scalings"):
            values = arguments[("slots", "ranks", "scalings").index(what)]
            values[0] = (values[0] + 1) % SLOTS  # in place, as a caller may
        elif what == "adapter":
            state.set_slot(
                int(rng.integers(SLOTS)), has_embedding=bool(rng.integers(2)), has_head=bool(rng.integers(2))
            )
            last = None
        elif what == "verify":  # the same requests, in the same buffers
            verified = support.forward_batch("TARGET_VERIFY", [VERIFY] * batch.batch_size)
            planner.prepare(state, verified, *arguments, static_info=info)
            last = None
        elif what == "eager" and captured:
            planner.prepare(state, batch, *arguments)
            last = None
        elif what == "refused":
            with pytest.raises(ShapeError):
                planner.prepare(state, batch, *arguments[:2], [1.0], static_info=info)
        before = sends.count
        planner.prepare(state, batch, *arguments, static_info=info)
        if last == arguments:
            assert sends.count == before
            repeats += 1
        else:
            assert sends.count == before + 1
        last = copy.deepcopy(arguments)
        stock.prepare_lora_batch(batch, *arguments, captured)
        same_info(state.backend.batch_info, stock.batch_info)
        assert state.backend.lm_head_batch_info is None
        has = state.slot_has_embedding
        ranks = [rank if has is None or has[slot] else 0 for slot, rank in enumerate(arguments[1])]
        words = getattr(state.backend.batch_info, planner.BATCH)
        expected = expected_words(arguments[0], ranks, lens_of(batch))
        if words is None:
            assert not any(ranks)
        else:
            assert words.token_adapters.tolist()[: len(expected)] == expected
    assert repeats > 20


def test_another_adapter_in_a_slot_plans_an_equal_step_again(pair: Any) -> None:
    """Where the embedding layer is not targeted too: lm_head's weights may have come or gone."""
    _, state = pair(16)
    state.embedding_targeted = False
    batch, arguments = support.forward_batch("DECODE", [1, 1]), [[1, 1], [0, 8, 0, 0, 0], [1.0] * SLOTS]
    planner.prepare(state, batch, *arguments)
    before = state.last_step
    planner.prepare(state, batch, *arguments)
    assert before is not None and state.last_step is before
    state.set_slot(1, has_embedding=False, has_head=False)
    planner.prepare(state, batch, *arguments)
    assert state.last_step is not before


def test_another_target_set_plans_an_equal_step_again(pair: Any) -> None:
    """`update_lora_info` may take the embedding out of the targets."""
    _, state = pair(16)
    batch, arguments = support.forward_batch("DECODE", [1, 1]), [[1, 1], [0, 8, 0, 0, 0], [1.0] * SLOTS]
    planner.prepare(state, batch, *arguments)
    assert getattr(state.backend.batch_info, planner.BATCH) is not None
    setattr(state.backend, planner.STATE, state)
    manager = SimpleNamespace(lora_backend=state.backend, embed_tokens_module=None, lm_head_module=None, loras={})
    runtime.activate(runtime.Active(state.release, Settings()))
    try:
        backend_hooks.modules(lambda _: None, manager)
    finally:
        runtime.activate(None)
    planner.prepare(state, batch, *arguments)
    assert getattr(state.backend.batch_info, planner.BATCH) is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"slots": [0, SLOTS]}, SlotError),
        ({"slots": [0, -1]}, SlotError),
        ({"slots": [0]}, ShapeError),
        ({"ranks": [1] * (SLOTS - 1)}, ShapeError),
        ({"ranks": [-1] * SLOTS}, SlotError),
        ({"scalings": [1.0] * (SLOTS + 1)}, ShapeError),
        ({"mode": "EXTEND", "lens": [2, -1]}, SlotError),
        ({"lens": [1] * (CAPACITY + 1), "slots": [0] * (CAPACITY + 1)}, CapacityError),
        ({"mode": "EXTEND", "lens": [CAPACITY, 1], "slots": [0, 1]}, CapacityError),
    ],
)
def test_bad_input_leaves_the_backend_as_it_was(
    change: dict[str, Any], error: type[Exception], pair: Any, loaded: Any
) -> None:
    _, state = pair(16)
    getattr(state.backend, loaded[1].release.decode_graph)(CAPACITY, 1)
    info = state.backend.cuda_graph_batch_info
    planner.pack(state, info)
    good = support.forward_batch("DECODE", [1, 1, 1])
    planner.prepare(state, good, [1, 2, 3], [8] * SLOTS, [1.0] * SLOTS, static_info=info)
    buffer = getattr(info, planner.STATIC).buffer
    before, fields = buffer.clone(), {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    head = state.backend.lm_head_batch_info

    batch = support.forward_batch(change.get("mode", "DECODE"), change.get("lens", [1, 1]))
    arguments = [change.get("slots", [0, 1]), change.get("ranks", [8] * SLOTS), change.get("scalings", [1.0] * SLOTS)]
    with pytest.raises(error):
        planner.prepare(state, batch, *arguments, static_info=info)
    assert torch.equal(buffer, before)
    assert all(getattr(info, name) is value for name, value in fields.items())
    assert state.backend.batch_info is info and state.backend.lm_head_batch_info is head


def test_hooks_prepare_through_the_backends_own_methods(plugin_on: Any, loaded: Any) -> None:
    stock = support.backend(SLOTS)
    batch, arguments = random_batch(np.random.default_rng(3), "DECODE")
    getattr(stock, loaded[1].release.decode_graph)(CAPACITY, 1)
    stock.prepare_lora_batch(batch, *arguments, True)
    assert not hasattr(stock, planner.STATE) and not hasattr(stock.batch_info, planner.BATCH)

    plugin_on()
    ours = support.backend(SLOTS)
    getattr(ours, loaded[1].release.decode_graph)(CAPACITY, 1)
    ours.prepare_lora_batch(batch, *arguments, True)
    assert hasattr(ours.batch_info, planner.BATCH)
    same_info(ours.batch_info, stock.batch_info)
    ours.prepare_lora_batch(
        forward_batch=batch,
        weight_indices=arguments[0],
        lora_ranks=arguments[1],
        scalings=arguments[2],
        use_cuda_graph=False,
    )
    assert not ours.batch_info.use_cuda_graph and hasattr(ours.batch_info, planner.BATCH)
    # a backend whose graph buffers were made while the plugin was off keeps them
    stock.prepare_lora_batch(batch, *arguments, True)
    assert not hasattr(stock.batch_info, planner.BATCH)
    assert runtime.state_of(SimpleNamespace()) is None
