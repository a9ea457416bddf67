"""How a command ends: the exit status says what happened, and the last line on standard error says why.

Status 1 is only a verb's own finding: a confirmed regression in the gate, or a failed point of ours in a sweep. Any
error on the way, expected or not, is 2, like wrong usage. 3 means that no judgement is possible.
"""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

import typer

from bench.cli import streams
from bench.cli.exit_codes import CANNOT_JUDGE, FAILED, INTERRUPTED
from bench.model.text import one_line

# Packages that measuring needs, and looking at records does not.
MEASURING = ("torch", "triton", "nvtx", "pynvml", "sglang")


def end(status: int, reason: object, name: str) -> NoReturn:
    """Print the reason on one line and exit."""
    sys.stderr.write(f"{name}: {one_line(str(reason))}\n")
    raise SystemExit(status)


def run(
    app: typer.Typer, arguments: list[str] | None = None, context: object = None, *, name: str = "bench"
) -> NoReturn:
    """Run a command line and end the process."""
    with streams.told():
        _run(app, arguments, context, name)
    raise AssertionError("a command line ends its process")


def _run(app: typer.Typer, arguments: list[str] | None, context: object, name: str) -> NoReturn:
    try:
        status = app(args=arguments, obj=context, standalone_mode=False)
    except KeyboardInterrupt:
        end(INTERRUPTED, "interrupted", name)
    except SystemExit as ended:  # typer's own, for a reader of standard output that has gone
        raise SystemExit(FAILED if ended.code == 1 else ended.code) from None
    except Exception as error:
        _end_with(error, name)
    raise SystemExit(status if isinstance(status, int) else 0)


def _end_with(error: Exception, name: str) -> NoReturn:
    """Imports the suite's own errors only now: `--help` needs none."""
    if hasattr(error, "exit_code") and hasattr(error, "show"):  # of usage: typer exports no class of them
        error.show()
        raise SystemExit(error.exit_code) from None
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in MEASURING:
        missing = f"needs {error.name}, which a light install leaves out"
        end(FAILED, f"{missing}; expected the full install: make setup", name)
    if isinstance(error, ImportError):
        end(FAILED, f"{type(error).__name__}: {error}", name)
    from bench.execute.isolate import WorkerDied
    from bench.model.config import ConfigError
    from bench.model.records import ResultsError
    from bench.model.verdict import CannotJudge, GateError

    if isinstance(error, CannotJudge):
        end(CANNOT_JUDGE, error, name)
    if isinstance(error, ConfigError | GateError | ResultsError | WorkerDied):
        end(FAILED, error, name)
    traceback.print_exception(error)
    end(FAILED, f"unexpected {type(error.__cause__ or error).__name__}: {error.__cause__ or error}", name)
