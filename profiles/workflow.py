"""The steps of a capture: run the tool, read what it wrote, keep both. Prints nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.clocks.markers import DOMAIN
from bench.model.case import Case
from bench.model.config import Config, Measure, Plan, PlannedPoint
from bench.model.environment import (
    collect_code,
    collect_environment,
    command_line,
    nvml_device,
    package_version,
    utc_now,
)
from bench.model.records import Code, Environment, Results, ResultsError
from profiles import capture, kineto, ncu, nsys, nsys_database, records
from profiles.capture import CaptureFailed, ProfileError
from profiles.records import CacheControl, CountedWork, NcuBody, NsysBody, ProfileRecord, ProfileSchema, UsefulBytes
from profiles.target import Target

NO_IMPORTER = "kept raw: this installation of nsys has no importer, so nothing can be read here"
NO_EXPORT = "kept: this installation of nsys could not export it to SQLite, so nothing can be read here"


@dataclass
class Request:
    """A target, and where its files go: `stem` with a suffix for each."""

    target: Target
    stem: Path
    started_utc: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        if self.record.exists():
            raise ResultsError(f"{self.record}: exists; expected a new name after --output")

    @property
    def record(self) -> Path:
        return self.stem.with_name(self.stem.name + ".json")

    def keep(self, profile: ProfileRecord, files: Sequence[Path]) -> ProfileRecord:
        """Move the tool's files to their place, then write the record that names them."""
        profile.files = [file.name for file in capture.publish(files, self.stem.parent)]
        records.write(self.record, profile)
        return profile

    def profile(
        self, version: str, body: NsysBody | NcuBody | records.TraceBody, commands: Sequence[Sequence[str]]
    ) -> ProfileRecord:
        return ProfileRecord(
            schema=ProfileSchema(),
            tool_version=version,
            commands=[[Path(tool).name, *map(_shown, arguments)] for tool, *arguments in commands],
            started_utc=self.started_utc,
            code=collect_code(),
            seed=self.target.seed,
            launches=self.target.launches,
            replays=self.target.replays,
            files=[],
            body=body,
            env=_environment(),
        )


def bare_profile(body: NsysBody | NcuBody, name: str, seed: int) -> ProfileRecord:
    """A record made of a tool's own file only. Everything else in it is unknown."""
    return ProfileRecord(
        ProfileSchema(),
        name,
        [],
        "unknown time",
        Code(None, None, None, None, None, None, "", ""),
        seed,
        0,
        0,
        [],
        body,
    )


def _shown(argument: str) -> str:
    """An argument without the path of this machine's interpreter."""
    return "python" if argument == sys.executable else argument


def _environment() -> Environment | None:
    return collect_environment("cuda") if nvml_device() is not None else None


def sweep_program(profile: str, options: Sequence[str], results: Path) -> list[str]:
    """A whole sweep as the profiled program; it verifies its points and keeps no times."""
    return [sys.executable, "-m", "bench", "sweep", "-p", profile, "--processes", "1", *options, "-o", str(results)]


def run_nsys(
    request: Request, program: Callable[[Path], list[str]], statuses: Sequence[int] = (0,), domain: str | None = DOMAIN
) -> ProfileRecord:
    """Capture the program that `program` gives for a scratch folder.

    domain None: a server, whose ranges have no domain. Raises ProfileError, CaptureFailed.
    """
    tool = nsys.require()
    with capture.scratch(request.stem) as folder:
        output = folder / request.stem.name
        command = nsys.profile_command(tool, program(folder), output, any_domain=domain is None)
        raw = nsys.collect(command, output, statuses)
        body, files = read_nsys(tool, raw, domain)
        profile = request.profile(f"nsys {tool.version}", body, [_relative(command.arguments, folder)])
        profile.dropped_flags = command.dropped
        return request.keep(profile, files)


def _relative(arguments: Sequence[str], folder: Path) -> list[str]:
    """A command without the scratch folder, which is gone when it is read."""
    return [argument.replace(f"{folder}/", "") for argument in arguments]


def read_nsys(tool: nsys.Nsys, raw: Path, domain: str | None = DOMAIN) -> tuple[NsysBody, list[Path]]:
    """The contents of a capture, as far as this installation can read it, and the files worth keeping."""
    report = nsys.to_report(tool, raw)
    if report is None:
        return NsysBody(None, remark=NO_IMPORTER), [raw]
    database = nsys.to_database(tool, report)
    if database is None:
        return NsysBody(None, remark=NO_EXPORT), [report]
    return read_database(database, domain), [report, database]


