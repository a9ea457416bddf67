"""Tuning: screens all tiles in one process, then proves the winners against the rule in fresh ones. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import exp, sqrt
from statistics import geometric_mean
from typing import Any

import msgspec
import numpy as np

from bench.execute.lanes import Dealer
from bench.execute.tuning.subjects import ADAPTERS, ELEMENT_BYTES, SUBJECTS, VOCAB, Cell, Subject
from bench.execute.tuning.timing import Screened, compare, in_fresh_process, log_ratio, screen, verify_all
from bench.judge import statistics
from bench.model.gpus import Gpu
from csgmv_embed.launch.tuned import TunedRow

PROCESSES = 5  # fresh ones, each with both sides
WORTH_PCT = 2.0  # a tile is put to the proof if it was faster than the rule's by this much when screened
LEAST_GAIN_PCT = 0.5  # and is kept if the proof says that it gains this much at least
ALPHA = 0.05  # of all winners of a kernel together


class TunedFile(msgspec.Struct):
    """The file `csgmv_embed/tuned/<GPU>.json`: how it was made, the grids, the rows.

    gpus: the UUIDs of the GPUs that --gpus dealt the cells to; empty if the first GPU measured all.
    """

    gpu: str
    commit: str | None
    command: str
    gpus: list[str]
    vocab: int
    adapters: int
    grids: list[dict[str, Any]]
    rows: list[dict[str, Any]]


class Tuned(msgspec.Struct, frozen=True):
    """The result for a kernel: cells screened, tiles tested, rows kept."""

    subject: Subject
    cells: int
    tried: int
    rows: list[TunedRow]


def tune(
    subjects: Sequence[Subject] = SUBJECTS, gpus: Sequence[Gpu] = (), *, one_at_a_time: bool = False
) -> Iterator[Tuned]:
    """Tune one kernel after another. Raises ResultsError if a tile gives wrong results.

    gpus: the GPUs that its cells are dealt to; a cell is screened and proven on one. None: the first GPU.
    """
    with ThreadPoolExecutor(1 if one_at_a_time else max(1, len(gpus))) as pool:
        for subject in subjects:
            cells = list(subject.cells())
            verify_all(cells)
            done = list(pool.map(lambda share: _of_share(*share), _shares(cells, gpus)))
            winners = [found for share, _ in done for found in share]
            times = [[pair for _, processes in done for pair in processes[turn]] for turn in range(PROCESSES)]
            yield Tuned(subject, len(cells), len(winners), proven(winners, times))


def _shares(cells: Sequence[Cell], gpus: Sequence[Gpu]) -> list[tuple[list[Cell], Gpu | None]]:
    if not gpus:
        return [(list(cells), None)]
    dealt = Dealer([gpu.uuid for gpu in gpus], cells).shares(lambda cell: len(cell.tiles))
    return [(dealt[gpu.uuid], gpu) for gpu in gpus if dealt[gpu.uuid]]


def _of_share(cells: Sequence[Cell], gpu: Gpu | None) -> tuple[list[Screened], list[list[tuple[float, float]]]]:
    """What is won on one GPU, and the times of its proof by process."""
    screened: list[Screened] = in_fresh_process(screen, cells, gpu=gpu)
    winners = [found for found in screened if found.best_us < found.rule_us * (1 - WORTH_PCT / 100)]
    pairs = [(found.cell, found.best) for found in winners]
    return winners, [in_fresh_process(compare, pairs, gpu=gpu) if pairs else [] for _ in range(PROCESSES)]


def proven(winners: Sequence[Screened], times: Sequence[Sequence[tuple[float, float]]]) -> list[TunedRow]:
    """Rows of the winners that beat the rule in fresh processes by more than the processes differ.

    times: by process, then by winner: (the tile's, the rule's). A one-sided t test of the log ratios with Holm's
    correction over all winners must reject. The 95 % confidence bound of the mean must also leave LEAST_GAIN_PCT.
    """
    if not winners:
        return []
    ratios = np.array([[log_ratio(pair) for pair in process] for process in times]).T
    tested = statistics.confirm(ratios, alpha=ALPHA, slower=False)
    rows = []
    for index, (found, test) in enumerate(zip(winners, tested, strict=True)):
        gain_pct = 100 * (1 - exp(_upper(ratios[index])))
        if not test.rejected or gain_pct < LEAST_GAIN_PCT:
            continue
        tuned_us, rule_us = (geometric_mean(process[index][side] for process in times) for side in (0, 1))
        tile = found.best._asdict()  # type: ignore[attr-defined]
        at = found.cell.kernel, ELEMENT_BYTES, found.cell.at
        rows.append(TunedRow(*at, tile, round(tuned_us, 3), round(rule_us, 3), round(gain_pct, 1)))
    return rows


def _upper(ratios: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Of the mean log ratio, one-sided."""
    from scipy import stats

    count = len(ratios)
    return float(ratios.mean() + stats.t.ppf(1 - ALPHA, count - 1) * ratios.std(ddof=1) / sqrt(count))


def as_file(gpu: str, commit: str | None, command: str, found: Sequence[Tuned], on: Sequence[Gpu] = ()) -> TunedFile:
    """The contents of the file for a GPU model. `on`: the GPUs that its cells were dealt to."""
    grids = [each.subject.grid()._asdict() for each in found]
    rows = [row._asdict() for each in found for row in each.rows]
    return TunedFile(gpu, commit, command, [each.uuid for each in on], VOCAB, ADAPTERS, grids, rows)


def encode(table: TunedFile) -> bytes:
    """The file's bytes, with one line for each grid and row, so that two files diff well."""
    fields = msgspec.structs.asdict(table)
    lists = {name: fields.pop(name) for name in ("grids", "rows")}
    text = msgspec.json.format(msgspec.json.encode(fields), indent=1).rstrip(b"\n}")
    for name, items in lists.items():
        lines = b",\n".join(msgspec.json.encode(item) for item in items)
        text += b',\n "' + name.encode() + b'": [\n' + lines + b"\n ]"
    return text + b"\n}\n"
