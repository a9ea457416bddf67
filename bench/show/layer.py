"""The table of `python -m bench layer`. A line is printed as soon as a case is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from rich.console import Console

from bench.execute.layer import LayerRow


def shown(rows: Iterable[LayerRow], console: Console) -> Iterator[LayerRow]:
    """Print the rows as they come (medians in us, and how much faster a part is with the plugin), and pass them on."""
    said: set[str] = set()
    for row in rows:
        if row.layer not in said:
            said.add(row.layer)
            console.print(f"{row.part}: {row.layer}", markup=False)
        on_us, off_us = median(row.on_us), median(row.off_us)
        console.print(
            f"{row.case.label:<40} {row.part:<7} chunk {row.chunk_size:<4} {row.clock:<6} "
            f"off {off_us:9.2f} us   on {on_us:9.2f} us   {off_us / on_us:6.2f} x   "
            f"error {row.off_error:.1e} to {row.on_error:.1e}",
            markup=False,
            highlight=False,
        )
        yield row
