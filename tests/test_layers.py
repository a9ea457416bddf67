"""Imports point down only: the order of the layers, and no circle of modules, imports inside functions counted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a package may import those above its own line here, itself, and nothing else of ours.
LAYERS = (
    "csgmv_embed",
    "bench.model",
    "bench.workload",
    "bench.contenders",
    "bench.clocks",
    "bench.judge",
    "bench.execute",
    "bench.accuracy",
    "bench.engine",
    "profiles",
    "bench.show",
    "plots",
    "bench.cli",
    "bench.__main__",
)
KNOWS_THE_COMMAND_LINE = "bench.cli"
PRINTS = ("bench.cli", "bench.show", "csgmv_embed.__main__")  # progress is shown while things run


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(file): ast.parse(file.read_bytes())
    for package in ("bench", "plots", "profiles", "csgmv_embed")
    for file in sorted((ROOT / package).rglob("*.py"))
}


def imported(tree: ast.Module) -> Iterator[str]:
    """Every name that a module imports, `module.name` where it is a name of a module; anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(tree: ast.Module) -> set[str]:
    """Our modules among what a module imports."""
    found = set()
    for name in imported(tree):
        owner = name if name in SOURCES else name.rpartition(".")[0]
        found |= {owner} & SOURCES.keys()
    return found


def layer_of(module: str) -> int:
    return next((place for place, layer in enumerate(LAYERS) if f"{module}.".startswith(f"{layer}.")), -1)


GRAPH = {module: modules_of(tree) - {module} for module, tree in SOURCES.items()}


def test_every_module_has_a_layer() -> None:
    assert [module for module in SOURCES if layer_of(module) < 0] == ["bench"]


def test_imports_point_down() -> None:
    up = [(m, other) for m, others in GRAPH.items() for other in sorted(others) if layer_of(other) > layer_of(m)]
    assert up == []


def test_no_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_the_command_line_knows_its_library() -> None:
    knows = [m for m, tree in SOURCES.items() if any(name.split(".")[0] == "typer" for name in imported(tree))]
    assert knows and all(module.startswith(KNOWS_THE_COMMAND_LINE) for module in knows)


def test_only_programs_read_their_arguments() -> None:
    """Beside the command line: the workers and engines, and the record of how a process was started."""
    reads = {module for module, tree in SOURCES.items() if "sys.argv" in ast.unparse(tree)}
    assert reads <= {
        "bench.cli.main",
        "bench.engine.child",
        "bench.engine.peer_client",  # sets them, for bench_serving
        "bench.engine.session",
        "bench.execute.pair_start",
        "bench.execute.worker",
        "bench.model.environment",
        "csgmv_embed.__main__",
    }


def test_nothing_below_prints() -> None:
    def prints(tree: ast.Module) -> bool:
        names = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        return bool(names & {"print", "sys.stdout.write"})

    assert [m for m, tree in SOURCES.items() if prints(tree) and not m.startswith(PRINTS)] == []
