"""Figures of engines from recorded samples: medians, ratios within a repeat, spreads, and what answers say."""

from __future__ import annotations

import msgspec
import pytest

from bench.judge.answers import AnswerCheck, answer_checks, planted, wrong
from bench.judge.serving import ServedFigure, compare, failures, figures
from bench.judge.where import where
from bench.model import served
from bench.model.paths import ROOT
from bench.model.records import Anchor
from bench.model.served import ServedAnswer, ServedLoad, ServedTrace, ServeResults, TracedKernel
from bench.model.serving import PEFT
from tests.support.served import DECODE, PREFILL, STREAM, answer, answers, decode, process, results, trace, usual


def named(of: ServeResults, name: str, mode: str) -> ServedFigure:
    (found,) = [item for item in figures(of) if (item.name, item.mode) == (name, mode)]
    return found


def checked(*told: tuple[str, ServedAnswer]) -> AnswerCheck:
    """The check of the last mode beside csgmv."""
    made = [process(index, mode, 0, answers(item, item), decode(1.0)) for index, (mode, item) in enumerate(told)]
    return answer_checks(results(*made, modes=[mode for mode, _ in told]))[-1]


def test_a_figure_is_the_geometric_mean_of_its_processes_medians() -> None:
    step = named(usual(), "step", "csgmv")
    assert step.by_repeat == {0: 13000.0, 1: 13130.0}
    assert step.value == pytest.approx((13000.0 * 13130.0) ** 0.5)
    assert step.spread == pytest.approx(0.01)


def test_ratios_are_taken_within_a_repeat() -> None:
    step = named(usual(), "step", "plugin")
    assert step.to_reference == pytest.approx(((6500 / 13000) * (6600 / 13130)) ** 0.5)
    assert step.to_none == pytest.approx(((6500 / 5005) * (6600 / 5050)) ** 0.5)
    lone = results(
        process(0, "csgmv", 0, decode(10.0)), process(1, "plugin", 0, decode(5.0)), process(2, "csgmv", 1, decode(90.0))
    )
    found = named(lone, "step", "plugin")
    assert (found.to_reference, found.to_none, found.spread) == (0.5, None, None)
    assert named(lone, "step", "none").status == "skipped"


def test_rates_and_quantiles_follow_from_the_raw_samples() -> None:
    gaps = [float(value) for value in range(1, 201)]
    stream = {"ttft_us": [30.0, 10.0, 20.0], "gap_us": gaps, "tokens": [400.0, 600.0], "span_us": [1e6, 1e6]}
    prefill = {"prefill_us": [2e6, 1e6, 4e6]}
    made = results(
        process(0, "csgmv", 0, ServedLoad(STREAM, "ok", samples=stream), ServedLoad(PREFILL, "ok", samples=prefill))
    )
    values = {item.name: item.value for item in figures(made) if item.mode == "csgmv"}
    assert values == pytest.approx(
        {
            "first token": 20.0,
            "next token": 100.5,
            "next token p99": 198.0,
            "output rate": 500.0,
            "prefill": 2e6,
            "prefill rate": 2048.0,
        }
    ), "no 99th percentile of three samples"


def test_a_voided_or_lost_load_has_a_reason_and_no_figure() -> None:
    void = msgspec.structs.replace(decode(1.0), status="void", reason="the clock")
    made = results(
        process(0, "csgmv", 0, decode(10.0)),
        process(1, "plugin", 0, void),
        process(2, "plugin", 1, status="crashed", reason="signal SIGKILL"),
        process(3, "none", 0, void),
        process(4, "none", 1, decode(4.0)),
    )
    plugin, none = named(made, "step", "plugin"), named(made, "step", "none")
    assert (plugin.value, plugin.status, plugin.reason) == (None, "crashed", "signal SIGKILL")
    assert (none.value, none.status, none.by_repeat) == (4.0, "ok", {1: 4.0})
    assert [(item.mode, item.repeat, item.what, item.status) for item in failures(made)] == [
        ("plugin", 0, "decode 32", "void"),
        ("plugin", 1, "the process", "crashed"),
        ("none", 0, "decode 32", "void"),
    ]


