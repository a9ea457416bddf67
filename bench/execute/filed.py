"""Puts workers' answers into the results (machine, anchors, GPU, each point's rounds), and finds what is left to do."""

from __future__ import annotations

import random
from collections.abc import Collection

from bench.execute.isolate import Hello
from bench.execute.tasks import Task
from bench.model.case import Case, shuffled_by_tables
from bench.model.config import Plan
from bench.model.environment import with_installed_sglang
from bench.model.records import OtherSglang, Point, Results, ResultsError, UsedGpu, worse


def adopt(results: Results, hello: Hello, process: int, version: str | None = None) -> int | None:
    """Take over the worker's environment, or check that it equals the file's. Returns the index of its GPU in the file.

    The anchors of a process's first worker are kept. version: of the SGLang that the worker uses instead of the
    installed one.
    """
    env = hello.env
    if version is not None:
        _adopt_sglang(results, OtherSglang(version, str(env.volatile.get("sglang_lora_sha256"))))
        env = with_installed_sglang(env)
    if results.env is None:
        results.env = env
    elif results.env.env_key != env.env_key:
        ours, theirs = results.env.identity, env.identity
        changed = [f"{name} {ours.get(name)} -> {theirs[name]}" for name in theirs if ours.get(name) != theirs[name]]
        raise ResultsError(f"this machine differs from the one that the file was begun on: {', '.join(changed)}")
    gpu = _place_of(results, hello)
    known = {(anchor.name, anchor.gpu): anchor for anchor in results.anchors}
    for anchor in hello.anchors:
        anchor.gpu = gpu
        if (anchor.name, gpu) not in known:
            results.anchors.append(anchor)
        elif len(known[anchor.name, gpu].values) <= process:
            known[anchor.name, gpu].values += anchor.values
    return gpu


def _place_of(results: Results, hello: Hello) -> int | None:
    """Of the worker's GPU; it is listed if it was not."""
    uuid = hello.env.volatile.get("gpu_uuid")
    if uuid is None:
        return None
    bus = hello.env.volatile.get("pci_bus")
    used = UsedGpu(str(uuid), None if bus is None else str(bus))
    places = [index for index, gpu in enumerate(results.gpus) if gpu.uuid == used.uuid]
    if not places:
        results.gpus.append(used)
    return places[0] if places else len(results.gpus) - 1


def _adopt_sglang(results: Results, found: OtherSglang) -> None:
    """Take the files of a version, or check that they are the file's. Raises ResultsError."""
    known = next((other for other in results.other_sglang if other.version == found.version), None)
    if known is None:
        results.other_sglang.append(found)
    elif known != found:
        raise ResultsError(
            f"SGLang {found.version} has other LoRA files than the file was begun with: sha256 "
            f"{known.lora_sha256[:12]} -> {found.lora_sha256[:12]}"
        )


def record(results: Results, new: Point) -> Point:
    """Merge a process's record into the file's. A failure in any process becomes the point's status."""
    for point in results.points:
        if point.key == new.key:
            point.rounds += new.rounds
            point.floor_us += new.floor_us
            point.wall_s += new.wall_s
            point.check = worse(point.check, new.check)
            assert point.gpu in (None, new.gpu), "rounds of one point on two GPUs"
            point.gpu = new.gpu
            if new.status != "ok":
                point.status, point.reason, point.check = new.status, new.reason, new.check or point.check
            return point
    results.points.append(new)
    return new


def homes(results: Results) -> dict[Case, str]:
    """The GPU, by UUID, of each case that has times. The rest of the case is measured there."""
    return {
        point.case: uuid
        for point in results.points
        if point.status == "ok" and point.gpu is not None and (uuid := results.gpus[point.gpu].uuid) is not None
    }


def forget(results: Results, cases: Collection[Case]) -> int:
    """Drop the times of cases that another GPU will measure from the start.

    Returns how many points had times. Failures stay.
    """
    kept = [point for point in results.points if point.case not in cases or point.gpu is None or point.status != "ok"]
    dropped = len(results.points) - len(kept)
    results.points[:] = kept
    return dropped


def left_of(plan: Plan, results: Results, process: int) -> list[Task]:
    """The tasks of a process that the file lacks, in the order in which they are taken."""
    known = {point.key: point for point in results.points}
    tasks = []
    for index, planned in enumerate(plan.points):
        point = known.get((planned.case, planned.contender, planned.clock))
        measured = point is not None and (point.status != "ok" or _covers(point, process))
        if not measured:
            tasks.append((index, planned))
    if plan.shuffle:
        return shuffled_by_tables(tasks, lambda task: task[1].case, random.Random(plan.measure.seed + process))
    return tasks


def _covers(point: Point, process: int) -> bool:
    return point.clock == "work" or any(item.process == process for item in point.rounds)


def unfinished(plan: Plan, results: Results, uuid: str, process: int = 0) -> set[Case]:
    """Cases begun on a GPU that lack something of this process or of a later one."""
    begun = homes(results)
    return {
        planned.case
        for number in range(process, plan.measure.processes)
        for _, planned in left_of(plan, results, number)
        if begun.get(planned.case) == uuid
    }
