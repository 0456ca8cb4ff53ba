"""Keras' file layouts, written with h5py alone.

After keras/src/saving/saving_lib.py (.keras, .weights.h5), keras/src/legacy/saving/
legacy_h5_format.py and tf_keras' saving/legacy/hdf5_format.py (.h5). tests/parity has files
that Keras and TF Keras wrote themselves.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Spec:
    """A layer as Keras has it: class, options, variables by role in Keras' order."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    inside: str = ""  # where its variables are in the Keras 3 layout: "/cell", "/layer"

    @property
    def name(self) -> str:
        return self.config["name"]

    def as_json(self) -> dict[str, Any]:
        return {"class_name": self.kind, "config": self.config}


def sequential(specs: list[Spec], **more: Any) -> dict[str, Any]:
    return {
        "class_name": "Sequential",
        "config": {"name": "model", "layers": [spec.as_json() for spec in specs], **more},
    }


def functional(specs: list[Spec], major: int) -> dict[str, Any]:
    """A chain, the first of which is an InputLayer. Listed in no order, as the format allows."""
    layers = []
    for before, spec in zip([None, *specs], specs, strict=False):
        history = [before.name if before else "", 0, 0]
        if major == 3:
            tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": history}}
            nodes: list[Any] = [{"args": [tensor], "kwargs": {"mask": None, "training": False}}]
        else:
            nodes = [[[*history, {}]]]
        layers.append(
            {**spec.as_json(), "name": spec.name, "inbound_nodes": nodes if before else []}
        )
    ends = {"input_layers": [specs[0].name, 0, 0], "output_layers": [specs[-1].name, 0, 0]}
    if major < 3:
        ends = {key: [end] for key, end in ends.items()}
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers, **ends}}


def write_hdf5(
    path: Path, specs: list[Spec], config: Any = None, version: str = "2.15.0", old: bool = False
) -> Path:
    """The HDF5 layout; config None: weights only. old: names as Keras 1 had them."""
    with h5py.File(path, "w") as f:
        if config is not None:
            f.attrs["model_config"] = json.dumps(config).encode()
            f.attrs["keras_version"] = version.encode()
        root = f if config is None else f.create_group("model_weights")
        root.attrs["layer_names"] = [spec.name.encode() for spec in specs]
        root.attrs["keras_version"] = version.encode()
        for spec in specs:
            pattern = "{0}_{1}" if old else "{0}/{0}_cell/{1}:0" if spec.inside else "{0}/{1}:0"
            names = [pattern.format(spec.name, role) for role in spec.weights]
            group = root.create_group(spec.name)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, a in zip(names, spec.weights.values(), strict=True):
                group[name] = a
    return path


def write_vars(file: Any, specs: list[Spec], owners: bool = True) -> None:
    """The Keras 3 layout of weights; owners: whether groups tell their layer, as from 3.? on."""
    seen: Counter[str] = Counter()
    with h5py.File(file, "w") as f:
        for spec in specs:
            name = re.sub("(?<=[a-z])(?=[A-Z])", "_", spec.kind).lower()
            group = f"layers/{name}" + (f"_{seen[name]}" if seen[name] else "")
            seen[name] += 1
            own = f.create_group(f"{group}/vars")
            if owners:
                own.attrs["name"] = spec.name
            into = f.require_group(f"{group}{spec.inside}/vars")
            for k, a in enumerate(spec.weights.values()):
                into[str(k)] = a


def write_keras(
    path: Path, specs: list[Spec], config: Any, version: str | None = "3.5.0", owners: bool = True
) -> Path:
    """A .keras file."""
    weights = io.BytesIO()
    write_vars(weights, specs, owners)
    with zipfile.ZipFile(path, "w") as z:
        if version is not None:
            z.writestr("metadata.json", json.dumps({"keras_version": version}))
        z.writestr("config.json", json.dumps(config))
        z.writestr("model.weights.h5", weights.getvalue())
    return path


# -- layers with random weights ----------------------------------------------------------


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) / 2).astype(np.float32)


def input_layer(*shape: int | None, **config: Any) -> Spec:
    return Spec("InputLayer", {"name": "input", "batch_shape": [None, *shape], **config})


def lstm(rng: np.random.Generator, inputs: int, units: int, **config: Any) -> Spec:
    return _cell("LSTM", rng, (inputs, units, 4), (4 * units,), config)


def gru(rng: np.random.Generator, inputs: int, units: int, **config: Any) -> Spec:
    config = {"reset_after": True, **config}
    bias = (2, 3 * units) if config["reset_after"] else (3 * units,)
    return _cell("GRU", rng, (inputs, units, 3), bias, config)


def _cell(
    kind: str, rng: Any, sizes: tuple[int, ...], bias: tuple[int, ...], config: dict[str, Any]
) -> Spec:
    inputs, units, gates = sizes
    shapes = {"kernel": (inputs, gates * units), "recurrent_kernel": (units, gates * units)}
    if config.get("use_bias", True):
        shapes |= {"bias": bias}
    options = {
        "name": kind.lower(),
        "trainable": True,
        "dtype": "float32",
        "units": units,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "return_sequences": True,
        "go_backwards": False,
        "dropout": 0.1,
        "kernel_initializer": {"class_name": "GlorotUniform", "config": {}},
    }
    weights = {role: normal(rng, *shape) for role, shape in shapes.items()}
    return Spec(kind, options | config, weights, "/cell")


def dense(rng: np.random.Generator, inputs: int, units: int, **config: Any) -> Spec:
    weights = {"kernel": normal(rng, inputs, units), "bias": normal(rng, units)}
    if not config.get("use_bias", True):
        del weights["bias"]
    return Spec(
        "Dense", {"name": "dense", "units": units, "activation": "linear"} | config, weights
    )


def batch_norm(rng: np.random.Generator, size: int, **config: Any) -> Spec:
    had = {"gamma": "scale", "beta": "center", "moving_mean": "", "moving_variance": ""}
    weights = {role: normal(rng, size) for role, flag in had.items() if config.get(flag, True)}
    weights["moving_variance"] = np.abs(weights["moving_variance"]) + 0.1
    options = {"name": "norm", "axis": -1, "epsilon": 0.003, "momentum": 0.9} | config
    return Spec("BatchNormalization", options, weights)


def embedding(rng: np.random.Generator, vocabulary: int, size: int, **config: Any) -> Spec:
    options = {"name": "embedding", "input_dim": vocabulary, "output_dim": size} | config
    return Spec("Embedding", options, {"embeddings": normal(rng, vocabulary, size)})


def layer(kind: str, **config: Any) -> Spec:
    """One without weights."""
    return Spec(kind, {"name": kind.lower(), **config})
