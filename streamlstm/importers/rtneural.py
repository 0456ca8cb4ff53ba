"""RTNeural's JSON, and PyTorch state dicts in JSON.

RTNeural (Chowdhury 2021) keeps {"in_shape", "layers": [{"type", "activation", "shape",
"weights", ...}]}, written from Keras by its python/model_utils.py and read by its
RTNeural/model_loader.h. Layouts are Keras's: LSTM kernel [in, 4H], recurrent [H, 4H],
bias [4H] (gates i, f, c, o); GRU [in, 3H], [H, 3H], bias [2, 3H] (z, r, h; reset after);
dense kernel [in, out], bias [out]. What counts is what RTNeural makes of a file: it always
runs tanh and sigmoid cells, and no activation where the name is empty.

Its torch_helpers.h reads the other form: a state dict as nested lists under PyTorch's keys,
alone, under "state_dict", or with CoreAudioML's "model_data" beside it (Proteus and other
GuitarML captures). No framework here runs RTNeural files; state dicts are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import json_file, pytorch
from streamlstm.importers.flow import Flow, check_not_said
from streamlstm.importers.fold import Scale
from streamlstm.importers.gate_orders import canonical, gru_biases
from streamlstm.importers.pytorch.checkpoint import is_skip
from streamlstm.importers.source import Found, Source
from streamlstm.layers import GRU, LSTM, Activation, Dense, Function, Layer, Recurrent
from streamlstm.wording import counted

Array = NDArray[Any]

FUNCTION: dict[str, Function] = {
    "": "linear",
    "tanh": "tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
}
DENSE = ("dense", "time-distributed-dense")
KNOWN = (*DENSE, "lstm", "gru", "activation", "batchnorm")
LAYER_KEYS = {"name", "type", "activation", "shape", "weights", "epsilon"}
# Of these only in_shape and layers are RTNeural's. AIDA-X's in_skip adds the input to the
# output, its gains are in dB.
NOTES = {"in_shape", "layers", "in_batch", "metadata", "samplerate", "sample_rate"}
NEUTRAL = ("in_skip", "in_gain", "out_gain")
# CoreAudioML, networks.py: SimpleRNN's parameters.
SIMPLE_RNN = {
    "model",
    "input_size",
    "skip",
    "output_size",
    "unit_type",
    "num_layers",
    "hidden_size",
    "bias_fl",
}


class RTNeural(Source):
    """The network of an RTNeural file, a Source. A layer's path is "layer" and its place."""

    format = "RTNeural"
    framework = ""

    def __init__(self, inputs: int, entries: Sequence[Mapping[str, Any]]) -> None:
        self._inputs, self._entries = inputs, entries

    def recurrent(self) -> list[Found]:
        return [
            _found(f"layer {k}", entry)
            for k, entry in enumerate(self._entries)
            if entry["type"] in ("lstm", "gru")
        ]

    def network(self) -> list[Layer | Scale]:
        made: list[Layer | Scale] = []
        width = self._inputs
        for k, entry in enumerate(self._entries):
            where = f"layer {k}"
            made += _layers(where, entry, width)
            outputs = _last(entry.get("shape"), f"the shape of {where}")
            if entry["type"] in ("activation", "batchnorm") and outputs != width:
                raise UnsupportedModelError(
                    f"{where} ({entry['type']}) has {counted(outputs, 'output')} for "
                    f"{counted(width, 'input')}; expected as many"
                )
            width = outputs
        return made

    def answers(self, x: Array, select: str | None) -> Array:
        raise NotImplementedError("nothing here runs an RTNeural file")


def read(path: Path, *, flow: Flow | None = None) -> Source:
    """The network of a JSON file.

    flow: as in open_source, for a state dict without model_data.
    Raises OSError, UnsupportedModelError.
    """
    content = json_file.load(path)
    if "in_shape" in content and "layers" in content:
        check_not_said(path, flow)
        return _rtneural(content)
    if "model_data" in content:
        check_not_said(path, flow)
        return pytorch.source_of(_simple_rnn(content), flow=["rec", "lin"], told=True)
    held = content.get("state_dict", content)
    if not (isinstance(held, dict) and any("weight" in key for key in held)):
        raise UnsupportedModelError(
            f"{path} is JSON, but neither RTNeural's ('in_shape' and 'layers') nor a PyTorch "
            "state dict"
        )
    beside = {} if held is content else {k: v for k, v in content.items() if k != "state_dict"}
    for key, value in beside.items():
        if isinstance(value, dict | list) or is_skip(key, value):
            raise UnsupportedModelError(
                f"{path} holds {key!r} beside the state dict, and does not tell whether that "
                "changes the outputs; take it out if it does not"
            )
    return pytorch.source_of(_tensors(held), flow=flow)


