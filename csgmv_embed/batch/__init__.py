"""Which adapter each token of a batch uses: planned on the host, held on the device."""

from csgmv_embed.batch.batch import BatchCapacity as BatchCapacity
from csgmv_embed.batch.batch import Contents as Contents
from csgmv_embed.batch.batch import EmbeddingBatch as EmbeddingBatch