def read_database(database: Path, domain: str | None = DOMAIN) -> NsysBody:
    """The contents of a capture's export.

    A file without ranges of the domain is one of a server. Raises CaptureFailed.
    """
    if domain is not None and not nsys_database.count_ranges(database, domain):
        domain = None if nsys_database.is_of_a_server(database) else domain
    found = nsys_database.attribute(database, domain)
    return NsysBody(found.ranges, found.unattributed, kernels=found.kernels, lacking=found.lacking)


def run_ncu(request: Request, caches: Sequence[CacheControl]) -> ProfileRecord:
    """Run ncu once for each cache state. Raises ProfileError, CaptureFailed.

    If the reader is missing, the reports are kept unread.
    """
    readable = package_version("ncu-report") is not None
    tool = ncu.require()
    program = capture.runner_command(request.target)
    reports, commands = [], []
    body = NcuBody([], useful_bytes(request.target.points, request.target.seed))
    with capture.scratch(request.stem) as folder:
        for cache in caches:
            output = folder / f"{request.stem.name}-{cache}"
            command = ncu.profile_command(tool, program, output, cache)
            reports.append(ncu.collect(command, output))
            commands.append(_relative(command.arguments, folder))
            if readable:
                body.kernels += ncu.read(reports[-1], cache)
            body.missing = command.missing
        profile = request.profile(f"ncu {tool.version}", body, commands)
        profile.dropped_flags = command.dropped
        return request.keep(profile, reports)


def read_reports(profile: ProfileRecord, folder: Path) -> None:
    """Fill a record whose reports were kept unread. Raises ProfileError, CaptureFailed."""
    assert isinstance(profile.body, NcuBody)
    for name in profile.files:
        profile.body.kernels += ncu.read(folder / name, cache_of(Path(name)))


def cache_of(report: Path, told: str | None = None) -> CacheControl:
    """The state of the caches, as told or from the report's name. Raises ProfileError."""
    for cache in ncu.CACHE_CONTROL:
        if told == cache or (told is None and report.stem.endswith(f"-{cache}")):
            return cache
    raise ProfileError(f"{report}: its name does not say how caches were controlled; expected --cache cold or warm")


def run_trace(request: Request, settings: Measure) -> ProfileRecord:
    """Time and trace in this process. Raises CaptureFailed."""
    from bench.execute.measure import NotMeasured

    with capture.scratch(request.stem) as folder:
        output = folder / (request.stem.name + kineto.SUFFIX)
        try:
            body = kineto.trace(request.target, settings, output)
        except NotMeasured as error:
            raise CaptureFailed(f"{error.status}: {error.reason}") from error
        version = f"torch profiler {package_version('torch')}"
        return request.keep(request.profile(version, body, [command_line()]), [output])


def useful_bytes(points: Sequence[PlannedPoint], seed: int) -> list[UsefulBytes]:
    """For each case, the bytes that a launch on index set 0 has to read and to write."""
    import torch

    from bench.workload import traffic
    from bench.workload.tensors import make_workload

    found = []
    for case in dict.fromkeys(point.case for point in points):
        workload = make_workload(case, seed=seed, index_sets=1, device=torch.device("cpu"))
        written = traffic.written(workload)
        found.append(UsefulBytes(case, traffic.minimum(workload) - written, written))
    return found


def counting_plan(config: Config, points: Sequence[tuple[Case, str]], seed: int) -> Plan:
    """The same launches for the work clock."""
    settings = msgspec.structs.replace(config.measure, rounds=1, processes=1, seed=seed)
    planned = tuple(PlannedPoint(case, contender, "work") for case, contender in dict.fromkeys(points))
    return Plan("counts", settings, planned, shuffle=False, worker_env={})


def add_counts(profile: ProfileRecord, results: Results) -> None:
    """Put the work clock's counts beside ncu's. Raises ProfileError if the workloads differ."""
    assert isinstance(profile.body, NcuBody)
    if results.run.seed != profile.seed:
        raise ProfileError(
            f"the counts have seed {results.run.seed}, the profile has {profile.seed}; expected the same seed"
        )
    counts = {(point.case, point.contender): point.work.counts for point in results.points if point.work is not None}
    wanted = [(item.case, item.contender) for item in profile.body.kernels if item.clock == "graph"]
    profile.body.counted = [CountedWork(*key, counts[key]) for key in dict.fromkeys(wanted) if key in counts]
