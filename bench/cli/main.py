"""`python -m bench VERB`: every verb, one file a group. A command line imports the files of its own verb alone."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import entry
from bench.cli.exit_codes import FAILED

if TYPE_CHECKING:
    from bench.execute.interleaved import Machine

# File of bench/cli -> its verbs, with the line that `--help` has of each: the first sentences of the verb's own help.
# They stand here too so that `--help` need not import what the verbs do.
GROUPS: dict[str, dict[str, str]] = {
    "measure": {
        "sweep": "Verify and measure every point of a profile; without a GPU, count its work.",
        "tune": "Time the tiles of every kernel on this GPU and write the library's table of those that beat its "
        "rules.",
        "layer": "Time SGLang's embedding layer and lm_head with the plugin on and off.",
    },
    "serve": {
        "serve": "Measure a real SGLang engine in each mode; without a GPU, check the case and say what would run."
    },
    "look": {
        "show": "The tables of a file, or the answer to a question about its points.",
        "plot": "Draw a figure, as PNG and SVG. The last three options choose from a history.",
        "doctor": "Versions, the GPU, what is missing and how to get it.",
        "list": "The cases and contenders a sweep would measure, and the profiles there are.",
        "config": "The effective configuration, as JSON.",
    },
    "report": {
        "report": "Write one HTML page that works without a network: charts, filters, each point's rounds, where it "
        "comes from."
    },
    "gate": {
        "gate": "Decide whether the kernel became slower. Exit: 0 no, 1 yes, 2 wrong usage, 3 cannot tell.",
    },
    "comment": {
        "comment": "A gate's report as a comment: verdict, picture, flagged points; what passed is folded away.",
    },
    "baseline": {
        "compare": "The gate's analysis of two files, without a verdict.",
        "baseline": "Write a baseline; refuses uncommitted changes, too few rounds, failed and unstable points.",
    },
    "accuracy": {
        "accuracy": "Compare SGLang's LoRA, with and without the plugin, with Hugging Face + PEFT. Exits 1 if anything "
        "differs.",
        "forms": "Serve each form of adapter, by SGLang as installed and with the plugin. Exits 1 if the plugin is "
        "wrong.",
        "adapters": "Train two adapters of different rank and text on embed_tokens and lm_head; write them, with their "
        "loss curves.",
        "small-model": "Train the small model of the tests, in under a minute on a CPU; train its adapters after it.",
    },
    "history": {"history": "Series across commits: measure, add, show, bisect, confirm."},
    "profile": {"profile": "Show what happens inside a point: nsys, ncu or torch's profiler."},
}


def _version(wanted: bool) -> None:
    if wanted:
        from bench.model.environment import suite_version

        typer.echo(suite_version())
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Measure LoRA kernels, compare them with SGLang's, and judge changes."""


def suite(*verbs: str) -> typer.Typer:
    """The command line with these verbs, or with all of them; of the others it knows the names and a line of help."""
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
