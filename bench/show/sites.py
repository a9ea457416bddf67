"""The sites of a model in words and colours, the same in a plot and on the page."""

from __future__ import annotations

from bench.model.served import Site

COLORS: dict[Site, str] = {
    "embedding": "#0072B2",
    "qkv": "#D55E00",
    "o": "#E69F00",
    "gate_up": "#CC79A7",
    "down": "#F0E442",
    "lm_head": "#56B4E9",
    "unplaced": "#8C564B",
    "base": "#999999",
    "attention": "#009E73",
    "copies": "#444444",
    "rest": "#CCCCCC",
}
NAMES: dict[Site, str] = {
    site: f"LoRA of {site}" for site in ("embedding", "qkv", "o", "gate_up", "down", "lm_head", "unplaced")
}
NAMES |= {"base": "base products", "attention": "attention", "copies": "copies", "rest": "rest"}
SHARES = (
    "Kernel time under the engine's profiler: compare the shares, for these are no times of a server. The floor is\n"
    "the bytes that each site must read and write, at the bandwidth of a copy, and an empty node for each launch.\n"
    "The floor leaves out attention, copies, rest and all arithmetic."
)
