"""Keras files without Keras: written by keras_files, run by Keras' equations in NumPy.

Keras has no writer of CuDNN layers any more: cudnn() below makes such weights out of plain ones,
as cuDNN keeps them. tests/parity has Keras and TF Keras themselves.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

import streamlstm as sl
from keras_files import (
    Spec,
    batch_norm,
    dense,
    embedding,
    functional,
    gru,
    input_layer,
    layer,
    lstm,
    normal,
    sequential,
    write_hdf5,
    write_keras,
    write_vars,
)
from streamlstm import reference
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import gate_orders, model_of, open_source
from streamlstm.importers.keras import run

Array = Any


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# -- Keras' equations --------------------------------------------------------------------

FUNCTIONS = {
    "linear": lambda z: z,
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.maximum(z, 0),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    "hard_sigmoid 2": lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    "hard_sigmoid 3": lambda z: np.clip(z + 3, 0, 6) / 6,
}


def answers(specs: list[Spec], x: Array, major: int = 3) -> Array:
    """What Keras answers to x [steps, inputs], by its own matrices: x @ kernel."""

    def function(name: str) -> Any:
        return FUNCTIONS[f"hard_sigmoid {major}" if name == "hard_sigmoid" else name]

    a = np.asarray(x, float)
    for spec in specs:
        c, w = spec.config, {role: v.astype(float) for role, v in spec.weights.items()}
        match spec.kind:
            case "LSTM":
                a = _lstm(a, w, function(c["activation"]), function(c["recurrent_activation"]))
            case "GRU":
                f, g = function(c["activation"]), function(c["recurrent_activation"])
                a = _gru(a, w, f, g, c["reset_after"])
            case "Dense":
                a = function(c["activation"])(a @ w["kernel"] + w.get("bias", 0))
            case "BatchNormalization":
                a = (a - w["moving_mean"]) / np.sqrt(w["moving_variance"] + c["epsilon"])
                a = a * w.get("gamma", 1) + w.get("beta", 0)
            case "Normalization":
                mean, variance = (c.get(key, w.get(key)) for key in ("mean", "variance"))
                a = (a - mean) / np.maximum(np.sqrt(variance), 1e-7)
            case "Rescaling":
                a = a * c["scale"] + c["offset"]
            case "Embedding":
                a = w["embeddings"][a[:, 0].astype(int)]
            case "Activation":
                a = function(c["activation"])(a)
            case "ReLU" | "Softmax":
                a = function(spec.kind.lower())(a)
    return a


def _lstm(x: Array, w: dict[str, Array], f: Any, g: Any) -> Array:
    h = c = np.zeros(len(w["recurrent_kernel"]))
    out = []
    for row in x:
        sums = row @ w["kernel"] + h @ w["recurrent_kernel"] + w.get("bias", 0)
        i, forget, candidate, o = np.split(sums, 4)
        c = g(forget) * c + g(i) * f(candidate)
        h = g(o) * f(c)
        out.append(h)
    return np.array(out)


def _gru(x: Array, w: dict[str, Array], f: Any, g: Any, reset_after: bool) -> Array:
    h = np.zeros(len(w["recurrent_kernel"]))
    b_x, b_h = np.zeros((2, 3 * len(h)))
    if "bias" in w and reset_after:
        b_x, b_h = w["bias"]
    elif "bias" in w:
        b_x = w["bias"]
    out = []
    for row in x:
        x_z, x_r, x_n = np.split(row @ w["kernel"] + b_x, 3)
        k_z, k_r, k_n = np.split(w["recurrent_kernel"], 3, axis=1)
        h_z, h_r, h_n = np.split(b_h, 3)
        z, r = g(x_z + h @ k_z + h_z), g(x_r + h @ k_r + h_r)
        n = f(x_n + (r * (h @ k_n + h_n) if reset_after else (r * h) @ k_n))
        h = z * h + (1 - z) * n
        out.append(h)
    return np.array(out)


def inputs(model: sl.Model, steps: int = 30) -> Array:
    if model.layers[0].kind == "embedding":
        return np.random.default_rng(1).integers(0, model.layers[0].vocabulary, (steps, 1))
    return np.random.default_rng(1).standard_normal((steps, model.input_size))


def difference(model: sl.Model, specs: list[Spec], major: int = 3) -> float:
    x = inputs(model)
    return float(np.max(np.abs(reference.run(model, x)[0] - answers(specs, x, major))))


def write(tmp_path: Path, specs: list[Spec], form: str) -> Path:
    """The network in one of the files that Keras has had."""
    kind, _, model = form.partition(" ")
    major = 3 if kind in ("keras", "h5-of-3") else 2
    # Keras 2 wrote batch_input_shape.
    config = functional(specs, major) if model == "functional" else sequential(specs)
    if kind in ("keras", "keras-2"):
        version = "3.5.0" if kind == "keras" else "2.15.0"
        return write_keras(tmp_path / "n.keras", specs, config, version, owners=kind == "keras")
    return write_hdf5(tmp_path / "n.h5", specs, config, "3.5.0" if major == 3 else "2.4.0-tf")


def normalization(weights: dict[str, Array]) -> Spec:
    return Spec("Normalization", {"name": "norm", "axis": [-1]}, weights | {"count": np.array(9)})


FORMS = [
    f"{kind} {model}"
    for kind in ("keras", "keras-2", "h5", "h5-of-3")
    for model in ("sequential", "functional")
]
NETWORKS = {
    "lstm": lambda r: [input_layer(None, 3), lstm(r, 3, 5)],
    "no bias": lambda r: [input_layer(None, 3), lstm(r, 3, 5, use_bias=False)],
    "hard sigmoid": lambda r: [
        input_layer(None, 3),
        lstm(r, 3, 5, recurrent_activation="hard_sigmoid", activation="relu"),
        dense(r, 5, 2, activation="hard_sigmoid"),
    ],
    "gru after": lambda r: [input_layer(None, 3), gru(r, 3, 5)],
    "gru before": lambda r: [input_layer(None, 3), gru(r, 3, 5, reset_after=False)],
    "gru no bias": lambda r: [
        input_layer(None, 3),
        gru(r, 3, 4, name="a", use_bias=False),
        gru(r, 4, 5, name="b", use_bias=False, reset_after=False, recurrent_activation="relu"),
    ],
    "all around": lambda r: [
        input_layer(None, 3),
        dense(r, 3, 4, name="in", activation="tanh", use_bias=False),
        batch_norm(r, 4, axis=[2]),
        lstm(r, 4, 5),
        layer("Dropout", rate=0.3),
        batch_norm(r, 5, name="norm2", scale=False, center=False),
        layer("Activation", activation="sigmoid"),
        gru(r, 5, 4, return_sequences=False),
        dense(r, 4, 3, name="dense"),
        batch_norm(r, 3, name="norm3", axis=1),
        layer("ReLU", max_value=None, negative_slope=0.0, threshold=0.0),
        dense(r, 3, 4, name="head", activation="softmax"),
        layer("Softmax", axis=-1),
    ],
    "normalised": lambda r: [
        input_layer(None, 3),
        normalization({"mean": normal(r, 3), "variance": np.array([0.4, 2, 0.04], "f4")}),
        layer("Rescaling", scale=0.5, offset=[0.5, 1, -2]),
        lstm(r, 3, 4),
        layer("Normalization", axis=[-1], mean=0.1, variance=[1, 2, 0.5, 0.3]),
        dense(r, 4, 2),
    ],
    "embedding": lambda r: [
        input_layer(None),
        embedding(r, 7, 3, mask_zero=False),
        layer("SpatialDropout1D", rate=0.1),
        gru(r, 3, 4),
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, form, tmp_path):
    specs = NETWORKS[name](rng())
    model = sl.import_model(write(tmp_path, specs, form))
    assert difference(model, specs, 3 if form.startswith(("keras ", "h5-of-3")) else 2) < 1e-5
    assert model.dtype == "float32"
    assert model.name == "n"


def test_the_two_hard_sigmoids_are_not_the_same(tmp_path):
    specs = NETWORKS["hard sigmoid"](rng())
    model = sl.import_model(write(tmp_path, specs, "h5 sequential"))
    assert difference(model, specs, 2) < 1e-5
    assert difference(model, specs, 3) > 1e-2


@pytest.mark.parametrize(("stored", "dtype"), [("f2", "float32"), ("f8", "float64")])
def test_dtypes(stored, dtype, tmp_path):
    specs = [input_layer(None, 2), lstm(rng(), 2, 3, dtype=np.dtype(stored).name)]
    specs[1].weights = {role: a.astype(stored) for role, a in specs[1].weights.items()}
    model = sl.import_model(write(tmp_path, specs, "keras sequential"))
    assert model.dtype == dtype
    assert difference(model, specs) < 1e-6


POLICY = {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}


def test_mixed_precision_has_float32_weights(tmp_path):
    specs = [input_layer(None, 2), lstm(rng(), 2, 3, dtype=POLICY)]
    assert sl.import_model(write(tmp_path, specs, "keras sequential")).dtype == "float32"


# -- recurrent layers in other clothes ---------------------------------------------------


def cudnn(spec: Spec) -> Spec:
    """The same layer as CuDNNLSTM or CuDNNGRU kept it: for each gate cuDNN's own matrices
    [H, inputs] and [H, H], row-major, as if they were of Keras' shape; two biases."""
    gates = 4 if spec.kind == "LSTM" else 3
    kernels = np.split(spec.weights["kernel"], gates, axis=1)
    recurrent = np.split(spec.weights["recurrent_kernel"], gates, axis=1)
    bias = spec.weights["bias"]
    weights = {
        "kernel": np.hstack([np.ascontiguousarray(k.T).reshape(k.shape) for k in kernels]),
        "recurrent_kernel": np.hstack([k.T for k in recurrent]),
        "bias": np.concatenate([bias * 0.25, bias * 0.75]) if gates == 4 else bias.reshape(-1),
    }
    kept = ("name", "trainable", "units", "return_sequences", "go_backwards")
    config = {key: spec.config[key] for key in kept}
    return Spec(f"CuDNN{spec.kind}", config, weights)


