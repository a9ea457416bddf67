"""Counts the work of one launch in Triton's interpreter: exact, equal on every machine, and not a time."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np

from bench.clocks.work.interpreter import faithful
from bench.model.records import WorkCounts, WorkLaunch

SECTOR_BYTES = 32
MAX_PROGRAMS = 8192  # of a launch: with large tiles a minute of the interpreter
_LOAD, _STORE = np.uint8(1), np.uint8(2)

_NEEDS_INTERPRETER = (
    "counting work needs Triton's interpreter: set TRITON_INTERPRET=1 before triton and the kernels are imported"
)


class TooManyPrograms(Exception):
    """The launch would take the interpreter too long. The message says how large it is."""


@dataclass(frozen=True)
class Counted:
    """The result of counting one call: its figures, and its kernel launches in order."""

    counts: WorkCounts
    launches: list[WorkLaunch]


def count(launch: Callable[[], object]) -> Counted:
    """Run `launch` once under the interpreter and count the work of every Triton kernel that it launches.

    All interpreted launches end in one place of the interpreter and are counted there, under whatever name a kernel
    was imported. A torch kernel, such as the fill of torch.zeros, is not counted. Sectors are numbered from the start
    of the storage each address lies in, as a GPU allocator would align it, so the counts do not depend on where the
    host put the tensors. Tensors must be on the CPU. The memory needed is one byte per 32 bytes of tensor that is
    touched.

    Raises RuntimeError if the interpreter is missing, for a launch that is not interpreted (of a kernel made before
    TRITON_INTERPRET was set, or compiled) or tries several configurations (an autotuned one), if a live lane leaves the
    storages of the kernels' tensor arguments, and for atomics, which are neither loads nor stores. What a kernel raises
    comes out as it is, without the interpreter's InterpreterError around it.
    """
    if not importlib.import_module("triton.knobs").runtime.interpret:
        raise RuntimeError(_NEEDS_INTERPRETER)
    counter = _Counter()
    with _traced(counter):
        launch()
    return Counted(counter.counts(), counter.launches())


@contextmanager
def _traced(counter: _Counter) -> Iterator[None]:
    """Within, every interpreted launch is told to `counter` and every other one refused."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor  # the builder is the one there is
    call = executor.__call__

    def counted(grid: Any, *arguments: Any, **options: Any) -> Any:
        counter.begin(grid.fn.__name__, (*arguments, *options.values()))
        try:
            returned = call(grid, *arguments, **options)
        except interpreter.InterpreterError as wrapped:
            raise _inmost(wrapped) from wrapped
        counter.end()
        return returned

    with ExitStack() as stack:
        stack.enter_context(faithful())
        stack.enter_context(_replaced(executor, "__call__", counted))
        for name, tell in counter.operations().items():
            stack.enter_context(patch.object(builder, name, _told(getattr(builder, name), tell)))
        for module, kind, what in _UNCOUNTED:
            owner, refuse = getattr(importlib.import_module(module), kind), _uncounted(what)
            value = property(refuse) if isinstance(vars(owner)["run"], property) else refuse
            stack.enter_context(_replaced(owner, "run", value))
        yield


def _inmost(error: BaseException) -> BaseException:
    """What the interpreter wrapped, once for every function that a kernel called."""
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    return error


def _told(operation: Callable[..., Any], tell: Callable[..., None]) -> Callable[..., Any]:
    """An operation of the interpreter that first tells its arguments."""

    def with_telling(*arguments: Any, **options: Any) -> Any:
        tell(*arguments, **options)
        return operation(*arguments, **options)

    return with_telling


# Ways to launch that the interpreter does not see, or not as a GPU does, and what one of them is.
_UNCOUNTED = (
    ("triton.runtime.jit", "JITFunction", "made before TRITON_INTERPRET was set"),
    ("triton.compiler.compiler", "CompiledKernel", "a compiled one"),
    ("triton.runtime.autotuner", "Autotuner", "an autotuned one"),
)


def _uncounted(what: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *arguments: object, **options: object) -> NoReturn:
        function = getattr(self, "base_fn", getattr(self, "fn", self))
        name = getattr(function, "__name__", None) or getattr(self, "name", "?")
        raise RuntimeError(f"the kernel {name} was launched and not counted: it is {what}; {_NEEDS_INTERPRETER}")

    return refuse


@contextmanager
def _replaced(owner: object, attribute: str, value: object) -> Iterator[None]:
    original = vars(owner)[attribute]
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, original)


