"""`python -m csgmv_embed doctor` and `convert`: whether the SGLang plugin is on; a plain adapter of another form."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = """usage: python -m csgmv_embed doctor
       python -m csgmv_embed convert ADAPTER OUT
"""


def main(arguments: Sequence[str]) -> int:
    """0: the plugin is on, the adapter was written; 1: it is off, or has no plain form, and why; 2: bad usage."""
    match list(arguments):
        case ["doctor"]:
            return _doctor()
        case ["convert", source, target]:
            return _convert(Path(source), Path(target))
    sys.stderr.write(USAGE)
    return 2


def _doctor() -> int:
    from csgmv_embed.sglang import doctor

    found, way = doctor.examine()
    sys.stdout.write("".join(f"{line}\n" for line in doctor.report(found, way)))
    return 0 if found.active else 1


def _convert(source: Path, target: Path) -> int:
    from csgmv_embed.adapters.convert import convert
    from csgmv_embed.adapters.rules import AdapterError

    try:
        off = convert(source, target)
    except AdapterError as error:
        sys.stderr.write(f"csgmv_embed: {error}\n")
        return 1
    sys.stdout.write(f"written to {target}; PEFT's outputs differ by {off:.1e} of the largest value\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
