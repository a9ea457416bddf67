"""LoRA on linear layers against float64: slices, ranks, tiles, static batches and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from csgmv_embed import (
    CapacityError,
    DtypeError,
    EmbeddingBatch,
    GradError,
    ShapeError,
    lora_expand,
    lora_linear,
    lora_linear_reference,
    lora_shrink,
)
from csgmv_embed.launch import tiles
from csgmv_embed.launch.tiles import ExpandTile, ShrinkTile, forced
from tests.support.rounding import HAS_GPU, Exact, assert_rounded

pytestmark = pytest.mark.numeric
NAN = float("nan")
DEVICE = "cuda" if HAS_GPU else "cpu"
STARTS = {"one": (0, 80), "qkv": (0, 64, 80, 96), "ragged": (0, 50, 113), "empty slice": (0, 32, 32, 64)}


@dataclass
class Site:
    """Random tables, NaN where nothing may be read, and a batch over them. Scalings are 0.5, 1.5, ..."""

    lens: Sequence[int] = (3, 1, 40, 0, 7)
    slots: Sequence[int] = (0, 1, 2, 2, 3)
    ranks: Sequence[int] = (16, 0, 24, 5)
    max_rank: int = 24
    starts: tuple[int, ...] = (0, 64, 80, 96)
    features: int = 96
    padding: int = 0  # rows behind the tokens, in a static batch
    dtype: torch.dtype = torch.float32
    device: str = DEVICE

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(len(self.starts) + self.features)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)

        self.tokens = sum(self.lens)
        self.scalings = [0.5 + slot for slot in range(len(self.ranks))]
        slices, rows = len(self.starts) - 1, self.tokens + self.padding
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.a = torch.full((len(self.ranks), slices * self.max_rank, self.features), NAN, **options)
        self.b = torch.full((len(self.ranks), self.starts[-1], self.max_rank), NAN, **options)
        for slot, rank in enumerate(self.ranks):
            self.a[slot, : slices * rank] = draw(slices * rank, self.features)
            self.b[slot, :, :rank] = draw(self.starts[-1], rank)
        self.x, self.base = draw(rows, self.features), draw(rows, self.starts[-1] + 3)

    def batch(self) -> EmbeddingBatch:
        slots = len(self.ranks)
        if not self.padding:
            return EmbeddingBatch.build(
                self.lens, self.slots, self.ranks, scalings=self.scalings, tiles=True, device=self.device
            )
        batch = EmbeddingBatch.allocate(
            max_tokens=self.tokens + self.padding + 3, slots=slots, tiles=True, device=self.device
        )
        batch.refill(self.lens, self.slots, self.ranks, self.scalings)
        return batch

    def exact(self) -> Exact:
        slots = torch.tensor(self.slots).repeat_interleave(torch.tensor(self.lens)).to(self.device)

        def sums(of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            x, base = of(self.x[: self.tokens]), of(self.base[: self.tokens])
            factors = torch.tensor(self.ranks), torch.tensor(self.scalings)
            return lora_linear_reference(x, of(self.a), of(self.b), base, slots, *factors, self.starts)

        return Exact(sums(torch.clone), sums(torch.abs), terms=self.features + self.max_rank + 2, inner=1)

    def check(self, found: torch.Tensor) -> None:
        assert_rounded(found[: self.tokens], self.exact())
        assert torch.equal(found[self.tokens :], self.base[self.tokens :])
        assert torch.equal(found[:, self.starts[-1] :], self.base[:, self.starts[-1] :])

    def run(self, batch: EmbeddingBatch | None = None) -> torch.Tensor:
        return lora_linear(self.x, self.a, self.b, self.base.clone(), batch or self.batch(), self.starts)


# A dtype changes no plan and no slice: all of them in float32, and each kind of batch in the others.
CHECKED = [(padding, starts, torch.float32) for padding in (0, 5) for starts in STARTS]
CHECKED += [(p, s, t) for p, s in ((0, "ragged"), (5, "qkv")) for t in (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize(("padding", "starts", "dtype"), CHECKED)
def test_it_is_within_the_roundings_of_the_oracle(padding, starts, dtype):
    site = Site(padding=padding, starts=STARTS[starts], dtype=dtype)
    site.check(site.run())


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("max_rank", "ranks"), [(24, (24, 0, 6, 5)), (6, (6, 0, 4, 3)), (7, (7, 0, 4, 6))])
def test_ranks_of_every_number_of_neighbours(max_rank, ranks, splits):
    """The columns of a shrunk row lie side by side within a slice, whatever divides max_rank and the rank."""
    site = Site(max_rank=max_rank, ranks=ranks, dtype=torch.float16)
    with forced(lora_shrink=ShrinkTile(16, 32, splits, 2, 2)):
        site.check(site.run())


TILES = {
    "split with a ragged end": (ShrinkTile(16, 16, 4, 2, 2), ExpandTile(32, 16, 2, 2, 2)),
    "one part": (ShrinkTile(32, 32, 1, 1, 4), ExpandTile(64, 16, 1, 1, 4)),
    "more parts than the sum has": (ShrinkTile(16, 64, 8, 2, 2), ExpandTile(16, 64, 3, 2, 2)),
}


@pytest.mark.parametrize("pair", TILES.values(), ids=TILES)
def test_any_tiles_compute_the_same_and_the_same_every_time(pair):
    site = Site(starts=(0, 50, 113), features=104, dtype=torch.float16)
    with forced(lora_shrink=pair[0], lora_expand=pair[1]):
        first, second = site.run(), site.run()
    site.check(first)
    assert torch.equal(first, second)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_output_may_have_another_dtype(out_dtype):
    """As lm_head's logits have: the shrunk row is rounded to the dtype of the tables, the sum to that of the output."""
    site = Site(dtype=torch.float16, padding=3)
    site.base = site.base.to(out_dtype)
    found = site.run()
    assert_rounded(found[: site.tokens], site.exact(), inner_dtype=torch.float16)