@pytest.mark.parametrize("made", [lstm, gru])
@pytest.mark.parametrize("size", [3, 5, 8])
def test_cudnn_files(made, size, tmp_path):
    plain = made(rng(), size, 5)
    specs = [input_layer(None, size), cudnn(plain)]
    path = write_hdf5(tmp_path / "n.h5", specs, sequential(specs), "2.2.4")
    assert difference(sl.import_model(path), [plain]) < 1e-5
    weights = write_hdf5(tmp_path / "w.h5", specs)
    assert difference(sl.import_model(weights), [plain]) < 1e-5


def keras1(spec: Spec) -> Spec:
    """The same layer as Keras 1 kept it: weights by gate, other names of options."""
    gates = {"LSTM": "ifco", "GRU": "zrh"}.get(spec.kind)
    names = {"units": "output_dim", "recurrent_activation": "inner_activation"}
    names["use_bias"] = "bias"
    kept = ("name", "units", "activation", "recurrent_activation", "use_bias", "return_sequences")
    config = {names.get(k, k): spec.config[k] for k in kept if k in spec.config}
    config |= {"init": "glorot_uniform", "W_regularizer": None, "consume_less": "cpu"}
    old = {"kernel": "W", "recurrent_kernel": "U", "bias": "b"}
    if gates is None:
        weights = {old[role]: a for role, a in spec.weights.items()}
    else:
        order = "icfo" if len(gates) == 4 else gates
        blocks = {
            f"{old[role]}_{gate}": block
            for role, a in spec.weights.items()
            for gate, block in zip(gates, np.split(a, len(gates), axis=-1), strict=True)
        }
        weights = {f"{w}_{gate}": blocks[f"{w}_{gate}"] for gate in order for w in "WUb"}
    return Spec(spec.kind, config, weights)


def test_keras_1_files(tmp_path):
    r = rng()
    plain = [
        lstm(r, 3, 4, recurrent_activation="hard_sigmoid"),
        gru(r, 4, 5, reset_after=False),
        dense(r, 5, 2),
    ]
    specs = [keras1(spec) for spec in plain]
    specs[0].config["batch_input_shape"] = [None, None, 3]
    config = {"class_name": "Sequential", "config": [spec.as_json() for spec in specs]}
    path = write_hdf5(tmp_path / "n.h5", specs, config, "1.2.2", old=True)
    assert difference(sl.import_model(path), plain, 2) < 1e-5


def wrapped(spec: Spec, name: str) -> Spec:
    """RNN(LSTMCell) or RNN(GRUCell) of the same numbers."""
    cell = {"class_name": f"{spec.kind}Cell", "config": spec.config | {"name": "cell"}}
    for option in ("go_backwards", "return_sequences"):
        cell["config"].pop(option, None)
    config = {"name": name, "cell": cell, "return_sequences": True, "go_backwards": False}
    return Spec("RNN", config, spec.weights, "/cell")


