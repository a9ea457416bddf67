"""The instrument's version: figures taken under one number may be compared, figures of two numbers may not.

History: number, what changed, what it does to comparability
1  The first. Inputs, counts and the host's clocks (eager, prepare) are as in 2, times of the graph clock are not.
2  The graph clock samples after work on 16 streams, as in a server, does not record the first block after a pause, and
   takes the floor beside each point. On an H100 a graph node is 0.18 us longer so, and cold blocks no longer wait for
   the host (docs/explanation/clocks.md): times of 1 cannot be compared. The ops layer, head and expand came later;
   lookups stayed. Then sites, with tables that rotate where caches are cold; all without a site stayed.

A record carries the number; before results 1.2.0 it carried a hash of the suite's sources, which `KNOWN` puts under its
number. A hash that is not there is of no known version: its figures are comparable with each other alone.

`KNOWN` also has the hashes of the measuring code's syntax trees, and a test wants the present one among them. When it
moves, `python -m bench.cli.instrument` prints the line to add: under the same number and with the reason why figures
stay comparable, or under a new number, which the history above then explains. Until then new records carry the hash.

Code moves the hash. Comments, docstrings, layout of the text, names and places of files, the order of definitions and
from which module of this repository a name is imported do not. What this cannot see: a name imported from another
module of ours, where it means something else. If that module measures, its definitions are in the hash themselves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from bench.model.paths import ROOT

# The measuring code, relative to a checkout: what makes inputs, drives contenders, takes times and counts.
# A file or folder that moves is to be followed here.
MEASURING = (
    "bench/model/case.py",
    "bench/workload",
    "bench/execute/measure.py",
    "bench/execute/worker.py",
    "bench/clocks",
    "bench/contenders",
)
OURS = ("bench", "csgmv_embed")  # packages whose modules may be moved about
_NUMBER = re.compile(r"[1-9][0-9]{0,3}")


@dataclass(frozen=True)
class Known:
    """A state of the measuring code and its number. `why` describes it, or says why earlier figures stay comparable."""

    number: int
    hash: str  # 16 hexadecimal digits
    why: str


KNOWN = (
    # Hashes of sources, in records before results 1.2.0. Their workloads are equal, and so is what they count.
    Known(1, "35f3e43a8d3bdf33", "the first with published results, on an H200"),
    Known(1, "28f373a66d6cc984", "adds the prepare clock and variants of our contender; all else is timed alike"),
    Known(1, "91e65d324014359e", "adds the plugin's contenders; a fixed number of nodes where the gate asks for it"),
    Known(2, "b8c690b2fabec2de", "the graph clock of version 2"),
    Known(2, "ee98daa5f55dd6f2", "adds the ops layer, head and expand; a lookup's inputs, graph and counts stay"),
    # Hashes of syntax trees.
    Known(2, "ce7c7e188a47b1d8", "the code of ee98daa5f55dd6f2; the worker hashes the tuned tables with the library"),
    Known(2, "bdcbeb7d76a8ca4f", "every launch is counted, and listed; all 42 counted points stay"),
    Known(2, "3879be32525e143f", "the layer's kernels are asked for by both of their names"),
    Known(2, "51b17092a5c359a9", "kernels and the switch for host tensors are named where the library has them now"),
    Known(2, "a55c58c041e3366e", "the folders of today, of suite and plugin; methods that only handed on are gone"),
    Known(2, "739e6bf1ff16b846", "adds sites, their ops and tables; what others are made, fed and counted by stays"),
    Known(2, "b65a81af1b37b656", "the tables of all index sets of a site are listed in one place"),
    Known(
        2,
        "de2a622cd0c3e691",
        "peers of today: versions of SGLang, vLLM's other ops; graphs are captured where they warmed up",
    ),
    Known(2, "d783f84e61fbd1a7", "our lm_head is a linear layer; what it is given and what it must give stay"),
    Known(2, "7f5e5d42e641da28", "the plugin of a plan or layer serves lm_head too, as in a server"),
    Known(2, "82177c30cfb46923", "counts come from a tracer of our own: all 47 counted points stay"),
    Known(2, "29c9552566b50ff1", "adds contenders of files, and 0.5.10 of SGLang without a GPU; all else stays"),
    Known(
        2, "5c35d7bafb1a5546", "the oracle and the tables are the suite's own, equal to the library's; tests hold it"
    ),
    Known(2, "59bc6744ce781c78", "both of these: own tracer, own oracle"),
    Known(2, "ac1cfd670226d1fb", "clocks are read of the GPU that the process sees first, not of the host's first"),
    Known(2, "1eb23dbbef3f503c", "ranges of an nvtx before 0.2.12; nothing that is timed or counted"),
    Known(
        2, "10266718aea337fa", "SGLang's settings are published for layers outside a server; no contender needs them"
    ),
    Known(2, "2fc76e04f6901e37", "both of these: clocks of the GPU that is seen, settings published"),
    Known(2, "85e1e99708fc0924", "all three of these"),
    Known(2, "3a8a896526adcbe0", "the interpreter repeats less; all counts stay"),
    Known(2, "571c84c4aaefbfc2", "all of these: GPUs dealt to, the interpreter quickened, ranges of an older nvtx"),
    Known(2, "8658731e0860ae07", "other words for why SGLang's kernels do not load; nothing that is timed or counted"),
    Known(2, "ba09145841972077", "which SGLang is suggested where none is installed"),
    Known(2, "3213939677f136d3", "a peer that cannot be imported says why beside its kernel cache"),
)


def version_of(recorded: str) -> str:
    """The version that a record's `bench_version` means: a number, or an unknown hash.

    Equal versions are comparable.
    """
    return _numbers().get(recorded, recorded)


def described(recorded: str) -> str:
    """The version in words."""
    version = version_of(recorded)
    return f"version {version}" if _NUMBER.fullmatch(version) else f"no known version (code {version})"


def present() -> str:
    """The version of this checkout: its number, or the hash of measuring code that has none yet."""
    return version_of(_present_hash())


def unknown_code(code: str) -> str | None:
    """What to do about measuring code without a number. None if it has one."""
    if code in _numbers():
        return None
    newest = max(known.number for known in KNOWN)
    return (
        f"the measuring code has changed, its hash is {code}; expected a line of KNOWN in bench/model/instrument.py:\n"
        f'    Known({newest}, "{code}", "why figures stay comparable"),\n'
        f"or, if they do not, Known({newest + 1}, ...) and what changed in the history at the top of that file"
    )


def code_hash(root: Path = ROOT) -> str:
    """Hash of a checkout's measuring code: 16 hexadecimal digits. Raises FileNotFoundError for a missing part."""
    statements: list[str] = []
    imports: set[str] = set()
    for file in _files(root):
        for statement in ast.parse(file.read_bytes(), file).body:
            statements += [] if _is_silent(statement) else [_dump(statement)]
            imports.update(_imported(statement))
    return sha256("\n".join(sorted(statements) + sorted(imports)).encode()).hexdigest()[:16]


