"""Figures of engines as text."""

from __future__ import annotations

from bench.judge.serving import Unit

MARKS = {"skipped": "-", "wrong": "WRONG", "crashed": "CRASH", "error": "ERROR", "void": "VOID"}


def amount(value: float | None, unit: Unit) -> str:
    """A figure with its unit, to three digits: times in ms or s, memory in GiB."""
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value / 2**30:.1f} GiB"
    if unit == "tokens/s":
        return f"{value:.0f} /s" if value >= 100 else f"{value:.3g} /s"
    for scale, name in ((1e6, "s"), (1e3, "ms")):
        if value >= scale * 0.9995:
            return f"{_digits(value / scale)} {name}"
    return f"{_digits(value)} us"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
