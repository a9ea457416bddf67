"""The content of the page, as the command line read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.judge.history import History
from bench.model.pairs import PairRun
from bench.model.records import Results
from bench.model.served import ServeResults
from bench.model.verdict import Report


@dataclass
class Content:
    """Everything that goes on the page, each with the name of its file; `files` are the (name, bytes) of those read."""

    files: list[tuple[str, bytes]]
    results: list[tuple[str, Results]] = field(default_factory=list)
    pairs: list[tuple[str, PairRun]] = field(default_factory=list)
    reports: list[tuple[str, Report]] = field(default_factory=list)
    histories: list[tuple[str, History]] = field(default_factory=list)
    served: list[tuple[str, ServeResults]] = field(default_factory=list)

    @property
    def gpus(self) -> list[str]:
        """The GPU models that were measured, in the order of the files."""
        found = [results.env.identity.get("gpu") for _, results in self.results if results.env]
        found += [served.env.identity.get("gpu") for _, served in self.served if served.env]
        found += [run.env.identity.get("gpu") for _, run in self.pairs if run.env]
        found += [report.identity.get("gpu") for _, report in self.reports]
        found += [era.environment.identity.get("gpu") for _, history in self.histories for era in history.eras]
        return list(dict.fromkeys(str(gpu) for gpu in found if gpu))

    @property
    def counted_only(self) -> bool:
        """Whether the page has no times, only counts."""
        clocks = {point.clock for _, results in self.results for point in results.points if point.status == "ok"}
        clocks |= {verdict.clock for _, report in self.reports for verdict in report.verdicts}
        clocks |= {history.clock for _, history in self.histories}
        return clocks == {"work"} and not self.served


def head(name: str, results: Results | ServeResults) -> dict[str, Any]:
    """What the browser says of a file above its figures."""
    return {
        "name": name,
        "gpu": str((results.env.identity.get("gpu") if results.env else None) or "no GPU"),
        "commit": results.code.short or "unknown",
        "dirty": bool(results.code.dirty),
        "date": results.run.started_utc[:10],
    }


def origin(results: Results | ServeResults) -> dict[str, str]:
    """How a file was made: what files of every kind say of it."""
    run, code = results.run, results.code
    return {
        "command": " ".join(run.argv),
        "commit": (code.sha or "unknown") + (" + uncommitted changes" if code.dirty else ""),
        "started": run.started_utc,
        "duration": f"{run.duration_s:.0f} s",
    }
