"""Sessions: their order, what they store, what they survive, what they do not do twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.execute import history as running
from bench.execute.history import NothingLeft, Stored, visits
from bench.execute.isolate import WorkerDied
from bench.model import history as records
from bench.model import instrument, store
from bench.model.environment import collect_environment
from bench.model.history import Entry
from bench.model.records import ResultsError
from bench.model.verdict import CannotJudge
from tests.support.history import (
    OURS,
    PEER,
    FakeWorker,
    Machine,
    commit,
    exported,
    measured,
    session,
    sha,
)


def entries(folder: Path) -> dict[str, Entry]:
    return {entry.commit.sha: entry for entry in records.read_all(folder)}


def test_every_commit_is_stored_with_its_library_and_this_session(machine: Machine, tmp_path: Path) -> None:
    machine.level_us = lambda number: 2.0 + number
    made = session(tmp_path / "h", exported(tmp_path / "c", 6))
    measured(made)
    found = entries(tmp_path / "h")
    assert list(found) == [sha(number) for number in range(6)]
    for number in range(6):
        entry = found[sha(number)]
        assert (entry.session, entry.anchor) == (made.id, sha(0))
        ours = [point for point in entry.results.points if point.contender == OURS]
        assert [point.rounds[0].blocks_us for point in ours] == [[2.0 + number]] * 2
        assert entry.results.code.sha == sha(number)
    assert len({entry.results.code.kernel_source_sha256 for entry in found.values()}) == 6
    assert all(path.parent.name == "fake-gpu" for path in (tmp_path / "h").rglob("*.json"))


def test_the_peers_are_measured_with_the_anchor_once(machine: Machine, tmp_path: Path) -> None:
    measured(session(tmp_path / "h", exported(tmp_path / "c", 6), processes=2))
    having = [
        (entry.commit.sha, len({item.process for item in point.rounds}))
        for entry in records.read_all(tmp_path / "h")
        for point in entry.results.points
        if point.contender == PEER
    ]
    assert having == [(sha(0), 1)]


def test_passes_are_shuffled_and_the_anchor_lies_between() -> None:
    commits = [commit(number) for number in range(9)]
    left = dict.fromkeys((item.sha for item in commits), 2)
    order = visits(left, commits, commits[0], 3, seed=5)
    numbers = [commits.index(item) for item, _ in order]
    anchors = [index for index, (_, is_anchor) in enumerate(order) if is_anchor]
    assert anchors == [3, 7, 10, 14, 18, 21]
    passes = [[number for number in part if number] for part in (numbers[:11], numbers[11:])]
    assert [sorted(part) for part in passes] == [list(range(1, 9))] * 2, "each commit once in each pass"
    assert passes[0] != passes[1] and passes[0] != sorted(passes[0])
    assert order != visits(left, commits, commits[0], 3, seed=6)


def test_an_anchor_that_is_one_of_the_commits_gets_its_processes_too() -> None:
    alone = commit(0)
    assert visits({alone.sha: 3}, [alone], alone, 4, 1) == [(alone, True)] * 2
    assert visits({alone.sha: 0}, [alone], alone, 4, 1) == []


def test_processes_are_numbered_in_the_order_they_ran(machine: Machine, tmp_path: Path) -> None:
    measured(session(tmp_path / "h", exported(tmp_path / "c", 6), processes=2))
    taken = sorted(
        (item.process, entry.commit.sha)
        for entry in records.read_all(tmp_path / "h")
        for item in entry.results.points[0].rounds
    )
    ran = [(process, sha(number)) for number, process, _ in machine.log for _ in range(2)]
    assert taken == sorted(ran)


def test_what_is_stored_is_not_measured_again(machine: Machine, tmp_path: Path) -> None:
    commits = exported(tmp_path / "c", 5)
    measured(session(tmp_path / "h", commits))
    machine.log.clear()
    events = measured(session(tmp_path / "h", commits))
    assert events[-1] == NothingLeft(5)
    assert [number for number, _, _ in machine.log] == [0], "only the anchor, which says what machine this is"
    before = sorted((tmp_path / "h").rglob("*"))
    measured(session(tmp_path / "h", commits, again=True))
    assert len(sorted((tmp_path / "h").rglob("*.json"))) == 10 > len(before)


def test_what_an_older_format_stored_under_the_same_number_is_not_measured_again(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instrument, "present", lambda: "2")
    commits = exported(tmp_path / "c", 3)
    for version, left in (("ee98daa5f55dd6f2", []), ("91e65d324014359e", [1, 2])):
        measured(session(tmp_path / version, commits))
        for path in (tmp_path / version).rglob("*.json"):
            entry = records.read(path)
            entry.results.code.bench_version = version
            store.write(path, entry)
        machine.log.clear()
        measured(session(tmp_path / version, commits))
        assert sorted({number for number, _, _ in machine.log} - {0}) == left


def test_an_interrupted_session_goes_on_with_what_is_left(machine: Machine, tmp_path: Path) -> None:
    commits = exported(tmp_path / "c", 6)
    events = running.run(session(tmp_path / "h", commits, processes=2))
    stored = 0
    for event in events:
        stored += isinstance(event, Stored)
        if stored == 4:  # the anchor and three commits of the first pass
            break
    events.close()
    first = {number for number, _, _ in machine.log}
    machine.log.clear()
    measured(session(tmp_path / "h", commits, processes=2))
    counts = {number: [item for item, _, _ in machine.log].count(number) for number in range(1, 6)}
    assert counts == {number: 1 if number in first else 2 for number in range(1, 6)}


def test_another_machine_or_measuring_code_is_measured_anew(machine: Machine, tmp_path: Path) -> None:
    commits = exported(tmp_path / "c", 3)
    measured(session(tmp_path / "h", commits))
    machine.env_key = "other"
    machine.log.clear()
    measured(session(tmp_path / "h", commits))
    assert {number for number, _, _ in machine.log} == {0, 1, 2}


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("dies_at_start", "error", "its library cannot be driven: worker ended with exit status 1"),
        ("dies_at_point", "crashed", "worker ended with signal SIGSEGV"),
    ],
)
def test_a_commit_that_fails_has_its_reason_and_the_others_go_on(
    machine: Machine, tmp_path: Path, fault: str, status: str, words: str
) -> None:
    getattr(machine, fault).add(3)
    commits = exported(tmp_path / "c", 6, without=[2])
    measured(session(tmp_path / "h", commits, processes=2))
    found = entries(tmp_path / "h")
    assert {point.status for point in found[sha(3)].results.points} == {status}
    assert all(words in str(point.reason) for point in found[sha(3)].results.points)
    assert all(
        str(tmp_path) not in str(point.reason) and "/tmp" not in str(point.reason)
        for point in found[sha(3)].results.points
    )
    without = found[sha(2)].results.points
    assert without and all("has no csgmv_embed/__init__.py" in str(point.reason) for point in without)
    for number in (0, 1, 4, 5):
        assert {point.status for point in found[sha(number)].results.points} == {"ok"}
    assert [number for number, _, _ in machine.log].count(3) == (1 if fault == "dies_at_start" else 2), (
        "not tried again"
    )
    machine.log.clear()
    assert measured(session(tmp_path / "h", commits, processes=2))[-1] == NothingLeft(6)


def test_without_the_anchor_there_is_no_session(machine: Machine, tmp_path: Path) -> None:
    machine.dies_at_start = {0}
    with pytest.raises(WorkerDied, match="ImportError"):
        measured(session(tmp_path / "h", exported(tmp_path / "c", 3)))
    with pytest.raises(CannotJudge, match="has no csgmv_embed"):
        measured(session(tmp_path / "h", exported(tmp_path / "d", 3, without=[0])))
    assert not (tmp_path / "h").exists()


def test_a_worker_with_another_library_ends_the_session(machine: Machine, tmp_path: Path) -> None:
    machine.wrong_library = True
    with pytest.raises(ResultsError, match="imported another library than this commit's"):
        measured(session(tmp_path / "h", exported(tmp_path / "c", 3)))


def test_equal_libraries_are_counted_once_and_say_so(machine: Machine, tmp_path: Path) -> None:
    machine.level_us, machine.env_key = lambda number: 2.0 + number, collect_environment("cpu").env_key
    commits = exported(tmp_path / "c", 6, same={2: 1, 3: 1, 5: 4})
    events = measured(session(tmp_path / "h", commits, clock="work"))
    found = entries(tmp_path / "h")
    assert {number for number, _, _ in machine.log} == {0, 1, 4}
    assert [found[sha(n)].counted_at for n in range(6)] == [None, None, sha(1), sha(1), None, sha(4)]
    programs = [found[sha(n)].results.points[0].work.counts.programs for n in range(6)]  # type: ignore[union-attr]
    assert programs == [20, 30, 30, 30, 60, 60]
    assert sum(isinstance(event, Stored) and event.taken_over for event in events) == 3
    assert measured(session(tmp_path / "h", commits, clock="work")) == [NothingLeft(6)]


def test_counts_need_no_anchor_and_go_to_a_folder_of_their_own(machine: Machine, tmp_path: Path) -> None:
    measured(session(tmp_path / "h", exported(tmp_path / "c", 2), clock="work"))
    found = records.read_all(tmp_path / "h")
    assert [entry.anchor for entry in found] == [None, None]
    assert {path.parent.name for path in (tmp_path / "h").rglob("*.json")} == {"no-gpu"}
    assert FakeWorker.machine is machine