def _tensors(held: Mapping[str, Any]) -> dict[str, Array]:
    return {key: json_file.numbers(value, f"tensor {key!r}") for key, value in held.items()}


def _last(shape: Any, who: str) -> int:
    """The last number of a Keras shape, the one of the features."""
    if not isinstance(shape, list) or not shape:
        raise UnsupportedModelError(f"{who} is {shape!r}; expected a list of sizes")
    return json_file.size(shape[-1], f"the last number in {who}")


def _rtneural(content: Mapping[str, Any]) -> RTNeural:
    for key in NEUTRAL:
        if content.get(key, 0) != 0:
            raise UnsupportedModelError(
                f"{key!r} is {content[key]!r}; only networks without it (0) can be imported"
            )
    if unknown := content.keys() - NOTES - set(NEUTRAL):
        raise UnsupportedModelError(
            f"the file has a key {sorted(unknown)[0]!r}, which we don't know; "
            "take it out if it does not change the network"
        )
    entries = content["layers"]
    if not isinstance(entries, list) or not entries:
        raise UnsupportedModelError("'layers' is not a list of layers; is the file complete?")
    for k, entry in enumerate(entries):
        if not (isinstance(entry, dict) and isinstance(entry.get("type"), str)):
            raise UnsupportedModelError(f"layer {k} is no object with a type")
    return RTNeural(_last(content["in_shape"], "'in_shape'"), entries)


def _found(where: str, entry: Mapping[str, Any]) -> Found:
    kind = entry["type"].upper()
    try:
        layer = _recurrent(where, entry)
    except UnsupportedModelError as e:
        return Found(where, kind, None, str(e))
    return Found(where, f"{kind} {layer.input_size} -> {layer.units}", layer)


def _layers(where: str, entry: Mapping[str, Any], width: int) -> Iterator[Layer | Scale]:
    """What one entry is, given the width below it."""
    kind = entry["type"]
    if kind not in KNOWN:
        raise UnsupportedModelError(
            f"{where} is a {kind!r} layer; {', '.join(KNOWN)} can be imported"
        )
    _check_keys(where, entry)
    if kind in ("lstm", "gru"):
        layer = _recurrent(where, entry)
        if layer.input_size != width:
            raise UnsupportedModelError(
                f"{where} ({kind}) takes {counted(layer.input_size, 'number')}, and is given "
                f"{width}"
            )
        yield layer
        return
    units = _last(entry.get("shape"), f"the shape of {where}")
    if kind in DENSE:
        w, b = _weights(where, entry, (width, units), (units,))
        yield Dense(w.T, b)
    if kind == "batchnorm":
        yield _batch_norm(where, entry, width)
    elif (function := _function(where, entry)) != "linear":
        yield Activation(function, units)


def _check_keys(where: str, entry: Mapping[str, Any]) -> None:
    if unknown := entry.keys() - LAYER_KEYS:
        raise UnsupportedModelError(
            f"{where} ({entry['type']}) has {sorted(unknown)[0]!r}, which we don't know"
        )


def _function(where: str, entry: Mapping[str, Any]) -> Function:
    name = entry.get("activation", "")
    if not isinstance(name, str) or name not in FUNCTION:
        raise UnsupportedModelError(
            f"{where} ({entry['type']}) has activation {name!r}; "
            f"{', '.join(filter(None, FUNCTION))} can be imported"
        )
    return FUNCTION[name]


def _weights(where: str, entry: Mapping[str, Any], *shapes: tuple[int | None, ...]) -> list[Array]:
    """An entry's tensors, checked against their shapes (None: any size)."""
    who = f"{where} ({entry['type']})"
    given = entry.get("weights")
    if not isinstance(given, list) or len(given) != len(shapes):
        found = counted(len(given), "weight") if isinstance(given, list) else "no weights"
        raise UnsupportedModelError(f"{who} has {found}; expected {len(shapes)}")
    tensors = [json_file.numbers(a, f"weight {k} of {who}") for k, a in enumerate(given)]
    for k, (a, shape) in enumerate(zip(tensors, shapes, strict=True)):
        wanted = tuple(n if m is None else m for n, m in zip(a.shape, shape, strict=False))
        if a.ndim != len(shape) or a.shape != wanted or not a.size:
            text = ", ".join("any" if m is None else str(m) for m in shape)
            raise UnsupportedModelError(
                f"weight {k} of {who} has shape {a.shape}; expected ({text})"
            )
    return tensors


