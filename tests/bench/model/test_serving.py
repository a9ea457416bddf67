"""What engines are asked: cases and modes of bench.toml, errors that say what is right, the order of processes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.model import config
from bench.model.serving import Load, LoadAxes, Mode, ServeProfile, Setup, make_serve_plan, prompt_lengths
from bench.model.toml import ConfigError

LOADED = config.load()
TEXT = config.DEFAULT_PATH.read_text(encoding="utf-8")


def planned(profile: ServeProfile, **chosen):  # type: ignore[no-untyped-def]
    return make_serve_plan({"p": profile}, LOADED.serving, "p", **chosen)


def profile(*axes: LoadAxes, modes: tuple[str, ...] = ("none", "csgmv"), **fields) -> ServeProfile:  # type: ignore[no-untyped-def]
    return ServeProfile(modes, axes or (LoadAxes(("decode",)),), **fields)


@pytest.mark.parametrize("name", sorted(LOADED.serve))
def test_every_profile_of_bench_toml_plans_each_load_once_after_start_and_answers(name: str) -> None:
    plan = make_serve_plan(LOADED.serve, LOADED.serving, name)
    assert [load.kind for load in plan.loads[:2]] == ["start", "answers"] and len(plan.loads) > 2
    assert len({*plan.loads}) == len(plan.loads)
    assert LOADED.serving.reference in plan.modes


def test_modes_are_measured_in_turns_there_and_back() -> None:
    plan = planned(profile(modes=("none", "triton", "csgmv"), repeats=3))
    there = ["none", "triton", "csgmv"]
    assert [run.mode for run in plan.runs] == [*there, *reversed(there), *there]
    assert [run.repeat for run in plan.runs] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [run.index for run in plan.runs] == list(range(9))


def test_axes_multiply_and_the_command_line_chooses() -> None:
    axes = LoadAxes(("decode",), (1, 32), mix=("one", "zipf:1.2"))
    plan = planned(profile(axes, LoadAxes(("prefill",))), modes=["plugin", "plugin"], kinds=["decode"], repeats=2)
    assert [(load.requests, load.mix) for load in plan.loads[2:]] == [
        (1, "one"),
        (1, "zipf:1.2"),
        (32, "one"),
        (32, "zipf:1.2"),
    ]
    assert [run.mode for run in plan.runs] == ["plugin", "plugin"]


def test_a_plan_that_asks_something_else_has_another_digest() -> None:
    one = planned(profile())
    assert one.digest == planned(profile()).digest
    others = [
        planned(profile(), repeats=2),
        planned(profile(), model="1b"),
        planned(profile(), modes=["csgmv", "none"]),
    ]
    assert len({one.digest, *(plan.digest for plan in others)}) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('setup]\nmodel = "1b"', 'setup]\nmodle = "1b"', "serve.quick.setup: .*modle.*allowed keys"),
        ('targets = "ends"', 'targets = "end"', "serve.ends.setup.targets: .*allowed: all, ends, attention"),
        ('kind = ["arrivals"]', 'kind = ["arrival"]', r"serve.8b.loads\[4\].kind\[0\]: .*arrivals"),
        ('mix = ["zipf:1.2"]\n\n[[serve.evict', 'mix = ["zipf"]\n\n[[serve.evict', "zipf:EXPONENT"),
        ('modes = ["csgmv", "csgmv-chunk64"', 'modes = ["csgmv", "csgmv-chunk48"', "chunk32, -chunk64"),
        ("answer_requests = 16", "answer_requests = 0", "serving.answer_requests: .*>= 1"),
        ("[serving]\nseed = 1", "[serving]\nsed = 1", "sed"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert TEXT.count(old) >= 1
    path = tmp_path / "edited.toml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        config.load(path)


@pytest.mark.parametrize(
    ("axes", "setup", "said"),
    [
        (LoadAxes(("arrivals",)), Setup(), "rate_rps is 0; expected requests a second above 0"),
        (LoadAxes(("decode",), rate_rps=(2.0,)), Setup(), "only arrivals have a rate"),
        (LoadAxes(("decode",), (32,)), Setup(adapters=32, slots=8), "32 adapters on 8 slots do not run in one batch"),
        (LoadAxes(("prefill",), (8,), (100_000,), (9.0,)), Setup(), "longest prompt has 7.* tokens"),
    ],
)
def test_a_load_that_would_not_measure_what_it_says_is_refused(axes: LoadAxes, setup: Setup, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(profile(axes, setup=setup))


def test_fewer_slots_than_adapters_are_no_matter_to_those_who_wait_or_share_one() -> None:
    setup = Setup(adapters=32, slots=8)
    planned(
        profile(LoadAxes(("stream",)), LoadAxes(("decode",), (8,)), LoadAxes(("decode",), mix=("one",)), setup=setup)
    )


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"modes": ["csgmv-eager-chunk32"]}, "--mode csgmv-eager-chunk32: expected none, triton"),
        ({"kinds": ["stream"]}, "--load stream: .*expected one of decode"),
    ],
)
def test_a_wrong_choice_is_named(chosen: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(profile(), **chosen)
    with pytest.raises(ConfigError, match="'x' is unknown; expected one of p"):
        make_serve_plan({"p": profile()}, LOADED.serving, "x")


def test_what_a_mode_is_follows_from_its_name() -> None:
    assert Mode("csgmv-chunk64-eager").chunk_size == 64 and Mode("csgmv-chunk64-eager").eager
    assert Mode("csgmv").chunk_size is None and not Mode("csgmv").eager
    assert [Mode(name).backend for name in ("triton", "csgmv", "plugin")] == ["triton", "csgmv", "csgmv"]
    assert [Mode(name).lora for name in ("none-eager", "triton")] == [False, True]


@pytest.mark.parametrize(
    ("mode", "disabled", "off"),
    [
        ("csgmv", "1", set()),
        ("plugin", "0", set()),
        ("plugin-no_linear", "0", {"LINEAR"}),
        ("plugin-no_layer", "0", {"LAYER"}),
        ("plugin-no_lm_head", "0", {"LM_HEAD"}),
        ("plugin-lookup", "0", {"LINEAR", "LAYER", "LM_HEAD"}),
    ],
)
def test_a_mode_says_every_switch_of_the_plugin(mode: str, disabled: str, off: set[str]) -> None:
    from csgmv_embed.sglang.settings import Settings

    environment = Mode(mode).environment
    assert environment["CSGMV_EMBED_DISABLE"] == disabled
    assert {name.removeprefix("CSGMV_EMBED_") for name, value in environment.items() if value == "0"} - {
        "DISABLE"
    } == off
    Settings.from_environment(environment)  # it knows them all


def test_prompts_share_the_tokens_as_the_skew_says() -> None:
    assert prompt_lengths(Load("prefill", 4, 8)) == [8, 8, 8, 8]
    skewed = prompt_lengths(Load("prefill", 16, 128, skew=1.5))
    assert sum(skewed) == 16 * 128 and skewed == sorted(skewed, reverse=True) and min(skewed) >= 1
    assert skewed[0] > 7 * skewed[4]


def test_a_key_holds_every_field_and_cases_are_hashable() -> None:
    from bench.model.serving import ServeCase

    case = ServeCase(Setup(), Load("decode", 1, 16))
    names = [term.split("=")[0] for term in case.key.split(",")]
    assert names == sorted([*Setup.__struct_fields__, *Load.__struct_fields__])
    assert {case: 1}[msgspec.convert(msgspec.to_builtins(case), ServeCase)] == 1
