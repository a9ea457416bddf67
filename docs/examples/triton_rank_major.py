"""A lookup in Triton on SGLang's rank-major table: a program a token, the elements of its row `vocab` apart."""

import torch
import triton
import triton.language as tl

from bench.workload import traffic


@triton.jit
def rank_major_kernel(out, table, ids, slots, ranks, vocab, max_rank, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    slot, column = tl.load(slots + token).to(tl.int64), tl.arange(0, BLOCK)
    here = table + (slot * max_rank + column) * vocab + tl.load(ids + token)
    row = tl.load(here, mask=column < tl.load(ranks + slot), other=0.0)
    tl.store(out + token * max_rank + column, row, mask=column < max_rank)


class TritonRankMajor:
    name = "triton_rank_major"
    kernels = ("rank_major_kernel",)  # what the work clock counts

    def setup(self, workload, *, static):
        case, table, ids = workload.case, workload.table("rank_major"), workload.index_sets
        slots = torch.from_numpy(workload.token_slots()).to(workload.device)
        ranks = torch.from_numpy(workload.ranks).to(workload.device)
        block = triton.next_power_of_2(case.rank)

        def launch(k):
            out = torch.empty(len(slots), case.rank, dtype=table.dtype, device=table.device)
            rank_major_kernel[(len(slots),)](out, table, ids[k], slots, ranks, case.vocab, case.rank, BLOCK=block)
            return out

        return launch

    def required_bytes(self, workload):
        """A 32-byte sector for each element that is read: its neighbours in memory are other tokens' values."""
        read = int(workload.ranks[workload.token_slots()].sum())
        return 32 * read + traffic.written(workload) + workload.num_tokens * (8 + 4)
