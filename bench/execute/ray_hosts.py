"""Workers on the hosts of a Ray cluster.

Ray places one actor on each GPU (for counts: on each core) and keeps it there. An actor holds a worker process as this
host would, so a crash affects only its own point. If an actor ends, its node is lost. That says nothing about the
point, which is dealt again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import msgspec

from bench.execute.isolate import Answer, Ask, Hello, Start, Worker, WorkerDied, WorkerLost
from bench.execute.tasks import Around
from bench.model import gpus
from bench.model.environment import ROOT
from bench.model.gpus import VISIBLE, Gpu
from bench.model.toml import ConfigError

T = TypeVar("T")
LEFT_OUT = [".git", ".venv", "build", "docs", "history", "results", "tests"]  # of the checkout that travels
PLACE_S = 300.0  # for Ray to have placed an actor


class Host:
    """What runs on a node: one worker process at a time. Messages are JSON; the worker's errors are texts."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def described(self) -> bytes:
        """The GPU that Ray gave this actor, if any."""
        return msgspec.json.encode(gpus.visible()[:1])

    def begin(self, start: bytes, environment: dict[str, str]) -> tuple[bool, bytes]:
        """Start a worker. Returns (whether it started, its hello or why not)."""
        self.end()
        try:
            self._worker = Worker(msgspec.json.decode(start, type=Start), environment)
        except WorkerDied as death:
            return False, str(death).encode()
        return True, msgspec.json.encode(self._worker.hello)

    def ask(self, ask: bytes, timeout_s: float) -> tuple[bool, bytes]:
        """Measure a point. Returns (whether it answered, its answer or how it ended)."""
        assert self._worker is not None, "begin comes first"
        try:
            return True, msgspec.json.encode(self._worker.ask(msgspec.json.decode(ask, type=Ask), timeout_s))
        except WorkerDied as death:
            return False, str(death).encode()

    def end(self) -> None:
        """End the worker process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class RayWorker:
    """The driver's side of a worker on an actor. Replaces isolate.Worker."""

    def __init__(self, hosts: Hosts, actor: Any, start: Start, environment: dict[str, str]) -> None:
        self._hosts, self._actor = hosts, actor
        self.lost = False
        asked = msgspec.json.encode(start), {name: text for name, text in environment.items() if name != VISIBLE}
        try:
            self.hello = self._called("begin", asked, Hello, start.settings.start_timeout_s + PLACE_S)
        except BaseException:
            self._hosts.returned(self)
            raise

    def ask(self, ask: Ask, timeout_s: float) -> Answer:
        """The worker's answer. Raises WorkerDied, or WorkerLost if its node is gone."""
        return self._called("ask", (msgspec.json.encode(ask), timeout_s), Answer, timeout_s + PLACE_S)

    @property
    def actor(self) -> Any:
        return self._actor

    def __enter__(self) -> RayWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._hosts.returned(self)

    def _called(self, method: str, asked: tuple[Any, ...], kind: type[T], timeout_s: float) -> T:
        import ray

        try:
            went, said = ray.get(getattr(self._actor, method).remote(*asked), timeout=timeout_s)
        except ray.exceptions.RayError as error:
            self.lost = True
            raise WorkerLost(f"its node is lost: {type(error).__name__}") from None
        if not went:
            raise WorkerDied(said.decode())
        return msgspec.json.decode(said, type=kind)


class Hosts:
    """The actors of a run, and which of them are waiting."""

    def __init__(self, actors: list[Any], of_gpu: dict[str, Any]) -> None:
        self.actors = list(actors)
        self._idle, self._of_gpu, self._lock = list(actors), of_gpu, Lock()

    def open_worker(self, start: Start, environment: dict[str, str]) -> Worker:
        """A worker on the GPU in the environment, on any waiting core, or on this host if it only compiles."""
        if start.kind == "compile":
            return Worker(start, environment)
        with self._lock:
            wanted = self._of_gpu.get(environment.get(VISIBLE, ""))
            free = [actor for actor in self._idle if wanted is None or actor is wanted]
            if not free:
                raise WorkerDied("no node of the cluster is left to run the worker")
            self._idle.remove(free[0])
        found: Any = RayWorker(self, free[0], start, environment)
        return found  # type: ignore[no-any-return]

    def returned(self, worker: RayWorker) -> None:
        """The worker's actor is free again, unless its node is lost."""
        with self._lock:
            if not worker.lost and worker.actor not in self._idle:
                self._idle.append(worker.actor)


@contextmanager
def hosts(address: str, *, counted: bool) -> Iterator[Around]:
    """What a sweep runs on: every GPU of a cluster, or every core for counts. Raises ConfigError."""
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs the extra ray; expected pip install 'csgmv-embed[ray]'") from None
    try:
        ray.init(
            address=address,
            runtime_env={"working_dir": str(ROOT), "excludes": LEFT_OUT, "py_executable": sys.executable},
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray {address}: {error}; expected the address of a running cluster, or local") from error
    try:
        yield _placed(address, counted)
    finally:
        ray.shutdown()


def _placed(address: str, counted: bool) -> Around:
    import ray

    cluster: Any = ray
    kind = "CPU" if counted else "GPU"
    count = int(cluster.cluster_resources().get(kind, 0))
    if not count:
        raise ConfigError(f"--ray {address}: the cluster has no {kind}; expected at least one")
    options = {"num_cpus": 1} if counted else {"num_gpus": 1, "num_cpus": 0}
    actors = [cluster.remote(Host).options(**options).remote() for _ in range(count)]
    if counted:
        return Around(open_worker=Hosts(actors, {}).open_worker, lanes=count)
    said = cluster.get([actor.described.remote() for actor in actors], timeout=PLACE_S)
    found = [msgspec.json.decode(text, type=list[Gpu]) for text in said]
    one_each = [msgspec.structs.replace(gpu[0], index=index) for index, gpu in enumerate(found) if gpu]
    if len(one_each) < count:
        raise ConfigError(
            f"--ray {address}: {count - len(one_each)} of {count} GPUs cannot be queried; expected NVML on their hosts"
        )
    of_gpu = {gpu.uuid: actor for gpu, actor in zip(one_each, actors, strict=True)}
    return Around(
        gpus=gpus.chosen(gpus.ALL, one_each, option=f"--ray {address}"), open_worker=Hosts(actors, of_gpu).open_worker
    )
