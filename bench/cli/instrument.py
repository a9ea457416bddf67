"""`python -m bench.cli.instrument`: the hash of the measuring code and its number, or the line that gives it one."""

from __future__ import annotations

import sys

from bench.model.instrument import code_hash, described, unknown_code

if __name__ == "__main__":
    found = code_hash()
    sys.stdout.write(f"{unknown_code(found) or f'the measuring code is {found}: {described(found)}'}\n")
