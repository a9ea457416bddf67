"""What disturbs an engine's GPU is seen and named; what is the engine's own, or how a GPU runs at full load, is not."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import time
from time import monotonic_ns

import pytest

from bench.engine.watch import Guard, Seen, Watcher, disturbance, greatest_processes, occupied


def seen(at_ns: int = 0, *throttle: str, processes: int | None = 1, used: int | None = 2**30) -> Seen:
    return Seen(at_ns, 1980, throttle, used, None if processes is None else (*range(processes),))


@pytest.mark.parametrize(
    ("looks", "own", "said"),
    [
        ([seen(), seen()], 1, None),
        ([seen(), seen(0, "power_cap")], 1, None),
        ([seen(), seen(0, "thermal", "power_cap")], 1, "the GPU's clock was lowered: thermal"),
        ([seen(0, "hw_slowdown"), seen(0, "power_brake")], 1, "clock was lowered: hw_slowdown, power_brake"),
        ([seen(), seen(processes=3)], 1, "another process was on the GPU: 3 where the engine has 1"),
        ([seen(processes=2)], 2, None),
        ([seen(processes=None)], 1, None),
        ([seen(processes=5)], None, None),
        ([], 1, None),
    ],
)
def test_a_load_is_disturbed_by_what_is_not_the_engines_own(
    looks: list[Seen], own: int | None, said: str | None
) -> None:
    found = disturbance(looks, processes=own)
    assert found is None if said is None else said in str(found)


def test_a_gpu_is_free_only_if_nobody_is_on_it() -> None:
    assert occupied(seen(processes=0)) is None and occupied(seen(processes=None, used=None)) is None
    assert "1 before the engine was started" in str(occupied(seen(processes=1)))
    assert "40.0 GiB in use" in str(occupied(seen(processes=0, used=40 * 2**30)))


def test_processes_are_the_most_that_were_seen() -> None:
    assert greatest_processes([seen(processes=1), seen(processes=2), seen(processes=None)]) == 2
    assert greatest_processes([seen(processes=None)]) is None


def test_a_watcher_looks_until_it_is_closed_and_tells_what_lay_between() -> None:
    places = itertools.count()
    watcher = Watcher(lambda: seen(next(places), used=2**30 + next(places)), period_s=0.001)
    while len(watcher.seen) < 5:
        time.sleep(0.001)
    watcher.close()
    count = len(watcher.seen)
    time.sleep(0.01)
    assert len(watcher.seen) == count, "closed"
    assert [item.at_ns for item in watcher.during(2, 6)] == [2, 4, 6]
    assert [item.at_ns for item in watcher.during(7, 7)] == [6], "the last look before it"


def guarded(looks: list[Seen], group: int = 1) -> tuple[Watcher, Guard]:
    """A watcher that has seen these, and a guard that knows what is the engine's own."""
    watcher = Watcher(lambda: looks[0], period_s=60.0)
    watcher.close()
    guard = Guard(watcher, group)
    watcher.seen = [dataclasses.replace(item, at_ns=monotonic_ns()) for item in looks]
    guard.started()
    return watcher, guard


def test_memory_is_the_most_that_was_seen_and_none_of_it_anothers() -> None:
    watcher, guard = guarded([seen(used=1), seen(used=9), seen(used=3)])
    assert guard.greatest_bytes == 9
    watcher.seen.append(seen(processes=2, used=12))
    assert guard.greatest_bytes is None


def test_who_comes_while_an_engine_starts_is_not_the_engines_own() -> None:
    """NVML's ids are this machine's: then its own are of its group."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as engine:
        looks = [dataclasses.replace(seen(), pids=pids) for pids in ((), (engine.pid,), (engine.pid, os.getpid()))]
        _, guard = guarded(looks, engine.pid)
        engine.kill()
    found = guard.during(0, monotonic_ns())
    assert found.disturbance == "another process was on the GPU: 2 where the engine has 1"
    assert guard.greatest_bytes is None


def test_where_ids_are_anothers_namespace_all_that_came_count_as_its_own() -> None:
    looks = [dataclasses.replace(seen(), pids=pids) for pids in ((), (2**24,), (2**24, 2**24 + 1))]
    watcher, guard = guarded(looks)
    assert guard.during(0, monotonic_ns()).disturbance is None
    watcher.seen.append(dataclasses.replace(seen(monotonic_ns()), pids=(2**24, 2**24 + 1, 2**24 + 2)))
    assert "3 where the engine has 2" in str(guard.during(0, monotonic_ns()).disturbance)
