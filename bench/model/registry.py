"""The registry of contenders: their names, ops and families, and the code that makes each. Imports none of them."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from bench.model import outside
from bench.model.case import STORAGES, Op, Site

CHUNK_SIZES = (16, 32, 64, 128)  # the values SGLang's --max-lora-chunk-size accepts

Family = Literal[
    "csgmv_embed",
    "csgmv_embed_segments",
    "csgmv_embed_pdl",
    "csgmv_embed_add",
    "csgmv_embed_captured",
    "csgmv_embed_plugin",
    "csgmv_embed_plugin_steady",
    "sglang_csgmv",
    "sglang_triton",
    "sglang_triton_v2",
    "sglang_tokens",
    "vllm",
    "vllm_specialized",
    "torch_gather",
    "base",
]
SUGGESTED_SGLANG = "0.5.23"  # where none is installed: pyproject.toml's
INSTALLED = "installed"  # on the axis sglang; its contenders are named without a version
# family -> the axes whose values make its variants: a contender's name is `family-option...`, the same over all ops;
# one of another SGLang than the installed has that version behind it: `sglang_csgmv-chunk16@0.5.23`
FAMILIES: dict[Family, tuple[str, ...]] = {
    "csgmv_embed": ("storage",),
    "csgmv_embed_segments": ("storage",),
    "csgmv_embed_pdl": ("storage",),
    "csgmv_embed_add": ("storage",),
    "csgmv_embed_captured": ("storage",),
    "csgmv_embed_plugin": ("chunk_size", "sglang"),
    "csgmv_embed_plugin_steady": ("chunk_size", "sglang"),
    "sglang_csgmv": ("chunk_size", "sglang"),
    "sglang_triton": ("sglang",),
    "sglang_triton_v2": ("sglang",),
    "sglang_tokens": ("sglang",),
    "vllm": (),
    "vllm_specialized": (),
    "torch_gather": (),
    "base": (),
}

Recipe = tuple[str, str, dict[str, Any]]  # module below bench.contenders, class, constructor options
# An op and what builds it; the expand of a site is another one than lm_head's.
Asked = Op | Literal["expand of a site"]
SITE_PARTS: tuple[tuple[Asked, str], ...] = (
    ("shrink", "shrink"),
    ("expand of a site", "expand"),
    ("linear", "linear"),
)


def _sglang() -> Iterator[tuple[Asked, str, Recipe]]:
    layer, head, site = "sglang.layer", "sglang.head", "sglang.site"
    for size in CHUNK_SIZES:
        name = f"sglang_csgmv-chunk{size}"
        yield "lookup", name, ("sglang.csgmv", "SglangCsgmv", {"chunk_size": size})
        yield "layer", name, (layer, "SglangLayer", {"backend": "csgmv", "chunk_size": size})
        yield "head", name, (head, "SglangHead", {"backend": "csgmv", "chunk_size": size})
        yield "expand", name, (head, "SglangExpand", {"backend": "csgmv", "chunk_size": size})
        for asked, part in SITE_PARTS:
            yield asked, name, (site, "SglangSite", {"part": part, "backend": "csgmv", "chunk_size": size})
    yield "lookup", "sglang_triton", ("sglang.triton", "SglangTriton", {})
    yield "layer", "sglang_triton", (layer, "SglangLayer", {"backend": "triton"})
    yield "head", "sglang_triton", (head, "SglangHead", {"backend": "triton"})
    yield "expand", "sglang_triton", (head, "SglangExpand", {"backend": "triton"})
    for asked, part in SITE_PARTS:
        yield asked, "sglang_triton", (site, "SglangSite", {"part": part, "backend": "triton"})
    yield "layer", "sglang_triton_v2", ("sglang.triton_v2", "SglangTritonV2Layer", {})
    yield "head", "sglang_triton_v2", ("sglang.triton_v2", "SglangTritonV2Head", {})
    yield "expand", "sglang_triton_v2", ("sglang.triton_v2", "SglangTritonV2Expand", {})
    for asked, part in SITE_PARTS:
        yield asked, "sglang_triton_v2", ("sglang.triton_v2_site", "SglangTritonV2Site", {"part": part})
    yield "lookup", "sglang_tokens", ("sglang.tokens", "SglangTokens", {})


def _ours() -> Iterator[tuple[Asked, str, Recipe]]:
    plans = (("", "tokens", False), ("_segments", "segments", False), ("_pdl", "tokens", True))
    for suffix, plan, pdl in plans:
        for storage in STORAGES:
            options = {"storage": storage, "plan": plan, "pdl": pdl}
            yield "lookup", f"csgmv_embed{suffix}-{storage}", ("ours.lookup", "CsgmvEmbed", options)
    for storage in STORAGES:
        for form in ("", "_add", "_captured"):
            options = {"storage": storage, "form": form}
            yield "layer", f"csgmv_embed{form}-{storage}", ("ours.layer", "CsgmvEmbedLayer", options)
    # lm_head and sites have no lookup and their A table one storage: there the family has its default's name alone.
    yield "head", "csgmv_embed-vocab_major", ("ours.head", "CsgmvEmbedHead", {})
    yield "expand", "csgmv_embed-vocab_major", ("ours.head", "CsgmvEmbedExpand", {})
    for asked, part in SITE_PARTS:
        yield asked, "csgmv_embed-vocab_major", ("ours.site", "CsgmvEmbedSite", {"part": part})
    for suffix, steady in (("", False), ("_steady", True)):
        for size in CHUNK_SIZES:
            options = {"chunk_size": size, "steady": steady}
            yield (
                "lookup",
                f"csgmv_embed_plugin{suffix}-chunk{size}",
                ("ours.plugin", "CsgmvEmbedPlugin", options),
            )


def _vllm() -> Iterator[tuple[Asked, str, Recipe]]:
    for name, grid in (("vllm", "all"), ("vllm_specialized", "specialized")):
        options = {"grid": grid}
        yield "layer", name, ("vllm.layer", "VllmLayer", options)
        yield "head", name, ("vllm.head", "VllmHead", options)
        yield "expand", name, ("vllm.head", "VllmExpand", options)
        for asked, part in SITE_PARTS:
            yield asked, name, ("vllm.site", "VllmSite", {"part": part, **options})
    yield "lookup", "vllm", ("vllm.lookup", "VllmLookup", {})  # without a kernel of vLLM, so without a grid


def _torch() -> Iterator[tuple[Asked, str, Recipe]]:
    yield "lookup", "torch_gather", ("torch.gather", "TorchGather", {})
    yield "layer", "torch_gather", ("torch.layer", "TorchLayer", {})
    yield "head", "torch_gather", ("torch.head", "TorchHead", {})
    yield "expand", "torch_gather", ("torch.head", "TorchExpand", {})
    for asked, part in SITE_PARTS:
        yield asked, "torch_gather", ("torch.site", "TorchSite", {"part": part})
    yield "layer", "base", ("torch.layer", "BaseLayer", {})
    yield "head", "base", ("torch.head", "BaseHead", {})
    yield "linear", "base", ("torch.site", "BaseSite", {})


# name -> op -> what to build, names in the order of FAMILIES
RECIPES: dict[str, dict[Asked, Recipe]] = {}
for _asked, _name, _recipe in (*_ours(), *_sglang(), *_vllm(), *_torch()):
    RECIPES.setdefault(_name, {})[_asked] = _recipe


class UnknownContenderError(KeyError):
    """No contender has this name, or it does not have this op. The message lists those that exist."""

    def __init__(self, name: str, op: Asked | None = None) -> None:
        super().__init__(name)
        self.name, self.op = name, op

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        if self.op is not None:
            known = ", ".join(recipes_of(self.name))
            return f"contender {self.name!r} has no op {self.op!r}; it has {known}"
        if outside.is_outside(self.name):
            has = ", ".join({**outside.of_files(), **outside.installed()}) or "none"
            return f"no file or package has the contender {self.name!r} with this content; those that are known: {has}"
        if sglang_of(self.name) is not None and without_version(self.name) in RECIPES:
            varied = [family for family, axes in FAMILIES.items() if "sglang" in axes]
            return f"contender {self.name!r} has no SGLang whose version it could name; these have: {', '.join(varied)}"
        return f"unknown contender {self.name!r}; known: {', '.join(names())}"


def names() -> tuple[str, ...]:
    """Every name that bench.contenders.build accepts."""
    return tuple(RECIPES)


def asked_of(op: Op, site: Site) -> Asked:
    """Which recipe a case of this op and site needs."""
    return "expand of a site" if op == "expand" and site != "none" else op


def without_version(name: str) -> str:
    """A contender's name without the version of SGLang at its end."""
    return name.partition("@")[0]