@pytest.mark.parametrize("form", ["keras sequential", "h5 functional"])
def test_cells_and_time_distributed(form, tmp_path):
    r = rng()
    plain = [lstm(r, 3, 4), gru(r, 4, 5), dense(r, 5, 2, activation="tanh")]
    inner = dense(r, 5, 2, activation="tanh").as_json()
    outer = Spec("TimeDistributed", {"name": "each", "layer": inner}, plain[2].weights, "/layer")
    if form.startswith("keras"):  # the group's name is of the class, in any writer
        inner["config"]["name"] = "each"
    specs = [input_layer(None, 3), wrapped(plain[0], "a"), wrapped(plain[1], "b"), outer]
    path = write(tmp_path, specs, form)
    assert difference(sl.import_model(path), plain) < 1e-5
    found = open_source(path).recurrent()
    assert [(f.where, f.text) for f in found] == [("a", "LSTM 3 -> 4"), ("b", "GRU 4 -> 5")]


def stacked(r: np.random.Generator) -> tuple[list[Spec], Spec]:
    plain = [lstm(r, 3, 4), gru(r, 4, 5)]
    cells = [
        {"class_name": f"{spec.kind}Cell", "config": spec.config | {"name": name}}
        for spec, name in zip(plain, ("one", "two"), strict=True)
    ]
    inner = {"class_name": "StackedRNNCells", "config": {"name": "both", "cells": cells}}
    return plain, Spec("RNN", {"name": "rnn", "cell": inner, "return_sequences": True})


def test_stacked_cells_by_both_layouts(tmp_path):
    plain, rnn = stacked(rng())
    config = sequential([input_layer(None, 3), rnn])
    h5 = tmp_path / "n.h5"
    names = [f"rnn/both/{cell}/{role}:0" for cell, spec in zip(("one", "two"), plain, strict=True)
             for role in spec.weights]  # fmt: skip
    with h5py.File(write_hdf5(h5, [rnn], config), "a") as f:
        f["model_weights/rnn"].attrs["weight_names"] = names
        arrays = [a for spec in plain for a in spec.weights.values()]
        for name, a in zip(names, arrays, strict=True):
            f[f"model_weights/rnn/{name}"] = a
    path = tmp_path / "n.keras"
    weights = io.BytesIO()
    with h5py.File(weights, "w") as f:
        for cell, spec in zip(("lstm_cell", "gru_cell"), plain, strict=True):
            for k, a in enumerate(spec.weights.values()):
                f[f"layers/rnn/cell/cells/{cell}/vars/{k}"] = a
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("config.json", json.dumps(config))
        z.writestr("model.weights.h5", weights.getvalue())
    for file in (h5, path):
        assert difference(sl.import_model(file), plain) < 1e-5
        assert [f.where for f in open_source(file).recurrent()] == ["rnn/one", "rnn/two"]
        assert sl.import_model(file, select="rnn/two").layers[0].kind == "gru"


def test_a_model_in_a_model(tmp_path):
    r = rng()
    plain = [dense(r, 3, 4, name="a"), lstm(r, 4, 5, name="b"), dense(r, 5, 2, name="c")]
    inner = Spec("Sequential", sequential([input_layer(None, 3), *plain[:2]])["config"])
    inner.config["name"] = "encoder"
    config = sequential([input_layer(None, 3), inner, plain[2]])
    h5 = tmp_path / "n.h5"
    names = ["a/kernel:0", "a/bias:0"] + [f"b/b_cell/{role}:0" for role in plain[1].weights]
    with h5py.File(write_hdf5(h5, [inner, plain[2]], config), "a") as f:
        f["model_weights/encoder"].attrs["weight_names"] = names
        arrays = [a for spec in plain[:2] for a in spec.weights.values()]
        for name, a in zip(names, arrays, strict=True):
            f[f"model_weights/encoder/{name}"] = a
    assert difference(sl.import_model(h5), plain) < 1e-5
    assert [f.where for f in open_source(h5).recurrent()] == ["encoder/b"]
    assert sl.import_model(h5, select="encoder/b").input_size == 4


def test_a_long_list_of_names_comes_in_pieces(tmp_path):
    specs = NETWORKS["all around"](rng())
    path = write(tmp_path, specs, "h5 sequential")
    with h5py.File(path, "a") as f:
        root = f["model_weights"]
        names = root.attrs["layer_names"]
        del root.attrs["layer_names"]
        for k, piece in enumerate(np.array_split(names, 3)):
            root.attrs[f"layer_names{k}"] = piece
    assert difference(sl.import_model(path), specs, 2) < 1e-5


def test_hdf5_under_the_name_keras(tmp_path):
    """What tf.keras before 2.12 wrote for model.save('n.keras')."""
    specs = NETWORKS["lstm"](rng())
    path = write(tmp_path, specs, "h5 sequential").rename(tmp_path / "n.keras")
    assert difference(sl.import_model(path), specs) < 1e-5


def test_a_stateful_layer_and_one_that_returns_its_last_answer(tmp_path):
    specs = [
        input_layer(1, 3, batch_shape=[1, 1, 3]),
        lstm(rng(), 3, 4, return_sequences=False, stateful=True, unroll=True, return_state=True),
    ]
    assert difference(sl.import_model(write(tmp_path, specs, "keras sequential")), specs) < 1e-5


# -- weights without an architecture -----------------------------------------------------


def weights_only(tmp_path: Path, specs: list[Spec], form: str) -> Path:
    if form == "hdf5":
        return write_hdf5(tmp_path / "w.h5", specs)
    path = tmp_path / "w.weights.h5"
    write_vars(path, specs, owners=form == "owned")
    return path


@pytest.mark.parametrize("form", ["hdf5", "owned", "counted"])
def test_weights_only(form, tmp_path):
    r = rng()
    specs = [
        embedding(r, 6, 3),
        gru(r, 3, 4, name="first"),
        lstm(r, 4, 5, name="second"),
        dense(r, 5, 2, activation="softmax", name="head"),
    ]
    path = weights_only(tmp_path, specs, form)
    names = ["embedding", "gru", "lstm", "dense"]
    if form != "counted":
        names = [spec.name for spec in specs]
    model = sl.import_model(path, flow=[*names, "softmax"])
    assert difference(model, specs) < 1e-5
    found = {f.where: f.text for f in open_source(path).recurrent()}
    assert found == {names[1]: "GRU 3 -> 4", names[2]: "LSTM 4 -> 5"}
    assert sl.import_model(path, select=names[2]).layers[0].kind == "lstm"


