"""LoRA on embedding layer, lm_head and linear layers for many adapters in a batch: kernels and their host planner."""

from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.embedding import embedding_lora, embedding_lora_add
from csgmv_embed.errors import CapacityError, CsgmvEmbedError, DeviceError, DtypeError, GradError, ShapeError, SlotError
from csgmv_embed.linear import lora_expand, lora_linear, lora_shrink
from csgmv_embed.lookup import embedding_lora_a
from csgmv_embed.reference import (
    embedding_lora_a_reference,
    embedding_lora_reference,
    lora_linear_reference,
)
from csgmv_embed.storage import empty_a_table, storage_of, to_storage

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