def test_modes_that_answer_alike_are_so_within_the_bound() -> None:
    found = checked(("csgmv", answer()), ("plugin", answer(0.1)))
    assert (found.status, found.equal, found.changed) == ("ok", False, 0)
    assert found.mean_nats == pytest.approx(0.1) and found.max_nats == pytest.approx(0.1)


def test_a_mode_that_answers_wrong_has_no_figures() -> None:
    made = usual()
    for item in made.processes:
        if item.mode == "plugin":
            item.loads[0] = answers(answer(0.01), answer(0.3))
    check = answer_checks(made)[-1]
    assert check.status == "wrong" and "differ from csgmv's by 0.3 in the mean; at most 0.25" in str(check.reason)
    step = named(made, "step", "plugin")
    assert (step.status, step.value, step.to_reference, step.reason) == ("wrong", None, None, check.reason)
    assert named(made, "step", "csgmv").status == "ok"


def test_on_a_real_record_engines_are_right_and_one_without_a_site_is_not() -> None:
    """An H200, 1B shapes, adapters on every module; what is planted is put in the plugin's place."""
    real = served.read(ROOT / "docs" / "results" / "h200-engine-1b.json")
    told = {(check.mode, check.status) for check in answer_checks(real) if check.reference == PEFT}
    assert told == {("none", "ok"), ("none", "other"), ("csgmv", "ok"), ("plugin", "ok")} and not wrong(
        answer_checks(real)
    )
    assert [(site, check.status) for site, check in planted(real).items()] == [
        (site, "wrong") for site in ("embedding", "qkv", "o", "gate_up", "down", "lm_head")
    ]
    peft, plugin = (next(item for item in real.processes if item.mode == mode) for mode in (PEFT, "plugin"))
    (asked,) = [item for item in plugin.loads if item.load == peft.loads[0].load]
    asked.answers = [answer.without["down"] for answer in peft.loads[0].answers]
    assert {*wrong(answer_checks(real))} == {"plugin"}
    assert {figure.status for figure in figures(real) if figure.mode == "plugin"} == {"wrong"}


def test_one_large_difference_among_small_ones_is_wrong() -> None:
    long = ServedAnswer([1] * 20, [-1.0] * 20)
    spoiled = ServedAnswer([1] * 20, [-1.0] * 19 + [-2.5])
    found = checked(("csgmv", long), ("plugin", spoiled))
    assert found.mean_nats == pytest.approx(0.075) and found.status == "wrong" and "by 1.5" in str(found.reason)


def test_what_follows_another_token_is_not_compared() -> None:
    one = ServedAnswer([5, 6, 7], [-1.0, -2.0, -3.0])
    other = ServedAnswer([5, 9, 7], [-1.0, -2.25, -90.0])
    found = checked(("csgmv", one), ("plugin", other))
    assert (found.status, found.changed, found.max_nats) == ("ok", 2, 0.25)


def test_with_the_lookup_alone_hooked_answers_are_equal_to_the_bit_or_wrong() -> None:
    told = [answer(exact="1"), answer(exact="1"), answer(exact="2"), answer()]
    statuses = [checked(("csgmv", told[0]), ("plugin-lookup", item)).status for item in told[1:]]
    assert statuses == ["ok", "wrong", "wrong"], "equal in six digits is not equal to the bit"
    assert checked(("csgmv", told[0]), ("plugin", told[1])).equal
    assert not checked(("csgmv", answer()), ("plugin", answer())).equal, "without hashes nobody knows"


def test_without_answers_of_the_reference_nothing_is_said_of_them() -> None:
    found = checked(("plugin", answer()))
    assert (found.status, found.reason) == ("unknown", "csgmv has no answers to compare")
    none = checked(("csgmv", answer()), ("none", answer(5.0)))
    assert (none.status, none.mean_nats) == ("other", pytest.approx(5.0))


