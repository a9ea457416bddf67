"""Try the gate on a GPU: `python -m bench.cli.selftest self-check` and `... planted`. Needs no git.

self-check compares this tree with itself several times, with the interleaved gate. Every verdict but `pass` is then
false. planted makes side B slower by a known share: of a hundred launches in a graph, that many are made twice, on
index sets in turn like all others. Only the worker that this script starts does so. The shipped library has no switch
for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.cli import entry
from bench.cli.selection import Choice
from bench.execute import interleaved
from bench.execute.interleaved import Machine
from bench.execute.stages import run_pairs
from bench.judge.repeats import Repeat, repeat_of
from bench.judge.times import judge_pairs
from bench.model import config as configuration
from bench.model import pairs as records
from bench.model.config import Config
from bench.model.pairs import PairPoint
from bench.model.store import readable, write_bytes

PLANTED_NODES = 100  # 3 % of them is a whole number of launches
SAFETY = 1.2  # a run begins only if this many times the longest run so far is left

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the records. Files that exist are not measured again.")
]
SecondsOption = Annotated[
    float, typer.Option("--seconds", help="Time limit in seconds. No run begins that might exceed it.")
]
RepeatOption = Annotated[int, typer.Option("--repeats", min=1)]
ProfileOption = Annotated[str, typer.Option("--profile", "-p")]
ContenderOption = Annotated[
    list[str], typer.Option("--contender", "-c", help="Contender, by name or glob pattern. Default: the gate's.")
]


@app.command(name="self-check")
def self_check(
    context: typer.Context,
    output: OutputOption,
    repeats: RepeatOption = 5,
    seconds: SecondsOption = 480.0,
    profile: ProfileOption = "quick",
    contender: ContenderOption = [],
) -> None:
    """Repeat the self-check. Every verdict but `pass` and `skipped` is false."""
    config = configuration.load()
    points = _points(config, profile, contender)
    _repeat(config, "self-check", lambda: points, output, repeats, seconds, context.obj)


@app.command()
def planted(
    context: typer.Context,
    output: OutputOption,
    share: Annotated[list[float], typer.Option("--share", help="Extra work in percent; may be repeated.")] = [3, 5, 10],
    repeats: RepeatOption = 1,
    seconds: SecondsOption = 480.0,
    profile: ProfileOption = "quick",
    contender: ContenderOption = [],
) -> None:
    """Plant slowdowns of known size in every point and count how many are found."""
    config = configuration.load()
    gate = msgspec.structs.replace(config.gate, nodes=PLANTED_NODES)
    config = msgspec.structs.replace(config, gate=gate)
    points = _points(config, profile, contender)

    def slowed() -> list[PairPoint]:
        achieved = [round(PLANTED_NODES * percent / 100) / PLANTED_NODES for percent in share]
        return [msgspec.structs.replace(point, extra_share=extra) for extra in achieved for point in points]

    _repeat(config, "planted", slowed, output, repeats, seconds, context.obj)


def _points(config: Config, profile: str, contenders: list[str]) -> list[PairPoint]:
    choice = Choice(config=config, machine=Machine(), profile=profile, contenders=contenders)
    return interleaved.pair_points(choice.plan(profile, ["graph"]).points)


def _repeat(
    config: Config,
    name: str,
    points: Callable[[], list[PairPoint]],
    output: Path,
    repeats: int,
    seconds: float,
    machine: Machine | None,
) -> None:
    from bench.show.gate import show_repeat, show_repeats

    machine = machine or Machine()
    machine.require_gpu()
    begun, longest = time.monotonic(), 0.0
    done: list[Repeat] = []
    for number in range(1, repeats + 1):
        path = output / f"{name}-{number}.json"
        if not path.exists():
            if time.monotonic() - begun + SAFETY * longest > seconds:
                break
            started = time.monotonic()
            _run(config, points(), path, machine)
            longest = max(longest, time.monotonic() - started)
        run = records.read(path)
        done.append(repeat_of(path.name, run, judge_pairs(run)))
        show_repeat(done[-1], judge_pairs(run))
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / f"{name}.json", readable(done))
    show_repeats(name, done, repeats)


def _run(config: Config, points: list[PairPoint], path: Path, machine: Machine) -> None:
    from bench.show.gate import follow_pairs

    with machine.open_trees(None, None) as sides:
        copies = [msgspec.structs.replace(point, rounds=[]) for point in points]
        run = interleaved.pair_run(config, "self-check", sides, copies, machine.layout_seed(), [])
        follow_pairs(run_pairs(run, sides, machine.open_side))
    records.write(path, run)


def main(arguments: list[str] | None = None, machine: Machine | None = None) -> None:
    """Run the command line and end the process."""
    entry.run(app, arguments, machine, name="selftest")


if __name__ == "__main__":
    main()