@cache
def _numbers() -> dict[str, str]:
    return {known.hash: str(known.number) for known in KNOWN}


@cache
def _present_hash() -> str:
    return code_hash()


def _files(root: Path) -> Iterator[Path]:
    for name in MEASURING:
        path = root / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: does not exist; expected MEASURING in bench/model/instrument.py to name its new place"
            )
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _imported(statement: ast.stmt) -> Iterator[str]:
    """What is imported inside a statement and under which names; of our own modules without where it lies."""
    for node in ast.walk(statement):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        ours = isinstance(node, ast.ImportFrom) and (node.level > 0 or module.split(".")[0] in OURS)
        for alias in node.names:
            origin = alias.name if ours or not module else f"{module}.{alias.name}"
            yield f"import {origin} as {alias.asname or alias.name}"


def is_text(node: object) -> bool:
    """Whether a statement is a docstring, or a text that stands as one."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_silent(node: object) -> bool:
    """Whether a statement says nothing of its own: imports, docstrings, what is for type checkers alone."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if is_text(node):
        return True
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _dump(node: object) -> str:
    """A syntax tree as text, the same in every version of Python: `ast.dump` writes empty fields in some of them."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_dump(value)}"
            for name, value in ast.iter_fields(node)
            if value not in (None, []) and name not in ("ctx", "kind", "type_comment")
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(_dump(item) for item in node if not _is_silent(item))}]"
    return ascii(node)
