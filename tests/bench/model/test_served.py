"""A file of `bench serve` is read as it was written, and refused if something of it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.model import served, store
from bench.model.records import ResultsError
from bench.model.served import ServeResults
from tests.support.served import answer, answers, decode, usual


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    served.write(path, usual())
    found = served.read(path)
    assert msgspec.to_builtins(found) == msgspec.to_builtins(usual())
    assert store.format_of(path, "") == served.SERVE_NAME


def _again(made: ServeResults) -> None:
    made.processes.append(made.processes[0])


def _status(made: ServeResults) -> None:
    made.processes[0].loads[1].status = "void"


def _process(made: ServeResults) -> None:
    made.processes[0].reason = "odd"


def _samples(made: ServeResults) -> None:
    made.processes[0].loads[1].samples = {}


def _answers(made: ServeResults) -> None:
    made.processes[0].loads[0] = answers(answer())


def _logprobs(made: ServeResults) -> None:
    made.processes[0].loads[0].answers[0].logprobs = [-1.0]


def _mode(made: ServeResults) -> None:
    made.run.modes = ["none", "csgmv"]


def _load(made: ServeResults) -> None:
    made.processes[0].loads.append(decode(1.0))


def _negative(made: ServeResults) -> None:
    made.processes[0].loads[1].samples = {"step_us": [-1.0]}


def _name(made: ServeResults) -> None:
    made.processes[0].loads[1].samples["stride_us"] = [1.0]  # type: ignore[index]


def _spans(made: ServeResults) -> None:
    made.processes[0].loads[1].samples |= {"span_us": [1.0], "tokens": [1.0, 2.0]}


def _kernel(made: ServeResults) -> None:
    made.processes[1].traces[0].kernels *= 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_again, "is the mode and repeat of processes.0. .none, repeat 0. again"),
        (_status, r"loads\[1\] \(decode 32\).reason is None; expected one"),
        (_process, "reason is 'odd'; expected one if, and only if, its status is not ok"),
        (_samples, "lacks step_us"),
        (_answers, "has 1; expected 2, one a request"),
        (_logprobs, "has 1 of 2 tokens"),
        (_mode, "plugin.*is none of run.modes"),
        (_load, r"loads\[2\] is the load of"),
        (_negative, "Expected `float` >= 1e-09"),
        (_name, "stride_us"),
        (_spans, "samples.tokens has 2; expected 1, as span_us has"),
        (_kernel, "is the site and kernel of"),
    ],
)
def test_an_unsound_file_is_refused_by_name(spoil: Callable[[ServeResults], None], said: str, tmp_path: Path) -> None:
    made, path = usual(), tmp_path / "x.json"
    spoil(made)
    served.write(path, made)
    with pytest.raises(ResultsError, match=said):
        served.read(path)


def test_a_reader_of_results_says_what_can_be_done_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    served.write(path, usual())
    with pytest.raises(ResultsError, match="of bench serve; show, compare, plot, history add and gate FILE"):
        store.read(path)
