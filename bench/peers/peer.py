"""What a peer is: one runtime that steps an LSTM, its state carried on from step to step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from peers.cells import CHECKED_STEPS, Array, Cell

TOLERANCE = 2e-5  # of an output in (-1, 1), against float64


class Peer:
    """Made for one cell, in its initial state, with one thread.

    The loop over events is the peer's own, so that each runtime is driven as its user would
    drive it and no wrapper's cost is measured.
    """

    name: ClassVar[str]
    context: Callable[[], AbstractContextManager[Any]] = (
        contextlib.nullcontext
    )  # entered around each turn, outside the time

    def __init__(self, cell: Cell) -> None:
        raise NotImplementedError

    def event(self, x: Array) -> Any:
        """x [batch, inputs] as what loop() takes; not timed."""
        return x

    def loop(self, events: Iterable[Any]) -> Any:
        """Step all streams once for each event; the last output, in the runtime's own type."""
        raise NotImplementedError


def error(peer: Peer, cell: Cell) -> float:
    """The largest error of a fresh peer's outputs against the float64 reference."""
    worst = 0.0
    with peer.context():
        for x, expected in zip(cell.events[:CHECKED_STEPS], cell.expected, strict=True):
            y = np.asarray(peer.loop([peer.event(x)])).reshape(cell.batch, cell.units)
            worst = max(worst, float(np.abs(y[cell.checked] - expected).max()))
    return worst