class _Sectors:
    """Which 32-byte sectors of which storage were touched, and how; a storage is known by its base address."""

    def __init__(self) -> None:
        self._bases: list[int] = []  # sorted
        self._storages: dict[int, Any] = {}  # held, so that no later storage gets the same address
        self._flags: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def add(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        base, size = storage.data_ptr(), storage.nbytes()
        if size > 0 and base not in self._storages:
            bisect.insort(self._bases, base)
            self._storages[base] = storage
            self._flags[base] = np.zeros(-(-size // SECTOR_BYTES), dtype=np.uint8)

    def touch(self, addresses: np.ndarray[Any, Any], flag: np.uint8) -> None:
        """Mark the sector of each address, (lanes,) uint64."""
        while addresses.size:  # one turn for each storage the lanes lie in, so nearly always one
            lowest = int(addresses.min())
            position = bisect.bisect_right(self._bases, lowest) - 1
            base = self._bases[position] if position >= 0 else 0
            end = base + self._storages[base].nbytes() if position >= 0 else 0
            if lowest >= end:
                raise RuntimeError(f"a kernel accessed address {lowest:#x}, outside its tensor arguments")
            inside = addresses < end
            self._flags[base][(addresses[inside] - base) // SECTOR_BYTES] |= flag
            addresses = addresses[~inside]

    def count(self, flag: np.uint8) -> int:
        return sum(int(np.count_nonzero(flags & flag)) for flags in self._flags.values())


@dataclass
class _Launched:
    """A launch while its programs run."""

    kernel: str
    programs: int = 0
    active_programs: int = 0


class _Counter:
    """Is told of each launch, of each of its programs and of what they load and store."""

    def __init__(self) -> None:
        self._sectors = _Sectors()
        self._launched: list[_Launched] = []
        self._load_bytes = self._store_bytes = 0
        self._busiest = (0, 0)
        self._loads = self._stores = 0  # of the program that is running
        self._stored = self._running = False

    def counts(self) -> WorkCounts:
        return WorkCounts(
            launches=len(self._launched),
            programs=sum(item.programs for item in self._launched),
            active_programs=sum(item.active_programs for item in self._launched),
            busiest_loads=self._busiest[0],
            busiest_stores=self._busiest[1],
            load_bytes=self._load_bytes,
            store_bytes=self._store_bytes,
            load_sectors=self._sectors.count(_LOAD),
            store_sectors=self._sectors.count(_STORE),
        )

    def launches(self) -> list[WorkLaunch]:
        return [WorkLaunch(item.kernel, item.programs, item.active_programs) for item in self._launched]

    def operations(self) -> dict[str, Callable[..., None]]:
        """Methods of the interpreter's builder, each with how its calls are recorded.

        Every load and store ends in one of the masked ones, through a descriptor too.
        """
        return {
            "set_grid_dim": self._grid,
            "set_grid_idx": self._program,
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_atomic_rmw": _refuse_atomic,
            "create_atomic_cas": _refuse_atomic,
        }

    def begin(self, kernel: str, arguments: tuple[Any, ...]) -> None:
        """A launch of this kernel on these arguments begins."""
        self._launched.append(_Launched(kernel))
        self._running = False
        self._hold(arguments)

    def end(self) -> None:
        """The launch has ended."""
        self._close()

    def _hold(self, arguments: tuple[Any, ...]) -> None:
        for argument in arguments:
            if isinstance(argument, tuple):
                self._hold(argument)
            tensor = getattr(argument, "base", argument)  # tensor descriptors and reinterpreted tensors wrap one
            if hasattr(tensor, "untyped_storage"):
                self._sectors.add(tensor)

    def _grid(self, *grid: int) -> None:
        if prod(grid) > MAX_PROGRAMS:
            raise TooManyPrograms(
                f"a launch of {prod(grid)} programs; the work clock interprets at most {MAX_PROGRAMS}"
            )

    def _program(self, *index: int) -> None:
        """The next program begins, which ends the one before it."""
        self._close()
        self._launched[-1].programs += 1
        self._loads = self._stores = 0
        self._stored, self._running = False, True

    def _close(self) -> None:
        if self._running:
            self._launched[-1].active_programs += self._stored
            operations = (self._loads, self._stores)
            self._busiest = max(self._busiest, operations, key=lambda pair: (sum(pair), pair))
        self._running = False

    def _load(self, pointers: Any, mask: Any, *others: object, **options: object) -> None:
        self._loads += 1
        self._load_bytes += self._live_bytes(pointers, mask, _LOAD)

    def _store(self, pointers: Any, value: object, mask: Any, *others: object, **options: object) -> None:
        live_bytes = self._live_bytes(pointers, mask, _STORE)
        self._stores += 1
        self._store_bytes += live_bytes
        self._stored |= live_bytes > 0

    def _live_bytes(self, pointers: Any, mask: Any, flag: np.uint8) -> int:
        """Mark the sectors of the live lanes and return their bytes; `pointers` and `mask` are interpreter handles."""
        live = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        self._sectors.touch(live, flag)
        element_bits: int = pointers.get_element_ty().primitive_bitwidth
        return int(live.size) * max(1, element_bits // 8)  # a bool is one bit to Triton and one byte in memory


def _refuse_atomic(*args: object, **kwargs: object) -> None:
    raise RuntimeError("a kernel used an atomic, which is neither a load nor a store and is not counted")
