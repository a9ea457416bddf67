"""bench.toml -> configuration -> plan: what is planned, and errors that name the file, the key and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.model import config
from bench.model.config import Axes, Config, ConfigError, Plan, make_plan, parse_axis_overrides

LOADED = config.load()
TEXT = config.DEFAULT_PATH.read_text(encoding="utf-8")


def edited(folder: Path, old: str, new: str) -> Path:
    """A copy of bench.toml with its first `old` replaced."""
    assert old in TEXT
    path = folder / "edited.toml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


def cases(plan: Plan) -> list[object]:
    return list(dict.fromkeys(point.case for point in plan.points))


def contenders(plan: Plan) -> list[str]:
    return list(dict.fromkeys(point.contender for point in plan.points))


def with_grids(*grids: Axes, families: tuple[str, ...] = ("torch_gather",), axes: Axes | None = None) -> Config:
    """The default configuration with one profile, `p`."""
    profile = config.Profile(clocks=("graph",), contenders=families, grids=grids, axes=axes or Axes())
    return msgspec.structs.replace(LOADED, profiles={"p": profile})


@pytest.mark.parametrize("profile", sorted(LOADED.profiles))
def test_every_profile_of_bench_toml_plans_distinct_points(profile: str) -> None:
    plan = make_plan(LOADED, profile)
    assert plan.points
    assert len(set(plan.points)) == len(plan.points)
    assert {point.clock for point in plan.points} == set(LOADED.profiles[profile].clocks)


def test_a_profile_overrides_rounds_and_processes_and_the_rest_inherits() -> None:
    full, quick = make_plan(LOADED, "full").measure, make_plan(LOADED, "quick").measure
    assert (full.rounds, full.processes) == (LOADED.measure.rounds, LOADED.profiles["full"].processes)
    assert full.processes != quick.processes
    assert quick == LOADED.measure


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nodes = 60", "nodez = 60", ("measure:", "nodez", "allowed keys: seed, nodes")),
        ("nodes = 60", 'nodes = "60"', ("measure.nodes:", "`int`", ">= 1")),
        ("nodes = 60", "nodes = 0", ("measure.nodes:", "int >= 1")),
        ("block_ms = 1.0", "block_ms = 0.0", ("measure.block_ms:", "float > 0")),
        ('phase = ["decode"]', 'phase = ["bogus"]', ("axes.phase[0]:", "'bogus'", "decode, prefill, mixed")),
        ('dtype = ["bfloat16"]', 'dtype = ["int8"]', ("axes.dtype[0]:", "float16, bfloat16, float32")),
        ("chunk_size = [16]", "chunk_size = [17]", ("axes.chunk_size[0]:", "16, 32, 64, 128")),
        ('mix = ["uniform"]', 'mix = ["zipf"]', ("axes.mix[0]:", "one, uniform, distinct, zipf:EXPONENT")),
        ('mix = ["uniform"]', 'mix = ["zipf:-1"]', ("axes.mix[0]:", "zipf:EXPONENT")),
        ("base_fraction = [0.0]", "base_fraction = [1.5]", ("axes.base_fraction[0]:", ">= 0 and <= 1")),
        ("rank = [64]", "rank = 64", ("axes.rank:", "a list, each int >= 1")),
        ("skew = [0.0]\n", "", ("[axes] lacks skew", "a default for every axis")),
        ("[profiles.full.axes]", "[profiles.full.axes]\nwarps = [4]", ("profiles.full.axes:", "warps", "keys: phase")),
        (
            '"csgmv_embed", "sglang_csgmv"',
            '"csgmv", "sglang_csgmv"',
            ("profiles.quick.contenders[0]:", "'csgmv'", "torch_gather"),
        ),
        (
            'clocks = ["eager", "prepare"]',
            'clocks = ["graf"]',
            ("profiles.host.clocks[0]:", "graph, eager, prepare, work"),
        ),
        ("skew = [1.5]", "skew = [-1]", ("profiles.quick.grids[2].skew[0]:", "float >= 0")),
        ('_CACHE = "1"', "_CACHE = 1", ("profiles.faults.worker_env.SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE:", "str")),
        ("rank = [64]", "rank = []", ("axes.rank:", "length >= 1", "a list, each int >= 1, at least 1")),
        ("rank = [8, 16, 32, 64, 128, 256]", "rank = []", ("profiles.full.grids[0].rank:", "at least 1")),
        ('clocks = ["eager", "prepare"]', "clocks = []", ("profiles.host.clocks:", "prepare, work, at least 1")),
        (
            'contenders = ["csgmv_embed", "sglang_csgmv", "sglang_triton", "torch_gather"]\nrounds = 1',
            "contenders = []",
            ("smoke",),
        ),
        ("[measure]", "[profiles.bare]\nclocks=['work']\ncontenders=['torch_gather']\ngrids=[]\n[measure]", ("bare",)),
        ("skew = [0.0]", "skew = [inf]", ("axes.skew[0]:", "float >= 0 and <= 1e+09")),
        ("point_timeout_s = 60", "point_timeout_s = inf", ("measure.point_timeout_s:", "float > 0 and <= 1e+09")),
        ("[measure]", "[measure", ("not TOML", "line 8")),
    ],
)
def test_a_fault_in_the_file_names_file_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, said: tuple[str, ...]
) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(ConfigError) as failure:
        config.load(path)
    for part in (str(path), *said):
        assert part in str(failure.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.toml: cannot be read: No such file"):
        config.load(tmp_path / "absent.toml")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="latin.toml: not UTF-8: .* at byte 5; expected TOML in UTF-8"):
        config.load(path)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'nope' is unknown; expected one of captured, faults, full, "):
        make_plan(LOADED, "nope")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bogus=1", ("--axis bogus=1", "NAME one of phase, batch_size")),
        ("rank", ("--axis rank", "expected NAME=VALUE")),
        ("rank=x", ("--axis", "rank[0]", "int >= 1")),
        ("rank=16,", ("--axis", "rank[1]", "int >= 1")),
        ("rank=", ("--axis", "rank:", "at least 1")),
        ("mix=", ("--axis", "mix:", "at least 1")),
        ("skew=-1", ("--axis", "skew[0]", "float >= 0")),
        ("phase=decode,fill", ("--axis", "phase[1]", "decode, prefill, mixed")),
        ("chunk_size=17", ("--axis", "chunk_size[0]", "16, 32, 64, 128")),
        ("mix=zipf:x", ("--axis", "mix[0]", "zipf:EXPONENT")),
    ],
)
def test_a_bad_override_says_what_is_allowed(text: str, said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as failure:
        parse_axis_overrides([text])
    for part in said:
        assert part in str(failure.value)


def test_an_axis_given_twice_is_an_error_that_says_how_to_join() -> None:
    with pytest.raises(ConfigError, match="--axis rank=64,8: rank is given twice; .* in one option: rank=16,64,8"):
        parse_axis_overrides(["rank=16", "skew=1", "rank=64,8"])


def test_values_and_clocks_given_twice_are_planned_once() -> None:
    axes = parse_axis_overrides(["rank=16,16", "storage=rank_major,rank_major"])
    once = make_plan(LOADED, "quick", overrides=parse_axis_overrides(["rank=16", "storage=rank_major"]))
    assert make_plan(LOADED, "quick", overrides=axes, clocks=["graph", "eager", "graph"]).points == once.points


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_an_override_replaces_the_axis_in_every_grid(profile: str) -> None:
    plan = make_plan(LOADED, profile, overrides=parse_axis_overrides(["rank=48", "cache=cold"]))
    assert {(point.case.rank, point.case.cache) for point in plan.points} == {(48, "cold")}
    assert {point.case.phase for point in plan.points} == {"decode", "prefill", "mixed"}


def test_an_override_of_a_variant_axis_replaces_the_variants() -> None:
    plan = make_plan(LOADED, "full", overrides=parse_axis_overrides(["chunk_size=32,64", "storage=rank_major"]))
    assert [name for name in contenders(plan) if "-" in name] == [
        "csgmv_embed-rank_major",
        "csgmv_embed_segments-rank_major",
        "csgmv_embed_pdl-rank_major",
        "sglang_csgmv-chunk32",
        "sglang_csgmv-chunk64",
    ]


def test_a_grid_goes_before_its_profile_and_the_profile_before_the_default() -> None:
    plan = make_plan(with_grids(Axes(rank=(8,)), Axes(), axes=Axes(rank=(4,), batch_size=(3,))), "p")
    assert [(case.rank, case.batch_size, case.vocab) for case in cases(plan)] == [(8, 3, 128256), (4, 3, 128256)]


def test_contenders_are_selected_by_glob_in_the_order_of_the_profile() -> None:
    plan = make_plan(LOADED, "quick", contenders=["torch_*", "csgmv_embed-*"])
    assert contenders(plan) == ["csgmv_embed-vocab_major", "csgmv_embed-rank_major", "torch_gather"]


def test_a_glob_without_a_match_is_an_error_even_beside_one_with_a_match() -> None:
    with pytest.raises(ConfigError, match=r"--contender zz\*: matches none of csgmv_embed-vocab_major, "):
        make_plan(LOADED, "quick", contenders=["torch_gather", "zz*"])


def test_cases_are_selected_by_all_terms_of_one_selection_or_by_another_selection() -> None:
    plan = make_plan(LOADED, "quick", cases=["op=lookup,phase=decode,rank=16,batch_size=32", "skew=1.5"])
    assert [(case.phase, case.rank, case.batch_size, case.skew) for case in cases(plan)] == [
        ("decode", 16, 32, 0.0),
        ("prefill", 64, 16, 1.5),
    ]


@pytest.mark.parametrize(
    ("selection", "found"), [("skew=0", {0.0}), ("skew=1.50", {1.5}), ("skew=1.5, phase = prefill", {1.5})]
)
def test_cases_are_selected_by_value_not_by_its_spelling(selection: str, found: set[float]) -> None:
    assert {point.case.skew for point in make_plan(LOADED, "quick", cases=[selection]).points} == found


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ("foo=1", "NAME one of phase, batch_size"),
        ("rank=16,foo=1", "'foo=1' is not a term"),
        ("rank", "expected NAME=VALUE[,NAME=VALUE...]"),
        ("rank=16,64", "'64' is not a term; expected NAME=VALUE"),
        ("rank=17", "no case has rank=17; expected one of 16, 64, 256"),
        ("rank=x", "no case has rank=x; expected one of 16, 64, 256"),
        ("skew=0.1", "expected one of 0.0, 1.5"),
        ("phase=fill", "expected one of decode, mixed, prefill"),
        ("batch_size=1,cache=cold", "no case has all of these values"),
    ],
)
@pytest.mark.parametrize("others", [[], ["rank=16"]])
def test_a_selection_of_cases_that_fits_nothing_is_an_error(selection: str, said: str, others: list[str]) -> None:
    with pytest.raises(ConfigError) as failure:
        make_plan(LOADED, "quick", cases=[*others, selection])
    assert f"--case {selection}: " in str(failure.value) and said in str(failure.value)


def test_decode_ignores_length_and_skew_so_that_equal_cases_collapse() -> None:
    grid = Axes(phase=("decode", "prefill"), seq_len=(64, 128), skew=(0.0, 1.0))
    plan = make_plan(with_grids(grid, grid), "p")
    decode = [case for case in cases(plan) if case.phase == "decode"]
    assert [(case.seq_len, case.skew) for case in decode] == [(1, 0.0)]
    assert len(plan.points) == 1 + 4


def test_distinct_takes_as_many_adapters_as_requests() -> None:
    plan = make_plan(with_grids(Axes(mix=("distinct", "uniform"), batch_size=(3, 5), adapters=(2, 9))), "p")
    found = {(case.mix, case.batch_size, case.adapters) for case in cases(plan)}
    assert found == {("distinct", 3, 3), ("distinct", 5, 5)} | {("uniform", b, a) for b in (3, 5) for a in (2, 9)}
    assert len(plan.points) == 6


def test_clocks_of_the_command_line_replace_those_of_the_profile() -> None:
    assert {point.clock for point in make_plan(LOADED, "quick", clocks=["work"]).points} == {"work"}


@given(
    ranks=st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True),
    batch_sizes=st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True),
    skews=st.lists(st.sampled_from([0.0, 0.5, 1.5]), min_size=1, max_size=3, unique=True),
    sizes=st.lists(st.sampled_from([16, 32, 64, 128]), min_size=1, max_size=4, unique=True),
)
def test_overrides_round_trip_and_the_plan_is_their_product(
    ranks: list[int], batch_sizes: list[int], skews: list[float], sizes: list[int]
) -> None:
    listed = {"rank": ranks, "batch_size": batch_sizes, "skew": skews, "chunk_size": sizes}
    axes = parse_axis_overrides(f"{name}={','.join(map(str, values))}" for name, values in listed.items())
    assert axes == Axes(**{name: tuple(values) for name, values in listed.items()})
    loaded = with_grids(Axes(phase=("prefill",)), families=("sglang_csgmv",))
    plan = make_plan(loaded, "p", overrides=axes, clocks=["graph", "eager"])
    assert len(set(plan.points)) == 2 * math.prod(map(len, listed.values()))


def test_a_selection_of_too_many_points_is_refused_before_it_is_listed() -> None:
    many = ",".join(map(str, range(1, 2001)))
    axes = parse_axis_overrides([f"{name}={many}" for name in ("batch_size", "rank", "vocab", "adapters")])
    with pytest.raises(
        ConfigError, match=r"profile quick: its axes make up to \d{14,} points; expected at most 100000"
    ):
        make_plan(config.load(), "quick", overrides=axes)
    variants = parse_axis_overrides(["storage=" + ",".join(["vocab_major"] * 200_000)])
    with pytest.raises(ConfigError, match=r"up to \d+ contenders; expected at most 100000"):
        make_plan(config.load(), "quick", overrides=variants)


def test_a_version_of_sglang_is_a_variant_of_its_contenders_alone() -> None:
    axes = parse_axis_overrides(["sglang=installed,0.5.23", "chunk_size=16", "storage=vocab_major"])
    names = {point.contender for point in make_plan(LOADED, "quick", overrides=axes).points}
    assert names == {
        "csgmv_embed-vocab_major",
        "sglang_csgmv-chunk16",
        "sglang_csgmv-chunk16@0.5.23",
        "sglang_triton",
        "sglang_triton@0.5.23",
        "sglang_tokens",
        "sglang_tokens@0.5.23",
        "torch_gather",
    }
    with pytest.raises(ConfigError, match="installed, or a version: 0.5.23"):
        parse_axis_overrides(["sglang=newest"])
