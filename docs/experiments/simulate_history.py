"""How often bench/judge/changes.py errs on simulated series: `python -m docs.experiments.simulate_history`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log, sqrt
from typing import Annotated

import numpy as np
import typer

from bench.judge.changes import Array, change_points
from bench.model import config as configuration
from bench.model.config import History

Noise = Callable[[np.random.Generator, int], Array]
STEP_PCT = 5.0
SPREAD = 0.01  # sd of one commit's log value
WITHIN = 1  # commits that a found change may lie beside the planted one

NOISES: dict[str, Noise] = {
    "normal": lambda rng, size: rng.normal(0.0, 1.0, size),
    "heavy-tailed (t, 5 degrees of freedom)": lambda rng, size: rng.standard_t(5, size) / sqrt(5 / 3),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True)
class Tally:
    """So many of `series` simulated series had what is counted."""

    noise: str
    commits: int
    after: int | None  # commits since the step; None: there is none
    hits: int
    series: int


def false_changes(noise: str, commits: int, series: int, settings: History, seed: int) -> Tally:
    """Series without a step in which any change is found."""
    rng = np.random.default_rng([seed, commits])
    hits = sum(bool(change_points(SPREAD * NOISES[noise](rng, commits), settings)) for _ in range(series))
    return Tally(noise, commits, None, hits, series)


def found_steps(noise: str, commits: int, after: int, series: int, settings: History, seed: int) -> Tally:
    """Series with a step of STEP_PCT, `after` commits before the end, that is found within one commit."""
    rng = np.random.default_rng([seed, commits, after])
    place, hits = commits - after, 0
    for _ in range(series):
        logs = SPREAD * NOISES[noise](rng, commits)
        logs[place:] += log(1 + STEP_PCT / 100)
        hits += any(abs(index - place) <= WITHIN for index in change_points(logs, settings))
    return Tally(noise, commits, after, hits, series)


def simulate(series: int, settings: History, seed: int) -> Iterator[Tally]:
    """Every row of the table in docs/explanation/history.md."""
    for noise in NOISES:
        for commits in (8, 12, 20, 40, 80):
            yield false_changes(noise, commits, series, settings, seed)
    for noise in NOISES:
        for commits, after in ((12, 3), (20, 3), (40, 2), (40, 3), (40, 5)):
            yield found_steps(noise, commits, after, series, settings, seed)


@app.command()
def main(
    series: Annotated[int, typer.Option(min=1, help="Simulated series a row.")] = 2000,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Print the error rates as a table."""
    print("| noise | commits | simulated | with a change found | rate |")
    print("| --- | --- | --- | --- | --- |")
    for tally in simulate(series, configuration.load().history, seed):
        asked = "no step" if tally.after is None else f"{STEP_PCT:g} % step, {tally.after} commits ago"
        rate = f"{100 * tally.hits / tally.series:.2f} %"
        found = f"{tally.hits} of {tally.series}"
        print(f"| {tally.noise} | {tally.commits} | {asked} | {found} | {rate} |", flush=True)


if __name__ == "__main__":
    app()
