"""What a process says is written down as it comes, and what met it beside it."""

from __future__ import annotations

import pytest

from bench.engine.listening import Listener
from bench.engine.messages import Begun, Crossed, Done, Loaded, Message, Started, Traced
from bench.engine.processes import EngineLost
from bench.engine.watch import Conditions
from bench.model import config
from bench.model.served import CrossLoad, CrossProcess, EngineProcess, ServedLoad
from tests.support.served import DECODE, PREFILL, trace

SERVING = config.load().serving
HOT = "the GPU's clock was lowered: thermal"


class Saying:
    """A process that says these, and then nothing more."""

    def __init__(self, *messages: Message) -> None:
        self._left, self.waited = [*messages], list[float]()

    def hear(self, timeout_s: float) -> Message:
        self.waited.append(timeout_s)
        if not self._left:
            raise EngineLost("signal SIGKILL", crashed=True)
        return self._left.pop(0)


class Around:
    """A guard whose GPU was disturbed in a span of time, or never."""

    def __init__(self, began_ns: int = -1, ended_ns: int = -1) -> None:
        self._span = began_ns, ended_ns

    def started(self) -> None:
        pass

    def during(self, began_ns: int, ended_ns: int) -> Conditions:
        met = began_ns <= self._span[1] and ended_ns >= self._span[0]
        return Conditions([1980, 1980], ["thermal"] if met else [], HOT if met else None)


def heard(process: EngineProcess | CrossProcess, *messages: Message, around: Around | None = None) -> Saying:
    child = Saying(*messages)
    kind: type = ServedLoad if isinstance(process, EngineProcess) else CrossLoad
    listener = Listener(process, around or Around(), kind)  # type: ignore[arg-type]  # what it asks of a guard
    assert [*listener.listen(child, lambda: None, SERVING, 5.0)] == process.loads  # type: ignore[arg-type]
    return child


def engine() -> EngineProcess:
    return EngineProcess(0, "csgmv", 0, "ok", "2026-01-01T00:00:00+00:00")


def loaded(began_ns: int, problem: str | None = None) -> Loaded:
    return Loaded(DECODE, began_ns, began_ns + 10, {"step_us": [5.0]}, [], problem)


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        (loaded(0), "ok", None),
        (loaded(100), "void", HOT),
        (loaded(0, "a request failed: no slot"), "void", "a request failed: no slot"),
        (loaded(0, "RuntimeError: shapes"), "error", "RuntimeError: shapes"),
        (Loaded(DECODE, 100, 110, {"step_us": [-1.0]}), "error", "step_us has a sample of -1; expected a finite one"),
    ],
)
def test_a_load_is_sound_or_has_its_reason(message: Loaded, status: str, reason: str | None) -> None:
    process = engine()
    heard(process, Started({"sglang": "0"}), message, Done(), around=Around(100, 110))
    (found,) = process.loads
    assert (found.status, process.status, process.engine) == (status, "ok", {"sglang": "0"})
    assert found.reason is None if reason is None else reason in str(found.reason)
    assert found.samples == ({} if "sample" in str(reason) else {"step_us": [5.0]}), "kept, if they are samples"
    assert found.duration_s == pytest.approx(1e-8) and found.sm_mhz == [1980, 1980]


def test_a_server_is_heard_as_an_engine_is() -> None:
    process = CrossProcess("csgmv", "ok", "2026-01-01T00:00:00+00:00")
    child = heard(process, Started({"port": 1}), Crossed(DECODE, 0, 10, {"ttft_us": 3.0}), Begun(PREFILL, 20))
    done, lost = process.loads
    assert (done.status, done.said, process.server) == ("ok", {"ttft_us": 3.0}, {"port": 1})
    assert (lost.load, lost.status, lost.reason) == (PREFILL, "crashed", "signal SIGKILL")
    assert (process.status, process.reason) == ("crashed", "signal SIGKILL")
    assert child.waited[0] == SERVING.start_timeout_s + 5 and {*child.waited[1:]} == {SERVING.load_timeout_s + 5}


def test_a_trace_that_was_disturbed_is_kept_and_told() -> None:
    process = engine()
    heard(process, Begun(DECODE, 0), Traced(DECODE, trace()), Done(), around=Around(5, 6))
    assert process.traces == [trace()] and process.trace_notes == [f"decode 32: disturbed while it was traced: {HOT}"]
    quiet = engine()
    heard(
        quiet, Begun(DECODE, 0), Traced(DECODE, trace()), Begun(PREFILL, 0), Traced(PREFILL, None, "no kernel"), Done()
    )
    assert quiet.trace_notes == ["prefill 8x512: no kernel"]


def test_an_engine_that_is_lost_while_it_is_traced_keeps_the_load_that_it_was_asked_before() -> None:
    process = engine()
    heard(process, loaded(0), Begun(DECODE, 20))
    assert [item.status for item in process.loads] == ["ok"] and process.status == "crashed"


def test_what_is_wrong_with_a_process_voids_its_loads() -> None:
    process = engine()
    heard(process, loaded(0), Done("the plugin is off"))
    assert (process.status, process.loads[0].status, process.loads[0].reason) == ("error", "void", "the plugin is off")
