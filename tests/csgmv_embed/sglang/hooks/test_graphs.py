"""SGLang's decode runner, its loop over batch sizes as it is: each captured without LoRA too, if that can be right."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks import graphs
from csgmv_embed.sglang.targets import BASE_GRAPH_HOOKS, RUNNER
from tests.support import real_sglang as support

pytestmark = pytest.mark.usefixtures("on_the_cpu", "loaded")
Captured = list[tuple[int, str | None, list[bool]]]  # batch size, variant, which layers have LoRA


class Capturing:
    """A runner that captures two batch sizes and does nothing else, of a model with LoRA on three layers of four."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> None:
        module = importlib.import_module(RUNNER.rpartition(".")[0])
        monkeypatch.setattr(module, "get_available_gpu_memory", lambda *_, **__: 1.0)
        monkeypatch.setattr(module, "get_parallel", lambda: SimpleNamespace(tp_rank=1, tp_group=None))
        self.layers = [SimpleNamespace(set_lora=is_set) for is_set in (True, False, True, True)]
        first, second, embedding, head = self.layers
        self.manager = SimpleNamespace(
            lora_backend=support.backend(4, 16),
            lora_modules=[{"q_proj": first}, {"q_proj": second}],
            embed_tokens_module=embedding,
            lm_head_module=head,
        )
        self.captured: Captured = []
        self.runner = self.made(module.DecodeCudaGraphRunner, arguments)

    def made(self, kind: Any, arguments: dict[str, Any]) -> Any:
        runner = object.__new__(kind)
        runner.__dict__ |= {
            "capture_bs": [1, 8],
            "compile_bs": [],
            "captured_req_width": 1,
            "record_nolora_graph": False,
            "attention_graph_variants": None,
            "_set_profile_trace_tag": lambda *_: None,
            "model_runner": SimpleNamespace(
                device="cpu",
                gpu_id=0,
                tp_group=None,
                model=SimpleNamespace(forward=len),
                lora_manager=self.manager,
                server_args=SimpleNamespace(**{"dp_size": 1, "enable_dp_attention": False, **arguments}),
            ),
        }
        runner.capture_one_shape = partial(graphs.capture_one, self._record, runner)
        return runner

    def _record(self, runner: Any, size: int, forward: Any, stream: Any, variant: str | None, *_: Any) -> None:
        self.captured.append((size, variant, self.with_lora()))

    def with_lora(self) -> list[bool]:
        return [layer.set_lora for layer in self.layers]

    def run(self) -> Captured:
        self.runner._capture_one_stream(None)
        return self.captured


SET, NONE = [True, False, True, True], [False] * 4
ONE_GRAPH = [(8, None, SET), (1, None, SET)]


@pytest.fixture
def capturing(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Capturing]:
    if loaded[1].release.graph_variant is None:
        pytest.skip("this SGLang captures no variants of a batch size")
    return partial(Capturing, monkeypatch)


def test_each_batch_size_is_captured_with_lora_and_without(
    capturing: Callable[..., Capturing], plugin_on: Callable[..., None]
) -> None:
    plugin_on()
    found = capturing()
    assert found.run() == [(8, "lora", SET), (8, "nolora", NONE), (1, "lora", SET), (1, "nolora", NONE)]
    assert found.with_lora() == SET


def test_a_step_takes_the_graph_that_its_requests_need(
    capturing: Callable[..., Capturing], plugin_on: Callable[..., None]
) -> None:
    """SGLang's own choice, asked as the runner was left."""
    plugin_on()
    runner = capturing().runner
    runner._capture_one_stream(None)
    taken = [runner._resolve_lora_variant(SimpleNamespace(lora_ids=ids)) for ids in ([None, None], [None, "a"])]
    assert taken == ["nolora", "lora"]


@pytest.mark.parametrize(
    "arguments",
    [{"enable_dp_attention": True}, {"dp_size": 2}, {"attn_dp_size": 2}],
    ids=lambda found: next(iter(found)),
)
def test_under_data_parallel_attention_there_is_one_graph(
    capturing: Callable[..., Capturing], plugin_on: Callable[..., None], arguments: dict[str, Any]
) -> None:
    plugin_on()
    assert capturing(**arguments).run() == ONE_GRAPH


def test_switched_off_or_with_one_hook_missing_there_is_one_graph(
    capturing: Callable[..., Capturing], plugin_on: Callable[..., None], loaded: Any
) -> None:
    assert capturing().run() == ONE_GRAPH, "the plugin is off"
    plugin_on(base_graph=False)
    assert capturing().run() == ONE_GRAPH
    for hook in BASE_GRAPH_HOOKS:
        runtime.activate(runtime.Active(loaded[1].release, runtime.Settings(), frozenset({hook})))
        assert capturing().run() == ONE_GRAPH


def test_another_runner_or_backend_or_no_lora_has_one_graph(
    capturing: Callable[..., Capturing], plugin_on: Callable[..., None]
) -> None:
    plugin_on()
    found = capturing()
    derived = type("DraftRunner", (type(found.runner),), {})
    found.runner = found.made(derived, {})
    assert found.run() == ONE_GRAPH
    for manager in (None, SimpleNamespace(lora_backend=object())):
        found = capturing()
        found.runner.model_runner.lora_manager = manager
        assert found.run() == ONE_GRAPH


def test_layers_have_lora_again_after_a_capture_that_failed(
    capturing: Callable[..., Capturing], plugin_on: Callable[..., None]
) -> None:
    plugin_on()
    found = capturing()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        graphs.capture_one(fail, found.runner, 1, len, None, graphs.WITHOUT_LORA)
    assert found.with_lora() == SET
