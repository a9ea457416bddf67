"""What is right is transformers with PEFT on the very files that an engine loads; its bound sees a lost site."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from bench.engine import peft_reference, weights
from bench.engine.messages import Prepared, ServeJob
from bench.engine.requests import Request, requests
from bench.judge.answers import AnswerCheck, answer_checks, planted, wrong
from bench.judge.serving import figures
from bench.model import config, served
from bench.model.paths import ROOT
from bench.model.records import Environment
from bench.model.served import ServedAnswer, ServedLoad
from bench.model.serving import PEFT, Load, Setup
from tests.bench.engine.test_run import TINY
from tests.support.served import decode, process, results

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

SHAPE = TINY | {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip
LOAD = Load("answers", 3, 24)
BASE = Load("answers", 3, 24, base_fraction=1.0)
NEW_TOKENS = 4


class Made(NamedTuple):
    """A reference, what it was asked with and without adapters, and its answers."""

    job: ServeJob
    reference: peft_reference.PeftReference
    asked: list[Request]
    answers: list[ServedAnswer]
    base: list[ServedAnswer]


def job(tmp_path: Path) -> ServeJob:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE), encoding="utf-8")
    setup = Setup(str(path), adapters=3, ranks=(4, 8))
    model, adapters, _ = weights.prepare(setup, tmp_path / "cache")
    prepared = Prepared(str(model), [*map(str, adapters)], 2, 500, Environment({}, "k", {}), 0.0)
    return ServeJob(PEFT, setup, config.load().serving, (LOAD,), prepared, (), "", 0.0, "")


def asked_of(load: Load) -> list[Request]:
    return requests(load, seed=1, adapters=3, vocab=500)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model takes longer with more, on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    asked = job(tmp_path_factory.mktemp("peft"))
    reference = peft_reference.open_engine(asked)
    right, base = (reference.answers(asked_of(load), NEW_TOKENS) for load in (LOAD, BASE))
    return Made(asked, reference, asked_of(LOAD), right, base)


def merged(made: Made, adapter: int) -> Any:
    """The model in float32, an adapter added to its weights by hand."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made.job.prepared.model, dtype=torch.float32).eval()
    tensors = load_file(Path(made.job.prepared.adapters[adapter]) / "adapter_model.safetensors")
    for name in [name for name in tensors if "lora_A" in name or "embedding_A" in name]:
        a, b = tensors[name].float(), tensors[name.replace("_A", "_B")].float()
        module = model.get_submodule(name.removeprefix("base_model.model.").partition(".lora_")[0])
        module.weight.data += (b @ a).T if "embedding" in name else b @ a
    return model


@pytest.mark.parametrize("place", [0, 1, 2])
def test_answers_are_those_of_adapters_merged_by_hand(made: Made, place: int) -> None:
    """Each token's log-probability, and each token the largest, from one pass over prompt and answer."""
    request, answer = made.asked[place], made.answers[place]
    assert request.adapter == place and len(answer.tokens) == NEW_TOKENS
    ids = [*request.ids, *answer.tokens]
    with torch.inference_mode():
        rows = torch.log_softmax(merged(made, place)(torch.tensor([ids])).logits[0], -1)
    told = [float(rows[index, token]) for index, token in enumerate(ids[1:])]
    assert [*answer.prompt_logprobs, *answer.logprobs] == pytest.approx(told, abs=1e-4)
    assert rows[len(request.ids) - 1 : -1].argmax(-1).tolist() == answer.tokens


def test_without_an_adapter_the_model_answers(made: Made) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made.job.prepared.model, dtype=torch.float32).eval()
    request, answer = asked_of(BASE)[0], made.base[0]
    assert request.adapter is None
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([request.ids])).logits[0], -1)
    told = [float(rows[index, token]) for index, token in enumerate(request.ids[1:])]
    assert answer.prompt_logprobs == pytest.approx(told, abs=1e-4)


def judged(made: Made, mode: str, told: list[ServedAnswer], base: list[ServedAnswer]) -> list[AnswerCheck]:
    """The checks of a mode that answers so, beside what is right."""
    found = results(
        process(0, PEFT, 0, ServedLoad(LOAD, "ok", answers=made.answers), ServedLoad(BASE, "ok", answers=made.base)),
        process(1, mode, 0, ServedLoad(LOAD, "ok", answers=told), ServedLoad(BASE, "ok", answers=base), decode(1.0)),
        modes=[PEFT, mode],
    )
    (step,) = [item for item in figures(found) if item.name == "step"]
    assert step.mode == mode and (step.status == "wrong") == bool(wrong(answer_checks(found)))
    return [check for check in answer_checks(found) if check.reference == PEFT]


