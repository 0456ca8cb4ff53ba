"""What is measured: sizes and batches, with the weights and events that every peer gets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import streamlstm as sl
from streamlstm import reference

Array = NDArray[Any]

EVENTS = 64  # distinct events of a cell
CHECKED_STEPS = 8
CHECKED_STREAMS = 4


@dataclass(frozen=True)
class Cell:
    """I inputs, H units, L layers, and how many streams step together."""

    inputs: int
    units: int
    layers: int = 1
    batch: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "I,H,L"."""
        return cls(*(int(part) for part in text.split(",")))

    @property
    def size(self) -> str:
        return f"{self.inputs},{self.units},{self.layers}"

    @property
    def macs(self) -> int:
        """Multiply-adds of one stream's step; as many weights."""
        widths = [self.inputs] + [self.units] * (self.layers - 1)
        return sum(4 * self.units * (width + self.units) for width in widths)

    @cached_property
    def model(self) -> sl.Model:
        """Seeded float32 weights, uniform in +-1/sqrt(H) as PyTorch starts with."""
        rng = np.random.default_rng([self.inputs, self.units, self.layers])
        bound = self.units**-0.5
        gates = 4 * self.units

        def weights(*shape: int) -> Array:
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        widths = [self.inputs] + [self.units] * (self.layers - 1)
        return sl.Model(
            [sl.LSTM(weights(gates, w), weights(gates, self.units), weights(gates)) for w in widths]
        )

    @cached_property
    def events(self) -> Array:
        """Float32 [EVENTS, batch, inputs]."""
        rng = np.random.default_rng([self.inputs, self.batch])
        return rng.standard_normal((EVENTS, self.batch, self.inputs)).astype(np.float32)

    @property
    def checked(self) -> Array:
        """The streams of the batch that a peer is checked by."""
        return np.unique(np.linspace(0, self.batch - 1, CHECKED_STREAMS).astype(int))

    @cached_property
    def expected(self) -> Array:
        """Outputs of the checked streams by the float64 reference: [steps, streams, H]."""
        events = self.events[:CHECKED_STEPS, self.checked]
        runs = [reference.run(self.model, events[:, k])[0] for k in range(events.shape[1])]
        return np.stack(runs, axis=1)


ONE_STREAM = [
    Cell(8, 16),
    Cell(16, 32),
    Cell(16, 64),
    Cell(32, 128),
    Cell(64, 256),
    Cell(128, 512),
    Cell(256, 1024),
    Cell(32, 128, 2),
    Cell(40, 256, 3),
]
BATCHED = [
    Cell(i, h, 1, b) for i, h in ((16, 64), (32, 128), (128, 512)) for b in (8, 32, 128, 512)
]
