"""Threads that measure in parallel, each with its own workers: deals out the work and collects their messages.

A lane takes the next unit when it has finished one. If a lane is lost, the others take over what it had not finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Condition, Lock
from threading import Event as ThreadEvent
from types import TracebackType
from typing import Any, Generic, TypeVar

from bench.execute.isolate import Start, Worker, WorkerDied

T = TypeVar("T")
OpenWorker = Callable[[Start, dict[str, str]], Worker]


class Dealer(Generic[T]):
    """Units of work, each dealt to one lane at a time. Any thread may ask for one.

    shared: units for any lane, in this order. own: units that only the named lane may take.
    """

    def __init__(self, lanes: Iterable[str], shared: Iterable[T], own: Mapping[str, Sequence[T]] | None = None) -> None:
        self._changed = Condition()
        self._shared = deque(shared)
        self._own = {lane: deque((own or {}).get(lane, ())) for lane in lanes}
        self._busy: set[str] = set()
        self._stopped = False

    def take(self, lane: str) -> T | None:
        """The next unit. None if nothing is left, and no working lane can give anything back."""
        with self._changed:
            self._busy.discard(lane)
            self._changed.notify_all()
            while not self._stopped:
                waiting = self._own[lane] or self._shared
                if waiting:
                    self._busy.add(lane)
                    return waiting.popleft()
                if not self._busy and not any(self._own.values()):
                    return None
                self._changed.wait()
        return None

    def leave(self, lane: str, *rest: T) -> None:
        """The lane takes no more units. `rest`, and the lane's own units, become available to the others."""
        with self._changed:
            self._busy.discard(lane)
            self._shared.extend([*rest, *self._own[lane]])
            self._own[lane].clear()
            self._changed.notify_all()

    def shares(self, size: Callable[[T], int]) -> dict[str, list[T]]:
        """Deal everything at once, for lanes that go over their units several times.

        The lane with the least gets the next.
        """
        found: dict[str, list[T]] = {lane: [] for lane in self._own}
        while self._shared:
            least = min(found, key=lambda lane: sum(map(size, found[lane])))
            found[least].append(self._shared.popleft())
        return found

    def stop(self) -> None:
        """Deal nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def left(self) -> bool:
        """Whether units are waiting."""
        return bool(self._shared) or any(self._own.values())


class Crew:
    """All open workers. Those left at the end are closed, by force if an error ends the run."""

    def __init__(self, open_worker: OpenWorker) -> None:
        self._open_worker = open_worker
        self._lock = Lock()
        self._open: list[Worker] = []
        self._over = False

    def hire(self, start: Start, environment: dict[str, str]) -> Worker:
        """Open a worker. Raises WorkerDied if it cannot start."""
        worker = self._open_worker(start, environment)
        with self._lock:
            if not self._over:
                self._open.append(worker)
                return worker
        worker.__exit__(WorkerDied, None, None)
        raise WorkerDied("the run has ended")

    def dismiss(self, worker: Worker) -> None:
        """Close a worker."""
        with self._lock:
            known = worker in self._open
            if known:
                self._open.remove(worker)
        if known:
            worker.__exit__(None, None, None)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over, left = True, self._open
            self._open = []
        for worker in left:
            worker.__exit__(kind, error, trace)


class Stopped(Exception):
    """The consumer has stopped listening to the lanes."""


class Say(Generic[T]):
    """The function by which a lane sends the consumer a message."""

    def __init__(self, messages: SimpleQueue[tuple[T, ThreadEvent] | None], stopping: ThreadEvent) -> None:
        self._messages, self.stopping = messages, stopping

    def __call__(self, message: T, *, until_heard: bool = False) -> None:
        """until_heard: return only when the consumer has done with it. Raises Stopped if it never will."""
        heard = ThreadEvent()
        self._messages.put((message, heard))
        while until_heard and not heard.wait(0.2):
            if self.stopping.is_set():
                raise Stopped


class Lanes(Generic[T]):
    """Lanes and their one consumer. A lane is a function that gets a `Say`, and returns when it has no more work."""

    def __init__(self, dealer: Dealer[Any]) -> None:
        self._dealer = dealer
        self._messages: SimpleQueue[tuple[T, ThreadEvent] | None] = SimpleQueue()  # None: a lane has ended
        self._stopping = ThreadEvent()

    def run(self, lanes: Sequence[Callable[[Say[T]], None]], pool: ThreadPoolExecutor) -> Generator[T, None, None]:
        """Yields the lanes' messages as they come.

        Raises a lane's error; WorkerDied only if units are left and no lane is.
        """
        say = Say(self._messages, self._stopping)
        futures = [pool.submit(self._lane, lane, say) for lane in lanes]
        running = len(futures)
        try:
            while running:
                said = self._messages.get()
                if said is None:
                    running -= 1
                    continue
                yield said[0]
                said[1].set()
        finally:
            self._stopping.set()
            self._dealer.stop()
        for error in filter(None, (future.exception() for future in futures)):
            if self._dealer.left or not isinstance(error, WorkerDied):
                raise error

    def _lane(self, lane: Callable[[Say[T]], None], say: Say[T]) -> None:
        try:
            lane(say)
        except Stopped:
            pass
        except WorkerDied:
            raise
        except BaseException:  # no fault of one lane's workers: the others need not go on
            self._stopping.set()
            self._dealer.stop()
            raise
        finally:
            self._messages.put(None)
