"""`python -m csgmv_embed doctor`: whether the SGLang plugin is on, and why not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = "usage: python -m csgmv_embed doctor\n"


def main(arguments: Sequence[str]) -> int:
    """0: the plugin is on; 1: it is off, and the output says why; 2: bad usage."""
    if list(arguments) != ["doctor"]:
        sys.stderr.write(USAGE)
        return 2
    from csgmv_embed.sglang import doctor

    found, way = doctor.examine()
    sys.stdout.write("".join(f"{line}\n" for line in doctor.report(found, way)))
    return 0 if found.active else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
