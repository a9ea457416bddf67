"""The one style: colours told apart by colour-blind readers, in print and on dark pages; PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for the common forms of colour blindness. A contender has one colour and marker in
# every figure.
LOOKS: dict[str, tuple[str, str]] = {
    "csgmv_embed-vocab_major": ("#0072B2", "o"),
    "csgmv_embed_pdl-vocab_major": ("#56B4E9", "o"),
    "csgmv_embed_segments-vocab_major": ("#0072B2", "v"),
    "csgmv_embed-rank_major": ("#009E73", "s"),
    "csgmv_embed_pdl-rank_major": ("#009E73", "D"),
    "csgmv_embed_segments-rank_major": ("#009E73", "v"),
    "sglang_csgmv-chunk16": ("#D55E00", "^"),
    "sglang_csgmv-chunk128": ("#E69F00", "^"),
    "sglang_triton": ("#CC79A7", "P"),
    "torch_gather": ("#777777", "X"),
}
OTHER = ("#999999", ".")
REFERENCE: dict[str, Any] = {"color": "#777777", "linewidth": 1.0, "linestyle": "--"}
SETTINGS: dict[Any, Any] = {
    "figure.facecolor": "white",  # opaque: readable on a dark page too
    "savefig.facecolor": "white",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "csgmv-embed",  # the same data gives the same file
}


def look(contender: str) -> dict[str, Any]:
    """Line colour and marker of a contender."""
    color, marker = LOOKS.get(contender, OTHER)
    return {"color": color, "marker": marker}


@contextmanager
def styled() -> Iterator[None]:
    with mpl.rc_context(SETTINGS):
        yield


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path` as PNG and beside it as SVG; returns both paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=160, bbox_inches="tight", metadata=metadata)
    return written
