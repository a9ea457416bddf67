"""Runs first in every process that SGLang spawns: installs the plugin and hooks what is timed."""

from __future__ import annotations

import os

from bench.engine import compiling, preparation, startup


def ready() -> None:
    """Prepare this process for the mode of its engine."""
    if os.environ.get("CSGMV_EMBED_DISABLE") == "0":
        # By hand: an installed distribution's entry point does the same, and a checkout has none.
        import csgmv_embed.sglang

        csgmv_embed.sglang.install()
    compiling.install()
    preparation.install()
    startup.install()
