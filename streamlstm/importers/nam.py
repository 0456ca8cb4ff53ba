"""Neural Amp Modeler: `.nam` files of architecture "LSTM".

A .nam file is JSON: "version", "architecture", "config", "weights" (one flat list) and what
does not touch the numbers, "metadata" and "sample_rate" (events have no clock here). Its LSTM
(NeuralAmpModelerCore, NAM/lstm.cpp, whose float arithmetic is plain) keeps in "weights"

    for each layer: W [4H, inputs + H] by rows, b [4H], h0 [H], c0 [H]
    then the head:  w [outputs, H] by rows, b [outputs]

with gates i, f, g, o and the bias of both sums in one. Players warm a network up with silence
after loading it; a session here starts at the file's h0 and c0, as the trainer's networks do
(neural-amp-modeler, nam/models/recurrent.py). No framework here can run such a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import json_file
from streamlstm.importers.fold import Scale
from streamlstm.importers.gate_orders import canonical
from streamlstm.importers.source import Found, Source
from streamlstm.layers import LSTM, Dense, Layer
from streamlstm.wording import counted

Array = NDArray[Any]

# NAM/get_dsp.h: 0.5.0 is the earliest supported version, 0.7.0 the latest.
VERSION = re.compile(r"0\.[567](\.\d+)?")
# in_channels and out_channels came later and are 1 by default (NAM/lstm.cpp).
CONFIG = {"num_layers", "input_size", "hidden_size", "in_channels", "out_channels"}


class NAM(Source):
    """The LSTM network of a .nam file, a Source."""

    format = "NAM"
    framework = ""

    def __init__(self, layers: Sequence[LSTM], head: Dense) -> None:
        self._layers, self._head = layers, head

    def recurrent(self) -> list[Found]:
        return [
            Found(f"layer {k}", f"LSTM {layer.input_size} -> {layer.units}", layer)
            for k, layer in enumerate(self._layers)
        ]

    def network(self) -> list[Layer | Scale]:
        return [*self._layers, self._head]

    def answers(self, x: Array, select: str | None) -> Array:
        raise NotImplementedError("nothing here runs a .nam file")


def read(path: Path) -> NAM:
    """The network of a .nam file. Raises OSError, UnsupportedModelError."""
    content = json_file.load(path)
    if content.get("architecture") != "LSTM":
        raise UnsupportedModelError(
            f"{path} holds a {content.get('architecture')!r} network; "
            "of NAM's architectures only 'LSTM' is recurrent and can be imported"
        )
    version = content.get("version")
    if not (isinstance(version, str) and VERSION.fullmatch(version)):
        raise UnsupportedModelError(
            f"{path} is of version {version!r}; NAM files of versions 0.5 to 0.7 can be imported"
        )
    return _network(content)


def _network(content: dict[str, Any]) -> NAM:
    config = content.get("config")
    if not isinstance(config, dict):
        raise UnsupportedModelError("config is missing or no object; is the file complete?")
    if unknown := config.keys() - CONFIG:
        raise UnsupportedModelError(
            f"config has {sorted(unknown)[0]!r}, which we don't know; "
            f"known are {', '.join(sorted(CONFIG))}"
        )
    count, inputs, units = (
        json_file.size(config.get(key), f"config's {key}")
        for key in ("num_layers", "input_size", "hidden_size")
    )
    outputs = json_file.size(config.get("out_channels", 1), "config's out_channels")
    if config.get("in_channels", inputs) != inputs:
        raise UnsupportedModelError(
            f"config's in_channels is {config['in_channels']!r} and its input_size {inputs}; "
            "expected the same"
        )
    weights = json_file.numbers(content.get("weights"), "weights")
    # W and then b, h0, c0.
    first, other = (4 * units * (x + units) + 6 * units for x in (inputs, units))
    expected = first + (count - 1) * other + outputs * (units + 1)
    if weights.shape != (expected,):
        raise UnsupportedModelError(
            f"weights has shape {weights.shape}; {counted(count, 'layer')} of "
            f"{counted(units, 'unit')} over {counted(inputs, 'input')} with "
            f"{counted(outputs, 'output')} need ({expected},)"
        )
    stacked, head = weights[: first + (count - 1) * other], weights[-outputs * (units + 1) :]
    parts = [stacked[:first], *stacked[first:].reshape(count - 1, other)]
    return NAM(
        [_layer(part, units) for part in parts],
        Dense(head[: outputs * units].reshape(outputs, units), head[outputs * units :]),
    )


def _layer(numbers: Array, units: int) -> LSTM:
    """W, b, h0 and c0, one behind the other."""
    w, b, h0, c0 = np.split(numbers, [-6 * units, -2 * units, -units])
    w = canonical(w.reshape(4 * units, -1), "nam", "lstm")
    inputs = w.shape[1] - units
    return LSTM(w[:, :inputs], w[:, inputs:], canonical(b, "nam", "lstm"), h0=h0, c0=c0)
