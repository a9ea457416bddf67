"""Which adapter each token of a batch uses: planned on the host, held on the device."""

from csgmv_embed.batch.batch import EmbeddingBatch as EmbeddingBatch
from csgmv_embed.batch.capacity import BatchCapacity as BatchCapacity
from csgmv_embed.batch.capacity import Contents as Contents
