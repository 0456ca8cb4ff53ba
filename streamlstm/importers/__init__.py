"""Networks from elsewhere. import_model is the one door for files; each format is a module.

    file -> reader (a Source) -> network() or select -> folded -> Model -> verify

A reader gives layers in our canonical layout, whatever the format's; gate_orders has all the
orders. Code in a file is never run, and what we do not have is refused by name: a wrong guess
would be plausible garbage.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamlstm.errors import UnsupportedModelError
from streamlstm.feature import Feature
from streamlstm.importers.flow import Flow, check_not_said
from streamlstm.importers.fold import folded, leading
from streamlstm.importers.source import Source, selected
from streamlstm.model import Model
from streamlstm.wording import counted

__all__ = ["from_torch", "import_model", "open_source"]

# Which module's read(path) reads files of which ending; with flow= those that may hold none.
_READERS = {
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".pth.tar": "pytorch",
    ".ckpt": "pytorch",
    ".bin": "pytorch",
    ".safetensors": "pytorch",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".onnx": "onnx",
    ".tflite": "tflite",
    ".nam": "nam",
    ".json": "rtneural",
}
_MAY_LACK_FLOW = ("pytorch", "keras", "rtneural")


def open_source(path: str | os.PathLike[str], *, flow: Flow | None = None) -> Source:
    """What a foreign file holds; its ending tells the format.

    flow: how the layers run, such as ["lstm", "relu", "fc"], for files of weights, which don't
    tell: the file's keys of its layers, all of them, and functions (linear, tanh, sigmoid, relu,
    hard_sigmoid, hard_sigmoid6, softmax). Where both have the name, it is the layer's.
    Raises OSError, UnsupportedModelError.
    """
    path = Path(path)
    endings = [ending for ending in _READERS if path.name.lower().endswith(ending)]
    if not endings:
        raise UnsupportedModelError(
            f"{path} has an unknown ending; files ending in {', '.join(_READERS)} can be imported"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} can't be read: there is no such file")
    name = _READERS[endings[0]]
    reader = importlib.import_module(f"streamlstm.importers.{name}")
    source: Source
    if name in _MAY_LACK_FLOW:
        source = reader.read(path, flow=flow)
    else:
        check_not_said(path, flow)
        source = reader.read(path)
    return source


def import_model(
    path: str | os.PathLike[str],
    *,
    select: str | None = None,
    flow: Flow | None = None,
    inputs: Sequence[Feature | dict[str, Any] | str] | None = None,
    outputs: Sequence[Feature | dict[str, Any] | str] | None = None,
    name: str | None = None,
) -> Model:
    """A Model from a foreign file: PyTorch, Keras, ONNX, TFLite, NAM or RTNeural.

    select: path of one recurrent layer, to take it alone. flow: as in open_source. inputs,
    outputs, name: as in Model (name defaults to the file's).
    Raises OSError, UnsupportedModelError naming what we do not have, ModelError.
    """
    source = open_source(path, flow=flow)
    return model_of(source, select, inputs=inputs, outputs=outputs, name=name or Path(path).stem)


def model_of(source: Source, select: str | None = None, **description: Any) -> Model:
    """The Model of a source's whole network, or of one recurrent layer; see import_model."""
    found = source.network() if select is None else [selected(source, select)]
    first, rest = leading(found)
    model = Model(folded(rest), **description)
    if first is None:
        return model
    if first.input_size != model.input_size or model.vocabulary:
        raise UnsupportedModelError(
            f"the events are scaled as {counted(first.input_size, 'number')} where the first layer "
            f"takes {model.input_size}{' whole ones' if model.vocabulary else ''}; the file is "
            "damaged"
        )
    inputs = [
        Feature(f.name, f.unit, f.mean - f.std * shift / scale, f.std / scale)
        for f, scale, shift in zip(model.inputs, first.scale, first.shift, strict=True)
    ]
    return Model(model.layers, inputs=inputs, outputs=model.outputs, name=model.name)


def from_torch(
    module: Any,
    *,
    flow: Flow | None = None,
    inputs: Sequence[Feature | dict[str, Any] | str] | None = None,
    outputs: Sequence[Feature | dict[str, Any] | str] | None = None,
    name: str = "model",
) -> Model:
    """A Model from a live torch.nn.Module, or from a state dict of tensors or arrays.

    flow: as in open_source, for a state dict with more than one recurrent stack, and for a module
    whose forward() is not known. A module is run where it can be: what does not answer as its own
    forward() is refused. Half precision becomes float32.
    Raises UnsupportedModelError naming the key or module that we do not have, ModelError.
    """
    from streamlstm.importers import pytorch  # noqa: PLC0415  (only when it is wanted)

    source = pytorch.source_of(module, flow=flow)
    return model_of(source, inputs=inputs, outputs=outputs, name=name)