def test_prompts_of_other_lengths_are_wrong() -> None:
    short = ServedAnswer([5, 6], [-1.0, -1.1], [-3.0])
    assert checked(("csgmv", answer()), ("plugin", short)).status == "wrong"


def test_the_worst_process_of_a_mode_tells() -> None:
    made = usual()
    made.processes[3].loads[0] = answers(answer(2.0), answer())
    assert answer_checks(made)[-1].status == "wrong"


def test_where_a_pass_goes_is_a_sum_by_site_over_passes() -> None:
    (found,) = where(usual())
    assert found.per == "pass" and found.total_us == pytest.approx(300.0) and found.between_us == pytest.approx(100.0)
    assert {site: us for site, us in found.by_site.items() if us} == pytest.approx(
        {"base": 200.0, "qkv": 80.0, "attention": 20.0}
    )
    made = usual()
    made.processes[1].traces = [msgspec.structs.replace(trace(), passes=None)]
    (whole,) = where(made)
    assert whole.per == "trace" and whole.total_us == pytest.approx(3000.0)


def test_two_files_are_compared_figure_by_figure() -> None:
    before, after = usual(), usual()
    for item in after.processes:
        if item.mode == "plugin":
            item.loads[1] = decode(5000.0)
    after.processes = [item for item in after.processes if item.mode != "none"]
    found = compare(before, after)
    ratios = {change.before.mode: change.ratio for change in found.changes if change.before.name == "step"}
    assert ratios["csgmv"] == 1.0 and ratios["plugin"] == pytest.approx(5000 / (6500 * 6600) ** 0.5)
    assert ratios["none"] is None and found.warnings == []
    assert after.env is not None
    after.env.identity["gpu"] = "GPU Y"
    after.serving = msgspec.structs.replace(after.serving, long_tokens=99)
    assert [warning.split(" ")[0] for warning in compare(before, after).warnings] == ["gpu", "[serving]"]


def test_rows_say_what_a_reader_of_json_needs() -> None:
    fields = named(usual(), "step", "plugin").as_fields("csgmv")
    assert fields["clock"] == "engine" and fields["contender"] == "plugin" and fields["unit"] == "us"
    assert fields["to_csgmv"] == pytest.approx(0.5, rel=0.01) and fields["processes"] == 2
    assert f"requests={DECODE.requests}" in fields["case"]


def test_a_pass_of_the_loads_own_phase_is_told_with_floors_and_the_names_of_the_rest() -> None:
    kernels = [
        TracedKernel("qkv", "shrink", 64, 640.0, "prefill"),
        TracedKernel("qkv", "shrink", 32, 96.0, "decode"),
        TracedKernel("rest", "of tomorrow", 4, 60.0, "prefill"),
        TracedKernel("rest", "small", 4, 2.0, "prefill"),
    ]
    trace = ServedTrace(
        PREFILL, kernels, 2000.0, 3.0, phases={"prefill": 2.0, "decode": 1.0}, least_bytes={"qkv": 4000}, layers=32
    )
    load = ServedLoad(PREFILL, "ok", samples={"prefill_us": [500.0], "prepare_us": [30.0, 40.0, 50.0]})
    made = results(process(0, "csgmv", 0, load, traces=[trace]), modes=["csgmv"])
    assert where(made)[0].floors == {}, "no anchors in the file"
    made.anchors = [Anchor("copy_bandwidth", "bytes/us", [4000.0]), Anchor("empty_kernel_graph", "us", [0.5])]
    (found,) = where(made)
    assert (found.by_site["qkv"], found.by_site["rest"], found.passes) == (320.0, 31.0, 2.0)
    assert found.unknown == [("of tomorrow", 30.0), ("small", 1.0)]
    assert (found.left_out, found.prepare, found.between_us) == (48.0, 40.0, None)
    assert found.floors == {"qkv": 1.0 + 32 * 0.5}
