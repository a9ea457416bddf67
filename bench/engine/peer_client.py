"""SGLang's bench_serving, imported once and run repeatedly. Each run's arguments are a line of JSON on stdin.

For each run it writes a line to stdout: null, or why the run failed. What bench_serving prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import msgspec


def without_datasets() -> None:
    """Make bench_serving importable without the package `datasets`, which prompts of random ids do not use.

    bench_serving imports one name of it for a set of pictures. Using that name here is an error that says so.
    """
    if importlib.util.find_spec("datasets") is not None:
        return

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("the package datasets is not installed; expected prompts of random ids")

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]  # the one name that is imported
    sys.modules["datasets"] = module


def serve(main: Callable[[], Any]) -> None:
    """Run `main` with the arguments of each line, until there are no more."""
    answers = sys.stdout
    for line in sys.stdin:
        sys.argv = ["bench_serving", *msgspec.json.decode(line, type=list[str])]
        problem = None
        with contextlib.redirect_stdout(sys.stderr):
            try:
                main()
            except SystemExit as end:
                problem = f"bench_serving ended with {end.code}" if end.code else None
            except Exception as error:
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        answers.write(msgspec.json.encode(problem).decode() + "\n")
        answers.flush()


def imported() -> Callable[[], Any]:
    """What bench_serving's command line calls."""
    without_datasets()
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it has moved, and is there under both names
        from sglang.bench_serving import cli_main
    found: Callable[[], Any] = cli_main
    return found


if __name__ == "__main__":
    serve(imported())
