"""`python -m csgmv_embed doctor`: loads the plugin as a server would, and reports the state of each hook."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator

from csgmv_embed.sglang.installer import NOT_LOADED, Status, install, status
from csgmv_embed.sglang.targets import known_versions

GROUP = "sglang.srt.plugins"
SELECT = "SGLANG_PLUGINS"  # SGLang's own list of plugins to load; empty means all


def examine() -> tuple[Status, str]:
    """Load the plugin in this process. Returns its status and how it was loaded.

    Raises nothing: the status has the reason of an error.
    """
    logging.disable(logging.CRITICAL)  # the reasons are in the status
    way = "csgmv_embed.sglang.install()"
    try:
        if any(point.value == "csgmv_embed.sglang:register" for point in importlib.metadata.entry_points(group=GROUP)):
            try:
                plugins = importlib.import_module("sglang.srt.plugins")
            except ModuleNotFoundError:
                pass  # SGLang 0.5.10, or none
            else:
                way = f"the entry point in {GROUP}"
                plugins.load_plugins()
                found = status()
                if found.reason == NOT_LOADED:
                    found = dataclasses.replace(found, reason=f"SGLang did not load it: {SELECT}={_selected()!r}")
                return found, way
        return install(), way
    except Exception as error:
        return Status(status().sglang, False, f"{type(error).__name__}: {error}", status().hooks), way
    finally:
        logging.disable(logging.NOTSET)


def _selected() -> str:
    return os.environ.get(SELECT, "")


def report(found: Status, way: str) -> Iterator[str]:
    """The lines of the doctor's report."""
    yield f"sglang       {found.sglang or 'not installed'}"
    yield f"known        {', '.join(known_versions())}"
    yield f"loaded by    {way}"
    yield f"plugin       {'on' if found.active else 'off: ' + found.reason}"
    for hook in found.hooks:
        state = "applied" if hook.applied else f"not applied: {hook.reason}"
        state += f", but SGLang's own function runs: {hook.off}" if hook.off else ""
        state += f", runs only if {hook.behind} calls it" if hook.behind else ""
        yield f"{hook.name:<18} {state}"
        yield f"{'':<18} {hook.target}"
        if hook.file:
            yield f"{'':<18} runs {hook.file}"
