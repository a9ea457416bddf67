"""The choice of a tile: the rule, the table of a GPU, and one that is forced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from csgmv_embed import EmbeddingBatch, embedding_lora_a
from csgmv_embed.launch import tiles, tuned
from csgmv_embed.launch.tiles import LookupTile, MatrixTile

GPU = "NVIDIA Test (80 GB)"
KERNEL = "lookup_tokens_vocab_major"
STEPS = [[16, 64], [32, 512]]


def forget() -> None:
    """What was read and chosen from other tables."""
    for cached in (tuned.tuned, tuned.read_table, tiles._linear_shrink):
        cached.cache_clear()


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of tables."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    forget()
    yield tmp_path
    forget()


def write_table(rows: dict[tuple[int, ...], dict[str, int]], kernel: str = KERNEL, steps: Any = STEPS) -> None:
    grid = {"kernel": kernel, "element_bytes": 2, "axes": ["a"] * len(steps), "steps": steps}
    figures = {"tuned_us": 1.0, "rule_us": 1.1, "gain_pct": 5.0}
    content = [{"kernel": kernel, "element_bytes": 2, "at": at, "tile": tile, **figures} for at, tile in rows.items()]
    tuned.table_path(GPU).write_text(json.dumps({"gpu": GPU, "grids": [grid], "rows": content}))


def lookup_tile(m: int, n: int, warps: int) -> dict[str, int]:
    return LookupTile(m, n, warps)._asdict()


def chosen(tokens: int, rank: int, element_bytes: int = 2, gpu: str = GPU, contiguous: bool = True) -> LookupTile:
    return tiles.choose_lookup("tokens", tokens, rank, contiguous, element_bytes, gpu)


@pytest.mark.usefixtures("tables")
def test_a_call_takes_the_row_of_its_cell_the_next_larger_one_or_the_largest() -> None:
    write_table({(16, 32): lookup_tile(8, 16, 1), (16, 512): lookup_tile(16, 16, 2), (64, 512): lookup_tile(4, 64, 8)})
    assert chosen(1, 16) == chosen(32, 9) == (8, 16, 1)
    assert chosen(33, 16) == chosen(10**6, 16) == (16, 16, 2)
    assert chosen(33, 1000) == (4, 64, 8)
    assert chosen(1, 3) == (8, 4, 1), "no wider than the rank needs"


@pytest.mark.usefixtures("tables")
def test_where_a_cell_has_no_row_the_rule_holds_not_a_row_beside_it() -> None:
    write_table({(16, 32): lookup_tile(8, 16, 1), (16, 512): lookup_tile(16, 16, 2)})
    assert chosen(32, 64) == tiles.lookup_rule(32, 64, True) != (8, 16, 1)


@pytest.mark.usefixtures("tables")
def test_another_gpu_element_size_plan_or_storage_has_no_row_of_this_one() -> None:
    write_table({(16, 32): lookup_tile(1, 16, 1)})
    assert chosen(5, 16) == (1, 16, 1)
    for other in ({"element_bytes": 4}, {"gpu": "another"}, {"gpu": ""}, {"contiguous": False}):
        assert chosen(5, 16, **other) == tiles.lookup_rule(5, 16, other.get("contiguous", True))  # type: ignore[arg-type]
    assert tiles.choose_lookup("segments", 5, 16, True, 2, GPU) == tiles.lookup_rule(5, 16, True)


MATRIX = MatrixTile(32, 64, 64, 2, 2)
EVERY: dict[str, tuple[tuple[int, ...], tuple[Any, ...], Any]] = {  # kernel: sizes, tile, the call
    "layer": ((64, 32), MATRIX, lambda: tiles.choose_layer(20, 50, 4096, 2, GPU)),
    "lora_shrink": (
        (0, 192, 4096),
        tiles.ShrinkTile(32, 64, 2, 2, 2),
        lambda: tiles.choose_linear_shrink(True, 0, 190, 4000, 2, GPU),
    ),
    "lora_expand": (
        (1, 64, 4096),
        tiles.ExpandTile(32, 64, 4, 2, 2),
        lambda: tiles.choose_linear_expand(True, 4000, 50, 2, GPU),
    ),
}


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kernel", EVERY)
def test_every_kernel_can_be_tuned_and_forced(kernel: str) -> None:
    at, tile, choose = EVERY[kernel]
    rule = choose()
    write_table({at: tile._asdict()}, kernel, [[size] for size in at])  # type: ignore[attr-defined]
    forget()
    assert choose() == tile != rule
    other = type(tile)(*(2 * value for value in tile))
    with tiles.forced(**{kernel: other}):
        assert choose() == other
    assert choose() == tile


@pytest.mark.parametrize("path", sorted(tuned.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_table_holds_only_what_beat_the_rule(path: Path) -> None:
    content = json.loads(path.read_text())
    assert tuned.table_path(content["gpu"]) == path
    table = tuned.read_table(content["gpu"])
    assert len(table.rows) == len(content["rows"]) > 0 and len(table.grids) == len(content["grids"])
    for row in table.rows.values():
        grid = table.grids[row.kernel, row.element_bytes]
        assert grid.cell(row.at) == row.at and all(at in steps for at, steps in zip(row.at, grid.steps, strict=True))
        assert 0 < row.tuned_us < row.rule_us and 0 < row.gain_pct <= 100 * (1 - row.tuned_us / row.rule_us) + 0.1, row
        assert all(value > 0 for value in row.tile.values()), row
        assert row.tile["block_n"] & (row.tile["block_n"] - 1) == 0, row


def test_a_forced_tile_is_used_and_given_up_again(device: torch.device) -> None:
    table, ids = torch.randn(1, 20, 24, device=device).transpose(1, 2), torch.arange(17, device=device)
    batch = EmbeddingBatch.build([17], [0], [24], device=device)
    before = chosen(17, 24, 4, "")
    with tiles.forced(lookup_tokens_vocab_major=LookupTile(4, 8, 1)):
        seen = tiles.forced_now.seen
        assert chosen(17, 24, 4, "") == (4, 8, 1)
        assert torch.equal(embedding_lora_a(ids, table, batch, 20), table[0, :, :17].T)
    assert chosen(17, 24, 4, "") == before
    assert seen is not None and tiles.forced_now.seen is None, "a launch's key holds what is forced"
