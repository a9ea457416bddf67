"""`python -m csgmv_embed doctor` says whether the SGLang plugin is on; `convert` writes an adapter in plain form."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = """usage: python -m csgmv_embed doctor
       python -m csgmv_embed convert ADAPTER OUT
"""


def main(arguments: Sequence[str]) -> int:
    """Returns 0 if the plugin is on or the adapter was written, 1 with the reason if not, 2 for bad usage."""
    match list(arguments):
        case ["doctor"]:
            return _doctor()
        case ["convert", source, target]:
            return _convert(Path(source), Path(target))
    sys.stderr.write(USAGE)
    return 2


NEEDED = ("torch", "triton", "numpy")


def _doctor() -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        how = f"pip install {' '.join(missing)}, or install SGLang, which brings them: pip install sglang"
        sys.stdout.write(f"plugin       off: {', '.join(missing)} not installed; {how}\n")
        return 1
    sys.stderr.write("loading SGLang and its plugins, as a server does: up to a minute\n")
    sys.stderr.flush()
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
