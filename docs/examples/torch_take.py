"""A lookup in torch: one `take` from SGLang's rank-major table, by positions that are worked out before."""

import torch

from bench.workload import traffic


class TorchTake:
    """Positions of all elements are known once ids are: each index set has its own, made outside of the launch."""

    name = "torch_take"
    ops = ("lookup",)

    def setup(self, workload, *, static):
        case, table = workload.case, workload.table("rank_major")
        slots = torch.from_numpy(workload.token_slots()).to(workload.device).long()
        ranks = torch.from_numpy(workload.ranks).to(workload.device)
        column = torch.arange(case.rank, device=workload.device)
        beyond = column >= ranks[slots][:, None]  # past the rank of a token's adapter the row is zero
        rows = (slots[:, None] * case.rank + column) * case.vocab
        return lambda k: table.take(rows + workload.index_sets[k][:, None]).masked_fill_(beyond, 0)

    def required_bytes(self, workload):
        """The floor of every lookup, and the positions, which are written, read and held with 8 bytes an element."""
        return traffic.minimum(workload) + 2 * 8 * workload.num_tokens * workload.case.rank
