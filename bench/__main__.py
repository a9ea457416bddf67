"""`python -m bench`. If the suite cannot be imported, it prints one line and exits with 2, because 1 is a verdict."""

import sys

try:
    from bench.cli.main import main
except Exception as error:
    sys.stderr.write(f"bench: cannot be imported: {type(error).__name__}: {error}\n")
    raise SystemExit(2) from None

if __name__ == "__main__":
    main()
