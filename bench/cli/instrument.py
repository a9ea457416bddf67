"""`python -m bench.cli.instrument`: prints the measuring code's hash and number, or the line to add that numbers it."""

from __future__ import annotations

import sys

from bench.model.instrument import code_hash, described, unknown_code

if __name__ == "__main__":
    found = code_hash()
    sys.stdout.write(f"{unknown_code(found) or f'the measuring code is {found}: {described(found)}'}\n")
