"""README and docs: links lead somewhere, commands exist as they are written, the README stays short."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import csgmv_embed
from bench.cli.main import suite

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
BENCH = "python -m bench "
SUITE = typer.main.get_command(suite())
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        assert not anchor or found.suffix != ".md" or anchor[1:] in anchors(found), target + anchor


def commands(page: Path) -> Iterator[str]:
    """Every command of the suite in a block or in backticks, without its comment."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(rf"^ *({BENCH}[^\n]*)", text, re.M)
    yield from re.findall(rf"`({BENCH}[^`\n]*)`", text)


def unknown(line: str) -> str | None:
    """What of a command line the suite does not know."""
    words = shlex.split(line.removeprefix(BENCH), comments=True)
    command = SUITE
    while verbs := getattr(command, "commands", None):
        if not words or words[0] not in verbs:
            return words[0] if words else None
        command = verbs[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return next((word for word in words if word.startswith("-") and word.split("=")[0] not in known), None)


@pages
def test_commands_are_written_as_the_suite_takes_them(page: Path) -> None:
    assert {line: found for line in commands(page) if (found := unknown(line))} == {}


def test_a_wrong_command_is_seen() -> None:
    assert unknown(BENCH + "swep -p full") == "swep"
    assert unknown(BENCH + "history rum") == "rum"
    assert unknown(BENCH + "sweep -p full --profiles x") == "--profiles"
    assert unknown(BENCH + "gate --against origin/main  # a comment --nope") is None


def test_the_version_has_its_part_of_the_changelog() -> None:
    assert f"\n## {csgmv_embed.__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900
