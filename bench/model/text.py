"""Makes text from elsewhere safe to print: one line, no control characters, no commands of a CI's log."""

from __future__ import annotations

import re

# C0, DEL and C1, both line separators, what turns the direction of text, and what no encoding or XML can hold.
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
_ANY_CONTROL = re.compile(f"[{_CONTROL}]")
_IN_LINE_CONTROL = re.compile(f"(?![\n\t])[{_CONTROL}]")
# GitHub's runner obeys `::command` at the start of a line, after any spaces, and `##[command]` wherever it stands.
_COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\[)", re.MULTILINE)


def control_character(text: str) -> str | None:
    """The first control character of a text. None if it has none."""
    found = _ANY_CONTROL.search(text)
    return found[0] if found else None


def one_line(text: str) -> str:
    """The text with a space for each line break or tab, and a question mark for each other control character."""
    return _ANY_CONTROL.sub(_replacement, text)


def printable(text: str) -> str:
    """The text with its line breaks and tabs, but without other control characters."""
    return _IN_LINE_CONTROL.sub(_replacement, text)


def for_log(text: str) -> str:
    """Lines that a CI's log cannot take for commands: the colons or hashes of a command are separated."""
    return _COMMAND.sub(lambda found: f"{found[1]}: " if found[1] is not None else "# ", text)


def _replacement(found: re.Match[str]) -> str:
    return " " if found[0].isspace() else "?"
