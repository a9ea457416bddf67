"""LoRA on the embedding layer for many adapters in one batch: the A-side lookup and its host planner."""

from csgmv_embed.batch import EmbeddingBatch
from csgmv_embed.errors import CapacityError, CsgmvEmbedError, DeviceError, DtypeError, ShapeError, SlotError
from csgmv_embed.layout import empty_a_table, storage_of, to_storage
from csgmv_embed.ops import embedding_lora_a
from csgmv_embed.reference import embedding_lora_a_reference

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "CsgmvEmbedError",
    "DeviceError",
    "DtypeError",
    "EmbeddingBatch",
    "ShapeError",
    "SlotError",
    "embedding_lora_a",
    "embedding_lora_a_reference",
    "empty_a_table",
    "storage_of",
    "to_storage",
]
