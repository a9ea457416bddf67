"""The colour and the marker of a contender and of an engine's mode, the same in a plot and on the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from bench.model.registry import sglang_of, without_version

# Okabe and Ito's palette: distinct for the common forms of colour blindness. A contender has one colour and marker in
# every figure. Markers have matplotlib's names.
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
    "sglang_tokens": ("#F0E442", "d"),
    "torch_gather": ("#777777", "X"),
    "base": ("#222222", "_"),
}
OTHER = ("#999999", ".")
# On the page, of contenders that have none above: no colour that is another contender's.
SPARE = ("#8C564B", "#8C6BB1", "#808000", "#17A2A2", "#A50F15", "#999999")
# Modes of an engine: a mode has the colour of what it serves with, its options other ones of the same hue.
MODES = {"none": "#999999", "triton": "#CC79A7", "csgmv": "#D55E00", "plugin": "#0072B2"}
LIGHTER = ("#56B4E9", "#009E73", "#F0E442", "#E69F00", "#8C564B", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "d", "_", ".")
DASHES: tuple[tuple[int, ...], ...] = ((), (6, 4), (2, 3))


@dataclass(frozen=True)
class Look:
    """Of a line: its colour, the marker at its points, lengths of dashes and gaps (none: a whole line)."""

    color: str
    marker: str
    dash: tuple[int, ...] = ()


def look(contender: str) -> Look:
    """Colour and marker of a contender."""
    color, marker = LOOKS.get(without_version(contender), OTHER)
    # another version, beside the installed one's own marker
    return Look(color, "*" if sglang_of(contender) is not None else marker)


def mode_color(mode: str) -> str:
    """The colour of a mode. A mode with options gets a colour chosen by its name."""
    return MODES.get(mode) or LIGHTER[sum(map(ord, mode)) % len(LIGHTER)]


def looks(contenders: Iterable[str]) -> dict[str, Look]:
    """Contenders of one page, no two alike. Those that have a colour of their own keep it."""
    names = list(dict.fromkeys(contenders))
    own = {name: look(name) for name in names if without_version(name) in LOOKS}
    others = [name for name in names if name not in own]
    return _apart(own | {name: Look(SPARE[place % len(SPARE)], "o") for place, name in enumerate(others)})


def mode_looks(modes: Iterable[str]) -> dict[str, Look]:
    """Modes of one page, no two alike."""
    return _apart({mode: Look(mode_color(mode), "o") for mode in modes})


def _apart(wanted: dict[str, Look]) -> dict[str, Look]:
    """Where a look repeats, the next marker that is free in its colour, then the next dash."""
    taken, found = set(wanted.values()), dict[str, Look]()
    for name, own in wanted.items():
        free = (replace(own, marker=marker, dash=dash) for dash, marker in product(DASHES, MARKERS))
        found[name] = next((each for each in free if each not in taken), own) if own in found.values() else own
        taken.add(found[name])
    return found
