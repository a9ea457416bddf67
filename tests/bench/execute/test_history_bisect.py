"""The bisection names the commit that changed the level, by pairs whose times are known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path

import msgspec
import pytest

from bench.cli import main as cli
from bench.execute import interleaved as session
from bench.execute.bisect import Bisection, Comparing, Named, bisect
from bench.execute.commits import ExportedSource, Libraries
from bench.execute.interleaved import Machine
from bench.execute.protocol import Begin, Begun, Prepared, Visited
from bench.execute.trees import Tree
from bench.model import config
from bench.model import pairs as pair_store
from bench.model.config import Measure, PlannedPoint
from bench.model.gpus import Gpu
from bench.model.verdict import CannotJudge
from tests.support.gate import ENV
from tests.support.history import commit, exported, planned, sha


@dataclass
class FakeGpu:
    """A machine where a commit's time is known; noise is per process."""

    level: Callable[[int, PlannedPoint], float]
    broken: set[int] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)

    def open_side(self, tree: Tree, settings: Measure, contenders: tuple[str, ...], gpu: Gpu | None = None) -> Side:
        number = int(tree.subject.label)
        if number in self.broken:
            raise CannotJudge(f"{tree.subject.label}: its library cannot be driven: ImportError")
        self.opened.append(tree.subject.label)
        return Side(self, number)


@dataclass
class Side:
    gpu: FakeGpu
    number: int
    process: int = 0
    now: PlannedPoint | None = None

    def begin(self, begin: Begin) -> Begun:
        self.process = begin.process
        return Begun(ENV, "")

    def prepare(self, planned: PlannedPoint, layout_seed: int, extra_share: float) -> Prepared:
        self.now = planned
        return Prepared("ok", nodes=60)

    def visit(self, blocks: int) -> Visited:
        assert self.now is not None
        rng = random.Random(f"{self.number} {self.process} {self.now.name}")
        return Visited([self.gpu.level(self.number, self.now) * exp(rng.gauss(0.0, 0.003))] * blocks)

    def finish(self) -> None: ...

    def close(self) -> None: ...


def job(folder: Path, gpu: FakeGpu, count: int = 12, **options: object) -> tuple[Bisection, Libraries]:
    source = ExportedSource(exported(folder, count, **options))  # type: ignore[arg-type]
    libraries = Libraries(source)
    points = session.pair_points([planned(32), planned(256)])
    loaded = config.load()  # fewer processes than on a GPU: the noise here is known, and small
    loaded = msgspec.structs.replace(loaded, gate=msgspec.structs.replace(loaded.gate, confirm_processes=6))
    return Bisection(loaded, source.line(".."), points, libraries, gpu.open_side, 7), libraries


def ended(folder: Path, gpu: FakeGpu, count: int = 12, **options: object) -> tuple[Named, list[Comparing]]:
    made, libraries = job(folder, gpu, count, **options)
    with libraries:
        events = list(bisect(made))
    named = events[-1]
    assert isinstance(named, Named)
    return named, [event for event in events if isinstance(event, Comparing)]


def slower_from(number: int, share: float = 0.06) -> Callable[[int, PlannedPoint], float]:
    """Only the larger batch is slower."""
    return lambda at, point: 2.0 * (1 + share * (at >= number and point.case.batch_size == 256))


@pytest.mark.parametrize("number", [1, 6, 11])
def test_the_slow_commit_is_named_and_proven_against_its_parent(tmp_path: Path, number: int) -> None:
    named, pairs = ended(tmp_path, FakeGpu(slower_from(number)))
    assert [item.sha for item in named.suspects] == [sha(number)]
    assert named.certain and named.proof is not None
    assert named.proof.ratio == pytest.approx(1.06, rel=0.005)
    assert named.proof.case.batch_size == 256, "the point that changed"
    assert (pairs[-1].before, pairs[-1].after) == (commit(number - 1), commit(number))
    assert len(pairs) <= 2 + 4, "halves: 11 candidates take at most four comparisons between the first and the proof"


def test_a_commit_between_takes_all_of_its_rounds_also_where_it_has_the_old_level(tmp_path: Path) -> None:
    """Half of a change may lie within the floor, where a look of the gate would clear the point."""
    made, libraries = job(tmp_path, FakeGpu(slower_from(11)))
    with libraries:
        list(bisect(made))
    between = made.runs[1:]
    assert len(between) >= 3
    assert made.config.gate.wave < 6 and made.config.gate.clear_confidence < 1
    assert {len({item.process for item in run.points[0].rounds}) for run in between} == {6}