def sglang_of(name: str) -> str | None:
    """The version of SGLang in a contender's name. None means the installed one, or that it needs none."""
    return name.partition("@")[2] or None


def imports_a_server(name: str) -> bool:
    """Whether the contender called `name` imports SGLang or vLLM, which may ask for a GPU while they are imported."""
    family = without_version(name).split("-")[0]
    return family.startswith("vllm") or "sglang" in FAMILIES.get(family, ())  # type: ignore[call-overload]


def recipes_of(name: str) -> dict[Asked, Recipe]:
    """The recipes of the contender called `name`, by op. Raises UnknownContenderError."""
    if outside.is_outside(name):
        return _of_outside(name)
    family = without_version(name).split("-")[0]
    varied = sglang_of(name) is None or "sglang" in FAMILIES.get(family, ())  # type: ignore[call-overload]
    if not varied or without_version(name) not in RECIPES:
        raise UnknownContenderError(name)
    return RECIPES[without_version(name)]


def _of_outside(name: str) -> dict[Asked, Recipe]:
    """One class builds all of its ops; an expand is lm_head's and a site's."""
    found = outside.find(name)
    if found is None:
        raise UnknownContenderError(name)
    recipe: Recipe = ("outside", "OutsideContender", {"name": name})
    both: tuple[Asked, ...] = ("expand of a site",) if "expand" in found.ops else ()
    return dict.fromkeys((*found.ops, *both), recipe)


def fits(name: str, pattern: str) -> bool:
    """Whether a name or glob pattern selects a contender; one of a file is selected with or without its hash."""
    return any(fnmatchcase(spelling, pattern) for spelling in outside.spellings(name))


def provides(name: str, op: Op, site: Site = "none") -> bool:
    """Whether the contender called `name` has this op. An expand without a site is lm_head's."""
    try:
        return asked_of(op, site) in recipes_of(name)
    except UnknownContenderError:
        return False
