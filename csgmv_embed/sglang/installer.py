"""Installs the hooks and checks that they are in place, because SGLang only logs a hook that did not apply."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csgmv_embed.errors import CsgmvEmbedError
from csgmv_embed.sglang import chain, ranges, runtime
from csgmv_embed.sglang.hooks.registry import HOOKS, NEVER_INERT
from csgmv_embed.sglang.settings import DISABLE, SettingError, Settings
from csgmv_embed.sglang.targets import Hook, Release, release_for

logger = logging.getLogger("csgmv_embed")


def _inert(function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that SGLang applied although its function has other parameters must not stand in its way."""

    @functools.wraps(function)
    def hook(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if runtime.active is None else function(original, *args, **kwargs)

    return hook


def _functions(*, with_ranges: bool) -> dict[str, Callable[..., Any]]:
    """What is put around SGLang's functions, by the hook's name."""
    found = {name: function if name in NEVER_INERT else _inert(function) for name, function in HOOKS.items()}
    return {name: ranges.ranged(name, function) for name, function in found.items()} if with_ranges else found


FUNCTIONS = _functions(with_ranges=ranges.wanted())


@dataclass(frozen=True)
class HookStatus:
    """One hook: applied, or the reason why not. `file` is where the function that runs now was written.

    `off`: what disables the hook although it is applied; empty if it works. `behind`: another module's function that
    runs before ours and decides whether ours is called; empty if there is none.
    """

    name: str
    target: str
    applied: bool
    reason: str
    file: str
    off: str = ""
    behind: str = ""
    required: bool = True


@dataclass(frozen=True)
class Status:
    """The plugin in this process. `reason` says why it is not active; empty if it is.

    It is active while every required hook is in the chain of calls. If another module removes one, the others still
    run.
    """

    sglang: str | None
    active: bool
    reason: str
    hooks: tuple[HookStatus, ...] = ()


NOT_LOADED = "not loaded in this process"
_status = Status(None, False, NOT_LOADED)


def status() -> Status:
    """The result of the last `register` or `install` in this process, and whether each hook is still in place."""
    hooks = tuple(_now(hook) for hook in _status.hooks)
    lost = [now for now, then in zip(hooks, _status.hooks, strict=True) if then.applied and not now.applied]
    missing = "; ".join(f"{hook.name}: {hook.reason}" for hook in lost if hook.required)
    if not missing:
        return dataclasses.replace(_status, hooks=hooks)
    return dataclasses.replace(_status, active=False, reason=f"the rest runs without {missing}", hooks=hooks)


def register() -> None:
    """The entry point in the group sglang.srt.plugins: registers the hooks, and a check after SGLang has applied them.

    Refuses an unknown SGLang version with a warning in SGLang's log; SGLang's own path then stays. Raises SettingError
    for a bad CSGMV_EMBED_* variable, which SGLang logs.
    """
    release = _release()
    if release is None or runtime.active is not None:
        return
    registry = importlib.import_module("sglang.srt.plugins.hook_registry")
    for hook in release.hooks:
        registry.HookRegistry.register(hook.target, FUNCTIONS[hook.name], registry.HookType.AROUND)
    _check_after(registry.HookRegistry, release)


def install() -> Status:
    """Install the hooks now. For SGLang 0.5.10, which loads no plugins; harmless for later versions.

    Call it in every process before the server starts: at the top level of the script that launches it. Raises
    SettingError, VersionError.
    """
    release = _release(refuse=True)
    if release is None or runtime.active is not None:
        return status()
    if release.has_plugins:
        register()
        importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
        return status()
    refused = [hook for hook in release.hooks if hook.required and _why_not(hook)]
    if not refused:
        for hook in release.hooks:
            if not _why_not(hook):  # the optional ones
                _wrap(hook)
    return check(release)


def check(release: Release) -> Status:
    """Look at every hook. Switch the plugin on if all required ones are in place, otherwise off."""
    settings = Settings.from_environment()
    found = tuple(_look(hook, settings) for hook in release.hooks)
    required = {hook.name for hook in release.hooks if hook.required}
    absent = [hook for hook in found if not hook.applied]
    missing = [hook for hook in absent if hook.name in required]
    names = frozenset(hook.name for hook in absent)
    runtime.activate(None if missing else runtime.Active(release, settings, names))
    reason = "; ".join(f"{hook.name}: {hook.reason}" for hook in missing)
    _set(Status(_installed(), not missing, reason, found))
    if missing:
        logger.error("csgmv-embed is off, SGLang's own embedding LoRA runs: %s", reason)
    else:
        logger.info("csgmv-embed is on: %d hooks for SGLang %s", len(found) - len(absent), release.version)
        for hook in absent:
            logger.warning("csgmv-embed leaves SGLang's own function in place: %s: %s", hook.target, hook.reason)
    return _status


def _release(*, refuse: bool = False) -> Release | None:
    """The release to hook; None, with the reason as status, if the plugin is to stay off. refuse: raise instead."""
    installed = _installed()
    try:
        settings = Settings.from_environment()
    except SettingError as error:
        _set(Status(installed, False, f"SettingError: {error}"))  # SGLang only logs what a plugin raises
        raise
    if settings.disabled:
        _set(Status(installed, False, f"{DISABLE}=1"))
        return None
    try:
        if installed is None:
            raise CsgmvEmbedError("sglang is not installed: pip install sglang")
        return release_for(installed, any_version=settings.any_version)
    except CsgmvEmbedError as error:
        _set(Status(installed, False, str(error)))
        if refuse:
            raise
        logger.warning("csgmv-embed is off: %s", error)
        return None


def _installed() -> str | None:
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def _set(found: Status) -> None:
    global _status
    _status = found


def _check_after(registry: Any, release: Release) -> None:
    """Have `check` run when SGLang has applied all hooks, once: it gives plugins no call for that."""
    described = vars(registry)["apply_hooks"]

    @classmethod  # type: ignore[misc]
    @functools.wraps(described.__func__)
    def apply_then_check(cls: Any) -> None:
        registry.apply_hooks = described
        described.__func__(cls)
        check(release)

    registry.apply_hooks = apply_then_check


def _resolve(target: str) -> tuple[Any, str, Any]:
    """The object that holds a target, the target's name in it, and the target.

    A module that fails to import raises its own error, where a plain attribute walk would say that it has no attribute.
    """
    holder: Any = None
    *path, name = target.split(".")
    for depth, part in enumerate(path, start=1):
        if inspect.ismodule(holder) and not hasattr(holder, part):
            importlib.import_module(".".join(path[:depth]))
        holder = importlib.import_module(part) if holder is None else getattr(holder, part)
    return holder, name, getattr(holder, name)


def _why_not(hook: Hook) -> str:
    """Why SGLang's function cannot be hooked; empty if it can."""
    try:
        _, _, function = _resolve(hook.target)
    except Exception as error:  # whatever SGLang's modules raise at import is the reason
        return f"{type(error).__name__}: {error}"
    found = tuple(inspect.signature(function).parameters)
    if found != hook.parameters:
        return f"takes ({', '.join(found)}); expected ({', '.join(hook.parameters)})"
    return ""


def _look(hook: Hook, settings: Settings) -> HookStatus:
    reason = _why_not(hook)
    if reason:
        return HookStatus(hook.name, hook.target, False, reason, "", required=hook.required)
    _, _, function = _resolve(hook.target)
    ours = FUNCTIONS[hook.name]
    applied = chain.reaches(function, ours)
    file = inspect.getsourcefile(inspect.unwrap(ours if applied else function)) or "?"
    reason, off = ("", settings.switched_off(hook.name)) if applied else ("SGLang did not apply it", "")
    behind = "" if not applied or chain.holds(function, ours) else chain.described(function)
    return HookStatus(hook.name, hook.target, applied, reason, file, off, behind, hook.required)


def _now(then: HookStatus) -> HookStatus:
    """A hook that was applied, as it is at this moment: any module may put a function of its own in place, any time."""
    if not then.applied:
        return then
    try:
        _, _, function = _resolve(then.target)
    except Exception as error:
        return dataclasses.replace(then, applied=False, reason=f"{type(error).__name__}: {error}", file="", behind="")
    ours = FUNCTIONS[then.name]
    if chain.holds(function, ours):
        return dataclasses.replace(then, behind="")
    written = chain.described(function)
    if chain.reaches(function, ours):
        return dataclasses.replace(then, behind=written)
    reason = f"replaced by {written}, which does not refer to ours; other ways to reach ours are not detected"
    return dataclasses.replace(then, applied=False, reason=reason, file="", behind="")


def _wrap(hook: Hook) -> None:
    """What SGLang's registry does for an around hook, by-name imports included."""
    holder, name, original = _resolve(hook.target)
    function = FUNCTIONS[hook.name]

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    setattr(holder, name, wrapped)
    if inspect.ismodule(holder):
        for module in list(sys.modules.values()):
            for attribute, value in list(vars(module).items() if inspect.ismodule(module) else ()):
                if value is original:
                    setattr(module, attribute, wrapped)
