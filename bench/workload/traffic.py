"""Bytes that an op must move, from the workload only: the floors, and the terms that contenders count with.

Every function counts index set 0 of a workload. Batch metadata is negligible beside these bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.model.case import ELEMENT_BYTES
from bench.workload import sites

if TYPE_CHECKING:
    from bench.workload.tensors import Workload

ID_BYTES = 8


def minimum(workload: Workload) -> int:
    """Least traffic of any implementation: every needed input is read once, and the output is written once.

    A layer reads ids, distinct rows of embedding and A, and B of the slots in use. A head reads the hidden states of
    the tokens with an adapter and A and B of their slots, and reads and writes their logits. An expand reads the shrunk
    rows instead of hidden states and A. A site is counted likewise: input, A and B of the slots in use, and the output
    read and written. Its shrink reads input and A, and writes the shrunk rows.
    """
    case = workload.case
    element = ELEMENT_BYTES[case.dtype]
    if case.op == "lookup":
        return workload.num_tokens * ID_BYTES + a_rows(workload) + written(workload)
    if case.op == "layer":
        lora = a_rows(workload) + b_tables(workload)
        return workload.num_tokens * ID_BYTES + base_rows(workload) + lora + written(workload)
    if case.op == "shrink":
        return inputs_of_site(workload) + site_a_tables(workload) + written(workload)
    if case.op == "linear":
        return inputs_of_site(workload) + site_a_tables(workload) + b_tables(workload) + 2 * written(workload)
    inputs = shrunk_of_site(workload) if case.site != "none" else live_ranks(workload) * element
    if case.op == "head":
        inputs = live_tokens(workload) * case.hidden * element + head_a_tables(workload)
    return inputs + b_tables(workload) + 2 * written(workload)


def written(workload: Workload) -> int:
    """The output, once: every row of a lookup or a layer.

    Of other ops, the rows of tokens with an adapter, to their ranks.
    """
    case = workload.case
    if case.op == "shrink":
        return shrunk_of_site(workload)
    rows = workload.num_tokens if case.op in ("lookup", "layer") else live_tokens(workload)
    return rows * workload.out_features * ELEMENT_BYTES[case.dtype]


def live_tokens(workload: Workload) -> int:
    """Number of tokens with an adapter."""
    return int(np.count_nonzero(workload.ranks[workload.token_slots()]))


def live_ranks(workload: Workload) -> int:
    """Sum of the ranks of all tokens: the used elements of an intermediate result."""
    return int(workload.ranks[workload.token_slots()].sum(dtype=np.int64))


def a_rows(workload: Workload) -> int:
    """Distinct rows of the A table, each to its slot's rank."""
    slots = workload.distinct_rows() // workload.case.vocab
    return int(workload.ranks[slots].sum(dtype=np.int64)) * ELEMENT_BYTES[workload.case.dtype]


def base_rows(workload: Workload) -> int:
    """Distinct rows of the embedding."""
    distinct = len(np.unique(workload.index_sets[0].cpu().numpy()))
    return distinct * workload.case.hidden * ELEMENT_BYTES[workload.case.dtype]


def b_tables(workload: Workload) -> int:
    """The B tables of the slots in use, each to its rank."""
    return workload.used_ranks * workload.out_features * ELEMENT_BYTES[workload.case.dtype]


def head_a_tables(workload: Workload) -> int:
    """The A tables of lm_head of the slots in use, each to its rank."""
    return workload.used_ranks * workload.case.hidden * ELEMENT_BYTES[workload.case.dtype]


def inputs_of_site(workload: Workload) -> int:
    """The input rows of the tokens with an adapter."""
    shape = sites.shape_of(workload.case)
    return live_tokens(workload) * shape.features * ELEMENT_BYTES[workload.case.dtype]


def shrunk_of_site(workload: Workload) -> int:
    """The shrunk rows of all slices, each to its token's rank."""
    return live_ranks(workload) * sites.shape_of(workload.case).slices * ELEMENT_BYTES[workload.case.dtype]


def site_a_tables(workload: Workload) -> int:
    """The A tables of all slices, of the slots in use, each to its rank."""
    shape = sites.shape_of(workload.case)
    return workload.used_ranks * shape.slices * shape.features * ELEMENT_BYTES[workload.case.dtype]