@pytest.mark.parametrize(
    ("version", "gate"),
    [
        ("1.2.2", "hard_sigmoid"),
        ("2.2.5", "hard_sigmoid"),
        ("2.1.6-tf", "hard_sigmoid"),
        ("2.3.0", "sigmoid"),
        ("2.10.0", "sigmoid"),
        ("3.5.0", "sigmoid"),
        ("2.2.4-tf", ""),
        ("", ""),
    ],
)
def test_default_functions_are_of_the_keras_that_wrote_the_file(version, gate, tmp_path):
    specs = [lstm(rng(), 3, 4, recurrent_activation=gate)]
    path = write_hdf5(tmp_path / "w.h5", specs, version=version)
    source = open_source(path)
    if gate:
        assert difference(sl.import_model(path), specs, 2) < 1e-5
        assert source.assumed == [
            "recurrent layers run forwards",
            f"LSTM and GRU have their Keras' default functions, tanh and {gate}",
        ]
    else:
        sentence = (
            f"layer 'lstm' is of Keras {version or 'without a version'}, so that its default "
            "functions are not clear; save the whole model (model.save)"
        )
        with pytest.raises(UnsupportedModelError, match=f"^{re.escape(sentence)}$"):
            source.network()
        assert not source.assumed


MORE = (
    "import a model that tells its layers (model.save of a Sequential or functional one) or an "
    "ONNX file, or, where they run one after the other, say so: flow="
)
AFTER = " in the order in which they run, with relu, tanh ... where such a function runs"
THESE = ["lstm", "dense", "norm", "rnn", "gru", "both/forward_a", "both/backward_a"]
WEIGHTS_REFUSED = {
    "no flow": ({}, f"w.h5 has weights and no architecture; {MORE}{THESE}{AFTER}"),
    "unknown name": (
        {"flow": ["lstm", "out"]},
        f"flow= has 'out', which is no layer of the file and no function; the layers are "
        f"{', '.join(THESE)}, the functions linear, tanh, sigmoid, relu, hard_sigmoid, "
        "hard_sigmoid6, softmax",
    ),
    "layers left out": (
        {"flow": ["lstm", "relu", "dense"]},
        f"flow= leaves out {', '.join(THESE[2:])}; say where each of the file's layers runs, or "
        "save the weights without those that don't run",
    ),
    "another Keras' function": (
        {"flow": ["lstm", "hard_sigmoid6", *THESE[1:]]},
        "w.h5 has no 'hard_sigmoid6'; its hard_sigmoid is 'hard_sigmoid'",
    ),
    "batch norm": (
        {"flow": ["lstm", "norm", "dense", *THESE[3:]]},
        "layer 'norm' has the weights gamma [4], beta [4], moving_mean [4], moving_variance [4], "
        "by which only LSTM, GRU, Dense and Embedding can be told; save the whole model",
    ),
    "simple rnn": (
        {"select": "rnn"},
        "layer 'rnn' has the weights kernel [3, 4], recurrent_kernel [4, 4], bias [4], by which "
        "only LSTM, GRU, Dense and Embedding can be told",
    ),
    "gru": (
        {"select": "gru"},
        "layer 'gru' is a GRU without bias, whose weights don't tell its reset_after; save the "
        "whole model (model.save)",
    ),
    "bidirectional": (
        {"select": "both/forward_a"},
        "layer 'both/forward_a' is one direction of a Bidirectional layer, which needs the end of "
        "the sequence before its start; train a forward layer",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS_REFUSED)
def test_refused_weights(case, tmp_path):
    r = rng()
    simple = {"kernel": (3, 4), "recurrent_kernel": (4, 4), "bias": (4,)}
    both = Spec("Bidirectional", {"name": "both"})
    a = lstm(r, 3, 4).weights
    both.weights = {
        f"{way}_a/{role}": w for way in ("forward", "backward") for role, w in a.items()
    }
    specs = [
        lstm(r, 3, 4),
        dense(r, 4, 2),
        batch_norm(r, 4),
        Spec("SimpleRNN", {"name": "rnn"}, {k: normal(r, *s) for k, s in simple.items()}),
        gru(r, 3, 4, use_bias=False),
        both,
    ]
    path = write_hdf5(tmp_path / "w.h5", specs)
    with h5py.File(path, "a") as f:  # no outer path of names in this one
        f["both"].attrs["weight_names"] = list(both.weights)
        for name, w in both.weights.items():
            f[f"both/{name}"] = w
    arguments, sentence = WEIGHTS_REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(path, **arguments)


# -- refusals ----------------------------------------------------------------------------

SELECT = "select one recurrent layer alone"


def net(*specs: Spec) -> list[Spec]:
    return [input_layer(None, 3), lstm(rng(), 3, 4), *specs]


INTEGERS = {"kernel": np.ones((4, 2), int), "bias": np.ones(2)}
WIDER = {"kernel": np.ones((4, 16), "f4")}
REFUSED: dict[str, tuple[list[Spec], str]] = {
    "bidirectional": (
        net(layer("Bidirectional", layer=lstm(rng(), 4, 2).as_json())),
        "layer 'bidirectional' (Bidirectional) needs the end of the sequence before its start; "
        "train a forward layer",
    ),
    "backwards": (
        net(lstm(rng(), 4, 4, name="back", go_backwards=True)),
        "layer 'back' (LSTM) runs backwards (go_backwards), so it needs the end of the sequence "
        "before its start; train it forwards",
    ),
    "time major": (
        net(lstm(rng(), 4, 4, name="b", time_major=True)),
        "layer 'b' (LSTM) has time_major = True; save it with the batch first",
    ),
    "simple rnn": (
        net(layer("SimpleRNN", units=4)),
        "layer 'simplernn' (SimpleRNN) is a plain RNN, which we do not have; train an LSTM or a "
        "GRU",
    ),
    "convolution": (
        net(layer("Conv1D")),
        "layer 'conv1d' (Conv1D) looks at several steps at once, which we do not have",
    ),
    "lambda": (
        net(layer("Lambda", function=["4wEAAAAA", None, None])),
        "layer 'lambda' (Lambda) holds Python code, which is never run; put a built-in layer in "
        "its place",
    ),
    "masking": (
        net(layer("Masking", mask_value=0.0)),
        "layer 'masking' (Masking) leaves steps out; save the model without it and don't send "
        "such events",
    ),
    "repeat": (
        net(layer("RepeatVector", n=3)),
        "layer 'repeatvector' (RepeatVector) makes one step into many, which a stream can't",
    ),
    "flatten": (
        net(layer("Flatten")),
        "layer 'flatten' (Flatten) takes all steps at once, which a stream never has",
    ),
    "unknown layer": (
        net(layer("Attention")),
        f"layer 'attention' (Attention) is not supported; {SELECT}",
    ),
    "unknown layer in each step": (
        net(layer("TimeDistributed", layer={"class_name": "Conv2D", "config": {"name": "c"}})),
        f"layer 'timedistributed' (TimeDistributed) of Conv2D is not supported; {SELECT}",
    ),
    "after the last answer": (
        net(lstm(rng(), 4, 4, name="a", return_sequences=False), lstm(rng(), 4, 4, name="b")),
        "layer 'b' (LSTM) follows a layer that answers once, at the sequence's end "
        f"(return_sequences=False), which a stream never has; {SELECT}",
    ),
    "mask_zero": (
        [input_layer(None), embedding(rng(), 5, 3, mask_zero=True), lstm(rng(), 3, 4)],
        "layer 'embedding' (Embedding) has mask_zero, which leaves steps of 0 out; save the model "
        "without it and don't send such events",
    ),
    "embedding of vectors": (
        net(embedding(rng(), 5, 3)),
        f"layer 'embedding' (Embedding) must come first; {SELECT}",
    ),
    "dense over the steps": (
        [input_layer(8), dense(rng(), 8, 3), lstm(rng(), 3, 4)],
        "layer 'dense' (Dense) takes the whole sequence as one vector, which a stream never has",
    ),
    "images": (
        [input_layer(None, 8, 8, 3), lstm(rng(), 3, 4)],
        "layer 'input' (InputLayer) takes inputs of shape [None, None, 8, 8, 3]; expected "
        "[batch, steps, inputs]",
    ),
    "activation": (
        net(dense(rng(), 4, 2, activation="gelu")),
        "layer 'dense' (Dense) has activation 'gelu'; supported are linear, tanh, sigmoid, relu, "
        "hard_sigmoid, softmax",
    ),
    "custom activation": (
        net(layer("Activation", activation={"class_name": "function", "config": "mine"})),
        "layer 'activation' (Activation) has activation \"{'class_name': 'function', 'config': "
        "'mine'}\"; supported are",
    ),
    "softmax in a cell": (
        net(gru(rng(), 4, 4, activation="softmax")),
        "layer 'gru' (GRU) has activation 'softmax'; supported are linear, tanh, sigmoid, relu, "
        "hard_sigmoid",
    ),
    "no activation told": (
        net(Spec("Dense", {"name": "d", "units": 2}, dense(rng(), 4, 2).weights)),
        "layer 'd' (Dense) does not tell its activation; save the model with a newer Keras",
    ),
    "leaky relu": (
        net(layer("ReLU", negative_slope=0.1)),
        "layer 'relu' (ReLU) has max_value, negative_slope or threshold; only max(x, 0) is "
        "supported",
    ),
    "softmax over the steps": (
        net(layer("Softmax", axis=1)),
        "layer 'softmax' (Softmax) has axis = 1; the last one can be imported",
    ),
    "batch norm over the steps": (
        net(batch_norm(rng(), 4, axis=[1])),
        "layer 'norm' (BatchNormalization) has axis = [1]; the last one can be imported",
    ),
    "batch norm without epsilon": (
        net(batch_norm(rng(), 4, epsilon=-1)),
        "layer 'norm' (BatchNormalization) has epsilon = -1; expected a small number above 0",
    ),
    "unknown option": (
        net(lstm(rng(), 4, 4, name="b", cell_clip=3.0)),
        "layer 'b' (LSTM) has the option cell_clip = 3.0, which is not known",
    ),
    "an option of another type": (
        net(lstm(rng(), 4, 4, name="b", use_bias="yes")),
        "layer 'b' (LSTM) has use_bias = yes; expected true or false",
    ),
    "quantised": (
        net(dense(rng(), 4, 2, dtype={"config": {"name": "int8_from_float32"}})),
        "layer 'dense' (Dense) has dtype int8_from_float32; float16, float32, float64, "
        "mixed_float16, mixed_bfloat16 can be imported (save the model unquantised)",
    ),
    "another cell": (
        net(layer("RNN", cell={"class_name": "MyCell", "config": {"name": "c"}})),
        "layer 'rnn' (MyCell) is no LSTMCell or GRUCell; other cells can't be imported",
    ),
    "other units": (
        net(Spec("Dense", dense(rng(), 4, 3).config, dense(rng(), 4, 2).weights)),
        "layer 'dense' (Dense) has units = 3, but weights for 2",
    ),
    "integer weights": (
        net(Spec("Dense", dense(rng(), 4, 2).config, INTEGERS)),
        "kernel of layer 'dense' (Dense) has dtype int64; expected floats (save the model "
        "unquantised)",
    ),
    "missing weights": (
        net(Spec("Dense", dense(rng(), 4, 2).config, {"kernel": normal(rng(), 4, 2)})),
        "layer 'dense' (Dense) should have the weights kernel, bias, but n.h5 has kernel for it; "
        "the file is damaged or not all of the model",
    ),
    "wrong shapes": (
        net(Spec("LSTM", lstm(rng(), 4, 4, name="b").config, lstm(rng(), 4, 3).weights | WIDER)),
        "kernel of layer 'b' (LSTM) has shape (4, 16), expected (4, 12)",
    ),
    "bias of the other GRU": (
        net(Spec("GRU", gru(rng(), 4, 4).config, gru(rng(), 4, 4, reset_after=False).weights)),
        "bias of layer 'gru' (GRU) has shape (12,), expected (2, 12)",
    ),
    "no layers": ([], "n.h5 has no layers"),
    "no cells": (
        net(layer("RNN", cell={"class_name": "StackedRNNCells", "config": {"cells": []}})),
        "the architecture is damaged: layer 'rnn' (RNN) has no list of cells",
    ),
    "variance below 0": (
        net(Spec("BatchNormalization", batch_norm(rng(), 4).config,
                 dict.fromkeys(batch_norm(rng(), 4).weights, -np.ones(4)))),
        "moving_variance of layer 'norm' (BatchNormalization) has numbers below 0; the file is "
        "damaged",
    ),
    "variance of a normalization below 0": (
        net(normalization({"mean": np.ones(4), "variance": -np.ones(4)})),
        "variance of layer 'norm' (Normalization) has numbers below 0; the file is damaged",
    ),
    "a shape of a normalization": (
        net(normalization({"mean": np.ones(4), "variance": np.ones(3)})),
        "variance of layer 'norm' (Normalization) has shape (3,), expected (4,)",
    ),
    "normalization back": (
        net(layer("Normalization", axis=[-1], invert=True)),
        "layer 'normalization' (Normalization) has the option invert = True, which is not known",
    ),
    "normalization of all": (
        net(layer("Normalization", axis=None)),
        "layer 'normalization' (Normalization) has axis = None; the last one can be imported",
    ),
    "numbers of a rescaling": (
        net(layer("Rescaling", scale=[1.0, 2.0], offset=0.0)),
        "layer 'rescaling' (Rescaling) has [1.0, 2.0] for 4 inputs; expected one number, or 4",
    ),
    "no size told": (
        [layer("ReLU", batch_shape=[None, None, None]), lstm(rng(), 3, 4)],
        "layer 'relu' (ReLU) comes first, and the file does not tell the number of inputs",
    ),
    "no matrix": (
        net(Spec("Dense", dense(rng(), 4, 2).config, {"kernel": np.ones(4), "bias": np.ones(2)})),
        "kernel of layer 'dense' (Dense) has shape (4,); expected a matrix",
    ),
    "weights twice": (
        net(Spec("Dense", dense(rng(), 4, 2).config, {"a/kernel": INTEGERS["kernel"],
                                                       "b/kernel": INTEGERS["kernel"]})),
        "'dense/dense/b/kernel:0' is one more kernel of layer 'dense'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_layers(case, tmp_path):
    specs, sentence = REFUSED[case]
    path = write(tmp_path, specs, "h5 sequential")
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(path)
    found = open_source(path).recurrent()
    if len(specs) > 1 and specs[1].kind == "LSTM" and not specs[0].config["batch_shape"][3:]:
        assert (found[0].where, found[0].text) == ("lstm", "LSTM 3 -> 4")
        assert sl.import_model(path, select="lstm").output_size == 4  # the way out
    for f in found:
        assert (f.layer is None) == bool(f.refusal)


@pytest.mark.parametrize(
    ("case", "text"),
    [("bidirectional", "Bidirectional"), ("backwards", "LSTM"), ("simple rnn", "SimpleRNN")],
)
def test_recurrent_layers_that_can_not_be_taken_are_listed(case, text, tmp_path):
    specs, sentence = REFUSED[case]
    path = write(tmp_path, specs, "h5 sequential")
    last = open_source(path).recurrent()[-1]
    assert (last.text, last.layer, last.refusal) == (text, None, sentence)
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(path, select=last.where)


def test_hard_sigmoid_without_a_version(tmp_path):
    specs = NETWORKS["hard sigmoid"](rng())
    path = write_keras(tmp_path / "n.keras", specs, sequential(specs), version=None)
    sentence = (
        "layer 'lstm' (LSTM) has hard_sigmoid, which Keras 3 changed, and the file does not tell "
        "its keras_version; save the model again with the Keras that trained it"
    )
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(path)
    plain = NETWORKS["lstm"](rng())
    path = write_keras(tmp_path / "n.keras", plain, sequential(plain), version=None)
    assert difference(sl.import_model(path), plain) < 1e-5


def graph(case: str, major: int) -> dict[str, Any]:
    """A functional model that is no chain."""
    specs = [*net(), dense(rng(), 4, 2)]
    model = functional(specs, major)
    config = model["config"]
    _, recurrent, head = config["layers"]

    def call(*names: str, tensor: int = 0, **options: Any) -> Any:
        if major == 2:
            return [[name, 0, tensor, options] for name in names]
        tensors = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, tensor]}}
            for name in names
        ]
        return {"args": tensors if len(names) == 1 else [tensors], "kwargs": options}

    match case:
        case "merge":
            head["inbound_nodes"] = [call("lstm", "input")]
        case "shared":
            head["inbound_nodes"] = [call("lstm"), call("input")]
        case "state":
            head["inbound_nodes"] = [call("lstm", tensor=1)]
        case "training":
            recurrent["inbound_nodes"] = [call("input", training=True)]
        case "inputs":
            config["input_layers"] = [["input", 0, 0], ["other", 0, 0]]
        case "outputs":
            config["output_layers"] = {"a": ["lstm", 0, 0], "b": ["dense", 0, 0]}
        case "circle":
            recurrent["inbound_nodes"] = [call("dense")]
        case "nowhere":
            recurrent["inbound_nodes"] = []
        case "no args":
            recurrent["inbound_nodes"] = [{"kwargs": {}}]
        case "no call":
            recurrent["inbound_nodes"] = [[]]
        case "no tensor":
            recurrent["inbound_nodes"] = [{"args": ["input"], "kwargs": {}}]
    return model


