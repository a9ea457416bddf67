"""The tables and the progress of `python -m bench accuracy`, and the progress of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.accuracy.compare import Row
from bench.accuracy.run import PATHS, AccuracyFile, Event, Stage
from bench.accuracy.training import Step
from bench.model.store import readable

PLAIN_EVERY = 10  # steps


def encode(found: AccuracyFile) -> bytes:
    """The file's bytes."""
    return readable(found)


def followed(events: Iterable[Event], console: Console) -> Iterator[Event]:
    """Print each stage that begins, and pass the events on."""
    for event in events:
        if isinstance(event, Stage):
            console.print(event.what, markup=False, highlight=False)
        yield event


def trained(steps: Iterable[Step], console: Console) -> None:
    """Consume the steps of a training: a progress bar on a terminal, a line from time to time elsewhere."""
    if not console.is_terminal:
        for step in steps:
            if step.step % PLAIN_EVERY == 0 or step.step == step.steps:
                console.print(f"{step.what}: step {step.step}/{step.steps}, loss {step.loss:.4f}", highlight=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("loading the model", total=None)
        for step in steps:
            description = f"{step.what}, loss {step.loss:.4f}"
            progress.update(task, total=step.steps, completed=step.step, description=description)


def summary(found: AccuracyFile) -> RenderableType:
    """Differences, texts, checks and planted faults of a run, and the limits they were judged by."""
    parts: list[RenderableType] = [
        _heading(found),
        _differences(found),
        _verdicts(found),
        _texts(found),
        _checks(found),
    ]
    if found.faults:
        parts.append(_faults(found))
    parts.append(Text("pass" if found.passed else "FAIL"))
    return Group(*parts)


def _heading(found: AccuracyFile) -> Text:
    identity = found.environment.identity
    where = identity.get("gpu") or "Triton's interpreter, no GPU"
    versions = ", ".join(f"{name} {identity[name]}" for name in ("torch", "triton", "sglang") if identity.get(name))
    derived = "stated" if found.dtype == "float32" else "twice that"
    return Text(
        f"{found.model} in {found.dtype} on {where}{', decode in CUDA graphs' if found.graphs else ''}; {versions}; "
        f"commit {found.code.short or 'unknown'}{' + uncommitted changes' if found.code.dirty else ''}\n"
        f"logprobs over the whole vocabulary, prefill and {found.steps} greedy tokens, against Hugging Face + PEFT\n"
        f"the reference's own rounding {found.rounding:.2e}; a difference passes up to {found.limit:.2e} ({derived})"
    )


def _differences(found: AccuracyFile) -> Table:
    table = Table("prompt", "adapter", title="difference of logprobs: max / mean, text", title_justify="left")
    rows = {(row.prompt, row.adapter, row.path): row for row in found.rows}
    paths = [path for path in PATHS if any(row.path == path for row in found.rows)]
    for path in paths:
        table.add_column(path, no_wrap=True)
    for prompt, adapter in dict.fromkeys((row.prompt, row.adapter) for row in found.rows):
        cells = [_cell(rows[prompt, adapter, path]) for path in paths]
        table.add_row(Text(prompt), adapter or "base", *cells)
    return table


def _cell(row: Row) -> str:
    largest = max(row.prefill_max, row.decode_max)
    mean = max(row.prefill_mean, row.decode_mean)
    return f"{largest:.1e} / {mean:.1e} {row.text}{'' if row.passed else ' FAIL'}"


def _verdicts(found: AccuracyFile) -> Table:
    """Each adapter on each path: right if all of its requests are. One that cannot be served is refused before that."""
    paths = [path for path in PATHS if any(row.path == path for row in found.rows)]
    table = Table("adapter", *paths, title="adapters", title_justify="left")
    for name in found.adapters:
        rows = [row for row in found.rows if row.adapter == name]
        table.add_row(
            name, *("right" if all(row.passed for row in rows if row.path == path) else "WRONG" for path in paths)
        )
    return table


def _texts(found: AccuracyFile) -> Table:
    table = Table("prompt", "adapter", "text (Hugging Face + PEFT)", title="what was written", title_justify="left")
    for reference in found.references:
        table.add_row(Text(reference.prompt), reference.adapter or "base", Text(reference.written))
    return table


def _checks(found: AccuracyFile) -> Table:
    table = Table("path", "check", "difference", "allowed", "", title="adapters come and go", title_justify="left")
    for check in found.checks:
        verdict = "pass" if check.passed else "FAIL"
        table.add_row(check.path, check.what, f"{check.difference:.1e}", f"{check.allowed:.1e}", verdict)
    return table


def _faults(found: AccuracyFile) -> Table:
    table = Table("path", "fault", "outputs that fail", "difference", "", title="planted faults", title_justify="left")
    for fault in found.faults:
        verdict = "caught" if fault.caught else "MISSED"
        counts = f"{fault.failed} of {fault.outputs}"
        table.add_row(fault.path, fault.fault, counts, f"{fault.difference:.1e}", verdict)
    return table
