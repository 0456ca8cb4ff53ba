"""PyTorch in inference mode: nn.LSTM, and a chain of nn.LSTMCell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from peers.cells import Array, Cell
from peers.peer import Peer
from streamlstm import LSTM


def fill(module: nn.Module, suffix: str, layer: LSTM) -> None:
    """Copy a layer into the parameters named weight_ih + suffix and so on."""
    weights = {"weight_ih": layer.w_x, "weight_hh": layer.w_h, "bias_ih": layer.b}
    with torch.no_grad():
        for name, a in weights.items():
            getattr(module, name + suffix).copy_(torch.tensor(a))
        getattr(module, "bias_hh" + suffix).zero_()


class TorchLSTM(Peer):
    name = "PyTorch nn.LSTM"
    context = torch.inference_mode

    def __init__(self, cell: Cell) -> None:
        torch.set_num_threads(1)
        self.lstm = nn.LSTM(cell.inputs, cell.units, cell.layers).eval()
        for k, layer in enumerate(cell.model.layers):
            fill(self.lstm, f"_l{k}", layer)
        zeros = torch.zeros(cell.layers, cell.batch, cell.units)
        self.state = zeros, zeros

    def event(self, x: Array) -> Any:
        return torch.from_numpy(x)[None]

    def loop(self, events: Iterable[Any]) -> Any:
        lstm, state, y = self.lstm, self.state, None
        for x in events:
            y, state = lstm(x, state)
        self.state = state
        return y


class TorchLSTMCell(Peer):
    name = "PyTorch nn.LSTMCell"
    context = torch.inference_mode

    def __init__(self, cell: Cell) -> None:
        torch.set_num_threads(1)
        self.cells = []
        for layer in cell.model.layers:
            self.cells.append(nn.LSTMCell(layer.input_size, layer.units).eval())
            fill(self.cells[-1], "", layer)
        zeros = torch.zeros(cell.batch, cell.units)
        self.states = [(zeros, zeros)] * cell.layers

    def event(self, x: Array) -> Any:
        return torch.from_numpy(x)

    def loop(self, events: Iterable[Any]) -> Any:
        cells, states, y = list(enumerate(self.cells)), self.states, None
        for x in events:
            y = x
            for k, cell in cells:
                state = states[k] = cell(y, states[k])
                y = state[0]
        return y


PEERS = (TorchLSTM, TorchLSTMCell)
