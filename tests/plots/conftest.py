"""The tests of figures draw what those of the gate and of the history make."""

import sys
from pathlib import Path

for folder in ("gate", "history"):
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / folder))
