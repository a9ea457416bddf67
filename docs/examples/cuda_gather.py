"""A lookup in CUDA C++, compiled by torch's loader: a block a token on a vocab-major table.

`python docs/examples/cuda_gather.py` compiles it, which takes longer than a point may: torch keeps the result.
"""

import shutil

import torch

from bench.workload import traffic

CPP = "torch::Tensor gather(torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor, int64_t, int64_t);"
CUDA = r"""
#include <ATen/cuda/CUDAContext.h>
#include <torch/extension.h>

template <typename T>
__global__ void gather_rows(T* out, const T* table, const int64_t* ids, const int* slots, const int* ranks,
                            int64_t vocab, int64_t max_rank) {
  const int64_t token = blockIdx.x, slot = slots[token];
  const T* row = table + (slot * vocab + ids[token]) * max_rank;
  for (int64_t column = threadIdx.x; column < max_rank; column += blockDim.x)
    out[token * max_rank + column] = column < ranks[slot] ? row[column] : T(0);
}

torch::Tensor gather(torch::Tensor table, torch::Tensor ids, torch::Tensor slots, torch::Tensor ranks,
                     int64_t vocab, int64_t max_rank) {
  auto out = torch::empty({ids.size(0), max_rank}, table.options());
  const auto stream = at::cuda::getCurrentCUDAStream();
  const int threads = max_rank < 32 ? 32 : max_rank < 256 ? static_cast<int>(max_rank) : 256;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, table.scalar_type(), "gather", [&] {
    gather_rows<scalar_t><<<ids.size(0), threads, 0, stream>>>(
        out.data_ptr<scalar_t>(), table.data_ptr<scalar_t>(), ids.data_ptr<int64_t>(), slots.data_ptr<int>(),
        ranks.data_ptr<int>(), vocab, max_rank);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}
"""


def compiled():
    """The extension; compiled by the first call on a machine, loaded by later ones."""
    from torch.utils.cpp_extension import load_inline

    return load_inline("cuda_gather_example", cpp_sources=CPP, cuda_sources=CUDA, functions=["gather"])


class CudaGather:
    name = "cuda_gather"

    def unavailable(self):
        if not torch.cuda.is_available():
            return "needs an NVIDIA GPU and found none"
        return None if shutil.which("nvcc") else "needs nvcc on PATH and found none: install the CUDA toolkit"

    def setup(self, workload, *, static):
        case, gather = workload.case, compiled().gather
        rows, ids = workload.table("vocab_major").transpose(1, 2).contiguous(), workload.index_sets
        slots = torch.from_numpy(workload.token_slots()).to(workload.device)
        ranks = torch.from_numpy(workload.ranks).to(workload.device)
        return lambda k: gather(rows, ids[k], slots, ranks, case.vocab, case.rank)

    def required_bytes(self, workload):
        """The floor, and a slot for each token."""
        return traffic.minimum(workload) + 4 * workload.num_tokens


if __name__ == "__main__":
    compiled()
