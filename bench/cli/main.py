"""`python -m bench VERB`: every verb, one file a group. A run imports only the file of the verb that was asked for."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import entry
from bench.cli.exit_codes import FAILED

if TYPE_CHECKING:
    from bench.execute.interleaved import Machine

# File of bench/cli -> its verbs, each with its line in `--help`, which equals the first sentences of the verb's own
# help. The lines are repeated here so that `--help` does not have to import the verbs.
GROUPS: dict[str, dict[str, str]] = {
    "measure": {
        "sweep": "Verify and measure every point of a profile. Without a GPU, count the work of each.",
        "tune": "Time tile sizes for every kernel on this GPU and write a table of those that beat the library's "
        "rules.",
        "layer": "Time SGLang's embedding layer and lm_head with the plugin on and off.",
    },
    "serve": {
        "serve": "Measure a real SGLang engine in each mode. Without a GPU, check the options and print what would run."
    },
    "look": {
        "show": "Print the tables of a file, or only the points that the options select.",
        "plot": "Draw a figure, as PNG and SVG. --commits, --clock and --gpu select from a history.",
        "doctor": "Print versions, the GPU, what is missing and how to install it.",
        "list": "List what a sweep would measure (cases and contenders), and all profiles.",
        "config": "Print the configuration in force, as JSON.",
    },
    "report": {
        "report": "Write one HTML page that works offline, with charts, filters, and the rounds and origin of each "
        "point."
    },
    "gate": {
        "gate": "Decide whether a kernel became slower. Exit status: 0 no, 1 yes, 2 wrong usage, 3 cannot tell.",
    },
    "comment": {
        "comment": "Write a gate's report as a Markdown comment: verdict, picture, flagged points. Passed points "
        "are folded.",
    },
    "baseline": {
        "compare": "Compare two files as the gate does, without a verdict.",
        "baseline": "Write a baseline. Refuses uncommitted changes, too few rounds, and failed or unstable points.",
    },
    "accuracy": {
        "accuracy": "Compare SGLang's LoRA, with and without the plugin, against Hugging Face + PEFT. Exits 1 if "
        "anything differs.",
        "forms": "Serve each form of adapter with the installed SGLang, then with the plugin. Exits 1 if the plugin "
        "is wrong.",
        "adapters": "Train two adapters on embed_tokens and lm_head, with different ranks and texts. Write them "
        "with their losses.",
        "small-model": "Train the small model of the tests, in under a minute on a CPU. Afterwards run `adapters -m "
        "small`.",
    },
    "history": {"history": "Follow times across commits: measure, add, show, bisect, confirm."},
    "profile": {"profile": "Show what happens inside a point: nsys, ncu or torch's profiler."},
}


def _version(wanted: bool) -> None:
    if wanted:
        from bench.model.environment import suite_version

        typer.echo(suite_version())
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure LoRA kernels, compare them with SGLang's, and judge changes."""


def suite(*verbs: str) -> typer.Typer:
    """The command line with these verbs, or with all. A verb that is not loaded has only its name and help line."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for group, lines in GROUPS.items():
        if not verbs or not lines.keys().isdisjoint(verbs):
            importlib.import_module(f"bench.cli.{group}").register(app)
        else:
            for name, line in lines.items():
                app.command(name, help=line)(_elsewhere)
    return app


def _elsewhere() -> None:
    raise AssertionError("a verb that is asked for is imported")


def main(arguments: list[str] | None = None, machine: Machine | None = None) -> None:
    """Run the command line and end the process. The gate measures with `machine`."""
    words = sys.argv[1:] if arguments is None else arguments
    asked = next((word for word in words if not word.startswith("-")), "--help")
    try:
        app = suite(asked)
    except Exception as error:
        entry.end(FAILED, f"cannot be imported: {type(error).__name__}: {error}", "bench")
    entry.run(app, arguments, machine)
