"""The site of docs/: every page has its place in it, what it says of the code is the code's, nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from bench.cli.main import suite

ROOT = Path(__file__).parents[1]
DOCS, SITE = ROOT / "docs", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
REFERENCE = DOCS / "reference"


def made(name: str) -> str:
    """A page of the reference as the site has it."""
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = hooks.on_page_markdown((REFERENCE / name).read_text(encoding="utf-8"))
    assert isinstance(text, str) and "<!-- made:" not in text
    return text


def test_every_page_stands_in_the_navigation_once() -> None:
    named = re.findall(r"^ +- ([\w/-]+\.md)$", SITE, re.M)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_site_takes_nothing_from_a_network() -> None:
    assert "font: false" in SITE and not re.search(r"https?://|extra_javascript|extra_css", SITE)


def test_the_command_line_has_every_verb_and_option() -> None:
    page = made("cli.md")
    verbs = getattr(typer.main.get_command(suite()), "commands")  # noqa: B009
    assert len(verbs) > 15
    for verb, command in verbs.items():
        below = getattr(command, "commands", {verb: command})
        for parameter in [item for each in below.values() for item in each.params]:
            assert all(f"`{name}" in page or f", {name}" in page for name in parameter.opts if name.startswith("--")), (
                verb
            )
            assert "[" not in (getattr(parameter, "help", None) or ""), (
                "a terminal takes [word] for markup, and drops it"
            )
        assert f"## `python -m bench {verb}`" in page
    assert str(ROOT) not in page, "a path of this machine"


@pytest.mark.parametrize("table", ["measure", "axes", "gate", "history", "serving"])
def test_the_configuration_has_every_key_with_its_value(table: str) -> None:
    page = made("configuration.md")
    part = page.partition(f"## `[{table}]`")[2].partition("\n## ")[0]
    for key, value in tomllib.loads((ROOT / "bench.toml").read_text(encoding="utf-8"))[table].items():
        assert f"| `{key}` |" in part, key
        if not isinstance(value, dict | list):
            assert f"`{json.dumps(value)}`" in part, key
    assert "launches captured in one graph" in page, "the comment beside a key"


def test_the_format_has_every_structure_and_field() -> None:
    page = made("format.md")
    for name, of in json.loads((ROOT / "bench/model/results.schema.json").read_text(encoding="utf-8"))["$defs"].items():
        part = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert part, name
        assert all(f"| `{field}` |" in part for field in of.get("properties", {})), name


def test_the_library_has_every_public_name() -> None:
    import csgmv_embed

    page = (REFERENCE / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: csgmv_embed\.(\w+)$", page, re.M)) == sorted(csgmv_embed.__all__)
