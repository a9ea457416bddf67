"""The table of `python -m bench forms`: the result of each form, with SGLang as installed and with the plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from bench.accuracy.forms import FormRow


def rows(found: Sequence[FormRow]) -> list[dict[str, Any]]:
    """One row for each form, in the order of the forms."""
    by = {(row.form, row.path): row for row in found}
    return [
        {
            "form": form,
            "SGLang": _verdict(by[form, "csgmv"]),
            "with the plugin": _verdict(by[form, "plugin"]),
            "why": by[form, "plugin"].reason.removeprefix("adapter a: "),
        }
        for form in dict.fromkeys(row.form for row in found)
    ]


def table(found: Sequence[FormRow]) -> RenderableType:
    """The rows as a table for a terminal."""
    out = Table("form", "SGLang", "with the plugin", "why", title="adapters as PEFT saves them", title_justify="left")
    for row in rows(found):
        out.add_row(*row.values())
    return out


def _verdict(row: FormRow) -> str:
    if row.verdict == "wrong":
        return f"wrong, {row.difference:.0%} off"
    return "fails at the first request" if row.verdict == "fails" else row.verdict
