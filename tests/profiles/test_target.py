"""Recipes and cases of the command line -> points; a point's name is read back as the point."""

from __future__ import annotations

import pytest

from bench.model import config
from bench.model.config import ConfigError
from profiles.target import make_target, parse_point, recipe_names

LOADED = config.load()


def target(**chosen):
    return make_target(LOADED, **chosen)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_makes_a_session_whose_names_are_points(name):
    found = target(recipe=name)
    assert found.points and found.name == name
    assert [parse_point(point.name) for point in found.points] == list(found.points)


def test_the_recipes_are_what_they_are_called():
    assert recipe_names() == ["decode-step", "layer-and-head", "linear-sites", "side-by-side", "skewed-prefill"]
    assert {point.case.op for point in target(recipe="layer-and-head").points} == {"layer", "head"}
    assert {point.case.phase for point in target(recipe="decode-step").points} == {"decode"}
    (case,) = {point.case for point in target(recipe="skewed-prefill").points}
    assert (case.phase, case.skew) == ("prefill", 3.5)
    side_by_side = target(recipe="side-by-side").points
    assert {point.clock for point in side_by_side} == {"graph", "eager"}
    contenders = {point.contender for point in side_by_side}
    assert contenders >= {"csgmv_embed-vocab_major", "sglang_csgmv-chunk128", "sglang_triton", "torch_gather"}


def test_a_copied_recipe_is_used_from_anywhere(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('about = "mine"\nlaunches = 7\ncontenders = ["torch_gather"]\n[[grids]]\nrank = [8, 16]\n')
    found = target(recipe=str(file))
    assert (found.name, found.launches, len(found.points)) == ("mine", 7, 2)


def test_cases_take_what_they_leave_out_from_the_configuration():
    found = target(
        cases=["phase=decode,batch_size=256,rank=16", "phase=prefill"], contenders=["sglang_csgmv-*", "sglang_t*"]
    )
    assert [point.contender for point in found.points] == ["sglang_csgmv-chunk16", "sglang_triton", "sglang_tokens"] * 2
    assert {(point.case.phase, point.case.rank, point.case.vocab) for point in found.points} == {
        ("decode", 16, 128256),
        ("prefill", 64, 128256),
    }


def test_a_results_file_s_key_is_a_case():
    point = target(recipe="decode-step").points[0]
    assert target(cases=[point.case.key]).points[0].case == point.case


def test_cases_replace_those_of_a_recipe_and_keep_its_contenders():
    found = target(recipe="side-by-side", cases=["rank=8"], clocks=["graph"], launches=5, replays=6)
    assert {point.case.rank for point in found.points} == {8}
    assert "torch_gather" in {point.contender for point in found.points}
    assert ({point.clock for point in found.points}, found.launches, found.replays) == ({"graph"}, 5, 6)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, r"expected CASE \(NAME=VALUE,...\) or --recipe with one of decode-step"),
        (
            {"recipe": "decode"},
            "--recipe decode: expected one of decode-step, layer-and-head, linear-sites, side-by-side, skewed-prefill",
        ),
        ({"recipe": "/nowhere/x.toml"}, "/nowhere/x.toml: cannot be read"),
        ({"cases": ["rank"]}, "CASE rank: expected NAME=VALUE"),
        ({"cases": ["phase=x"]}, "CASE: phase.*allowed: decode, prefill, mixed"),
        ({"cases": ["storage=rank_major"]}, "storage belongs to a contender"),
        ({"cases": ["rank=8"], "contenders": ["nobody"]}, "--contender nobody: matches none of"),
        ({"cases": ["rank=8"], "clocks": ["work"]}, "--clock work: expected one of graph, eager"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(chosen, said):
    with pytest.raises(ConfigError, match=said):
        target(**chosen)


@pytest.mark.parametrize("text", ["about = 3", 'about = "x"\n[[grids]]\nranks = [8]', 'about = "x"\ngrids = []'])
def test_a_recipe_with_a_mistake_is_refused(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="allowed"):
        target(recipe=str(file))


@pytest.mark.parametrize(
    "name", ["", "sample", "csgmv_embed|graph|rank=x", "csgmv_embed|graph|unknown=1", "a|work|rank=8"]
)
def test_what_is_no_point_is_refused(name):
    with pytest.raises(ConfigError, match="not a point"):
        parse_point(name)
