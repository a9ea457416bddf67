"""The mode `peft`, which defines the right answers: transformers and PEFT instead of an engine, with the same weights.

Answers are computed greedily in float32, and once more in the dtype of the engines. The difference of the two is the
rounding of the reference itself, from which the bound for engines is made (bench/judge/answers.py).

Its process may find its packages elsewhere than engines do, because SGLang's environment may lack a PEFT that fits its
transformers. In that case BENCH_PEFT_PYTHONPATH is its PYTHONPATH, with this checkout added.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.engine.floors import SITE_LAYERS
from bench.engine.messages import ServeJob
from bench.engine.requests import Request
from bench.engine.sglang_engine import DTYPE, adapter_name
from bench.model.paths import ROOT
from bench.model.records import Scalar
from bench.model.served import ServedAnswer, Site
from bench.model.serving import LAYER_SITES, Targets

if TYPE_CHECKING:  # imported where they are used: this module is read by the process of `bench serve`, too
    import torch

    from bench.accuracy.generation import Output

OPENER = "bench.engine.peft_reference:open_engine"
PATH = "BENCH_PEFT_PYTHONPATH"
PACKAGES = ("peft", "transformers", "torch")


def environment() -> dict[str, str]:
    """The environment variables that its process has in addition to those of engines."""
    path = os.environ.get(PATH)
    return {} if path is None else {"PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT))))}


def warm() -> None:
    """Import what the reference needs."""
    import peft
    import torch  # noqa: F401
    import transformers.models.auto.modeling_auto  # noqa: F401

    assert peft.PeftModel  # it is imported when it is first named


def open_engine(job: ServeJob) -> PeftReference:
    """Load the model and the adapters of a job."""
    return PeftReference(job)


class PeftReference:
    """Provides answers to `drive`, and nothing else."""

    def __init__(self, job: ServeJob) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is to be float32
        self._dtype: torch.dtype = getattr(torch, DTYPE)
        self._reference = self._loaded(job)
        self._sites = modules_of(job.setup.targets)
        self.described: dict[str, Scalar] = {name: importlib.metadata.version(name) for name in PACKAGES}
        self.described |= {"dtype": "float32", "rounded": DTYPE}

    def _loaded(self, job: ServeJob) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from bench.accuracy.models import Adapter, quiet
        from bench.accuracy.reference import HuggingFace

        with quiet():
            options: dict[str, Any] = {"dtype": self._dtype, "attn_implementation": "eager", "local_files_only": True}
            model = AutoModelForCausalLM.from_pretrained(job.prepared.model, **options)
        adapters = []
        for index, folder in enumerate(map(Path, job.prepared.adapters)):
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            adapters.append(Adapter(adapter_name(index), folder, {}, config))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return HuggingFace(model.to(device).eval(), adapters, self._dtype)

    def answers(self, asked: list[Request], new_tokens: int) -> list[ServedAnswer]:
        """The right answers in float32, and those rounded to the engines' dtype."""
        import torch

        rounded, found = (self._answers(asked, new_tokens, dtype) for dtype in (self._dtype, torch.float32))
        for answer, beside in zip(found, rounded, strict=True):
            answer.rounded = beside
        if all(item.adapter is not None for item in asked):
            self._plant(asked, found)
        return found

    def _plant(self, asked: Sequence[Request], found: Sequence[ServedAnswer]) -> None:
        """Beside each answer, what it would be without a site's adapters, as an engine would compute it."""
        for site, modules in self._sites.items():
            with self._reference.without(modules):
                spoiled = self._answers(asked, 1, self._dtype)
            for answer, beside in zip(found, spoiled, strict=True):
                answer.without[site] = beside

    def _answers(self, asked: Sequence[Request], new_tokens: int, dtype: torch.dtype) -> list[ServedAnswer]:
        from bench.accuracy import generation

        self._reference.cast(dtype)  # weights are of the shorter one, so nothing is lost
        named = [
            generation.Request("", None if item.adapter is None else adapter_name(item.adapter), tuple(item.ids))
            for item in asked
        ]
        return [answer_of(output) for output in generation.generate(self._reference, named, new_tokens)]

    def close(self) -> None:
        """Nothing to do: its process ends with it."""


def modules_of(targets: Targets) -> dict[Site, tuple[str, ...]]:
    """The modules of each site that have adapters."""
    ends: dict[Site, tuple[str, ...]] = {} if targets == "attention" else {"embedding": ("embed_tokens",)}
    ends |= {} if targets == "attention" else {"lm_head": ("lm_head",)}
    return ends | {site: SITE_LAYERS[site] for site in LAYER_SITES[targets]}


def answer_of(output: Output) -> ServedAnswer:
    """An output as a record has it: log-probabilities of the tokens only, for the prompt from its second token on."""
    ids, tokens = output.request.ids, output.tokens
    prompt = [float(row[token]) for row, token in zip(output.prefill[:-1], ids[1:], strict=True)]
    return ServedAnswer(
        [*tokens], [float(row[token]) for row, token in zip(output.decode, tokens, strict=True)], prompt
    )