def test_shards_of_the_columns_together_are_the_whole():
    """As under tensor parallelism; but for roundings, for sums of another width are taken in another order."""
    site = Site(starts=(0, 208), dtype=torch.float16)
    batch, found = site.batch(), site.base.clone()
    for first, end in ((0, 96), (96, 208)):
        lora_linear(site.x, site.a, site.b[:, first:end], found[:, first:end], batch)
    site.check(found)


def test_columns_of_a_vocabulary(monkeypatch):
    monkeypatch.setattr(tiles, "VOCABULARY", 2048)
    assert tiles.linear_expand_rule(True, 2047, 24, 2) != tiles.linear_expand_rule(True, 2048, 24, 2)
    site = Site(starts=(0, 2048 + 40), features=32, dtype=torch.float16)
    site.check(site.run())


def test_ranks_beyond_a_block_and_tiles_of_a_prefill():
    site = Site(lens=(500, 1, 70), slots=(0, 1, 2), ranks=(80, 3, 17), max_rank=80, starts=(0, 48), features=64)
    assert site.batch().tile_block == 64
    site.check(site.run())


def test_a_static_batch_is_refilled():
    site = Site(padding=6)
    batch = site.batch()
    site.check(site.run(batch))
    other = Site(lens=(1,) * 20, slots=tuple(k % 4 for k in range(20)), padding=6)
    batch.refill(other.lens, other.slots, other.ranks, other.scalings)
    other.check(other.run(batch))
    batch.refill([], [], [0] * 4)
    assert torch.equal(other.run(batch), other.base)