def rounded(answers: list[ServedAnswer]) -> list[ServedAnswer]:
    return [answer.rounded for answer in answers if answer.rounded is not None]


def test_a_mode_that_rounds_as_the_reference_does_is_right(made: Made) -> None:
    (check,) = judged(made, "csgmv", rounded(made.answers), rounded(made.base))
    assert check.status == "ok" and check.max_nats and check.max_nats > 0


def spoiled(made: Made, tmp_path: Path, part: str, factor: float) -> list[ServedAnswer]:
    """Answers with the B of some modules multiplied, in files as an engine would load them, rounded as engines do."""
    from safetensors.torch import load_file, save_file

    folders = []
    for index, adapter in enumerate(map(Path, made.job.prepared.adapters)):
        folder = tmp_path / str(index)
        folder.mkdir()
        tensors = load_file(adapter / "adapter_model.safetensors")
        touched = {name: tensor * factor for name, tensor in tensors.items() if part in name and "_B" in name}
        assert touched
        save_file(tensors | touched, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
        folders.append(str(folder))
    prepared = msgspec.structs.replace(made.job.prepared, adapters=folders)
    reference = peft_reference.open_engine(msgspec.structs.replace(made.job, prepared=prepared))
    return reference._answers(made.asked, NEW_TOKENS, torch.bfloat16)


@pytest.mark.parametrize(("part", "factor"), [("o_proj", 0.0), ("o_proj", 2.0), ("lm_head", 0.0)])
def test_a_site_that_is_lost_or_scaled_is_wrong(made: Made, tmp_path: Path, part: str, factor: float) -> None:
    (check,) = judged(made, "plugin", spoiled(made, tmp_path, part, factor), rounded(made.base))
    assert check.status == "wrong" and "differ" in str(check.reason) and "from peft's by" in str(check.reason)


def test_a_request_without_an_adapter_that_gets_one_is_wrong(made: Made) -> None:
    (check,) = judged(made, "plugin", rounded(made.answers), rounded(made.answers))
    assert check.status == "wrong"


def test_without_lora_only_what_has_no_adapter_is_to_be_right(made: Made) -> None:
    checks = judged(made, "none", rounded(made.base), rounded(made.base))
    assert [check.status for check in checks] == ["ok", "other"]


def test_the_record_says_which_lost_site_its_bound_would_see(made: Made) -> None:
    sites = {"embedding", "lm_head", "qkv", "o", "gate_up", "down"}
    assert {*made.answers[0].without} == sites and not made.base[0].without
    of = results(process(0, PEFT, 0, ServedLoad(LOAD, "ok", answers=made.answers)), modes=[PEFT])
    found = planted(of)
    assert {*found} == sites and {found[site].status for site in ("qkv", "o", "lm_head")} == {"wrong"}
    for answer in made.answers:
        answer.without["qkv"] = answer.rounded or answer
    assert planted(of)["qkv"].status == "ok", "what changes nothing is not seen"


def test_what_is_planted_is_taken_back(made: Made) -> None:
    again = made.reference._answers(made.asked, NEW_TOKENS, torch.float32)
    assert [(item.tokens, item.logprobs) for item in again] == [(item.tokens, item.logprobs) for item in made.answers]


def test_its_process_may_find_packages_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(peft_reference.PATH, raising=False)
    assert peft_reference.environment() == {}
    monkeypatch.setenv(peft_reference.PATH, "/packages")
    assert peft_reference.environment() == {"PYTHONPATH": f"/packages:{ROOT}"}


def test_a_record_keeps_what_is_right(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    of = results(process(0, PEFT, 0, ServedLoad(LOAD, "ok", answers=made.answers)), modes=[PEFT])
    served.write(path, of)
    again = served.read(path).processes[0].loads[0].answers[0]
    assert again.rounded is not None and again.rounded.tokens == made.answers[0].rounded.tokens  # type: ignore[union-attr]
    assert {*again.without} == {*made.answers[0].without}
