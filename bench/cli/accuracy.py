"""`accuracy`, `adapters` and `small-model` of the command line: one short function a verb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.guards import refuse_unknown_format
from bench.model import environment

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="smollm2, small, or a local folder with a Hugging Face model.")
]
DTYPES = ("float32", "bfloat16", "float16")


def accuracy(
    model: ModelOption = "smollm2",
    adapter: Annotated[
        list[Path],
        typer.Option(
            "--adapter", help="Folder of a PEFT adapter; may be repeated. Default: the model's two trained adapters."
        ),
    ] = [],
    dtype: Annotated[
        str | None, typer.Option(help="Without a GPU: float32. On a GPU: bfloat16 (default) or float16.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="How many tokens to decode greedily for each request.")] = 32,
    prompts: Annotated[int, typer.Option(min=1, max=5, help="How many of the five prompts to use.")] = 5,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Also plant faults and check that each is caught.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the results to this file, as JSON.")
    ] = None,
) -> None:
    """Compare SGLang's LoRA, with and without the plugin, against Hugging Face + PEFT. Exits 1 if anything differs."""
    has_gpu = environment.has_gpu()
    if not has_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch

    from bench.accuracy import models, run
    from bench.model import store
    from bench.model.environment import collect_code, collect_environment, command_line
    from bench.show.accuracy import encode, followed, summary
    from bench.show.tables import console

    device = torch.device("cuda:0" if has_gpu else "cpu")
    chosen = _dtype(dtype, has_gpu)
    source = models.find(model)
    folders = tuple(adapter) or tuple(source.adapters / name for name in models.ADAPTERS)
    setting = run.Setting(source, folders, getattr(torch, chosen), device, steps, prompts, has_gpu, self_check)
    found = run.AccuracyFile(
        environment=collect_environment(device.type),
        code=collect_code(),
        argv=command_line(),
        model=source.name,
        adapters=[folder.name for folder in folders],
        dtype=chosen,
        graphs=has_gpu,
        steps=steps,
    )
    for event in followed(run.accuracy(setting), console()):
        found.add(event)
        if output is not None and isinstance(event, run.Stage):  # an interrupt loses one stage
            store.write_bytes(output, encode(found))
    found.complete = True
    console().print(summary(found))
    if output is not None:
        store.write_bytes(output, encode(found))
        console().print(f"written to {output}")
    if not found.passed:
        raise typer.Exit(1)


def forms(
    format: Annotated[str, typer.Option("--format", help="Output format: table, markdown, csv or json.")] = "table",
) -> None:
    """Serve each form of adapter with the installed SGLang, then with the plugin. Exits 1 if the plugin is wrong."""
    refuse_unknown_format(format)
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from bench.accuracy.forms import forms as served
    from bench.show.forms import rows, table
    from bench.show.rows import FORMATS
    from bench.show.tables import console

    found = list(served())
    if format == "table":
        console().print(table(found))
    else:
        typer.echo(FORMATS[format](rows(found)), nl=False)
    if not all(row.passed for row in found):
        raise typer.Exit(1)


def adapters(
    model: ModelOption = "smollm2",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for both adapters. Default: the folder that `accuracy` reads."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each adapter.")] = 40,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate of AdamW.")] = 1e-2,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 1,
    attention: Annotated[bool, typer.Option("--attention", help="Also train q_proj and v_proj.")] = False,
) -> None:
    """Train two adapters on embed_tokens and lm_head, with different ranks and texts. Write them with their losses."""
    from bench.accuracy import models, training
    from bench.show.accuracy import trained
    from bench.show.tables import console

    source = models.find(model)
    for recipe in training.RECIPES:
        folder = (output or source.adapters) / recipe.name
        steps_of = training.train_adapter(
            source, recipe, folder, steps=steps, learning_rate=learning_rate, seed=seed, attention=attention
        )
        trained(steps_of, console())
        console().print(f"written to {folder}")


def small_model(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the model. Default: replace the committed model and remove its adapters."
        ),
    ] = None,
) -> None:
    """Train the small model of the tests, in under a minute on a CPU. Afterwards run `adapters -m small`."""
    from bench.accuracy import models, training
    from bench.show.accuracy import trained
    from bench.show.tables import console

    folder = output or models.find(models.SMALL).folder
    trained(training.train_small(folder), console())
    console().print(f"written to {folder}")


def _dtype(wanted: str | None, has_gpu: bool) -> str:
    """The dtype to compare in. Triton's interpreter gets bf16 products wrong; a GPU computes float32 ones in TF32."""
    from bench.accuracy.models import AccuracyError

    allowed = DTYPES[1:] if has_gpu else DTYPES[:1]
    if wanted is None:
        return allowed[0]
    if wanted not in allowed:
        where = "on a GPU" if has_gpu else "without a GPU"
        raise AccuracyError(f"--dtype {wanted}: {where} expected {' or '.join(allowed)}")
    return wanted


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (accuracy, forms, adapters, small_model):
        app.command()(verb)
