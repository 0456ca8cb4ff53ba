"""Model files: safetensors, with a JSON description in the metadata.

Metadata key "streamlstm" holds {"format": 1, "name", "fingerprint", "dtype", "layers",
"inputs", "outputs"} (Model.description). Tensors are "<layer>.<tensor>" (0.w_x, 0.w_h, 0.b, 1.w,
...) and a test vector: "test.x" [16, inputs] with "test.y" [16, outputs], which
reference.py computed in float64 when the file was written. load() compares the fingerprint
and replays the vector, so that a damaged file (the one) or a broken build (the other) says
so instead of answering plausibly.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as packed

from streamlstm import reference
from streamlstm.engine import Engine
from streamlstm.errors import ModelError, ModelFileError
from streamlstm.model import LAYER_KINDS, Array, Layer, Model

FORMAT = 1
TEST_STEPS = 16
# Error allowed on the test vector, as a share of an output's std or largest value.
# A swapped gate moves outputs by tenths; float32's own error stays far below.
TEST_TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write `model` to `path`, whole or not at all. Raises OSError."""
    tensors = {
        f"{k}.{name}": np.array(a)
        for k, layer in enumerate(model.layers)
        for name, a in layer.tensors().items()
    }
    mean, std = np.array([(f.mean, f.std) for f in model.inputs]).T
    rng = np.random.default_rng(0)
    x = mean + std * rng.standard_normal((TEST_STEPS, model.input_size))
    # Both sides must see the same events: those that the model's dtype can hold.
    tensors["test.x"] = x.astype(model.dtype).astype(np.float64)
    tensors["test.y"], _ = reference.run(model, tensors["test.x"])
    description = {"format": FORMAT, "name": model.name, "fingerprint": model.fingerprint}
    description |= model.description()
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        partial.write_bytes(packed(tensors, metadata={"streamlstm": json.dumps(description)}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file and replay its test vector.

    Raises OSError, and ModelFileError when the file is not ours, of a version we don't
    know, damaged, or gives other numbers here than where it was written.
    """
    path = os.fspath(path)
    description, tensors = _read(path)
    try:
        layers = [_layer(k, spec, tensors) for k, spec in enumerate(description["layers"])]
        model = Model(
            layers,
            inputs=description["inputs"],
            outputs=description["outputs"],
            name=description["name"],
            dtype=description["dtype"],
        )
        if model.fingerprint != description["fingerprint"]:
            raise ModelError(f"its fingerprint is {model.fingerprint}, not the one written in it")
        worst = _replay(model, tensors["test.x"], tensors["test.y"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, ModelError) as e:
        raise ModelFileError(
            f"{path} is damaged: {type(e).__name__}: {e}; write it again with model.save"
        ) from e
    if not worst <= TEST_TOLERANCE[model.dtype.name]:
        raise ModelFileError(
            f"{path}: the test vector inside gives outputs that differ by {worst:.2g} "
            "of their scale here; the file is damaged or this build computes wrongly"
        )
    return model


def _layer(k: int, spec: dict[str, Any], tensors: dict[str, Array]) -> Layer:
    fields: dict[str, Any] = {
        name.split(".", 1)[1]: a for name, a in tensors.items() if name.startswith(f"{k}.")
    }
    if "activation" in spec:
        fields["activation"] = spec["activation"]
    return LAYER_KINDS[spec["kind"]](**fields)


def _read(path: str) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = f.metadata() or {}
            if "streamlstm" not in metadata:
                raise ModelFileError(
                    f"{path} is a safetensors file without a streamlstm description; "
                    "if it holds a PyTorch state dict, read it with import_model"
                )
            description = json.loads(metadata["streamlstm"])
            version = description["format"]
            if version != FORMAT:
                raise ModelFileError(
                    f"{path} has format version {version!r}; this streamlstm reads version "
                    f"{FORMAT}: use a matching release, or save the model again"
                )
            return description, {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ModelFileError(
            f"{path} is not a streamlstm model file ({e}); foreign files are read with import_model"
        ) from e


def _replay(model: Model, x: Array, y: Array) -> float:
    """The largest error on the test vector, as a share of that output's scale."""
    with Engine(model, max_sessions=1) as engine:
        got = engine.open("test").run(x)
    std = np.array([f.std for f in model.outputs])
    scale = np.maximum(std, np.abs(y).max(axis=0))
    return float(np.max(np.abs(got - y) / scale))
