"""A model of the server, as `hello` tells it: how its events and answers are packed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import ModelError
from streamlstm.events import acceptable, as_events, rows_of, unacceptable
from streamlstm.head import Head, refusal
from streamlstm.service import operations, wire
from streamlstm.service.operations import Operation

Array = npt.NDArray[Any]

RUN_BYTES_MAX: Final = 1 << 20
"""A longer run goes in pieces, so that it does not hold up the server's other clients."""

_DTYPES: Final = {name: np.dtype(name) for name in ("float32", "float64")}


@dataclass(frozen=True)
class RemoteModel:
    """A model of the server as `hello` tells it; inputs and outputs are (name, unit) pairs.

    dtype: of events, outputs and states. head: without its residuals.
    """

    name: str
    fingerprint: str
    dtype: np.dtype[Any]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    run_rows: int | None = None  # events of one run message at most
    largest: tuple[float, ...] | None = None  # what each input of an event may be at most
    window: int = 1  # messages of one session that may be unanswered
    head: Head | None = None

    @cached_property
    def shape(self) -> tuple[int]:
        """Of one event."""
        return (len(self.inputs),)

    @cached_property
    def output_size(self) -> int:
        """Bytes of one event's output."""
        return len(self.outputs) * self.dtype.itemsize

    def numbers(self, x: Any, ndim: int) -> Array:
        """Events as an array [..., inputs] of `dtype`, as an embedded engine takes them.

        Raises MissingInputError, DtypeError, ShapeError.
        """
        return as_events(x, [name for name, _ in self.inputs], ndim, self.dtype, self._time)

    def rows(self, events: Any) -> Any:
        """What to stream: of a data frame its rows. Raises as `numbers` does."""
        return rows_of(events, [name for name, _ in self.inputs], self._time)

    @property
    def _time(self) -> str | None:
        return None if self.head is None else self.head.time

    def check(self, X: Array) -> None:
        """Raise NonFiniteError as the engine would. X [rows, inputs]."""
        largest = np.finfo(self.dtype).max if self.largest is None else np.array(self.largest)
        if not acceptable(X, largest, self.head).all():
            raise unacceptable(X, largest, self.head)
        if self.head is None or self.head.missing != "reject":
            return
        lacking = np.isnan(X).any(axis=1)
        if lacking.any():
            index = int(np.argmax(lacking))
            names = [name for name, _ in self.inputs]
            raise refusal(index, dict(zip(names, X[index].tolist(), strict=True)), self.head)

    def pieces(self, X: Array) -> deque[bytes]:
        """A run's X [rows, inputs] as payloads, each good for one message."""
        width = max(len(self.inputs), len(self.outputs)) * X.itemsize
        rows = max(1, RUN_BYTES_MAX // width)
        if self.run_rows is not None:
            rows = min(rows, self.run_rows)
        return deque(X[start : start + rows].tobytes() for start in range(0, len(X), rows))

    def seen(self, op: Operation, got: Any) -> Any:
        """What one of LOOKS was answered with. Raises ValueError, TypeError."""
        if op is operations.COUNTERS:
            return {str(name): int(count) for name, count in dict(got).items()}
        if type(got) is not bytes:
            raise TypeError("it is not bin")
        if op is operations.STATE:
            return got
        quantiles = 0 if self.head is None else len(self.head.quantiles)
        return np.frombuffer(bytearray(got), np.float64).reshape(-1, quantiles)

    def result(self, y: bytes, *shape: int) -> Array:
        """Outputs as the caller's own array, writable."""
        return np.frombuffer(bytearray(y), self.dtype).reshape(*shape, len(self.outputs))


def read_model(told: Mapping[str, Any]) -> RemoteModel:
    """A model as hello has it. Raises BadMessageError, LookupError, TypeError, ValueError."""
    return RemoteModel(
        told["name"],
        told["fingerprint"],
        _DTYPES[told["dtype"]],
        told["inputs"],
        told["outputs"],
        told.get("run_rows"),
        told.get("largest"),
        max(1, int(told["window"])),
        _head(told.get("head")),
    )


def _head(text: str | None) -> Head | None:
    """A model's head as hello tells it."""
    try:
        return None if text is None else Head.read(json.loads(text))
    except (ModelError, TypeError, ValueError, RecursionError) as error:
        raise wire.BadMessageError(f"a model's head can't be read: {error}") from None
