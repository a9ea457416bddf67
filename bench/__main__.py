"""`python -m bench`. What keeps the suite from being imported is exit status 2 and one line: 1 would be a verdict."""

import sys

try:
    from bench.cli.main import main
except Exception as error:
    sys.stderr.write(f"bench: cannot be imported: {type(error).__name__}: {error}\n")
    raise SystemExit(2) from None

if __name__ == "__main__":
    main()