def _recurrent(where: str, entry: Mapping[str, Any]) -> Recurrent:
    _check_keys(where, entry)
    if entry.get("activation", "") not in ("", "tanh"):
        raise UnsupportedModelError(
            f"{where} ({entry['type']}) has activation {entry['activation']!r}; RTNeural's "
            "cells are tanh cells whatever the file says, so train it with tanh"
        )
    h = _last(entry.get("shape"), f"the shape of {where}")
    if entry["type"] == "lstm":
        w, u, b = _weights(where, entry, (None, 4 * h), (h, 4 * h), (4 * h,))
        w_x, w_h, b = (canonical(a.T, "keras", "lstm") for a in (w, u, b))
        return LSTM(w_x, w_h, b)
    w, u, b = _weights(where, entry, (None, 3 * h), (h, 3 * h), (2, 3 * h))
    b_x, b_h = (canonical(row, "keras", "gru") for row in b)
    b, b_n = gru_biases(b_x, b_h)
    w_x, w_h = (canonical(a.T, "keras", "gru") for a in (w, u))
    return GRU(w_x, w_h, b, b_n=b_n)


def _batch_norm(where: str, entry: Mapping[str, Any], width: int) -> Scale:
    """weights: gamma, beta, mean, variance, or just the last two."""
    epsilon = entry.get("epsilon")
    if not isinstance(epsilon, (int, float)) or not 0 <= epsilon < np.inf:
        raise UnsupportedModelError(f"{where} (batchnorm) has epsilon {epsilon!r}")
    if entry.get("activation", "") != "":
        raise UnsupportedModelError(
            f"{where} (batchnorm) has activation {entry['activation']!r}, which RTNeural does "
            "not run; make it an activation layer"
        )
    whole = isinstance(entry.get("weights"), list) and len(entry["weights"]) == 4
    *affine, mean, variance = _weights(where, entry, *[(width,)] * (4 if whole else 2))
    if (variance + epsilon <= 0).any():
        raise UnsupportedModelError(f"{where} (batchnorm) has a variance that is not above 0")
    gamma, beta = affine or (1, 0)
    return Scale.batch_norm(mean, variance, gamma, beta, epsilon)


def _simple_rnn(content: Mapping[str, Any]) -> dict[str, Array]:
    """The state dict of CoreAudioML's SimpleRNN, lin(rec(x)), checked against model_data."""
    data, held = content["model_data"], content.get("state_dict")
    if not (isinstance(data, dict) and isinstance(held, dict)):
        raise UnsupportedModelError("model_data and state_dict must both be objects")
    if data.get("model") != "SimpleRNN" or (unknown := data.keys() - SIMPLE_RNN):
        odd = "model" if data.get("model") != "SimpleRNN" else sorted(unknown)[0]
        raise UnsupportedModelError(
            f"model_data has {odd!r}: {data.get(odd)!r}; of CoreAudioML's networks only "
            "'SimpleRNN' can be imported"
        )
    if data.get("skip", 1) != 0:  # 1 is SimpleRNN's default
        raise UnsupportedModelError(
            f"model_data has 'skip': {data.get('skip', 1)!r}, which adds the input to the "
            "output; set it to 0, import the rest and add the input yourself"
        )
    if data.get("unit_type") not in ("LSTM", "GRU"):
        raise UnsupportedModelError(
            f"model_data has 'unit_type': {data.get('unit_type')!r}; LSTM and GRU can be imported"
        )
    tensors = _tensors(held)
    _check_sizes(data, tensors)
    return tensors


def _check_sizes(data: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """That the tensors are those that model_data tells of."""
    inputs, outputs, units, count = (
        json_file.size(data.get(key), f"model_data's {key}")
        for key in ("input_size", "output_size", "hidden_size", "num_layers")
    )
    if count > len(tensors):
        raise UnsupportedModelError(
            f"model_data has {counted(count, 'layer')}, and state_dict has fewer"
        )
    rows = (4 if data["unit_type"] == "LSTM" else 3) * units
    shapes: dict[str, tuple[int, ...]] = {"lin.weight": (outputs, units)}
    for k in range(count):
        shapes[f"rec.weight_ih_l{k}"] = (rows, units if k else inputs)
        shapes[f"rec.weight_hh_l{k}"] = (rows, units)
        shapes[f"rec.bias_ih_l{k}"] = shapes[f"rec.bias_hh_l{k}"] = (rows,)
    if data.get("bias_fl", True):
        shapes["lin.bias"] = (outputs,)
    for key in sorted(shapes.keys() | tensors.keys()):
        found = tensors[key].shape if key in tensors else None
        if found != shapes.get(key):
            raise UnsupportedModelError(
                f"tensor {key!r} has shape {found}; by model_data it is {shapes.get(key)}"
            )