@pytest.mark.parametrize("splits", [1, 3], ids=["one part", "three parts"])
def test_shrink_and_expand_apart(splits):
    site = Site(dtype=torch.float16, padding=4)
    batch = site.batch()
    out = torch.full((site.tokens + 4, 3 * site.max_rank), NAN, dtype=site.dtype, device=site.device)
    with forced(lora_shrink=ShrinkTile(16, 32, splits, 2, 2)):
        shrunk = lora_shrink(site.x, site.a, batch, slices=3, out=out)
    assert shrunk is out
    site.check(lora_expand(shrunk, site.b, site.base.clone(), batch, site.starts))
    of_token = torch.tensor(site.slots).repeat_interleave(torch.tensor(site.lens))
    for slot, rank in enumerate(site.ranks):  # columns behind the rank, and rows of nobody, are what they were
        written = ~shrunk[: site.tokens][of_token.to(site.device) == slot].isnan().view(-1, 3, site.max_rank)
        assert written[..., :rank].all() and not written[..., rank:].any()
    assert shrunk[site.tokens :].isnan().all()


def test_rows_without_adapter_stay_to_the_bit():
    site = Site(slots=(1, 1, 2, 2, 1))
    found = site.run()
    assert torch.equal(found[:4], site.base[:4]) and torch.equal(found[44:], site.base[44:])
    bare = Site(slots=(1,) * 5)
    assert torch.equal(bare.run(), bare.base)


def test_no_rows_go_with_any_batch():
    site = Site()
    out = lora_linear(site.x[:0], site.a, site.b, site.base[:0].clone(), site.batch(), site.starts)
    assert out.shape == (0, 99)


def _without(site: Site, **other: Any) -> dict[str, Any]:
    given = {"x": site.x, "a_table": site.a, "b_table": site.b, "out": site.base, "batch": site.batch()}
    return {**given, "starts": site.starts, **other}


