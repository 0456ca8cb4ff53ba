"""A foreign network whose framework is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streamlstm as sl
from streamlstm import reference
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.source import Found, Source
from streamlstm.layers import Layer
from streamlstm.model_file import FlowBy

Array = NDArray[Any]


@dataclass
class FakeSource(Source):
    """`model`, unscaled, as its framework would have it. `seen`: the events it was asked for.

    off: added to its answers. refusal: why its network can't be imported.
    """

    model: sl.Model
    format: str = "ONNX"
    framework: str = "oracle 1.0"
    off: float = 0.0
    refusal: str = ""
    assumed: Sequence[str] = ()
    quantizes: bool = False
    flow_by: FlowBy = "source"
    seen: list[Array] = field(default_factory=list)

    def recurrent(self) -> Sequence[Found]:
        sound = [
            Found(f"rnn.{k}", f"LSTM {layer.input_size} -> {layer.output_size}", layer)
            for k, layer in enumerate(self.model.recurrent)
        ]
        back = Found("back", "LSTM 3 -> 8", None, "node 'back' runs backwards; no stream can")
        return [*sound, back] if self.refusal else sound

    def network(self) -> Sequence[Layer]:
        if self.refusal:
            raise UnsupportedModelError(self.refusal)
        return self.model.layers

    def answers(self, x: Array, select: str | None) -> Array:
        assert x.dtype == np.float32
        self.seen.append(x)
        model = sl.Model(self.model.layers)
        if select is not None:
            layers = {each.where: each.layer for each in self.recurrent()}
            model = sl.Model([layers[select]])
        return reference.run(model, x)[0].astype(np.float32) + self.off
