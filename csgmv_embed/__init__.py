"""LoRA on embedding layer, lm_head and linear layers for many adapters in a batch: kernels and their host planner."""

from typing import NoReturn

try:
    from csgmv_embed.batch import EmbeddingBatch
    from csgmv_embed.embedding import embedding_lora, embedding_lora_add
    from csgmv_embed.errors import (
        CapacityError,
        CsgmvEmbedError,
        DeviceError,
        DtypeError,
        GradError,
        ShapeError,
        SlotError,
    )
    from csgmv_embed.linear import lora_expand, lora_linear, lora_shrink
    from csgmv_embed.lookup import embedding_lora_a
    from csgmv_embed.reference import (
        embedding_lora_a_reference,
        embedding_lora_reference,
        lora_linear_reference,
    )
    from csgmv_embed.storage import empty_a_table, storage_of, to_storage
except ModuleNotFoundError as missing:
    # `python -m csgmv_embed doctor` is to say so, and what to do, where a name of the library cannot be had.
    if missing.name not in ("torch", "triton", "numpy"):
        raise
    _missing = missing.name

    def __getattr__(name: str) -> NoReturn:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise ModuleNotFoundError(f"csgmv_embed.{name} needs {_missing}: pip install {_missing}", name=_missing)


__version__ = "0.2.0"

__all__ = [
    "CapacityError",
    "CsgmvEmbedError",
    "DeviceError",
    "DtypeError",
    "EmbeddingBatch",
    "GradError",
    "ShapeError",
    "SlotError",
    "embedding_lora",
    "embedding_lora_a",
    "embedding_lora_a_reference",
    "embedding_lora_add",
    "embedding_lora_reference",
    "empty_a_table",
    "lora_expand",
    "lora_linear",
    "lora_linear_reference",
    "lora_shrink",
    "storage_of",
    "to_storage",
]
