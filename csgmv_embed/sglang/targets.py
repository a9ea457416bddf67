"""What to hook in each SGLang version: the one place that knows where SGLang keeps things.

A release lists what differs between versions; the hooks follow from it. Every row was checked against the files of
that version's wheel (`make wheels`, tests/csgmv_embed/sglang/test_versions.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from csgmv_embed.errors import CsgmvEmbedError

BACKEND = "sglang.srt.lora.backend.chunked_backend.ChunkedSgmvLoRABackend"
POOL = "sglang.srt.lora.mem_pool.LoRAMemoryPool"
MANAGER = "sglang.srt.lora.lora_manager.LoRAManager"
ADAPTER = "sglang.srt.lora.lora.LoRAAdapter"
LAYERS = "sglang.srt.lora.layers"
RUNNER = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner"
LINEAR_HOOKS = ("qkv", "gate_up", "column", "row", "replicated", "row_forward", "shrink", "expand")
BASE_GRAPH_HOOKS = ("base_graph", "base_capture")


class VersionError(CsgmvEmbedError, RuntimeError):
    """The installed SGLang is not one this plugin was checked against."""


@dataclass(frozen=True)
class Hook:
    """One function of SGLang that the plugin wraps.

    `target` is its dotted path, `parameters` its parameter names as of this version: another list means another
    function, and the hook is not applied. Without a `required` hook nothing of the plugin is active; without another
    one SGLang's own function runs there.
    """

    name: str
    target: str
    parameters: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Release:
    """One SGLang version."""

    version: str
    kernels: str  # package of the dense LoRA kernels
    has_plugins: bool  # sglang.srt.plugins
    request_fields: bool  # LoRABatchInfo has req_seg_indptr and req_weight_indices
    prefill_graph: tuple[str, ...]  # parameters of init_prefill_cuda_graph_batch_info; empty: prefill is not captured
    lm_head_eager: bool  # the lm_head batch info says use_cuda_graph=False whatever the batch says
    moe_info: bool = True  # csgmv fills in the part of LoRABatchInfo that layers of experts read
    decode_graph: str = "init_cuda_graph_batch_info"
    decode_graph_second: str = "num_tokens_per_req"
    stacked_slices: bool = True  # the backend takes a number of slices; replicated layers have LoRA
    graph_variant: tuple[str, ...] | None = ()  # further parameters of a capture; None: there are no graphs in variants
    also: tuple[str, ...] = ()  # further versions, post releases among them, whose wheels hold the same

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """Everything the plugin wraps in this version, in the order of the doctor's list."""
        prepare: tuple[str, ...] = (
            "self",
            "forward_batch",
            "weight_indices",
            "lora_ranks",
            "scalings",
            "use_cuda_graph",
        )
        capacity = ("self", "max_bs_in_cuda_graph", self.decode_graph_second)
        weights = ("input_ids", "weights", "batch_info", "vocab_size")
        if self.prefill_graph:
            prepare += ("use_prefill_cuda_graph",)
        modules = ("lora_modules", "lora_embed_tokens_module", "lora_lm_head_module")
        load = ("self", "uid", "buffer_id", "lora_adapter", *modules)
        admit = ("self", "cur_uids", "lora_adapters", "lora_modules", "lora_refs", *modules[1:])
        lookup = ("self", "input_ids", "weights", "vocab_size", "extra_embeddings", "args", "kwargs")
        hooks = [
            Hook("lookup", f"{BACKEND}.run_lora_a_embedding", lookup),
            Hook("prepare", f"{BACKEND}.prepare_lora_batch", prepare),
            Hook("decode_graph", f"{BACKEND}.{self.decode_graph}", capacity),
            Hook("storage", f"{POOL}.init_buffers", ("self", "base_model")),
            Hook("load", f"{POOL}.load_lora_weight_to_buffer", load),
            Hook("admit", f"{POOL}.prepare_lora_batch", admit),
            Hook("modules", f"{MANAGER}.update_lora_info", ("self",)),
            Hook("weights", f"{MANAGER}.load_lora_weights", ("self", "lora_ref")),
            Hook("tensors", f"{MANAGER}.load_lora_weights_from_tensors", ("self", "lora_ref", "tensors")),
            Hook("tensor", f"{ADAPTER}._process_weight", ("self", "name", "loaded_weight")),
            Hook(
                "csgmv_launcher", f"{self.kernels}.chunked_embedding_lora_a.chunked_embedding_lora_a_forward", weights
            ),
            Hook(
                "fallback_launcher",
                f"{self.kernels}.embedding_lora_a.embedding_lora_a_fwd",
                (*weights, "extra_embeddings"),
            ),
        ]
        hooks += self._layer_hooks() + self._linear_hooks() + self._graph_hooks()
        if self.prefill_graph:
            method = f"{BACKEND}.init_prefill_cuda_graph_batch_info"
            hooks.insert(3, Hook("prefill_graph", method, self.prefill_graph))
        return tuple(hooks)

    def _layer_hooks(self) -> list[Hook]:
        """The two layers. Without one of these the layer is SGLang's own, and the rest of the plugin works."""
        embedding, head = f"{LAYERS}.VocabParallelEmbeddingWithLoRA", f"{LAYERS}.ParallelLMHeadWithLoRA"
        apply = ("self", "base_output", "input_", "batch_info")
        return [
            Hook("layer", f"{embedding}.forward", ("self", "input_"), required=False),
            Hook("layer_add", f"{embedding}.apply_lora", apply, required=False),
            Hook("lm_head", f"{head}.apply_lora", ("self", "base_output", "hidden_states"), required=False),
        ]

    def _linear_hooks(self) -> list[Hook]:
        """LoRA on linear layers, shrink and expand at once. Without one of these SGLang's own functions run there."""
        stacked = ("n_slices",) if self.stacked_slices else ()
        qkv = ("self", "x", "qkv_lora_a", "qkv_lora_b", "output_offset", "max_qkv_out_dim", "base_output", *stacked)
        gate_up = ("self", "x", "gate_up_lora_a", "gate_up_lora_b", "output_offset", "base_output")
        apply = ("self", "base_output", "x")
        forward = ("self", "input_", "skip_all_reduce", *(("forward_batch",) if self.stacked_slices else ()))
        half = ("self", "x", "weights")
        pruned = ("pruned_batch_info", *(("stack_num",) if self.stacked_slices else ()), "args", "kwargs")
        expand = (*half, "output_offset", "base_output", "pruned_batch_info", "args", "kwargs")
        hooks = [
            Hook("qkv", f"{BACKEND}.run_qkv_lora", (*qkv, "args", "kwargs"), required=False),
            Hook("gate_up", f"{BACKEND}.run_gate_up_lora", (*gate_up, "args", "kwargs"), required=False),
            Hook("column", f"{LAYERS}.ColumnParallelLinearWithLoRA.apply_lora", apply, required=False),
            Hook("row", f"{LAYERS}.RowParallelLinearWithLoRA.apply_lora", apply, required=False),
            Hook("row_forward", f"{LAYERS}.RowParallelLinearWithLoRA.forward", forward, required=False),
            Hook("shrink", f"{BACKEND}.run_lora_a_sgemm", (*half, *pruned), required=False),
            Hook("expand", f"{BACKEND}.run_lora_b_sgemm", expand, required=False),
        ]
        if self.stacked_slices:
            target = f"{LAYERS}.ReplicatedLinearWithLoRA.apply_lora"
            hooks.append(Hook("replicated", target, apply, required=False))
        return hooks

    def _graph_hooks(self) -> list[Hook]:
        """A graph of its own for steps without adapters. Without both of these there is one graph a batch size."""
        if self.graph_variant is None:
            return []
        shape = ("self", "size", "forward", "stream_idx", "variant_label", *self.graph_variant)
        return [
            Hook("base_graph", f"{RUNNER}._capture_one_stream", ("self", "stream_idx"), required=False),
            Hook("base_capture", f"{RUNNER}.capture_one_shape", shape, required=False),
        ]


