"""Keras: .keras and HDF5 files of Keras 1, 2 and 3, with an architecture or just weights.

Read as data (files): no layer of Keras is made, no code in a file is run. A stateful
layer's kept state and return_sequences do not matter: every session starts at zeros, and the
answer to each event is what Keras would have answered had the sequence ended there.

Weights without an architecture tell sizes and no more: the user gives the layers' order and the
dense layers' activations, and cells are taken to have Keras' default functions, tanh and sigmoid.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.keras.cells import RECURRENT, cells, recurrent
from streamlstm.importers.keras.files import KerasFile, open_file, refuse
from streamlstm.importers.keras.flow import Part, flow, is_model, parts
from streamlstm.importers.keras.layers import layers_of, start, unsupported, wrapped
from streamlstm.importers.keras.weights import weight_parts
from streamlstm.importers.source import Found
from streamlstm.layers import Function, Layer, Recurrent

Array = NDArray[Any]

# Recurrent layers to list, though they can't be imported.
_ALSO_RECURRENT = ("Bidirectional", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")


def read(
    path: Path, *, activations: Sequence[Function] | None, layers: Sequence[str] | None
) -> KerasSource:
    """The network in a .keras or HDF5 file; see open_source. Raises UnsupportedModelError."""
    file = open_file(path)
    if is_model(file.config):
        given = [
            name
            for name, value in (("activations=", activations), ("layers=", layers))
            if value is not None
        ]
        if given:
            refuse(f"{path} tells its architecture; leave {' and '.join(given)} out")
        return KerasSource(file)
    return WeightsSource(file, activations, layers)


class KerasSource:
    """A file with an architecture."""

    format = "Keras"

    def __init__(self, file: KerasFile) -> None:
        self.file = file

    def recurrent(self) -> Sequence[Found]:
        assert self.file.config is not None
        return [found for part in parts(self.file.config) for found in _found(part, self.file)]

    def _flow(self) -> list[Part]:
        assert self.file.config is not None
        return flow(self.file.config)

    def network(self) -> Sequence[Layer | Scale]:
        chain = self._flow()
        if not chain:
            refuse(f"{self.file.path} has no layers")
        stream = start(chain[0])
        network: list[Layer | Scale] = []
        for part in chain:
            found, stream = layers_of(part, self.file, stream)
            network += found
        return network

    @property
    def framework(self) -> str:
        if self._loaded is None:
            return ""
        return f"{self._keras.__name__} {self._keras.__version__}"

    @cached_property
    def _keras(self) -> Any:
        """The Keras of the file's own time if it is there, else Keras 3; None without any."""
        old = self.file.major in (1, 2)
        return (_imported("tf_keras") if old else None) or _imported("keras")

    @cached_property
    def _loaded(self) -> Any:
        """Keras' own model of the file; None where this Keras can't run it as it was."""
        if self._keras is None:
            return None
        # Keras 3 would give Keras 2's hard_sigmoid its own.
        other = self._keras.__name__ == "keras" and self.file.major != 3
        if other and _mentions(self.file, "hard_sigmoid"):
            return None
        try:
            return self._keras.models.load_model(self.file.path, compile=False, safe_mode=True)
        except Exception:  # whatever it lacks, such as CuDNNLSTM: then there is no word of it
            return None

    def answers(self, x: Array, select: str | None) -> Array:
        a: Any = np.asarray(x, np.float32)[None]
        if select is not None:
            a = _stepped(self._cell(select), a)
        else:
            for part in self._flow():
                if part.kind == "InputLayer":
                    continue
                a = _stepped(_layer(self._loaded, part.where), a)
                # From here on Keras has one vector, of which we have one each step.
                if part.kind in RECURRENT and not part.config.get("return_sequences"):
                    a = a[0]
        a = a.detach() if hasattr(a, "detach") else a  # torch's
        return np.asarray(a).reshape(len(x), -1)

    def _cell(self, select: str) -> Any:
        """The recurrent layer `select`, also one of a StackedRNNCells."""
        with contextlib.suppress(KeyError):
            return _layer(self._loaded, select)
        outer, _, name = select.rpartition("/")
        stacked = _layer(self._loaded, outer).cell.cells
        cell = next(cell for cell in stacked if cell.name == name)
        return self._keras.layers.RNN(cell, return_sequences=True)


