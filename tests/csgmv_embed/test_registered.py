"""The ops as torch sees them: compiled whole, with fake tensors, by torch's own checks, and outside autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import csgmv_embed
from csgmv_embed import GradError, registered
from tests.csgmv_embed.test_operands import (
    ALLOCATES,
    OPERANDS,
    VOCAB,
    arguments,
    call,
    every_op,
    planned,
    static,
)

COMPILED = {"fullgraph": True, "backend": "aot_eager"}
WRITES = {"embedding_lora_add": "base_output"}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    yield
    torch._dynamo.reset()


@every_op
@pytest.mark.parametrize("given", [True, False], ids=["out given", "out allocated"])
def test_a_graph_is_compiled_around_the_op_without_a_break(device, name, given):
    if not given and name not in ALLOCATES:
        pytest.skip("writes into an operand")
    columns = 8 if name == "lora_shrink" else None  # of the smaller rank: it leaves the others as they are

    def model(tensors: dict[str, Any]) -> torch.Tensor:
        return getattr(csgmv_embed, name)(**tensors) * 2

    for batch in (planned(device), static(device, 0), planned(device).without_token_words()):
        options = {"batch": batch} | ({} if given else {"out": None})
        expected = model(arguments(name, device) | options)
        compiled = torch.compile(model, **COMPILED)(arguments(name, device) | options)
        assert torch.equal(compiled[:, :columns], expected[:, :columns])


@every_op
def test_a_refill_compiles_nothing_again(device, name):
    """A static batch holds other tokens with every step; a compiled model follows without a new graph."""
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    batch = static(device, 0)
    compiled = torch.compile(lambda **tensors: getattr(csgmv_embed, name)(**tensors), fullgraph=True, backend=backend)
    for lens, slots in (([3, 2], [1, 0]), ([5], [1]), ([1, 2], [0, 1])):
        batch.refill(lens, slots, [16, 8])
        given = arguments(name, device) | {"batch": batch}
        rows = sum(lens)
        found = compiled(**given)
        assert torch.equal(found[:rows], call(name, device, batch=batch)[:rows])
    assert graphs == 1


def faked(mode: FakeTensorMode, given: dict[str, Any]) -> dict[str, Any]:
    return {at: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for at, value in given.items()}


@every_op
def test_fake_tensors_propagate_and_nothing_is_launched(device, name, monkeypatch):
    monkeypatch.setattr(csgmv_embed.launch.direct.Launch, "__call__", None)
    real = arguments(name, device)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = faked(mode, real)
        found = getattr(csgmv_embed, name)(**given)
        assert found.shape == given[WRITES.get(name, "out")].shape
        if name in ALLOCATES:
            assert getattr(csgmv_embed, name)(**(given | {"out": None})).shape == found.shape
    assert getattr(csgmv_embed, name)(**given).shape == found.shape  # outside the mode that they are of


@every_op
@pytest.mark.parametrize("batch", [planned, lambda device: planned(device).without_token_words()])
def test_torchs_own_checks_of_an_op(device, name, batch):
    given = arguments(name, device)
    operation = registered._ops[name]
    names = [argument.name for argument in operation._opoverload._schema.arguments]
    parts = dict(zip(registered.PARTS, registered.parts(batch(device)), strict=True))
    options = {"missing_row": 0, "pdl": False, "slices": 1, "starts": [0, VOCAB]} | given
    operation_arguments = tuple(parts[at] if at in parts else options[at] for at in names)
    torch.library.opcheck(operation._opoverload, operation_arguments)


@pytest.mark.parametrize(("name", "operand"), [(op, at) for op, at in OPERANDS if at != "input_ids"])
def test_a_tensor_that_requires_grad_is_an_error_that_says_so(device, name, operand):
    call(name, device)
    given = arguments(name, device)[operand].requires_grad_()
    expected = pytest.raises(GradError, match=f"{operand} requires grad; expected a tensor that does not")
    with expected:
        call(name, device, **{operand: given})
    with torch.no_grad():
        right = call(name, device, **{operand: given}).clone()
    assert torch.equal(right, call(name, device))
    with expected:
        call(name, device, **{operand: given})  # after a call without grad
    real = arguments(name, device) | {operand: given}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = faked(mode, real)
        with expected:
            getattr(csgmv_embed, name)(**made)


def test_a_parameter_that_requires_no_grad_is_a_table_like_another(device):
    table = torch.nn.Parameter(arguments("embedding_lora", device)["embedding"], requires_grad=False)
    assert torch.equal(call("embedding_lora", device, embedding=table), call("embedding_lora", device))


def test_a_linear_layer_of_several_slices_is_compiled_whole(device):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, a_table, b_table, base = draw(5, 16), draw(2, 3 * 16, 16), draw(2, 24, 16), draw(5, 24)
    starts, batch = (0, 8, 20, 24), planned(device)

    def model(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        shrunk = csgmv_embed.lora_shrink(x, a_table, batch, 3, torch.zeros(5, 3 * 16, device=device))
        base = csgmv_embed.lora_linear(x, a_table, b_table, base.clone(), batch, starts)
        return csgmv_embed.lora_expand(shrunk, b_table, base, batch, starts)

    assert torch.equal(torch.compile(model, **COMPILED)(x, base), model(x, base))


def test_a_batch_without_tiles_is_refused_where_torch_sees_the_op(device):
    batch = csgmv_embed.EmbeddingBatch.build([3, 2], [1, 0], [16, 8], segments=True, device=device)
    with pytest.raises(csgmv_embed.ShapeError, match="planned without tiles; expected one made with tiles=True"):
        torch.compile(csgmv_embed.lora_linear, **COMPILED)(**(arguments("lora_linear", device) | {"batch": batch}))
