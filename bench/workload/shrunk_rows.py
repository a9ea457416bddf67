"""The two orders of a site's shrunk rows: a slice begins every `rank` columns, or every rank of the row's own slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bench.workload import sites

if TYPE_CHECKING:
    from bench.workload.tensors import Workload


def packed(workload: Workload, rows: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """Shrunk rows (tokens, slices * rank), slice i from column i * r on, r the rank of the row's slot: SGLang's way.

    The rows have slice i from column i * rank on, as `lora_shrink` leaves them; `back` turns packed ones into these.
    Columns that hold nothing are zero in the result.
    """
    case, slices = workload.case, sites.shape_of(workload.case).slices
    ranks = torch.from_numpy(workload.ranks).to(workload.device).long()
    token_ranks = ranks[torch.from_numpy(workload.token_slots()).to(workload.device).long()][:, None]
    columns = torch.arange(slices * case.rank, device=workload.device)[None, :]
    if back:
        piece, within = columns // case.rank, columns % case.rank
        held, places = within < token_ranks, piece * token_ranks + within
    else:
        held, width = columns < slices * token_ranks, token_ranks.clamp(min=1)
        places = columns // width * case.rank + columns % width
    found = rows.gather(1, torch.where(held, places, 0))
    return torch.where(held, found, torch.zeros((), dtype=rows.dtype, device=rows.device))


def without_rest(workload: Workload, rows: torch.Tensor) -> torch.Tensor:
    """Shrunk rows as `lora_shrink` leaves them, zero from the rank of their slot on."""
    ranks = torch.from_numpy(workload.ranks[workload.token_slots()]).to(workload.device)
    within = torch.arange(rows.shape[1], device=workload.device) % workload.case.rank
    return rows.masked_fill(within[None, :] >= ranks[:, None], 0)
