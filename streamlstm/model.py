"""A trained network as data: layers, scaling, names and units. It runs nothing.

Canonical layout, the one every importer converts to: gate order i, f, g, o; weights
[4H, inputs] as in PyTorch; one bias [4H].
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.errors import ModelError

Array = NDArray[Any]
Activation = Literal["linear", "tanh", "sigmoid", "relu"]
ACTIVATIONS: tuple[Activation, ...] = ("linear", "tanh", "sigmoid", "relu")


@dataclass(frozen=True)
class Feature:
    """One input or output: its name, unit and scaling.

    The network sees ``(value - mean) / std`` of an input; an output is
    ``value * std + mean`` of what the network says. Both in the feature's own unit.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, eq=False)
class LSTM:
    """An LSTM layer (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    w_x [4H, inputs], w_h [4H, H], b [4H], gates i, f, g, o; h0 [H] and c0 [H] are the
    state a session starts with (learned by some trainers; zeros by default).
    """

    w_x: Array
    w_h: Array
    b: Array
    h0: Array | None = None
    c0: Array | None = None

    kind = "lstm"

    @property
    def input_size(self) -> int:
        return int(self.w_x.shape[1])

    @property
    def units(self) -> int:
        return int(self.w_h.shape[1])

    @property
    def state_size(self) -> int:
        """Numbers of state a session keeps for this layer: h and c."""
        return 2 * self.units

    def tensors(self) -> dict[str, Array]:
        start = {"h0": self.h0, "c0": self.c0}
        return {"w_x": self.w_x, "w_h": self.w_h, "b": self.b} | {
            name: a for name, a in start.items() if a is not None
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What each tensor's shape must be, given this layer's sizes."""
        h = self.units
        return {
            "w_x": (4 * h, self.input_size),
            "w_h": (4 * h, h),
            "b": (4 * h,),
            "h0": (h,),
            "c0": (h,),
        }


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer: activation(w x + b), w [outputs, inputs], b [outputs]."""

    w: Array
    b: Array
    activation: Activation = "linear"

    kind = "dense"
    state_size = 0

    @property
    def input_size(self) -> int:
        return int(self.w.shape[1])

    @property
    def units(self) -> int:
        return int(self.w.shape[0])

    def tensors(self) -> dict[str, Array]:
        return {"w": self.w, "b": self.b}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What each tensor's shape must be, given this layer's sizes."""
        return {"w": (self.units, self.input_size), "b": (self.units,)}


Layer = LSTM | Dense
LAYER_KINDS: dict[str, type[LSTM] | type[Dense]] = {"lstm": LSTM, "dense": Dense}


class Model:
    """Layers in order, with the names, units and scaling of inputs and outputs.

    layers: their arrays are copied and made read-only; all are float32 or all float64
    (`dtype` converts). inputs, outputs: a Feature, a dict of Feature's fields or a bare
    name for each; by default x0, x1, ... and y0, y1, ..., unscaled.
    Raises ModelError when sizes don't fit each other or a number is not finite.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        inputs: Sequence[Feature | Mapping[str, Any] | str] | None = None,
        outputs: Sequence[Feature | Mapping[str, Any] | str] | None = None,
        name: str = "model",
        dtype: ArrayLike | None = None,
    ) -> None:
        if not layers:
            raise ModelError("a model needs at least one layer; none was given")
        if not isinstance(name, str) or not name:
            raise ModelError(f"a model's name is a non-empty string; got {name!r}")
        self.name = name
        self.dtype = _common_dtype(layers, dtype)
        self.layers = tuple(_checked(k, layer, self.dtype) for k, layer in enumerate(layers))
        if not any(layer.state_size for layer in self.layers):
            raise ModelError("a model needs at least one LSTM layer; only dense ones were given")
        for k, (below, layer) in enumerate(zip(self.layers, self.layers[1:], strict=False), 1):
            if layer.input_size != below.units:
                raise ModelError(
                    f"layer {k} takes {layer.input_size} inputs, but layer {k - 1} "
                    f"gives {below.units} outputs"
                )
        largest = float(np.finfo(self.dtype).max)
        self.inputs = _features("input", "x", inputs, self.layers[0].input_size, largest)
        self.outputs = _features("output", "y", outputs, self.layers[-1].units, largest)

    @property
    def input_size(self) -> int:
        """Numbers in an event."""
        return len(self.inputs)

    @property
    def output_size(self) -> int:
        """Numbers that a step answers with."""
        return len(self.outputs)

    @property
    def state_size(self) -> int:
        """Numbers of state that a session keeps: h and c of all layers."""
        return sum(layer.state_size for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Numbers in all weights and biases."""
        return sum(a.size for layer in self.layers for a in layer.tensors().values())

    def description(self) -> dict[str, Any]:
        """All but name and numbers, as JSON's types; from_description reads it."""
        return {
            "dtype": self.dtype.name,
            "layers": [
                {"kind": layer.kind, "inputs": layer.input_size, "units": layer.units}
                | ({"activation": layer.activation} if isinstance(layer, Dense) else {})
                for layer in self.layers
            ],
            "inputs": [vars(f) for f in self.inputs],
            "outputs": [vars(f) for f in self.outputs],
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of description and numbers: equal for equal networks, whatever
        their name."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for layer in self.layers:
            for name, a in layer.tensors().items():
                digest.update(name.encode())
                digest.update(a.astype(a.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def astype(self, dtype: ArrayLike) -> Model:
        """The same network in float32 or float64."""
        return Model(
            self.layers, inputs=self.inputs, outputs=self.outputs, name=self.name, dtype=dtype
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with a fresh test vector; see model_file. Raises OSError."""
        from streamlstm import model_file  # noqa: PLC0415  (it imports this module)

        model_file.save(self, path)

    def __repr__(self) -> str:
        layers = ", ".join(f"{layer.kind} {layer.units}" for layer in self.layers)
        return f"<Model {self.name!r}: {self.input_size} inputs, {layers}; {self.dtype}>"


def _common_dtype(layers: Sequence[Layer], asked: Any) -> np.dtype[Any]:
    found = {np.asarray(a).dtype.name for layer in layers for a in layer.tensors().values()}
    dtype = np.dtype(asked if asked is not None else next(iter(found)) if len(found) == 1 else "V")
    if dtype.name not in ("float32", "float64"):
        raise ModelError(
            f"weights must all be float32 or all float64, not {', '.join(sorted(found))}; "
            "pass dtype= to convert them"
        )
    return dtype


def _checked(k: int, layer: Layer, dtype: np.dtype[Any]) -> Layer:
    """A copy of `layer` in `dtype` whose arrays nobody can change."""
    if isinstance(layer, Dense) and layer.activation not in ACTIVATIONS:
        raise ModelError(
            f"layer {k} has activation {layer.activation!r}; known are {', '.join(ACTIVATIONS)}"
        )
    copies: dict[str, Any] = {}
    matrix = layer.w_h if isinstance(layer, LSTM) else layer.w
    if np.ndim(matrix) != 2 or (isinstance(layer, LSTM) and np.ndim(layer.w_x) != 2):
        raise ModelError(f"layer {k} ({layer.kind}): its weights must be matrices")
    for name, a in layer.tensors().items():
        if np.shape(a) != layer.shapes()[name]:
            raise ModelError(
                f"layer {k} ({layer.kind}): {name} has shape {np.shape(a)}, "
                f"expected {layer.shapes()[name]}"
            )
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            copies[name] = np.array(a, dtype=dtype, order="C")
        if not np.size(a) or not np.isfinite(copies[name]).all():
            raise ModelError(f"layer {k} ({layer.kind}): {name} is empty or not finite in {dtype}")
        copies[name].flags.writeable = False
    if isinstance(layer, Dense):
        copies["activation"] = layer.activation
    return type(layer)(**copies)


def _features(
    what: str,
    letter: str,
    given: Sequence[Feature | Mapping[str, Any] | str] | None,
    size: int,
    largest: float,
) -> tuple[Feature, ...]:
    if given is None:
        given = [f"{letter}{k}" for k in range(size)]
    if len(given) != size:
        raise ModelError(f"the network has {size} {what}s, but {len(given)} were described")
    features = []
    for f in given:
        if isinstance(f, Mapping):
            unknown = set(f) - {"name", "unit", "mean", "std"}
            if unknown or "name" not in f:
                raise ModelError(f"{what} {dict(f)} must have a name, and may have unit, mean, std")
            f = Feature(**f)  # noqa: PLW2901
        feature = f if isinstance(f, Feature) else Feature(f)
        mean, std = float(feature.mean), float(feature.std)
        # NaN fails every comparison; 1 / std is what the network multiplies by.
        if not (abs(mean) <= largest and 1 / largest <= std <= largest):
            raise ModelError(
                f"{what} {feature.name!r} has mean {mean} and std {std}; "
                f"both must be finite, std above 0 and neither beyond {largest:.1e}"
            )
        features.append(Feature(feature.name, feature.unit, mean, std))
    names = [f.name for f in features]
    if len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise ModelError(f"{what} names must be distinct, non-empty strings; got {names}")
    return tuple(features)
