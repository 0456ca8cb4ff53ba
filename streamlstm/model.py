"""A trained network as data: layers, scaling, names and units. It runs nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import streamlstm
from streamlstm.errors import ModelError
from streamlstm.feature import Feature
from streamlstm.head import Head
from streamlstm.layer_checks import checked
from streamlstm.layers import GRU, LSTM, Embedding, Layer, Recurrent, Sizes
from streamlstm.wording import counted

# From here on not every whole number is one of the dtype's.
EXACT = {"float32": 2**24, "float64": 2**53}


class Model:
    """Layers in order, with the names, units and scaling of inputs and outputs.

    layers: their arrays are copied and made read-only; all are float32 or all float64
    (`dtype` converts). inputs, outputs: a Feature, a dict of Feature's fields or a bare
    name for each; by default x0, x1, ... and y0, y1, ..., unscaled. head: what makes forecasts
    and scores of the network; then inputs and outputs are the head's.
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
        head: Head | None = None,
    ) -> None:
        if not layers:
            raise ModelError("a model needs at least one layer; none was given")
        if not isinstance(name, str) or not name:
            raise ModelError(f"a model's name is a non-empty string; got {name!r}")
        self.name = name
        for k, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise ModelError(f"layer {k} is a {type(layer).__name__}; see streamlstm.layers")
        self.dtype = _common_dtype(layers, dtype)
        self.layers = tuple(checked(k, layer, self.dtype) for k, layer in enumerate(layers))
        if not self.recurrent:
            raise ModelError("a model needs at least one LSTM or GRU layer; none was given")
        if any(isinstance(layer, Embedding) for layer in self.layers[1:]):
            raise ModelError("an embedding takes the events themselves; put it first")
        for k, (below, layer) in enumerate(zip(self.layers, self.layers[1:], strict=False), 1):
            if layer.input_size != below.output_size:
                raise ModelError(
                    f"layer {k} takes {counted(layer.input_size, 'input')}, but layer {k - 1} "
                    f"gives {counted(below.output_size, 'output')}"
                )
        self.head = head
        sizes = (self.layers[0].input_size, self.layers[-1].output_size)
        if head is not None:
            self._check_head(head, inputs, outputs)
            inputs, outputs = head.inputs, head.outputs
            sizes = (len(inputs), len(outputs))
        largest = float(np.finfo(self.event_dtype).max)
        self.inputs = _features("input", "x", inputs, sizes[0], largest)
        self.outputs = _features("output", "y", outputs, sizes[1], largest)
        if self.vocabulary > EXACT[self.dtype.name]:
            raise ModelError(
                f"{self.dtype} can't tell {self.vocabulary:,} whole numbers apart; pass "
                "dtype='float64'"
            )
        if self.vocabulary and (self.inputs[0].mean, self.inputs[0].std) != (0, 1):
            raise ModelError("an embedding takes whole numbers; its input can't be scaled")

    def _check_head(self, head: Head, inputs: Any, outputs: Any) -> None:
        if not isinstance(head, Head):
            raise ModelError(f"head is a {type(head).__name__}; give a Head")
        if inputs is not None or outputs is not None:
            raise ModelError("a head has inputs and outputs of its own; leave them out")
        sizes = (self.layers[0].input_size, self.layers[-1].output_size)
        if sizes != (head.network_inputs, head.network_outputs):
            raise ModelError(
                f"the network has {counted(sizes[0], 'input')} and {counted(sizes[1], 'output')}; "
                f"its head needs {head.network_inputs} and {head.network_outputs}"
            )
        if self.vocabulary:
            raise ModelError("a head gives its network real numbers; an embedding takes none")

    @property
    def event_dtype(self) -> np.dtype[Any]:
        """The dtype of events, outputs and saved states: with a head float64, for the time."""
        return self.dtype if self.head is None else np.dtype(np.float64)

    @property
    def input_size(self) -> int:
        """Numbers in an event."""
        return len(self.inputs)

    @property
    def output_size(self) -> int:
        """Numbers that a step answers with."""
        return len(self.outputs)

    @property
    def recurrent(self) -> tuple[Recurrent, ...]:
        """The layers that keep state, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, LSTM | GRU))

    @property
    def vocabulary(self) -> int:
        """Where the model starts with an embedding: events are 0 to vocabulary - 1; else 0."""
        first = self.layers[0]
        return first.vocabulary if isinstance(first, Embedding) else 0

    @property
    def state_sizes(self) -> tuple[Sizes, ...]:
        """Numbers of h and of c of each recurrent layer; of a GRU just of h. Last the head's."""
        head = () if self.head is None else ((self.head.state_size,),)
        return (*(layer.state_sizes for layer in self.recurrent), *head)

    @property
    def state_size(self) -> int:
        """Numbers of state that a session keeps: h and c of all layers, and the head's."""
        return sum(map(sum, self.state_sizes))

    @property
    def parameters(self) -> int:
        """Numbers in all weights and biases."""
        return sum(a.size for layer in self.layers for a in layer.tensors().values())

    def description(self) -> dict[str, Any]:
        """All but name and numbers, as JSON's types."""
        return {
            "dtype": self.dtype.name,
            "layers": [
                {"kind": layer.kind, "inputs": layer.input_size, "units": layer.units}
                | layer.options()
                for layer in self.layers
            ],
            "inputs": [vars(f) for f in self.inputs],
            "outputs": [vars(f) for f in self.outputs],
        } | ({} if self.head is None else {"head": self.head.description()})

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
        if self.head is not None:
            return Model(self.layers, head=self.head, name=self.name, dtype=dtype)
        return Model(
            self.layers, inputs=self.inputs, outputs=self.outputs, name=self.name, dtype=dtype
        )

    def save(self, path: str | os.PathLike[str], *, proof: streamlstm.Proof | None = None) -> None:
        """Write the model with a fresh test vector, or with verify's proof; see model_file.

        Raises OSError, and ModelError when the proof is of another model or does not hold.
        """
        # That takes an engine, which stands above: asked for at the door, as a user would.
        streamlstm.save(self, path, proof=proof)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for layer in self.layers:  # copies of arrays, also pickled ones, forget that
            for a in layer.tensors().values():
                a.flags.writeable = False

    def __repr__(self) -> str:
        layers = ", ".join(f"{layer.kind} {layer.output_size}" for layer in self.layers)
        return f"<Model {self.name!r}: {counted(self.input_size, 'input')}, {layers}; {self.dtype}>"


def _common_dtype(layers: Sequence[Layer], asked: Any) -> np.dtype[Any]:
    found = {np.asarray(a).dtype.name for layer in layers for a in layer.tensors().values()}
    dtype = np.dtype(asked if asked is not None else next(iter(found)) if len(found) == 1 else "V")
    if dtype.name not in ("float32", "float64"):
        raise ModelError(
            f"weights must all be float32 or all float64, not {', '.join(sorted(found))}; "
            "pass dtype= to convert them"
        )
    return dtype


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
        were = "was" if len(given) == 1 else "were"
        raise ModelError(
            f"the network has {counted(size, what)}, but {len(given)} {were} described"
        )
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
