"""The batch infos of SGLang's csgmv backend, planned on the host and sent in one transfer."""

from csgmv_embed.sglang.planner.arrays import ARRAYS as ARRAYS
from csgmv_embed.sglang.planner.captured import STATIC as STATIC
from csgmv_embed.sglang.planner.captured import pack as pack
from csgmv_embed.sglang.planner.planner import prepare as prepare
from csgmv_embed.sglang.planner.state import STATE as STATE
from csgmv_embed.sglang.planner.state import State as State
from csgmv_embed.sglang.planner.state import attach as attach
from csgmv_embed.sglang.planner.views import BATCH as BATCH
from csgmv_embed.sglang.planner.views import HEAD as HEAD
from csgmv_embed.sglang.planner.views import LINEAR as LINEAR
