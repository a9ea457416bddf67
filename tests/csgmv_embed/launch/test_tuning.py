"""The choice of a launch configuration: the rule, the table of a GPU, and one forced on every launch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from csgmv_embed import EmbeddingBatch, embedding_lora_a
from csgmv_embed.launch import tiles
from csgmv_embed.launch.tiles import LaunchConfig

ROW = {"rows_contiguous": True, "element_bytes": 2, "best_us": 1.0, "rule_us": 1.1}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of tables; what was read from another one is forgotten."""
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    for cached in (tiles.table, tiles._chosen):
        cached.cache_clear()
        monkeypatch.setattr(tiles, cached.__name__, cached)
    return tmp_path


def write_table(folder: Path, gpu: str, rows: list[tuple[int, int, tuple[int, int, int]]], plan: str = "any") -> None:
    fields = ("block_m", "block_n", "num_warps")
    content = [
        {**ROW, "plan": plan, "max_rank": rank, "max_tokens": tokens, "config": dict(zip(fields, config, strict=True))}
        for rank, tokens, config in rows
    ]
    (folder / tiles.table_path(gpu).name).write_text(json.dumps({"gpu": gpu, "rows": content}))


def test_a_table_gives_the_row_of_the_next_larger_rank_and_tokens(tables: Path) -> None:
    rows = [(16, 32, (8, 16, 1)), (16, 512, (16, 16, 2)), (64, 32, (2, 64, 4)), (64, 512, (4, 64, 8))]
    write_table(tables, "NVIDIA Test (80 GB)", rows)

    def chosen(tokens: int, rank: int) -> LaunchConfig:
        return tiles.choose("tokens", tokens, rank, True, 2, "NVIDIA Test (80 GB)")

    assert chosen(1, 16) == chosen(32, 9) == (8, 16, 1)
    assert chosen(33, 16) == chosen(10**6, 16) == (16, 16, 2)
    assert chosen(32, 17) == (2, 32, 4)
    assert chosen(33, 1000) == (4, 64, 8)
    assert chosen(1, 3) == (8, 4, 1)


def test_without_a_row_for_it_the_rule_holds(tables: Path) -> None:
    write_table(tables, "GPU", [(16, 32, (1, 16, 1))])
    for case in ((True, 4, "GPU"), (False, 2, "GPU"), (True, 2, "another"), (True, 2, "")):
        assert tiles.choose("segments", 5, 16, *case) == tiles.rule(5, 16, case[0])


@pytest.mark.parametrize("path", sorted(tiles.TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_table_is_whole_and_departs_from_the_rule_only_where_that_was_faster(path: Path) -> None:
    content = json.loads(path.read_text())
    assert tiles.table_path(content["gpu"]) == path
    rows = tiles.table(content["gpu"])
    steps = {(row.plan, row.rows_contiguous, row.element_bytes): 0 for row in rows}
    assert {row.plan for row in rows} in ({"any"}, {"tokens", "segments"})
    for row in rows:
        same = row.config == tiles.rule(row.max_tokens, row.max_rank, row.rows_contiguous)
        assert same == (row.best_us == row.rule_us) and 0 < row.best_us <= row.rule_us, row
        assert all(value & (value - 1) == 0 and value > 0 for value in row.config), row
        assert row.config.block_m * row.config.block_n <= 1 << 14
        steps[row.plan, row.rows_contiguous, row.element_bytes] += 1
    assert len(set(steps.values())) == 1, "every plan, storage and element size has the same grid"


def test_each_plan_has_its_own_rows(tables: Path) -> None:
    write_table(tables, "GPU", [(16, 32, (8, 16, 1))], plan="tokens")
    assert tiles.choose("tokens", 5, 16, True, 2, "GPU") == (8, 16, 1)
    assert tiles.choose("segments", 5, 16, True, 2, "GPU") == tiles.rule(5, 16, True) != (8, 16, 1)


def test_a_forced_configuration_is_used_and_given_up_again(device: torch.device) -> None:
    table, ids = torch.randn(1, 20, 24, device=device).transpose(1, 2), torch.arange(17, device=device)
    batch = EmbeddingBatch.build([17], [0], [24], device=device)
    before = tiles.choose("tokens", 17, 24, True, 4, "")
    with tiles.forced(LaunchConfig(4, 8, 1)):
        assert tiles.choose("tokens", 17, 24, True, 4, "") == (4, 8, 1)
        assert torch.equal(embedding_lora_a(ids, table, batch, 20), table[0, :, :17].T)
    assert tiles.choose("tokens", 17, 24, True, 4, "") == before