GRAPHS = {
    "merge": "layer 'dense' takes 2 inputs; only a chain of layers can be streamed",
    "shared": "layer 'dense' is used 2 times; only a chain of layers can be streamed",
    "state": "layer 'dense' takes the state that layer 'lstm' returns, not its output",
    "training": "layer 'lstm' is called with training, which can't be streamed",
    "inputs": "the model has 2 inputs; only a chain from one input to one output can be streamed",
    "outputs": "the model has 2 outputs; only a chain from one input to one output can be streamed",
    "circle": "the architecture is damaged: the flow at layer 'dense' leads nowhere",
    "nowhere": "the architecture is damaged: nothing leads to layer 'lstm'",
    "no args": "the architecture is damaged: layer 'lstm' has a call without args",
    "no call": "the architecture is damaged: layer 'lstm' has an empty call",
    "no tensor": "layer 'lstm' is called with 'input', which can't be streamed",
}


@pytest.mark.parametrize("major", [2, 3])
@pytest.mark.parametrize("case", GRAPHS)
def test_refused_graphs(case, major, tmp_path):
    specs = [*net(), dense(rng(), 4, 2)]
    path = write_hdf5(tmp_path / "n.h5", specs, graph(case, major))
    sentence = GRAPHS[case]
    with pytest.raises(UnsupportedModelError, match=f"{re.escape(sentence)}(; {SELECT})?$"):
        sl.import_model(path)
    assert sl.import_model(path, select="lstm").output_size == 4


