"""What disturbs an engine's GPU is seen and named; what is the engine's own, or how a GPU runs at full load, is not."""

from __future__ import annotations

import itertools
import time

import pytest

from bench.engine.watch import Seen, Watcher, disturbance, greatest_processes, occupied


def seen(at_ns: int = 0, *throttle: str, processes: int | None = 1, used: int | None = 2**30) -> Seen:
    return Seen(at_ns, 1980, throttle, used, processes)


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
    assert watcher.greatest_bytes == 2**30 + 2 * count - 1
