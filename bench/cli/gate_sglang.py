"""`gate --against-sglang`: compares two versions of SGLang. This repository is on neither side.

Times come from interleaved pairs, as for two commits of ours. Counts are made of both sides and compared.
"""

from __future__ import annotations

import msgspec

from bench.cli.gate_steps import follow_pairs, measured, refused
from bench.cli.selection import Choice
from bench.execute import interleaved
from bench.execute.stages import run_pairs
from bench.execute.trees import Tree
from bench.judge import comparable, times
from bench.judge.work import judge_work
from bench.model.config import ConfigError, Plan
from bench.model.records import Code, Results
from bench.model.verdict import CannotJudge, Report

CONTENDERS = ("sglang_*",)  # judged unless --subject says otherwise
LEAVE_OUT = "--subject NAME that both versions have"


def report(chosen: Choice, before: str, after: str | None) -> Report:
    """The verdict on `after` (None: the installed SGLang) against `before`.

    Raises ConfigError for a missing version.
    """
    if "work" in chosen.clocks and len(chosen.clocks) > 1:
        raise ConfigError("--clock work counts both sides; expected no other clock with it")
    try:
        with chosen.machine.open_sglang(before, after, chosen.config.sglang_files) as sides:
            return _counted(chosen, sides) if "work" in chosen.clocks else _timed(chosen, sides)
    except CannotJudge as reason:
        return refused("against-sglang", f"SGLang {before}", str(reason))


def _timed(chosen: Choice, sides: tuple[Tree, Tree]) -> Report:
    profile = chosen.config.history.sglang_profile
    points = interleaved.pair_points(chosen.plan(profile, chosen.gated_clocks).points)
    chosen.machine.require_gpu()
    seed = chosen.seed or chosen.machine.layout_seed()
    run = interleaved.pair_run(chosen.config, "against-sglang", sides, points, seed, chosen.options(profile))
    follow_pairs(chosen, run, run_pairs(run, sides, chosen.machine.open_side, around=chosen.around))
    return times.judge_pairs(run)


def _counted(chosen: Choice, sides: tuple[Tree, Tree]) -> Report:
    profile = chosen.config.history.sglang_profile
    plan = chosen.plan(profile, ["work"])
    before, after = (_of_side(chosen, plan, profile, tree) for tree in sides)
    match = comparable.match(before.points, after.points, lambda point: True)
    found = judge_work(before, after, chosen.config.gate, match, counts_only=chosen.counts_only, renew=LEAVE_OUT)
    found.use, found.before, found.after = "against-sglang", sides[0].subject, sides[1].subject
    found.selection = chosen.options(profile)
    return found


def _of_side(chosen: Choice, plan: Plan, profile: str, tree: Tree) -> Results:
    own = msgspec.structs.replace(plan, worker_env=plan.worker_env | tree.environment())
    found = measured(chosen, own, profile)
    if not tree.is_in(found.env):
        raise CannotJudge(
            f"{tree.subject.label}: the worker imported another SGLang; expected none before it on the path"
        )
    here, of = found.code, tree.subject
    short = of.sha[:9] if of.sha else None
    found.code = Code(of.sha, short, None, None, of.dirty, None, of.kernel_source_sha256, here.bench_version)
    return found
