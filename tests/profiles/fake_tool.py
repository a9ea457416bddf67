"""A stand-in for nsys and ncu: answers probes from recorded facts, and captures as it is told.

FAKE_FACTS     the file whose first line is the version and whose rest is the help
FAKE_METRICS   what `ncu --query-metrics` prints
FAKE_CAPTURE   the file that a capture yields, under its own suffix; none: nothing is captured
FAKE_DATABASE  what `nsys export` yields; none: it cannot export
FAKE_SAYS      printed by a capture
FAKE_STATUS    with which a capture ends
FAKE_HANGS     a capture writes half of its file, then this one, and waits to be killed
FAKE_ARGUMENTS the file to which a capture's command line is appended
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path


def told(name: str) -> str:
    return os.environ.get(f"FAKE_{name}", "")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def probe(arguments: list[str]) -> bool:
    version, _, text = Path(told("FACTS")).read_text().partition("\n")
    if arguments == ["--version"]:
        say(version)
    elif arguments[-1] == "--help":
        say(text)
    elif arguments[0] == "--query-metrics":
        say(Path(told("METRICS")).read_text() if told("METRICS") else "==ERROR== Driver could not be loaded.")
    else:
        return False
    return True


def output_of(arguments: list[str]) -> Path:
    for place, argument in enumerate(arguments):
        if argument.startswith("--output="):
            return Path(argument.partition("=")[2])
        if argument == "--export":
            return Path(arguments[place + 1])
    raise SystemExit("no output was named")


def export(arguments: list[str]) -> None:
    if told("DATABASE"):
        shutil.copy(told("DATABASE"), output_of(arguments))


def capture(arguments: list[str]) -> None:
    if told("ARGUMENTS"):
        with Path(told("ARGUMENTS")).open("a") as file:
            file.write("\0".join(arguments) + "\n")
    say(told("SAYS"))
    output = output_of(arguments)
    if told("HANGS"):
        output.with_name(output.name + ".qdstrm").write_bytes(b"half")
        Path(told("HANGS")).write_text(str(os.getpid()))
        time.sleep(60)
    if told("CAPTURE"):
        source = Path(told("CAPTURE"))
        shutil.copy(source, output.with_name(output.name + source.suffix))
    sys.exit(int(told("STATUS") or 0))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not probe(arguments):
        export(arguments) if arguments[0] == "export" else capture(arguments)