class WeightsSource(KerasSource):
    """A file of weights: the architecture is in the user's code."""

    framework = ""  # Keras can't run it either

    def __init__(
        self,
        file: KerasFile,
        activations: Sequence[Function] | None,
        layers: Sequence[str] | None,
    ) -> None:
        super().__init__(file)
        self.activations = activations
        self.layers = layers
        self.found: Mapping[str, Part | Found] = weight_parts(file)

    def recurrent(self) -> Sequence[Found]:
        found: list[Found] = []
        for part in self.found.values():
            if isinstance(part, Part):
                found += _found(part, self.file)
            elif part.text:
                found.append(part)
        return found

    def _flow(self) -> list[Part]:
        names = ", ".join(self.found) or "none"
        if self.layers is None:
            what = "has weights and no architecture"
            if self.file.config is not None:
                what = "is a model of one's own class, whose flow is Python code"
            refuse(
                f"{self.file.path} {what}; pass layers= with the names in flow order, and "
                f"activations= for the Dense ones; there are: {names}"
            )
        chain: list[Part] = []
        for name in self.layers:
            part = self.found.get(name)
            if part is None:
                refuse(f"no layer {name!r} was found; there are: {names}")
            if isinstance(part, Found):
                refuse(part.refusal)
            chain.append(part)
        dense = [part for part in chain if part.kind == "Dense"]
        if len(self.activations or ()) != len(dense):
            refuse(
                f"{len(self.activations or ())} activations were given for {len(dense)} Dense "
                "layers, whose own the file does not tell; give one each, such as 'linear'"
            )
        for part, activation in zip(dense, self.activations or (), strict=True):
            part.config["activation"] = activation
        return chain


def _found(part: Part, file: KerasFile) -> Iterator[Found]:
    """The recurrent layers in one layer of Keras."""
    if part.kind == "TimeDistributed":
        inner = wrapped(part)
        if inner.kind in (*RECURRENT, *_ALSO_RECURRENT):
            yield Found(part.where, f"{part.kind} {inner.kind}", None, unsupported(part))
    elif part.kind in _ALSO_RECURRENT:
        yield Found(part.where, part.kind, None, unsupported(part))
    elif part.kind in RECURRENT:
        try:
            inside = cells(part)
        except UnsupportedModelError as e:
            yield Found(part.where, part.kind, None, str(e))
            return
        for cell in inside:
            layer, refusal = _or_refusal(cell, file)
            kind = cell.kind.removesuffix("Cell")
            sizes = f" {layer.input_size} -> {layer.output_size}" if layer else ""
            yield Found(cell.where, kind + sizes, layer, refusal)


def _or_refusal(cell: Part, file: KerasFile) -> tuple[Recurrent | None, str]:
    try:
        return recurrent(cell, file), ""
    except UnsupportedModelError as e:
        return None, str(e)


def _mentions(file: KerasFile, function: str) -> bool:
    """Whether the architecture names the function anywhere."""

    def inside(value: Any) -> bool:
        if isinstance(value, dict):
            value = list(value.values())
        return any(map(inside, value)) if isinstance(value, list) else value == function

    return inside(file.config)


# -- Keras itself ------------------------------------------------------------------------


def _imported(name: str) -> Any:
    """Keras, on whatever backend there is; None without it."""
    if importlib.util.find_spec(name) is None:
        return None
    variable = "KERAS_BACKEND"
    chosen = variable in os.environ or name in sys.modules
    backends = ("tensorflow", "jax", "torch")  # the first is Keras' default
    had = next((b for b in backends if importlib.util.find_spec(b) is not None), None)
    if not chosen and had is not None:
        os.environ[variable] = had
    try:
        keras = importlib.import_module(name)
    except Exception:  # a backend that does not start is one that is not there
        return None
    finally:
        if not chosen:
            os.environ.pop(variable, None)
    return keras if name == "tf_keras" or keras.__version__.startswith("3.") else None


def _layer(model: Any, where: str) -> Any:
    """The layer of that path in Keras' model. Raises KeyError."""
    for layer in model.layers:
        if layer.name == where:
            return layer
        if where.startswith(f"{layer.name}/") and hasattr(layer, "layers"):
            return _layer(layer, where[len(layer.name) + 1 :])
    raise KeyError(where)


def _stepped(layer: Any, a: Any) -> Any:
    """What the layer answers in every step, from the initial state, in single precision as in
    what we import: a [1, steps, inputs] -> [1, steps, outputs]."""
    for each in layer._flatten_layers():
        if "16" not in each.compute_dtype:
            continue
        if hasattr(each, "_set_dtype_policy"):  # tf_keras
            each._set_dtype_policy("float32")
        else:
            each.dtype_policy = "float32"
    if hasattr(layer, "return_sequences"):
        layer.stateful, layer.return_state, layer.return_sequences = False, False, True
    return layer(a[..., 0] if type(layer).__name__ == "Embedding" else a)