def test_a_class_of_ones_own_has_only_its_weights(tmp_path):
    specs = [lstm(rng(), 3, 4)]
    path = write_keras(tmp_path / "n.keras", specs, {"class_name": "Mine", "config": {}})
    assert difference(sl.import_model(path), specs) < 1e-5
    specs = [lstm(rng(), 3, 4), dense(rng(), 4, 2, activation="tanh")]
    path = write_keras(tmp_path / "n.keras", specs, {"class_name": "Mine", "config": {}})
    what = "n.keras is a model of one's own class, whose flow is Python code"
    sentence = f"{what}; {MORE}['dense', 'lstm']{AFTER}"
    with pytest.raises(UnsupportedModelError, match=f"{re.escape(sentence)}$"):
        sl.import_model(path)
    own = open_source(path, flow=["lstm", "dense", "tanh"])
    assert difference(model_of(own), specs) < 1e-5
    assert (own.flow_by, open_source(path).flow_by) == ("user", "stack")


def test_what_an_architecture_already_tells(tmp_path):
    path = write(tmp_path, NETWORKS["lstm"](rng()), "h5 sequential")
    with pytest.raises(UnsupportedModelError, match="tells its flow itself; leave out flow="):
        sl.import_model(path, flow=["lstm"])
    assert open_source(path).flow_by == "source"