@pytest.mark.parametrize(("sglangs", "use"), [(True, "against-sglang"), (False, "against")])
def test_a_record_of_pairs_says_whose_commits_they_are(
    tmp_path: Path, sglangs: bool, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shows such a record names the command that measures it again."""
    made, libraries = job(tmp_path, FakeGpu(slower_from(1)), 2)
    tree = libraries.tree
    monkeypatch.setattr(libraries, "tree", lambda commit: replace(tree(commit), sglang=tmp_path if sglangs else None))
    with libraries:
        list(bisect(made))
    assert {run.use for run in made.runs} == {use}


def test_a_gain_is_named_too(tmp_path: Path) -> None:
    named, _ = ended(tmp_path, FakeGpu(slower_from(4, -0.08)))
    assert named.suspects == (commit(4),) and named.proof is not None and named.proof.status == "fast"


def test_commits_that_leave_the_library_alone_are_not_measured(tmp_path: Path) -> None:
    gpu = FakeGpu(slower_from(8))
    same = dict.fromkeys(range(1, 8), 0) | dict.fromkeys(range(9, 12), 8)
    named, pairs = ended(tmp_path, gpu, same=same)
    assert named.suspects == (commit(8, "library 8"),)
    assert [pair.after.sha for pair in pairs] == [sha(11), sha(8)], "one candidate needs only its proof"


def test_what_cannot_be_driven_is_left_out_and_others_are_tried(tmp_path: Path) -> None:
    named, _ = ended(tmp_path, FakeGpu(slower_from(8), broken={5, 6}))
    assert named.suspects == (commit(8),) and named.certain


def test_a_change_among_commits_that_cannot_be_driven_stays_between_them(tmp_path: Path) -> None:
    named, _ = ended(tmp_path, FakeGpu(slower_from(6), broken={5, 6}))
    assert [item.sha for item in named.suspects] == [sha(5), sha(6), sha(7)]
    assert not named.certain and {item.sha for item in named.untried} == {sha(5), sha(6)}


def test_ends_that_do_not_differ_are_refused(tmp_path: Path) -> None:
    made, libraries = job(tmp_path, FakeGpu(lambda number, point: 2.0))
    with libraries, pytest.raises(CannotJudge, match="no point differs with certainty between 000000000 and 000000011"):
        list(bisect(made))


def test_a_line_that_never_changes_the_library_is_refused(tmp_path: Path) -> None:
    made, libraries = job(tmp_path, FakeGpu(lambda number, point: 2.0), 3, same={1: 0, 2: 0})
    with libraries, pytest.raises(CannotJudge, match="no commit after 000000000 changes the library"):
        list(bisect(made))


def test_the_command_line_names_it_and_keeps_the_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path / "c", 6)
    gpu = FakeGpu(lambda number, point: 2.0 * (1.1 if number >= 4 else 1.0))
    instrument = Machine(has_gpu=lambda: True, open_side=gpu.open_side)
    arguments = ["history", "bisect", "--commits", f"{sha(0)}..{sha(5)}", "--exported", str(folder)]
    arguments += ["-o", str(tmp_path / "pairs"), "--processes", "4", "--case", "batch_size=256"]
    with pytest.raises(SystemExit) as end:
        cli.main(arguments, instrument)
    assert not end.value.code
    out = capsys.readouterr().out
    assert "000000004 commit 4: slow, against its parent ours-vocab, decode 256 r64 +10." in out or (
        "000000004 commit 4: slow, against its parent ours-rank, decode 256 r64 +10." in out
    )
    pairs = [pair_store.read(path) for path in sorted((tmp_path / "pairs").glob("*.json"))]
    assert (pairs[-1].a.label, pairs[-1].b.label) == ("000000003", "000000004")


def test_the_command_line_follows_the_subject_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path / "c", 4)
    gpu = FakeGpu(lambda number, point: 2.0 * (1.1 if number >= 2 and point.contender == "torch_gather" else 1.0))
    instrument = Machine(has_gpu=lambda: True, open_side=gpu.open_side)
    arguments = ["history", "bisect", "--commits", f"{sha(0)}..{sha(3)}", "--exported", str(folder)]
    arguments += ["--processes", "4", "--case", "batch_size=256,rank=64,cache=warm", "--subject", "torch_gather"]
    with pytest.raises(SystemExit) as end:
        cli.main(arguments, instrument)
    assert not end.value.code
    assert "000000002 commit 2: slow, against its parent gather, decode 256 r64 +" in capsys.readouterr().out


def test_without_a_gpu_or_a_line_the_command_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path / "c", 3)
    for commits, code, words in (
        (f"{sha(0)}..{sha(2)}", 3, "no NVIDIA GPU was found"),
        (sha(0), 2, "expected A..B, where A is the last commit known to be good"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(
                ["history", "bisect", "--commits", commits, "--exported", str(folder)],
                Machine(has_gpu=lambda: False),
            )
        assert end.value.code == code
        assert words in capsys.readouterr().err
