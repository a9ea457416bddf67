"""What is done in a process that SGLang spawns, before all else: the plugin is put in, and what is timed is hooked."""

from __future__ import annotations

import os

from bench.engine import preparation, startup


def ready() -> None:
    """Make this process what the mode of its engine says."""
    if os.environ.get("CSGMV_EMBED_DISABLE") == "0":
        # By hand: an installed distribution's entry point does the same, and a checkout has none.
        import csgmv_embed.sglang

        csgmv_embed.sglang.install()
    preparation.install()
    startup.install()
