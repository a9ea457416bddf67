"""Triton's interpreter with bfloat16 as a GPU computes it.

The interpreter (Triton 3.6) keeps bfloat16 as the integers of its bits. It multiplies and adds those integers, and it
truncates float32 where a GPU rounds to nearest. Kernels that only copy are not affected; products are. Inside
`faithful` they are computed in float32 and rounded, so that a counted launch can be compared with the oracle.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np


@contextmanager
def faithful() -> Iterator[None]:
    """Within this context interpreted kernels round, add and multiply bfloat16 correctly.

    Other dtypes are unchanged.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.interpreter_builder  # the one there is
    handle, bfloat16, float32 = interpreter.TensorHandle, interpreter.tl.bfloat16, interpreter.tl.float32
    cast, binary, dot = builder.cast_impl, builder.binary_op, builder.create_dot

    def wide(value: Any) -> Any:
        """The values of a bfloat16 handle in float32. Any other handle is returned as it is."""
        if value.dtype.scalar != bfloat16:
            return value
        return handle((value.data.astype(np.uint32) << 16).view(np.float32), float32)

    def cast_impl(source: Any, target: Any) -> Any:
        if source.dtype.scalar == float32 and target.scalar == bfloat16:
            return handle(_rounded(source.data), bfloat16)
        return cast(source, target)

    def binary_op(left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar != bfloat16 or op not in _ARITHMETIC:
            return binary(left, right, op)
        return handle(_rounded(op(wide(left).data, wide(right).data)), bfloat16)

    def create_dot(left: Any, right: Any, *others: Any) -> Any:
        return dot(wide(left), wide(right), *others)

    with patch.multiple(builder, cast_impl=cast_impl, binary_op=binary_op, create_dot=create_dot):
        yield


_ARITHMETIC = (np.add, np.subtract, np.multiply, np.divide)


def _rounded(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The bits of the nearest bfloat16 values, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