def test_weights_of_another_layer(tmp_path):
    specs = [input_layer(None, 3), lstm(rng(), 3, 4, name="a"), lstm(rng(), 4, 4, name="b")]
    config = sequential([specs[0], specs[2], specs[1]])
    path = write_keras(tmp_path / "n.keras", specs, config)
    with pytest.raises(
        UnsupportedModelError,
        match=re.escape("the weights at layers/lstm belong to 'a', not to layer 'b' (LSTM)"),
    ):
        sl.import_model(path)


def test_without_h5py(tmp_path, monkeypatch):
    path = write(tmp_path, NETWORKS["lstm"](rng()), "keras sequential")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        UnsupportedModelError, match=r"needs h5py: pip install 'streamlstm\[keras\]'$"
    ):
        sl.import_model(path)


def test_without_keras_nothing_answers(tmp_path, monkeypatch):
    for name in ("keras", "tf_keras"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert open_source(write(tmp_path, NETWORKS["lstm"](rng()), "h5 sequential")).framework == ""


class FakeLayer:
    """Notes what is made of Keras' layers; its weights are those of an LSTM or a Dense layer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.units = args[0]
        self.options = options
        names = ("kernel", "recurrent_kernel", "bias") if "return_sequences" in options else (
            "kernel", "bias")  # fmt: skip
        self.weights = [SimpleNamespace(name=name) for name in names]

    def set_weights(self, arrays: list[Array]) -> None:
        self.arrays = arrays

    def __call__(self, a: Array) -> Array:
        return np.zeros((*a.shape[:2], self.units))


EVIL: dict[str, dict[str, Any]] = {
    "Lambda": {"function": ["4wEAAAAA", None, None]},
    "TFOpLambda": {"function": "io.write_file"},
}


@pytest.mark.parametrize("select", [None, "lstm"])
@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("form", ["h5 functional", "keras functional", "keras-2 functional"])
def test_no_file_is_given_to_keras(form, kind, select, tmp_path, monkeypatch):
    """Just the layers that were read are made anew, with the options that change numbers."""
    specs = net(dense(rng(), 4, 2, kernel_constraint={"class_name": "Evil", "config": {}}))
    specs[1].config["kernel_initializer"] = {"class_name": "Lambda", "config": EVIL["Lambda"]}
    config = functional(specs, 3 if form.startswith("keras ") else 2)
    side = layer(kind, **EVIL[kind]).as_json() | {"inbound_nodes": [["_CONSTANT_VALUE", -1, "x"]]}
    config["config"]["layers"].append(side)
    if form.startswith("h5"):
        path = write_hdf5(tmp_path / "n.h5", specs, config)
    else:
        version = "3.5.0" if form == "keras functional" else "2.15.0"
        path = write_keras(tmp_path / "n.keras", specs, config, version)
    made: list[FakeLayer] = []

    def maker(*args: Any, **options: Any) -> FakeLayer:
        made.append(FakeLayer(*args, **options))
        return made[-1]

    fake = SimpleNamespace(  # load_model would be an AttributeError
        __name__="keras",
        __version__="3.0",
        layers=SimpleNamespace(LSTM=maker, Dense=maker),
    )
    monkeypatch.setattr(run, "imported", lambda _: fake)
    source = open_source(path)
    assert source.framework == "keras 3.0"
    assert source.answers(np.zeros((5, 3)), select).shape == (5, 4 if select else 2)
    functions = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    expected = [{"return_sequences": True, "dtype": "float32", **functions}]
    if select is None:
        expected.append({"activation": "linear", "dtype": "float32"})
    assert [each.options for each in made] == expected
    for each, spec in zip(made, specs[1:], strict=False):
        for a, b in zip(each.arrays, spec.weights.values(), strict=True):
            np.testing.assert_array_equal(a, b)


# -- damaged and hostile files -----------------------------------------------------------


def read_or_refuse(path: Path) -> None:
    with contextlib.suppress(UnsupportedModelError):
        source = open_source(path)
        source.recurrent()
        source.network()


@pytest.mark.untraced
@pytest.mark.parametrize("form", ["keras functional", "h5 functional"])
def test_damaged_bytes(form, tmp_path):
    """Cut anywhere, or with any byte changed: one sentence, or the same network."""
    specs = NETWORKS["all around"](rng())
    whole = write(tmp_path, specs, form).read_bytes()
    r = np.random.default_rng(3)
    path = tmp_path / f"damaged.{form.split()[0]}"
    for k in range(120):
        if k < 40:
            damaged = whole[: r.integers(len(whole))]
        else:
            at = r.integers(len(whole), size=3)
            damaged = bytearray(whole)
            for place in at:
                damaged[place] ^= 1 << int(r.integers(8))
        path.write_bytes(damaged)
        read_or_refuse(path)


def replaced(value: Any, r: np.random.Generator) -> Any:
    """A copy with one thing in it of another type."""
    others = [None, 3, -1.5, "x", [], {}, [[]], {"class_name": 3}, ["a", 0], True]
    if isinstance(value, dict | list) and value and r.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[r.integers(len(keys))]
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = replaced(value[key], r)
        return copy
    return others[r.integers(len(others))]


def replace_architecture(path: Path, config: Any) -> None:
    """The weights stay as they are: to write them takes longer than to read the file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as f:
            f.attrs["model_config"] = json.dumps(config).encode()
        return
    with zipfile.ZipFile(path) as z:
        parts = {name: z.read(name) for name in z.namelist()}
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as z:
        for name, part in parts.items():
            z.writestr(name, part)


@pytest.mark.untraced
@pytest.mark.parametrize("form", ["keras functional", "h5 functional", "h5 sequential"])
def test_damaged_architectures(form, tmp_path):
    specs = [*NETWORKS["all around"](rng())[:6], stacked(rng())[1]]
    whole = functional(specs, 3 if form.startswith("keras") else 2)
    if "sequential" in form:
        whole = sequential(specs)
    r = np.random.default_rng(4)
    if form.startswith("keras"):
        path = write_keras(tmp_path / "n.keras", specs, whole)
    else:
        path = write_hdf5(tmp_path / "n.h5", specs, whole)
    for _ in range(300):
        replace_architecture(path, replaced(whole, r))
        read_or_refuse(path)


def nested(depth: int) -> Spec:
    """Models in each other."""
    specs = [nested(depth - 1)] if depth else []
    return Spec("Sequential", sequential(specs)["config"])


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("layer_names", "n.h5 has an architecture, but not the weights (no layer_names)"),
        ("dense", "the file lists the layer 'dense', but lacks its group"),
        ("dense/dense/bias:0", "the file lists the weight 'dense/dense/bias:0', but lacks it"),
        (
            "IEEE floats",
            "dense/dense/kernel:0 has dtype bfloat16; expected floats (save the model in float32)",
        ),
        ("flow", "the architecture is damaged: 16 models stand in each other"),
    ],
)
def test_refused_whole_files(lost, sentence, tmp_path):
    specs = net(nested(20) if lost == "flow" else dense(rng(), 4, 2))
    if lost == "IEEE floats":
        specs[-1].weights["kernel"] = np.ones((4, 2), "V2")  # as h5py has it
    path = write(tmp_path, specs, "h5 sequential")
    with h5py.File(path, "a") as f:
        root = f["model_weights"]
        if lost in root.attrs:
            del root.attrs[lost]
        elif lost in root:
            del root[lost]
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        open_source(path).recurrent()