REFUSED = {
    "x of one axis": (lambda s: {"x": s.x[0]}, ShapeError, r"x has shape \(96,\); expected \(tokens, in_features\)"),
    "a_table of one axis": (lambda s: {"a_table": s.a[0, 0]}, ShapeError, "a_table has shape"),
    "b_table of no axis": (lambda s: {"b_table": s.b[0, 0, 0]}, ShapeError, "b_table has shape"),
    "a_table of other features": (lambda s: {"a_table": s.a[..., :64]}, ShapeError, "a_table has shape"),
    "a_table that is no multiple": (lambda s: {"a_table": s.a[:, :71]}, ShapeError, "multiple of the 3 slices"),
    "max_rank of b_table": (lambda s: {"b_table": s.b[..., :16]}, ShapeError, "shrunk has shape"),
    "out too narrow": (
        lambda s: {"out": s.base[:, :95]},
        ShapeError,
        r"out has shape .*; expected \(51, at least 96\)",
    ),
    "out of other rows": (lambda s: {"out": s.base[:50]}, ShapeError, "out has shape"),
    "out with columns apart": (lambda s: {"out": s.base.T.contiguous().T}, ShapeError, "last axis contiguous"),
    "rows upon each other": (lambda s: {"out": s.base[:1].expand(51, -1)}, ShapeError, "lie apart"),
    "dtype of a_table": (lambda s: {"a_table": s.a.half()}, DtypeError, "a_table is torch.float16"),
    "dtype of x": (lambda s: {"x": s.x.half()}, DtypeError, "a_table is torch.float32; expected torch.float16"),
    "the negative bit": (lambda s: {"x": torch._neg_view(s.x)}, DtypeError, "negative bit"),
    "a table that requires grad": (lambda s: {"b_table": s.b.requires_grad_()}, GradError, "b_table"),
    "starts that fall": (lambda s: {"starts": (0, 90, 80, 96)}, ShapeError, r"starts is \(0, 90, 80, 96\)"),
    "starts that end early": (lambda s: {"starts": (0, 32, 64, 90)}, ShapeError, "96, the rows of b_table"),
    "starts from 1": (lambda s: {"starts": (1, 32, 64, 96)}, ShapeError, "from 0 on"),
    "fewer slots": (lambda s: {"a_table": s.a[:3], "b_table": s.b[:3]}, ShapeError, "4 slots; expected at most 3"),
    "a batch of other rows": (lambda s: {"x": s.x[:50], "out": s.base[:50]}, ShapeError, "expected 51"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_with_what_would_be_right(case):
    change, error, message = case
    site = Site()
    before = site.base.clone()
    with pytest.raises(error, match=message):
        lora_linear(**_without(site, **change(site)))
    assert torch.equal(site.base, before)


def test_a_batch_without_tiles_is_refused():
    site = Site()
    plain = EmbeddingBatch.build(site.lens, site.slots, site.ranks, segments=True, device=site.device)
    with pytest.raises(ShapeError, match="planned without tiles; expected one made with tiles=True"):
        site.run(plain)


def test_more_rows_than_a_static_batch_holds_are_refused():
    site = Site()
    small = EmbeddingBatch.allocate(max_tokens=8, slots=4, tiles=True, device=site.device)
    with pytest.raises(CapacityError, match="51 tokens; expected at most 8"):
        site.run(small)


@pytest.mark.gpu
def test_random_batches_replayed_in_one_graph():
    """300 batches through a graph that was captured once, against float64."""
    generator = torch.Generator().manual_seed(11)
    site = Site(
        lens=(1,) * 200,
        slots=(0,) * 200,
        ranks=(64, 16, 0, 8),
        max_rank=64,
        starts=(0, 512, 640, 768),
        features=1024,
        padding=8,
        dtype=torch.bfloat16,
    )
    batch, out = site.batch(), site.base.clone()
    lora_linear(site.x, site.a, site.b, out, batch, site.starts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lora_linear(site.x, site.a, site.b, out, batch, site.starts)
    for _ in range(300):
        tokens = int(torch.randint(1, 209, (1,), generator=generator))
        site.lens, site.tokens = (1,) * tokens, tokens
        site.slots = torch.randint(0, 4, (tokens,), generator=generator).tolist()
        site.x.normal_()
        batch.refill(site.lens, site.slots, site.ranks, site.scalings)
        out.copy_(site.base)
        graph.replay()
        site.check(out)


@pytest.mark.gpu
def test_tables_past_two_to_the_31_elements():
    rows = 2**31 // 64 // 3 + 1  # of B, a slot, times 64: the last slot begins behind 2**31
    site = Site(
        lens=(4, 4), slots=(3, 0), ranks=(1, 1, 1, 1), max_rank=1, starts=(0, 16), features=16, dtype=torch.half
    )
    b = torch.empty(4, rows * 64, 1, dtype=torch.half, device="cuda")[:, :16]
    b.copy_(site.b)
    assert b.stride(0) * 3 > 2**31
    site.check(lora_linear(site.x, site.a, b, site.base.clone(), site.batch(), site.starts))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("max_rank", [16, 64, 256])
@pytest.mark.parametrize("tokens", [1, 100, 600])
def test_lm_head_of_real_sizes(tokens, max_rank, dtype):
    rng = torch.Generator().manual_seed(tokens)
    ranks = (max_rank, max_rank // 2, 0, max_rank, 1, max_rank - 1, max_rank, 8)
    slots = tuple(torch.randint(0, 8, (tokens,), generator=rng).tolist())
    shape = {"max_rank": max_rank, "starts": (0, 70001), "features": 4096, "dtype": dtype}
    site = Site(lens=(1,) * tokens, slots=slots, ranks=ranks, padding=5, **shape)
    site.a *= 4096**-0.5
    site.check(site.run())


@pytest.mark.gpu
def test_logits_past_two_to_the_31_elements():
    tokens, columns = 17000, 128256
    assert tokens * columns > 2**31
    b = torch.randn(1, columns, 16, device="cuda", dtype=torch.bfloat16)
    shrunk = torch.randn(tokens, 16, device="cuda", dtype=torch.bfloat16)
    out = torch.zeros(tokens, columns, device="cuda", dtype=torch.bfloat16)
    batch = EmbeddingBatch.build([tokens], [0], [16], tiles=True, device="cuda")
    lora_expand(shrunk, b, out, batch)
    for row in (0, tokens - 1):
        left, right = shrunk[row : row + 1].double(), b[0].double()
        assert_rounded(out[row : row + 1], Exact(left @ right.T, left.abs() @ right.abs().T, terms=18))
