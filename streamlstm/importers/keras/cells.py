"""Keras' recurrent layers as ours.

Equations and gate orders: keras/src/layers/rnn/lstm.py and gru.py, the same in Keras 1 and 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.gate_orders import canonical, gru_biases
from streamlstm.importers.keras.files import KerasFile, Place, refuse
from streamlstm.importers.keras.flow import Config, Part, counted_names, layer_of, name_of
from streamlstm.importers.keras.options import (
    REQUIRED,
    check_shape,
    check_units,
    function_of,
    matrix,
    options,
)
from streamlstm.layers import CELL_FUNCTIONS, GRU, LSTM, Function, Recurrent

Array = NDArray[Any]

RECURRENT = ("LSTM", "GRU", "LSTMCell", "GRUCell", "CuDNNLSTM", "CuDNNGRU", "RNN")


def cells(part: Part) -> list[Part]:
    """The cells of a recurrent layer, each as if it were a layer of its own."""
    backwards, time_major = part.config.get("go_backwards"), part.config.get("time_major")
    if backwards:
        refuse(
            f"{part.who} runs backwards (go_backwards), so it needs the end of the sequence before "
            "its start; train it forwards"
        )
    if time_major:
        refuse(f"{part.who} has time_major = True; save it with the batch first")
    if part.kind in ("LSTM", "GRU"):
        return [replace(part, place=replace(part.place, below="/cell"))]
    if part.kind != "RNN":
        return [part]
    options(part, cell=None)
    kind, config = layer_of(part.config.get("cell"), f"the cell of {part.who}")
    if kind != "StackedRNNCells":
        return [_cell(part, kind, config, replace(part.place, below="/cell"))]
    options(Part(part.where, kind, config, part.place), cells=None)
    stacked = config.get("cells")
    if not isinstance(stacked, list) or not stacked:
        refuse(f"the architecture is damaged: {part.who} has no list of cells")
    found = [layer_of(cell, f"cell {k} of {part.who}") for k, cell in enumerate(stacked)]
    out = []
    for (kind, config), group in zip(found, counted_names([k for k, _ in found]), strict=True):
        name = name_of(config, f"a cell of {part.who}")
        place = Place(f"{part.place.path}/cell/cells/{group}", (*part.place.names, name))
        out.append(_cell(replace(part, where=f"{part.where}/{name}"), kind, config, place))
    return out


def _cell(part: Part, kind: str, config: Config, place: Place) -> Part:
    cell = Part(part.where, kind, config, place)
    if kind not in ("LSTMCell", "GRUCell"):
        refuse(f"{cell.who} is no LSTMCell or GRUCell; other cells can't be imported")
    return cell


def recurrent(cell: Part, file: KerasFile) -> Recurrent:
    """Our layer of one of cells(). Raises UnsupportedModelError."""
    return _lstm(cell, file) if "LSTM" in cell.kind else _gru(cell, file)


def _cell_options(
    cell: Part, file: KerasFile, **more: bool
) -> tuple[Function, Function, list[bool]]:
    """The functions of the gates and of the candidate (and c's, on its way to h); flags."""
    cudnn = cell.kind.startswith("CuDNN")  # which has these two and no others
    gate, candidate, *flags = options(
        cell,
        recurrent_activation="sigmoid" if cudnn else REQUIRED,
        activation="tanh" if cudnn else REQUIRED,
        use_bias=True,
        **more,
    )
    return (
        function_of(cell, gate, file, CELL_FUNCTIONS),
        function_of(cell, candidate, file, CELL_FUNCTIONS),
        flags,
    )


def _cell_weights(
    cell: Part, file: KerasFile, gates: int, use_bias: bool
) -> tuple[Array, Array, Array | None]:
    """kernel [gates H, inputs], recurrent kernel [gates H, H] and the bias, gates in order."""
    roles = ("kernel", "recurrent_kernel", "bias")[: 3 if use_bias else 2]
    weights = file.variables(cell.who, cell.place, roles)
    w_x, w_h = (matrix(cell, weights, role) for role in roles[:2])
    inputs, units = len(w_x), len(w_h)
    expected = {"kernel": (inputs, gates * units), "recurrent_kernel": (units, gates * units)}
    for role, shape in expected.items():
        check_shape(cell, role, weights[role], shape)
    check_units(cell, units)
    if cell.kind.startswith("CuDNN"):
        # tf_keras, saving/legacy/hdf5_format.py, _convert_rnn_weights: each gate's kernel is
        # cuDNN's [H, inputs] in memory, though its shape says [inputs, H]; the recurrent one
        # is transposed.
        w_x = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(w_x, gates)])
        w_h = np.hstack([k.T for k in np.hsplit(w_h, gates)])
    return w_x.T, w_h.T, weights.get("bias")


def _lstm(cell: Part, file: KerasFile) -> LSTM:
    gate, candidate, (use_bias,) = _cell_options(cell, file)
    w_x, w_h, b = _cell_weights(cell, file, 4, use_bias)
    if b is None:
        b = np.zeros(len(w_h), w_h.dtype)
    elif cell.kind == "CuDNNLSTM":
        check_shape(cell, "bias", b, (2 * len(w_h),))
        b = b[: len(w_h)] + b[len(w_h) :]
    check_shape(cell, "bias", b, (len(w_h),))
    w_x, w_h, b = (canonical(a, "keras", "lstm") for a in (w_x, w_h, b))
    return LSTM(
        w_x,
        w_h,
        b,
        gate_function=gate,
        candidate_function=candidate,
        output_function=candidate,
    )


def _gru(cell: Part, file: KerasFile) -> GRU:
    # Files from before the option have the paper's form; CuDNNGRU has cuDNN's.
    cudnn = cell.kind == "CuDNNGRU"
    gate, candidate, (use_bias, reset_after) = _cell_options(cell, file, reset_after=cudnn)
    w_x, w_h, b = _cell_weights(cell, file, 3, use_bias)
    b_n = None
    if b is None:
        b = np.zeros(len(w_h), w_h.dtype)
    elif reset_after:
        check_shape(cell, "bias", b, (2 * len(w_h),) if cudnn else (2, len(w_h)))
        b, b_n = gru_biases(*(canonical(a, "keras", "gru") for a in b.reshape(2, -1)))
    else:
        check_shape(cell, "bias", b, (len(w_h),))
        b = canonical(b, "keras", "gru")
    w_x, w_h = (canonical(a, "keras", "gru") for a in (w_x, w_h))
    return GRU(
        w_x,
        w_h,
        b,
        b_n,
        reset_after=reset_after,
        gate_function=gate,
        candidate_function=candidate,
    )