def keras_file(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name.replace("__", "."), data)
    return path


def hdf5_bytes() -> bytes:
    file = io.BytesIO()
    write_vars(file, [lstm(rng(), 3, 4)])
    return file.getvalue()


HOSTILE = {
    "no weights": (
        {"config__json": b"{}"},
        r"n\.keras lacks model\.weights\.h5; save it with model\.save\('name\.keras'\)$",
    ),
    "no config": ({"x": b""}, r"n\.keras lacks config\.json; "),
    "not JSON": (
        {"config__json": b"{", "model__weights__h5": hdf5_bytes()},
        r"^config\.json is not JSON \(JSONDecodeError\)$",
    ),
    "deep JSON": (
        {"config__json": b"[" * 200_000, "model__weights__h5": hdf5_bytes()},
        r"^config\.json is not JSON \(RecursionError\)$",
    ),
    "a list": (
        {"config__json": b"[]", "model__weights__h5": hdf5_bytes()},
        r"^config\.json holds a list; expected a JSON object$",
    ),
    "a zip bomb": (
        {"config__json": b" " * (1 << 25), "model__weights__h5": hdf5_bytes()},
        r"^config\.json claims 33554432 bytes, but takes \d+ in the file; it is damaged$",
    ),
    "weights of nothing": (
        {"config__json": b"{}", "model__weights__h5": b"no"},
        r"n\.keras can't be read as a Keras file: ",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_zips(case, tmp_path):
    members, sentence = HOSTILE[case]
    with pytest.raises(UnsupportedModelError, match=sentence):
        open_source(keras_file(tmp_path / "n.keras", **members))


def test_a_tensor_that_claims_much_and_has_nothing(tmp_path):
    path = tmp_path / "n.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("layers/lstm/cell/vars/0", (1 << 20, 1 << 20), "f4", chunks=(64, 64))
    with pytest.raises(
        UnsupportedModelError,
        match=r"^layers/lstm/cell/vars/0 claims 4398046511104 bytes, but takes 0 in the file",
    ):
        open_source(path)


def test_nothing_outside_the_file_is_read(tmp_path):
    """Neither through an external link, nor an external or virtual dataset."""
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as f:
        f["a"] = np.ones((3, 16), "f4")
    path = tmp_path / "n.h5"
    with h5py.File(path, "w") as f:
        f["layers/lstm/cell/vars/0"] = h5py.ExternalLink(str(other), "a")
        f["layers/lstm/cell/vars/1"] = np.ones((4, 16), "f4")
    assert not open_source(path).recurrent()
    for kind in ("external", "virtual"):
        with h5py.File(path, "w") as f:
            if kind == "external":
                raw = [(str(tmp_path / "raw"), 0, 64)]
                f.create_dataset("layers/lstm/cell/vars/0", (16,), "f4", external=raw)
            else:
                layout = h5py.VirtualLayout((3, 16), "f4")
                layout[:] = h5py.VirtualSource(str(other), "a", (3, 16))
                f.create_virtual_dataset("layers/lstm/cell/vars/0", layout)
        with pytest.raises(
            UnsupportedModelError,
            match=r"^layers/lstm/cell/vars/0 is kept in another file; save the model as one file$",
        ):
            open_source(path)


# -- mutants: what a wrong order would look like -----------------------------------------


def far(path: Path, specs: list[Spec]) -> bool:
    return difference(sl.import_model(path), specs) > 1e-2


@pytest.mark.parametrize("order", ["figo", "iofg", "ifog", "gfio"])
def test_a_wrong_gate_order_shows(order, tmp_path, monkeypatch):
    specs = NETWORKS["lstm"](rng())
    path = write(tmp_path, specs, "keras sequential")
    assert not far(path, specs)
    monkeypatch.setitem(gate_orders.ORDERS, "keras", {"lstm": order, "gru": "zrn"})
    assert far(path, specs)


@pytest.mark.parametrize("name", ["gru after", "gru before"])
def test_a_wrong_gru_order_shows(name, tmp_path, monkeypatch):
    specs = NETWORKS[name](rng())
    path = write(tmp_path, specs, "h5 sequential")
    assert not far(path, specs)
    monkeypatch.setitem(gate_orders.ORDERS, "keras", {"lstm": "ifgo", "gru": "rzn"})
    assert far(path, specs)


def test_swapped_bias_halves_show(tmp_path):
    specs = NETWORKS["gru after"](rng())
    wrong = [specs[0], Spec("GRU", specs[1].config, dict(specs[1].weights), "/cell")]
    wrong[1].weights["bias"] = specs[1].weights["bias"][::-1]
    assert far(write(tmp_path, wrong, "h5 sequential"), specs)


def test_a_flipped_reset_shows(tmp_path):
    r = rng()
    specs = [input_layer(None, 3), gru(r, 3, 5, use_bias=False)]
    flipped = Spec("GRU", specs[1].config | {"reset_after": False}, specs[1].weights, "/cell")
    assert far(write(tmp_path, [specs[0], flipped], "h5 sequential"), specs)


@pytest.mark.parametrize("made", [lstm, gru])
def test_ignored_cudnn_blocks_show(made, tmp_path):
    """Weights of CuDNN taken as they are, or merely transposed."""
    plain = made(rng(), 5, 5)
    merged = cudnn(plain).weights | {"bias": plain.weights["bias"]}
    gates = 4 if made is lstm else 3
    recurrent = np.hstack([k.T for k in np.hsplit(merged["recurrent_kernel"], gates)])
    for weights in (merged, merged | {"recurrent_kernel": recurrent}):
        specs = [input_layer(None, 5), Spec(plain.kind, plain.config, weights, "/cell")]
        assert far(write(tmp_path, specs, "h5 sequential"), [plain])