OLDEST_KERNELS = "sglang.srt.lora.triton_ops"
MIDDLE_KERNELS = "sglang.kernels.ops.gemm"
NEWEST_KERNELS = "sglang.kernels.ops.lora.dense"
PREFILL_TOKENS = ("self", "max_num_tokens")
PREFILL_REQUESTS = ("self", "max_num_tokens", "max_num_requests")

RELEASES = (
    #       version   kernels         plugins requests prefill graph     lm_head eager
    Release(
        "0.5.10",
        OLDEST_KERNELS,
        False,
        False,
        (),
        False,
        moe_info=False,
        decode_graph_second="num_tokens_per_bs",
        stacked_slices=False,
        graph_variant=None,
        also=("0.5.10.post1",),
    ),
    Release(
        "0.5.11",
        OLDEST_KERNELS,
        True,
        False,
        (),
        False,
        moe_info=False,
        decode_graph_second="num_tokens_per_bs",
        graph_variant=None,
    ),
    Release(
        "0.5.12",
        OLDEST_KERNELS,
        True,
        True,
        (),
        False,
        moe_info=False,
        decode_graph_second="num_tokens_per_bs",
        graph_variant=None,
        also=("0.5.12.post1",),
    ),
    Release(
        "0.5.13",
        OLDEST_KERNELS,
        True,
        True,
        (),
        False,
        decode_graph_second="num_tokens_per_bs",
        graph_variant=None,
        also=("0.5.13.post1", "0.5.14", "0.5.15", "0.5.15.post1"),
    ),
    Release("0.5.16", MIDDLE_KERNELS, True, True, (), False),
    Release("0.5.17", MIDDLE_KERNELS, True, True, PREFILL_TOKENS, True),
    Release(
        "0.5.18", MIDDLE_KERNELS, True, True, PREFILL_TOKENS, True, graph_variant=("dsa_variant",), also=("0.5.19",)
    ),
    Release(
        "0.5.20",
        MIDDLE_KERNELS,
        True,
        True,
        PREFILL_REQUESTS,
        True,
        graph_variant=("attention_variant",),
        also=("0.5.21",),
    ),
    Release("0.5.22", NEWEST_KERNELS, True, True, PREFILL_REQUESTS, True, graph_variant=("attention_variant",)),
    Release(
        "0.5.23",
        NEWEST_KERNELS,
        True,
        True,
        PREFILL_REQUESTS,
        True,
        decode_graph="init_decode_cuda_graph_batch_info",
        graph_variant=("attention_variant",),
    ),
)


def release_for(version: str, *, any_version: bool = False) -> Release:
    """The row of an installed version; its post releases count as itself.

    any_version: take the newest row that is not newer, the oldest one at least. Raises VersionError.
    """
    exact = re.fullmatch(r"(\d+\.\d+\.\d+)(\.post\d+)?(\+.*)?", version)
    for release in RELEASES:
        if exact and exact[1] in (release.version, *release.also):
            return replace(release, version=exact[1])
    if not any_version:
        raise VersionError(
            f"SGLang {version} is not one of {', '.join(known_versions())}, which this plugin "
            "was checked against; SGLang's own path stays. CSGMV_EMBED_ANY_VERSION=1 tries the nearest of them"
        )
    wanted = _numbers(version)
    older = [release for release in RELEASES if _numbers(release.version) <= wanted]
    return older[-1] if older else RELEASES[0]


def known_versions() -> tuple[str, ...]:
    """Every version that the plugin was checked against, oldest first."""
    return tuple(version for release in RELEASES for version in (release.version, *release.also))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
