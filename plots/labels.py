"""Names of cases for readers who do not know the code."""

from __future__ import annotations

from collections.abc import Iterable

from bench.model.case import PLAIN_VOCAB, Case
from bench.model.serving import Load


def case_name(case: Case, among: Iterable[Case] = ()) -> str:
    """The batch of a case: `prefill 8 x 512, rank 64, skew 1`.

    The vocabulary is named if it differs among the cases.
    """
    shape = f"{case.batch_size}" if case.phase == "decode" else f"{case.batch_size} x {case.seq_len}"
    op = "" if case.op == "lookup" else f"{case.op}, "
    site = "" if case.site == "none" else f"{case.site} of {case.model}, "
    parts = [f"{op}{site}{case.phase} {shape}", f"rank {case.rank}"]
    if case.hidden:
        parts.append(f"hidden {case.hidden}")
    if case.skew:
        parts.append(f"skew {case.skew:g}")
    if case.adapters != 8:
        parts.append(f"{case.adapters} adapter{'s' * (case.adapters > 1)}")
    if case.mix != "uniform":
        parts.append(f"adapters {case.mix}")
    if case.rank_mix != "equal":
        parts.append(f"ranks {case.rank_mix}")
    if case.base_fraction:
        parts.append(f"{100 * case.base_fraction:g} % without LoRA")
    if len({other.vocab for other in among}) > 1 and case.vocab != PLAIN_VOCAB:
        parts.append(f"vocab {case.vocab}")
    if case.dtype != "bfloat16":
        parts.append(case.dtype)
    if case.cache == "cold":
        parts.append("cold cache")
    return ", ".join(parts)


def load_name(load: Load) -> str:
    """A load below a bar, what is unusual on a line of its own: `prefill 8 x 512`, `skew 1`."""
    count = f"{load.rate_rps:g}/s" if load.kind == "arrivals" else f"{load.requests}"
    tokens = "" if load.kind in ("decode", "start") else f" x {load.prompt_tokens}"
    lines = [f"{load.kind} {count}{tokens}"]
    if load.skew:
        lines.append(f"skew {load.skew:g}")
    if load.mix != "uniform":
        lines.append(f"adapters {load.mix}")
    if load.base_fraction:
        lines.append(f"{100 * load.base_fraction:g} % without LoRA")
    return ",\n".join(lines)
