"""Error rates of the gate by simulation: `python -m docs.experiments.simulate_gate`. The gate's own decide.

The noise, as log times. Every point has a sd of its own around `process_sd_pct`, log-normally spread. A process adds
a heavy-tailed effect (Student's t, 5 degrees of freedom) of that sd, a layout one of `layout_share` of it, the median
of a round's blocks one of `block_sd_pct`. `bimodal_share` of the points add `mode_pct` in `mode_probability` of the
processes; `placed_share` of them depend on where their tables lie: their layouts differ by `placed_sd_pct`. A session
adds one effect to everything in it: the two sides of an interleaved run share it, a stored baseline and a later result
do not, and the anchors see it.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from bench.judge import statistics
from bench.judge.statistics import Array, log_limit
from bench.model import config
from bench.model.config import Gate
from bench.model.store import readable, write_bytes

T_DEGREES = 5
ANCHOR_COUNT = 3


@dataclass(frozen=True)
class Noise:
    """All in percent of the time of a call, or shares."""

    process_sd_pct: float = 0.75
    spread: float = 0.35  # sd of the log of the points' own sds
    layout_share: float = 0.5
    block_sd_pct: float = 0.1
    session_sd_pct: float = 1.0
    anchor_sd_pct: float = 0.1
    bimodal_share: float = 0.05
    mode_pct: float = 3.0
    mode_probability: float = 0.3
    placed_share: float = 0.0
    placed_sd_pct: float = 3.0
    point_session_sd_pct: float = 0.0  # a session effect of each point of its own, which no anchor sees


def cleared_after(observations: Array, wave: int, floor_pct: float, confidence: float) -> Array:
    """(points,) the look at which each row is cleared; 0 for rows that need all of their observations."""
    rows, total = observations.shape
    after = np.zeros(rows, dtype=np.int64)
    for count in range(1, total):
        if statistics.is_look(count, wave, total):
            clear = statistics.within_floor(observations[:, :count], floor_pct, confidence)
            after[clear & (after == 0)] = count
    return after


class Counts(msgspec.Struct):
    """What many runs came to. A run has two modes, each a family of its own; a false alarm in either is one."""

    runs: int = 0
    points: int = 0
    runs_with_false_slow: int = 0
    runs_with_false_fast: int = 0
    runs_with_false_inconclusive: int = 0
    flagged: int = 0
    confirming: int = 0  # processes that the flagged points without a slowdown took
    slowed: int = 0
    detected: int = 0

    @property
    def false_alarm_rate(self) -> float:
        return self.runs_with_false_slow / self.runs

    @property
    def detection_rate(self) -> float:
        return self.detected / self.slowed if self.slowed else float("nan")


class Machine:
    """The points of one run and their noise."""

    def __init__(self, noise: Noise, points: int, rng: np.random.Generator) -> None:
        self.noise, self.rng, self.points = noise, rng, points
        self.sd = noise.process_sd_pct / 100 * np.exp(rng.normal(0.0, noise.spread, points))
        self.bimodal = rng.random(points) < noise.bimodal_share
        layout = noise.layout_share * self.sd
        if noise.placed_share:
            layout = np.where(rng.random(points) < noise.placed_share, noise.placed_sd_pct / 100, layout)
        self.layout_sd = layout

    def rounds(self, processes: int, layouts: int) -> Array:
        """(points, processes, layouts) log times of one side, without its session."""
        shape = (self.points, processes, layouts)
        heavy = self.rng.standard_t(T_DEGREES, shape[:2]) / np.sqrt(T_DEGREES / (T_DEGREES - 2))
        process = self.sd[:, None] * heavy
        in_mode = self.bimodal[:, None] & (self.rng.random(shape[:2]) < self.noise.mode_probability)
        process = process + in_mode * log_limit(self.noise.mode_pct)
        layout = self.layout_sd[:, None, None] * self.rng.standard_normal(shape)
        blocks = self.noise.block_sd_pct / 100 * self.rng.standard_normal(shape)
        return np.asarray(process[:, :, None] + layout + blocks)

    def session(self) -> Array:
        """(points,) effect of one session."""
        common = self.noise.session_sd_pct / 100 * self.rng.standard_normal()
        own = self.noise.point_session_sd_pct / 100 * self.rng.standard_normal(self.points)
        return np.asarray(common + own)

    def anchors(self, session: Array) -> float:
        """What the anchors make of a session: their middle, each with an error of its own."""
        errors = self.noise.anchor_sd_pct / 100 * self.rng.standard_normal(ANCHOR_COUNT)
        return float(np.mean(session) + np.median(errors))


@dataclass(frozen=True)
class Judged:
    """Verdicts of one mode, one a point, and in how many fresh processes each point was measured."""

    verdicts: list[str]
    processes: Array


def interleaved(machine: Machine, gate: Gate, effect: Array) -> Judged:
    """One mode of an A/B run: screen, then fresh processes for the flagged points until a look clears them."""
    limits = gate.graph
    screen = _pairs(machine, gate.screen_processes, gate.screen_layouts, effect)
    flags = statistics.flagged(screen.reshape(machine.points, -1), limits.screen_pct)
    fresh = _pairs(machine, gate.confirm_processes, gate.confirm_layouts, effect).mean(axis=2)
    cleared = cleared_after(fresh[flags], gate.wave, limits.floor_pct, gate.clear_confidence)
    processes = np.zeros(machine.points)
    processes[flags] = np.where(cleared, cleared, gate.confirm_processes)
    in_full = processes == gate.confirm_processes
    out = int(np.count_nonzero(cleared))
    slow = statistics.confirm(fresh[in_full], alpha=gate.alpha, cleared=out)
    fast = statistics.confirm(fresh[in_full], alpha=gate.alpha, cleared=out, slower=False)
    verdicts = _verdicts(in_full, slow, fast, limits.floor_pct)
    for index in np.flatnonzero(flags & ~in_full):
        verdicts[index] = "pass"
    return Judged(verdicts, processes)


def _pairs(machine: Machine, processes: int, layouts: int, effect: Array) -> Array:
    return machine.rounds(processes, layouts) - machine.rounds(processes, layouts) + effect[:, None, None]


def stored(machine: Machine, gate: Gate, effect: Array) -> Judged:
    """One mode against a stored baseline whose commit cannot be run: unconfirmed ones."""
    limits = gate.graph
    layouts = -(-gate.baseline_rounds // gate.baseline_processes)
    then, now = machine.session(), machine.session()
    shift = machine.anchors(now) - machine.anchors(then)
    before = (machine.rounds(gate.baseline_processes, layouts) + then[:, None, None]).mean(axis=2)
    moved = (effect + now - shift)[:, None, None]
    after = (machine.rounds(gate.baseline_processes, layouts) + moved).mean(axis=2)
    flags = np.abs(after.mean(axis=1) - before.mean(axis=1)) > log_limit(limits.screen_pct)
    fresh = (machine.rounds(gate.confirm_processes, 1) + moved).mean(axis=2)
    pairs = list(before[flags]), list(fresh[flags])
    slow = statistics.compare_unpaired(*pairs, alpha=gate.alpha)
    fast = statistics.compare_unpaired(*pairs, alpha=gate.alpha, slower=False)
    return Judged(_verdicts(flags, slow, fast, limits.unconfirmed_floor_pct), gate.confirm_processes * flags)


def _verdicts(
    flags: statistics.Bools, slow: list[statistics.Tested], fast: list[statistics.Tested], floor_pct: float
) -> list[str]:
    tested = iter(zip(slow, fast, strict=True))
    return [statistics.outcome(*next(tested), floor_pct) if flag else "unflagged" for flag in flags]


def simulate(
    noise: Noise,
    gate: Gate,
    *,
    runs: int,
    points: int = 500,
    slowed: int = 0,
    slowdown_pct: float = 5.0,
    seed: int = 0,
    use: Any = interleaved,
) -> Counts:
    """Runs of two modes over `points` points, of which the first `slowed` are slower by `slowdown_pct`."""
    rng = np.random.default_rng(seed)
    counts = Counts(runs, points)
    effect = np.where(np.arange(points) < slowed, log_limit(slowdown_pct), 0.0)
    for _ in range(runs):
        false: set[str] = set()
        for _mode in range(2):
            judged = use(Machine(noise, points, rng), gate, effect)
            false |= set(judged.verdicts[slowed:])
            counts.flagged += int(np.count_nonzero(judged.processes[slowed:]))
            counts.confirming += int(judged.processes[slowed:].sum())
            counts.detected += sum(item == "slow" for item in judged.verdicts[:slowed])
        counts.slowed += 2 * slowed
        counts.runs_with_false_slow += "slow" in false
        counts.runs_with_false_fast += "fast" in false
        counts.runs_with_false_inconclusive += "inconclusive" in false
    return counts


class Row(msgspec.Struct):
    """One setting's rates: false alarms from runs without a slowdown, detection from runs with some."""

    use: str
    process_sd_pct: float
    note: str
    null: Counts
    planted: list[tuple[float, Counts]]


