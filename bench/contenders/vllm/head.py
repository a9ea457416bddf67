"""vLLM's LoRA on lm_head, PunicaWrapperGPU.add_lora_logits: shrink into float32, expand into the given logits."""

from __future__ import annotations

from bench.contenders.base import Launch
from bench.contenders.vllm.package import SHRUNK_BYTES, Kernels, VllmOp, padded, scaled_b, used_slots
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload

MAX_VOCAB = 258048  # vLLM refuses LoRA on a larger lm_head


class VllmHead(VllmOp):
    parts = ("shrink", "expand")
    in_place = True
    roundings = 4  # B times the scaling, the shrunk rows, the product with B, the sum

    def launch_on(self, workload: Workload, kernels: Kernels) -> Launch:
        _refuse_large(workload)
        hidden, logits = workload.given("hidden_states"), workload.given("logits")
        a_table, b_table = padded(workload, workload.weight("head_a"), 0), scaled_b(workload)
        return lambda k: kernels.expand(kernels.shrink(hidden[k], [a_table]), [b_table], logits[k])

    def required_bytes(self, workload: Workload) -> int:
        """Hidden states and A to the largest rank, float32 rows cleared and written, then the expand."""
        case, live = workload.case, traffic.live_tokens(workload)
        shrink = (live * case.hidden + used_slots(workload) * case.rank * case.hidden) * ELEMENT_BYTES[case.dtype]
        return shrink + (workload.num_tokens + live) * case.rank * SHRUNK_BYTES + _expand_bytes(workload)


class VllmExpand(VllmOp):
    """lora_expand of given shrunk rows into the given logits. The rows are float32, as vLLM's shrink leaves them."""

    parts = ("expand",)
    in_place = True
    roundings = 3

    def launch_on(self, workload: Workload, kernels: Kernels) -> Launch:
        _refuse_large(workload)
        rows = [given.float()[None] for given in workload.given("shrunk")]
        logits, b_table = workload.given("logits"), scaled_b(workload)
        return lambda k: kernels.expand(rows[k], [b_table], logits[k])

    def required_bytes(self, workload: Workload) -> int:
        return _expand_bytes(workload)


def _refuse_large(workload: Workload) -> None:
    if workload.case.vocab > MAX_VOCAB:
        raise ValueError(f"vocab {workload.case.vocab}: vLLM has LoRA on lm_head for at most {MAX_VOCAB}")


def _expand_bytes(workload: Workload) -> int:
    """Float32 rows, B to the largest rank, logits read and written."""
    case, live = workload.case, traffic.live_tokens(workload)
    products = used_slots(workload) * case.vocab * case.rank + 2 * live * case.vocab
    return live * case.rank * SHRUNK_BYTES + products * ELEMENT_BYTES[case.dtype]
