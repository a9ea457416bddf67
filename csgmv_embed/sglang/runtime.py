"""Whether the plugin is on in this process, and how."""

from __future__ import annotations

from typing import Any, NamedTuple

from csgmv_embed.sglang.planner.state import STATE, State, attach
from csgmv_embed.sglang.settings import Settings
from csgmv_embed.sglang.targets import LINEAR_HOOKS, Release


class Active(NamedTuple):
    """The version that was hooked, the settings, and what is missing."""

    release: Release
    settings: Settings
    absent: frozenset[str] = frozenset()  # optional hooks that are not in place as this release has them


# Set by the self-check once every required hook is in place: until then, and if one is missing, each hook is a
# pass-through, so SGLang never runs half of the plugin.
active: Active | None = None


def activate(found: Active | None) -> None:
    """Switch all hooks on, or off with None."""
    global active
    active = found


def serves(hook: str) -> bool:
    """Whether an optional hook is to do its work: the plugin is on, the hook in place, its switch not off."""
    return active is not None and hook not in active.absent and not active.settings.switched_off(hook)


def state_of(backend: Any) -> State | None:
    """The plugin's state of a csgmv backend; None if the plugin is off or the backend is another one."""
    state: State | None = getattr(backend, STATE, None)
    if active is None or backend is None:
        return None
    if state is None and type(backend).__name__ == "ChunkedSgmvLoRABackend":
        state = attach(backend, active.release, linear=any(map(serves, LINEAR_HOOKS)), head=serves("lm_head"))
    return state