SDS = (0.3, 0.5, 0.75, 1.0)
SLOWDOWNS = (3.0, 5.0, 10.0)


def study(gate: Gate, runs: int, seed: int) -> list[Row]:
    """The settings that docs/explanation/gate.md shows."""
    settings = [("A/B", replace(Noise(), process_sd_pct=sd), "", interleaved) for sd in SDS]
    bimodal = replace(Noise(), bimodal_share=1.0)
    settings.append(("A/B", bimodal, "every point bimodal", interleaved))
    placed = replace(Noise(), process_sd_pct=0.3, placed_share=0.06)
    settings.append(("A/B", placed, "6 % of the points with layouts that differ by 3 %", interleaved))
    settings += [("stored", replace(Noise(), process_sd_pct=sd), "unconfirmed", stored) for sd in SDS]
    own = replace(Noise(), point_session_sd_pct=1.0)
    settings.append(("stored", own, "unconfirmed, each point its own session effect", stored))
    rows = []
    for number, (name, noise, note, use) in enumerate(settings):
        base = seed + 10 * number
        null = simulate(noise, gate, runs=runs, seed=base, use=use)
        planted = [
            (
                percent,
                simulate(noise, gate, runs=runs // 4, slowed=10, slowdown_pct=percent, seed=base + 1 + index, use=use),
            )
            for index, percent in enumerate(SLOWDOWNS)
        ]
        rows.append(Row(name, noise.process_sd_pct, note, null, planted))
    return rows


def main(
    runs: Annotated[int, typer.Option(help="Runs without a slowdown per setting; a quarter of it with each.")] = 2000,
    seed: Annotated[int, typer.Option()] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the counts as JSON.")] = None,
) -> None:
    """Simulate the gate as bench.toml configures it and print its error rates."""
    importlib.import_module("statsmodels.stats.multitest")
    gc.freeze()  # its multipletests collects garbage on every call, which takes longer than all the rest
    rows = study(config.load().gate, runs, seed)
    if output:
        write_bytes(output, readable(rows))
    show(rows)


def show(rows: Sequence[Row]) -> None:
    """Print them as Markdown, for the table goes into docs/explanation/gate.md."""
    slowdowns = [f"{percent:g} % found" for percent, _ in rows[0].planted]
    heads = ("use", "process sd", "false alarms a run", "false `inconclusive`", "screened in", "processes each")
    print_row((*heads, *slowdowns))
    print_row(["---"] * (len(heads) + len(slowdowns)))
    for row in rows:
        null, found = row.null, [f"{100 * counts.detection_rate:.2f} %" for _, counts in row.planted]
        print_row(
            (
                f"{row.use}, {row.note}" if row.note else row.use,
                f"{row.process_sd_pct:g} %",
                f"{null.runs_with_false_slow} of {null.runs}",
                f"{null.runs_with_false_inconclusive} of {null.runs}",
                f"{null.flagged / null.runs / 2:.1f} of {null.points}",
                f"{null.confirming / null.flagged:.1f}" if null.flagged else "none",
                *found,
            )
        )


def print_row(cells: Iterable[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
