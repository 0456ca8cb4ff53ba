"""Plain NumPy: one matrix product per layer, buffers made once, results written in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from peers.cells import Array, Cell
from peers.peer import Peer
from streamlstm import LSTM, blas_threads


class Layer:
    """One layer's weights and state; its operand is x, h and a 1 (for the bias) side by side.

    Gates stand as i, f, o, g. sigmoid(z) = (1 + tanh(z / 2)) / 2: with the rows of i, f and
    o halved beforehand, one tanh does all four.
    """

    def __init__(self, layer: LSTM, batch: int) -> None:
        H, width = layer.units, layer.input_size
        i, f, g, o = np.split(np.column_stack([layer.w_x, layer.w_h, layer.b]), 4)
        self.w = np.ascontiguousarray(np.concatenate([i / 2, f / 2, o / 2, g]).T)
        self.operand = np.zeros((batch, width + H + 1), np.float32)
        self.operand[:, -1] = 1
        self.x, self.h = self.operand[:, :width], self.operand[:, width:-1]
        self.z = np.empty((batch, 4 * H), np.float32)
        self.i, self.f, self.o, self.g = np.split(self.z, 4, axis=1)
        self.ifo = self.z[:, : 3 * H]
        self.c, self.t = np.zeros((2, batch, H), np.float32)

    def step(self, x: Array) -> Array:
        self.x[:] = x
        np.dot(self.operand, self.w, out=self.z)
        np.tanh(self.z, out=self.z)
        np.add(self.ifo, 1, out=self.ifo)
        np.multiply(self.ifo, 0.5, out=self.ifo)
        np.multiply(self.f, self.c, out=self.c)
        np.multiply(self.i, self.g, out=self.t)
        np.add(self.c, self.t, out=self.c)
        np.tanh(self.c, out=self.t)
        np.multiply(self.o, self.t, out=self.h)
        return self.h


class NumPy(Peer):
    name = "NumPy"
    context = staticmethod(blas_threads.one_thread)

    def __init__(self, cell: Cell) -> None:
        self.layers = [Layer(layer, cell.batch) for layer in cell.model.layers]

    def loop(self, events: Iterable[Array]) -> Any:
        y: Any = None
        for x in events:
            y = x
            for layer in self.layers:
                y = layer.step(y)
        return y


PEERS = (NumPy,)
