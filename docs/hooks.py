"""Fills the pages of docs/reference that are made from the code: mkdocs calls it when the site is built.

A page says where with a line such as `<!-- made: commands -->`; read as a file, it says how to see the same elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs runs as a program of its own
LINK = re.compile(r"\[(\w+)\]\(#\w+\)")
MARK = re.compile(r"^<!-- made: (\w+) -->$", re.M)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Each mark replaced by what the code says."""
    return MARK.sub(lambda found: "\n".join(MADE[found[1]]()), markdown)


def commands() -> Iterator[str]:
    """Every verb with its options, as typer documents them; paths as in a checkout."""
    import typer.main
    from typer.cli import get_docs_for_click

    from bench.cli.main import suite

    command = typer.main.get_command(suite())
    text = get_docs_for_click(
        obj=command, ctx=command.make_context("bench", [], resilient_parsing=True), name="python -m bench"
    )
    yield text.partition("\n\n")[2].replace(f"{ROOT}/", "")


def keys() -> Iterator[str]:
    """Every key of bench.toml that is no profile: its type, its value there, and the comment beside it."""
    import tomllib

    import msgspec

    from bench.model.config import Config

    text = (ROOT / "bench.toml").read_text(encoding="utf-8")
    values, comments = tomllib.loads(text), _comments(text)
    for name, fields in _structures(msgspec.json.schema(Config), "Config"):
        table = values.get(name, {}) if name else values
        yield from ("", f"## `[{name}]`" if name else "## At the top", "")
        yield from _table(
            ("key", "type", "in bench.toml", "what it is"),
            (
                (
                    f"`{key}`",
                    LINK.sub(r"\1", _type(of)),  # a table has its own heading, not its structure's
                    f"`{json.dumps(table[key])}`" if key in table else "",
                    comments.get((name, key), ""),
                )
                for key, of in fields.items()
            ),
        )


def _structures(schema: dict[str, Any], top: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table of the file, its keys): the file itself as the name of none, then each of its tables."""
    known = schema["$defs"]
    fields = known[top]["properties"]
    tables = {name: known[of["$ref"].rpartition("/")[2]] for name, of in fields.items() if "$ref" in of}
    yield "", {name: of for name, of in fields.items() if name not in tables and of.get("type") != "object"}
    for name, of in tables.items():
        yield name, of["properties"]


def _comments(text: str) -> dict[tuple[str, str], str]:
    """(table, key) -> the comment on its line."""
    found, table = {}, ""
    for line in text.splitlines():
        if heading := re.match(r"\[([\w.]+)\]", line):
            table = heading[1]
        elif key := re.match(r"(\w+) *=.*?\s# (.*)", line):
            found[table, key[1]] = key[2]
    return found


def fields() -> Iterator[str]:
    """Every structure of a results file, from the schema beside its reader."""
    schema = json.loads((ROOT / "bench" / "model" / "results.schema.json").read_text(encoding="utf-8"))
    for name, of in schema["$defs"].items():
        yield from ("", f"## {name}", "", _paragraphs(of.get("description", "")), "")
        if "properties" in of:
            rows = (
                (f"`{key}`", _type(one), "" if key in of["required"] else "may be left out")
                for key, one in of["properties"].items()
            )
            yield from _table(("key", "type", ""), rows)


def _type(of: dict[str, Any]) -> str:
    """A type of the schema in a few words; a structure of the same page as a link."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in of:
        return " or ".join(f"`{json.dumps(value)}`" for value in of["enum"])
    if "anyOf" in of:
        return " or ".join(_type(one) for one in of["anyOf"])
    kind = of.get("type", "any")
    if kind == "array":
        return f"list of {_type(of.get('items', {}))}" if of.get("items") else "list"
    if kind == "object" and isinstance(of.get("additionalProperties"), dict):
        return f"object of {_type(of['additionalProperties'])}"
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    said = [f"{sign} {of[name]:g}" for name, sign in limits.items() if name in of]
    return " ".join([str(kind), *said])


def _table(heads: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _words(text: str | None) -> str:
    """A help text on one line; what stands in angle brackets is no HTML."""
    return " ".join((text or "").split()).replace("<", "&lt;")


def _paragraphs(text: str) -> str:
    """A docstring: its aligned lists stay as they are."""
    head, _, rest = text.partition("\n\n")
    return _words(head) + (f"\n\n```text\n{rest}\n```" if rest else "")


MADE = {"commands": commands, "keys": keys, "fields": fields}
