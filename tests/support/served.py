"""Records of `bench serve`, made by hand."""

from __future__ import annotations

from bench.model import config
from bench.model.records import Code, Environment
from bench.model.served import (
    EngineProcess,
    ServedAnswer,
    ServedLoad,
    ServedTrace,
    ServeResults,
    ServeRun,
    TracedKernel,
)
from bench.model.serving import Load, Setup

DECODE = Load("decode", 32, 16)
PREFILL = Load("prefill", 8, 512)
STREAM = Load("stream", 4, 128)
ANSWERS = Load("answers", 2, 3)
MODES = ["none", "csgmv", "plugin"]


def answer(shift: float = 0.0, tokens: tuple[int, ...] = (5, 6), exact: str | None = None) -> ServedAnswer:
    values = [-1.0 - shift - place / 10 for place in range(len(tokens))]
    return ServedAnswer([*tokens], values, [-3.0 - shift, -2.0 - shift], exact)


def answers(*one_each: ServedAnswer) -> ServedLoad:
    return ServedLoad(ANSWERS, "ok", answers=[*one_each])


def decode(*steps_us: float) -> ServedLoad:
    return ServedLoad(DECODE, "ok", samples={"step_us": [*steps_us]})


def process(index: int, mode: str, repeat: int, *loads: ServedLoad, **fields) -> EngineProcess:  # type: ignore[no-untyped-def]
    given = {"status": "ok", "started_utc": "2026-01-01T00:00:00+00:00", "duration_s": 1.0} | fields
    return EngineProcess(index, mode, repeat, loads=[*loads], **given)


def trace(load: Load = DECODE) -> ServedTrace:
    kernels = [
        TracedKernel("base", "nvjet", 20, 2000.0),
        TracedKernel("qkv", "_chunked_lora_shrink_kernel", 10, 500.0),
        TracedKernel("qkv", "_chunked_lora_expand_kernel", 10, 300.0),
        TracedKernel("attention", "_fwd_grouped_kernel_stage1", 10, 200.0),
    ]
    return ServedTrace(load, kernels, 4000.0, 10.0, {"without an end": 3})


def results(*processes: EngineProcess, modes: list[str] = MODES) -> ServeResults:
    run = ServeRun(
        id="00000000-0000-4000-8000-000000000000",
        kind="serve",
        profile="quick",
        modes=modes,
        started_utc="2026-01-01T00:00:00+00:00",
        duration_s=5.0,
        argv=[],
        plan_sha256="0",
        tool_version="0",
        planned=max(1, len(processes)),
    )
    code = Code("a" * 40, "a" * 9, "main", None, False, None, "0", "2")
    identity = {"gpu": "GPU X", "torch": "2", "triton": "3.6.0", "driver": "580.1"}
    identity |= {"capability": "9.0", "sm_count": 132, "l2_bytes": 1, "mem_bytes": 1}
    return ServeResults(run, Setup(), config.load().serving, code, Environment(identity, "k", {}), [*processes])


def usual() -> ServeResults:
    """Two repeats of three modes, answers alike, one trace."""
    loads = {
        "none": (decode(5000.0, 5010.0), decode(5050.0)),
        "csgmv": (decode(13000.0, 13100.0, 12900.0), decode(13130.0)),
        "plugin": (decode(6500.0), decode(6600.0)),
    }
    told = {"none": answer(4.0), "csgmv": answer(exact="1"), "plugin": answer(0.01)}
    order = [("none", 0), ("csgmv", 0), ("plugin", 0), ("plugin", 1), ("csgmv", 1), ("none", 1)]
    made = [
        process(index, mode, repeat, answers(told[mode], told[mode]), loads[mode][repeat])
        for index, (mode, repeat) in enumerate(order)
    ]
    made[1].traces = [trace()]
    return results(*made)
