"""The last answers of every session, so that an event sent twice is stepped once.

A repeat is the same message again: the same seq and the same input, which is
known by its digest (CRC-32 of the payload, begun with the operation's mark).
Answers of single events lie in a ring of `window` places for each seat, event
seq at place seq % window. A run's answer is kept whole until another run of
that session, or until all runs' answers together exceed RUN_BYTES_MAX.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final
from zlib import crc32

import msgpack
import numpy as np
import numpy.typing as npt

from streamlstm.errors import AnswerGoneError, SequenceError, SessionQuarantinedError
from streamlstm.service.operations import STEPS, Operation

Array = npt.NDArray[Any]

WINDOW_MAX: Final = 16
WINDOW_BYTES: Final = 2048
"""A ring of larger outputs is shorter, down to 2 places."""

RUN_BYTES_MAX: Final = 64 << 20

_PLACE: Final = np.uint32(0x9E3779B1)
"""Knuth, The Art of Computer Programming 3, 6.4: a multiplier that spreads small numbers."""


def digest(operation: Operation, payload: bytes | memoryview) -> int:
    """What an input is known by, 32 bits."""
    return crc32(payload, operation.mark)


def digests(payload: bytes | memoryview, count: int) -> Array:
    """What the `count` events of one steps message are known by: the message and their place."""
    each: Array = np.arange(count, dtype=np.uint32) * _PLACE + np.uint32(digest(STEPS, payload))
    return each


class WrongSeqError(SequenceError):
    """Keeps the numbers for the reply's details."""

    def __init__(self, given: int, expected: int, index: int | None = None) -> None:
        where = "" if index is None else f"index {index}: "
        why = (
            f"the event {given} was another one when it was applied"
            if given < expected
            else f"the event has seq {given}"
        )
        super().__init__(f"{where}{why}, the session's next is {expected}")
        self.details = {"expected": expected} | ({} if index is None else {"index": index})


class QuarantinedError(SessionQuarantinedError):
    """Keeps the session's seq for the reply's details."""

    def __init__(self, seq: int, index: int | None = None, *, kept: bool = True) -> None:
        where = "" if index is None else f"index {index}: "
        good = "is kept" if kept else "is not kept without --state"
        super().__init__(
            f"{where}event {seq} made the session's state non-finite; its last good state {good}: "
            "reset or restore the session"
        )
        self.details = {"seq": seq} | ({} if index is None else {"index": index})


