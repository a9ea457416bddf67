"""The registry names every contender, imports nothing heavy to do so, and explains an unknown name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench import contenders
from bench.model import registry
from bench.model.case import OPS, SITE_OPS, Op, Site


def test_names_cover_every_variant() -> None:
    assert set(registry.names()) == {
        "csgmv_embed-vocab_major",
        "csgmv_embed-rank_major",
        "csgmv_embed_segments-vocab_major",
        "csgmv_embed_segments-rank_major",
        "csgmv_embed_pdl-vocab_major",
        "csgmv_embed_pdl-rank_major",
        "csgmv_embed_add-vocab_major",
        "csgmv_embed_add-rank_major",
        "csgmv_embed_captured-vocab_major",
        "csgmv_embed_captured-rank_major",
        "csgmv_embed_plugin-chunk16",
        "csgmv_embed_plugin-chunk32",
        "csgmv_embed_plugin-chunk64",
        "csgmv_embed_plugin-chunk128",
        "csgmv_embed_plugin_steady-chunk16",
        "csgmv_embed_plugin_steady-chunk32",
        "csgmv_embed_plugin_steady-chunk64",
        "csgmv_embed_plugin_steady-chunk128",
        "sglang_csgmv-chunk16",
        "sglang_csgmv-chunk32",
        "sglang_csgmv-chunk64",
        "sglang_csgmv-chunk128",
        "sglang_triton",
        "sglang_triton_v2",
        "sglang_tokens",
        "vllm",
        "vllm_specialized",
        "torch_gather",
        "base",
    }


SITES: tuple[Site, ...] = ("none", "qkv")
BUILT = [
    (name, op, site)
    for name in registry.names()
    for op in OPS
    for site in SITES
    if registry.provides(name, op, site) and (site == "none" or op in SITE_OPS)
]


@pytest.mark.parametrize(("name", "op", "site"), BUILT)
def test_a_built_contender_carries_the_name_it_was_asked_for(name: str, op: Op, site: Site) -> None:
    assert contenders.build(name, op, site).name == name


def test_the_expand_of_a_site_is_not_lm_heads() -> None:
    built = [type(contenders.build("sglang_triton", "expand", site)).__name__ for site in SITES]
    assert built == ["SglangExpand", "SglangSite"]
    assert registry.provides("sglang_tokens", "lookup") and not registry.provides("sglang_tokens", "expand", "o")


def test_every_contender_has_an_op_and_is_built_for_its_first_if_none_is_named() -> None:
    assert {name for name, *_ in BUILT} == set(registry.names())
    assert type(contenders.build("csgmv_embed-vocab_major")).__name__ == "CsgmvEmbed"
    assert type(contenders.build("csgmv_embed_add-rank_major")).__name__ == "CsgmvEmbedLayer"


def test_a_version_of_sglang_is_behind_the_name_of_those_that_have_one() -> None:
    name = "sglang_csgmv-chunk128@0.5.23"
    built = contenders.build(name, "head")
    assert (built.name, type(built).__name__) == (name, "SglangHead")
    assert registry.provides(name, "linear", "o") and not registry.provides("sglang_tokens@0.5.23", "layer")
    assert (registry.without_version(name), registry.sglang_of(name)) == ("sglang_csgmv-chunk128", "0.5.23")
    with pytest.raises(KeyError, match="'sglang_tokens@0.5.23' has no op 'layer'; it has lookup"):
        contenders.build("sglang_tokens@0.5.23", "layer")


def test_a_version_behind_the_name_of_one_without_sglang_is_an_error_that_lists_those_with_it() -> None:
    assert not registry.provides("torch_gather@0.5.23", "lookup")
    with pytest.raises(
        KeyError, match="'torch_gather@0.5.23' has no SGLang .* these have: .*sglang_csgmv, sglang_triton"
    ):
        contenders.build("torch_gather@0.5.23", "lookup")


def test_a_process_with_another_sglang_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.5.16")
    reason = contenders.unavailable(contenders.build("sglang_triton@0.5.23", "lookup"))
    assert reason == "this process has SGLang 0.5.16, expected 0.5.23: sweep takes one with --sglang FOLDER_OR_WHEEL"


def test_families_name_the_variants() -> None:
    families = {name.split("-")[0] for name in registry.names()}
    assert families == set(registry.FAMILIES)


def test_an_op_that_a_contender_lacks_is_an_error_that_lists_those_it_has() -> None:
    assert not registry.provides("csgmv_embed-rank_major", "head")
    with pytest.raises(KeyError, match="'csgmv_embed-rank_major' has no op 'head'; it has lookup, layer"):
        contenders.build("csgmv_embed-rank_major", "head")


def test_an_unknown_name_is_a_key_error_that_lists_the_known_ones() -> None:
    with pytest.raises(KeyError) as failure:
        contenders.build("sglang_csgmv-chunk17")
    message = str(failure.value)
    assert "sglang_csgmv-chunk17" in message
    assert all(name in message for name in registry.names())


def test_listing_names_imports_no_heavy_module() -> None:
    code = (
        "import sys; from bench.model import registry; registry.names(); "
        "sys.exit(', '.join({'torch', 'triton', 'sglang'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_import_path(), check=False)
    assert done.returncode == 0, done.stderr


def _import_path() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in sys.path if path)}