class Answers:
    """Rings of answers, one for each seat of a table; an answer is [outputs] `dtype`."""

    def __init__(self, outputs: int, dtype: np.dtype[Any]) -> None:
        self.size = outputs * dtype.itemsize  # bytes of one answer
        self.window = max(2, min(WINDOW_MAX, WINDOW_BYTES // self.size))
        self._runs: dict[int, tuple[int, int, int, bytes]] = {}  # first, last, digest, Y
        self._run_bytes = 0
        # Places filled: those of events from `_first` of the seat on.
        self._first = np.zeros(0, np.int64)
        self._digests = np.zeros((0, self.window), np.uint32)
        self._outputs = np.zeros((0, self.window, outputs), dtype)
        self.grow(1)

    def grow(self, seats: int) -> None:
        """Make room for so many seats."""
        extra = seats - len(self._first)
        for name in ("_first", "_digests", "_outputs"):
            old: Array = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((extra, *old.shape[1:]), old.dtype)]))
        # The same memory for one place at a time: four times as fast as an array's index.
        self._place_first = self._first.data
        self._place_digest = self._digests.reshape(-1).data
        self._place_bytes = self._outputs.reshape(-1).view(np.uint8).data

    def clear(self, seat: int, seq: int) -> None:
        """A seat whose session was changed `seq` times and has no answer to give again."""
        self._place_first[seat] = seq + 1
        self._drop_run(seat)

    # --- keeping ---

    def keep(self, seat: int, seq: int, known_by: int, y: Any) -> None:
        """y: the answer's bytes."""
        place = seat * self.window + seq % self.window
        self._place_digest[place] = known_by
        self._place_bytes[place * self.size : (place + 1) * self.size] = y

    def keep_many(self, seats: Array, seqs: Array, known_by: Array, Y: Array) -> None:
        """seats, seqs, known_by [n]; Y [n, outputs]."""
        places = seqs % self.window
        self._digests[seats, places] = known_by
        self._outputs[seats, places] = Y

    def keep_run(self, seat: int, first: int, last: int, known_by: int, Y: bytes) -> None:
        self.clear(seat, last)
        self._runs[seat] = (first, last, known_by, Y)
        self._run_bytes += len(Y)
        while self._run_bytes > RUN_BYTES_MAX:
            self._drop_run(next(iter(self._runs)))  # the oldest

    def _drop_run(self, seat: int) -> None:
        run = self._runs.pop(seat, None)
        if run is not None:
            self._run_bytes -= len(run[3])

    # --- giving again ---

    def find(self, seat: int, seq: int, known_by: int, last: int) -> bytes:
        """The answer to event `seq` of a session whose last is `last`.

        Raises SequenceError when seq is not one of the past or was another event,
        AnswerGoneError, SessionQuarantinedError.
        """
        if not 0 < seq <= last:
            raise WrongSeqError(seq, last + 1)
        if seq <= last - self.window or seq < self._place_first[seat]:
            raise AnswerGoneError(f"event {seq} was applied, and its answer is no longer kept")
        place = seat * self.window + seq % self.window
        if self._place_digest[place] != known_by:
            raise WrongSeqError(seq, last + 1)
        y: Array = self._outputs[seat, seq % self.window]
        if not np.isfinite(y).all():
            raise QuarantinedError(seq)
        return y.tobytes()

    def find_many(self, seats: Array, seqs: Array, known_by: Array, lasts: Array) -> Array:
        """The answers [n, outputs] to one message's events, or `find`'s errors by index."""
        wrong = (seqs < 1) | (seqs > lasts)
        places = seqs % self.window
        gone = (seqs <= lasts - self.window) | (seqs < self._first[seats])
        wrong |= ~gone & (self._digests[seats, places] != known_by)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise WrongSeqError(int(seqs[index]), int(lasts[index]) + 1, index)
        if gone.any():
            index = int(np.argmax(gone))
            raise AnswerGoneError(
                f"index {index}: event {seqs[index]} was applied, and its answer is no longer kept"
            )
        Y: Array = self._outputs[seats, places]
        return Y

    def find_run(self, seat: int, first: int, rows: int, known_by: int, last: int) -> bytes:
        """The answers to a run of `rows` events from `first` on, or `find`'s errors."""
        if not 0 < first <= last:
            raise WrongSeqError(first, last + 1)
        run = self._runs.get(seat)
        if run is None or first < run[0]:
            raise AnswerGoneError(f"a run from event {first} on was applied long ago or is unknown")
        if run[:3] != (first, first + rows - 1, known_by):
            raise WrongSeqError(first, last + 1)
        if not run[3]:
            raise QuarantinedError(run[1])
        return run[3]

    # --- with a session's row in the store ---

    def dump(self, seat: int) -> bytes:
        """A seat's answers as bytes, for `load`."""
        blob: bytes = msgpack.packb(
            (
                self.window,
                self._place_first[seat],
                self._digests[seat].tobytes(),
                self._outputs[seat].tobytes(),
                self._runs.get(seat),
            )
        )
        return blob

    def load(self, seat: int, blob: bytes, seq: int) -> None:
        """What `dump` wrote, b"" for none; answers of another window's ring are not kept."""
        if not blob:
            self.clear(seat, seq)
            return
        window, first, digests, outputs, run = msgpack.unpackb(blob, use_list=False)
        if run is not None:
            self.keep_run(seat, *run)
        self._place_first[seat] = seq + 1
        if window == self.window and len(outputs) == window * self.size:
            self._place_first[seat] = first
            self._digests[seat] = np.frombuffer(digests, np.uint32)
            self._outputs[seat].reshape(-1).view(np.uint8)[:] = np.frombuffer(outputs, np.uint8)


def all_finite(numbers: memoryview) -> bool:
    """Whether a few float numbers are finite, without NumPy's call."""
    return all(map(isfinite, numbers))
