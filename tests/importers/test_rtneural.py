"""RTNeural files and state dicts in JSON against their own equations, and what is refused.

No framework here runs RTNeural files: the vectors are of NumPy cells written from the format's
definition (RTNeural, lstm_eigen.h and gru_eigen.h), with their own slices of Keras's kernels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import streamlstm as sl
from streamlstm import reference
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import gate_orders, open_source

Array = NDArray[Any]


def entry(kind: str, width: int, *weights: Array, **more: Any) -> dict[str, Any]:
    lists = [a.astype("f4").tolist() for a in weights]
    return {"type": kind, "activation": "", "shape": [None, None, width], "weights": lists} | more


def lstm(rng: np.random.Generator, inputs: int, units: int) -> dict[str, Any]:
    shapes = ((inputs, 4 * units), (units, 4 * units), (4 * units,))
    return entry("lstm", units, *(rng.uniform(-1, 1, s) for s in shapes), activation="tanh")


def gru(rng: np.random.Generator, inputs: int, units: int) -> dict[str, Any]:
    shapes = ((inputs, 3 * units), (units, 3 * units), (2, 3 * units))
    return entry("gru", units, *(rng.uniform(-1, 1, s) for s in shapes), activation="tanh")


def dense(
    rng: np.random.Generator, inputs: int, units: int, activation: str = "", kind: str = "dense"
) -> dict[str, Any]:
    weights = (rng.uniform(-1, 1, s) for s in ((inputs, units), (units,)))
    return entry(kind, units, *weights, activation=activation)


def batch_norm(rng: np.random.Generator, width: int, affine: bool = True) -> dict[str, Any]:
    rows = [rng.uniform(0.5, 2, width) for _ in range(4 if affine else 2)]
    return entry("batchnorm", width, *rows, epsilon=0.001)


def network(inputs: int, *layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"in_shape": [None, None, inputs], "layers": list(layers)} | more


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


FUNCTION: dict[str, Any] = {
    "": lambda z: z,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": sigmoid,
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(),
}


def run(file: dict[str, Any], x: Array) -> Array:
    """RTNeural's arithmetic in float64."""
    found = []
    states: dict[int, list[Array]] = {}
    for event in x:
        a = event
        for k, layer in enumerate(file["layers"]):
            weights = [np.array(w) for w in layer["weights"]]
            h_size = layer["shape"][-1]
            old = states.setdefault(k, [np.zeros(h_size), np.zeros(h_size)])
            if layer["type"] == "lstm":
                w, u, b = weights
                z = a @ w + old[0] @ u + b
                i, f, g, o = (z[n * h_size : (n + 1) * h_size] for n in range(4))
                c = sigmoid(f) * old[1] + sigmoid(i) * np.tanh(g)
                states[k] = [sigmoid(o) * np.tanh(c), c]
                a = states[k][0]
            elif layer["type"] == "gru":
                w, u, (b, d) = weights
                alpha, beta = a @ w + b, old[0] @ u + d
                z = sigmoid(alpha[:h_size] + beta[:h_size])
                r = sigmoid(alpha[h_size : 2 * h_size] + beta[h_size : 2 * h_size])
                n = np.tanh(alpha[2 * h_size :] + r * beta[2 * h_size :])
                states[k] = [(1 - z) * n + z * old[0]]
                a = states[k][0]
            elif layer["type"] == "batchnorm":
                *affine, mean, variance = weights
                gamma, beta = affine or (1, 0)
                a = gamma * (a - mean) / np.sqrt(variance + layer["epsilon"]) + beta
            else:
                if weights:
                    a = a @ weights[0] + weights[1]
                a = FUNCTION[layer["activation"]](a)
        found.append(a)
    return np.array(found)


def written(tmp_path: Path, file: Any) -> Path:
    path = tmp_path / "network.json"
    path.write_text(json.dumps(file))
    return path


def difference(path: Path, file: dict[str, Any], steps: int = 60) -> float:
    x = np.random.default_rng(1).standard_normal((steps, file["in_shape"][-1]))
    ours, _ = reference.run(sl.import_model(path).astype("float64"), x)
    return float(np.abs(ours - run(file, x)).max())


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = inputs = draw(st.integers(1, 5))
    layers: list[dict[str, Any]] = []
    kinds = st.sampled_from(["lstm", "gru", "dense", "time-distributed-dense", "norm", "function"])
    for kind in [draw(st.sampled_from(["lstm", "gru"])), *draw(st.lists(kinds, max_size=4))]:
        units = draw(st.integers(1, 7))
        function = draw(st.sampled_from(["", "tanh", "relu", "sigmoid", "softmax"]))
        if kind == "norm":
            layers.append(batch_norm(rng, width, draw(st.booleans())))
        elif kind == "function":
            layers.append(entry("activation", width, activation=function))
        else:
            made = {"lstm": lstm, "gru": gru}.get(kind)
            layers.append(
                made(rng, width, units) if made else dense(rng, width, units, function, kind)
            )
            width = units
    return network(inputs, *layers)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=networks())
def test_the_numbers(file: dict[str, Any], tmp_path: Path) -> None:
    # Folding and adding biases round to float32 once.
    assert difference(written(tmp_path, file), file) < 1e-5


def test_an_lstm_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = network(3, lstm(rng, 3, 5), dense(rng, 5, 2), metadata={"by": "me"}, samplerate=48000)
    assert difference(written(tmp_path, file), file) < 1e-12


def test_what_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    odd = gru(rng, 4, 4) | {"activation": "relu"}
    file = network(3, lstm(rng, 3, 5), entry("conv1d", 4), gru(rng, 4, 2), odd)
    path = written(tmp_path, file)
    source = open_source(path)
    assert (source.format, source.framework) == ("RTNeural", "")
    assert [(found.where, found.text) for found in source.recurrent()] == [
        ("layer 0", "LSTM 3 -> 5"),
        ("layer 2", "GRU 4 -> 2"),
        ("layer 3", "GRU"),
    ]
    (layer,) = sl.import_model(path, select="layer 2").layers
    assert isinstance(layer, sl.GRU)
    assert layer.reset_after
    assert layer.w_x.dtype == np.float32
    with pytest.raises(UnsupportedModelError) as refused:
        sl.import_model(path, select="layer 3")
    assert str(refused.value) == (
        "layer 3 (gru) has activation 'relu'; RTNeural's cells are tanh cells whatever the file "
        "says, so train it with tanh"
    )
    with pytest.raises(NotImplementedError):
        source.answers(np.zeros((1, 3)), None)


@pytest.mark.parametrize(
    ("kind", "orders"), [("lstm", ["figo", "iofg", "igfo"]), ("gru", ["rzn", "znr"])]
)
def test_a_wrong_gate_order_shows(
    kind: str, orders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"lstm": lstm, "gru": gru}[kind](np.random.default_rng(0), 3, 6)
    file = network(3, made)
    path = written(tmp_path, file)
    for order in orders:
        monkeypatch.setitem(
            gate_orders.ORDERS, "keras", gate_orders.ORDERS["keras"] | {kind: order}
        )
        assert difference(path, file) > 0.01


def test_swapped_biases_and_a_reset_before_show(tmp_path: Path) -> None:
    made = gru(np.random.default_rng(0), 3, 6)
    swapped = made | {"weights": [*made["weights"][:2], made["weights"][2][::-1]]}
    assert difference(written(tmp_path, network(3, swapped)), network(3, made)) > 0.01

    (layer,) = sl.import_model(written(tmp_path, network(3, made))).layers
    assert isinstance(layer, sl.GRU)
    flipped = sl.GRU(layer.w_x, layer.w_h, layer.b, reset_after=False)
    x = np.random.default_rng(1).standard_normal((60, 3))
    y, _ = reference.run(sl.Model([flipped]), x)
    assert np.abs(y - run(network(3, made), x)).max() > 0.01


RNG = np.random.default_rng(0)
GOOD = network(2, lstm(RNG, 2, 3))


def with_layer(**changes: Any) -> dict[str, Any]:
    return network(2, lstm(RNG, 2, 3) | changes)


REFUSED: list[tuple[Any, str]] = [
    (network(2, entry("conv1d", 3)), "layer 0 is a 'conv1d' layer; {known} can be imported"),
    (network(2, entry("unknown", 3)), "layer 0 is a 'unknown' layer; {known} can be imported"),
    (network(2, entry("prelu", 2)), "layer 0 is a 'prelu' layer; {known} can be imported"),
    (
        GOOD | {"in_skip": 1},
        "'in_skip' is 1; only networks without it (0) can be imported",
    ),
    (
        GOOD | {"out_gain": -3.5},
        "'out_gain' is -3.5; only networks without it (0) can be imported",
    ),
    (
        GOOD | {"extra": 1},
        "the file has a key 'extra', which we don't know; take it out if it does not change the "
        "network",
    ),
    (GOOD | {"layers": {}}, "'layers' is not a list of layers; is the file complete?"),
    (GOOD | {"layers": []}, "'layers' is not a list of layers; is the file complete?"),
    (GOOD | {"layers": [{"type": 3}]}, "layer 0 is no object with a type"),
    (GOOD | {"in_shape": None}, "'in_shape' is None; expected a list of sizes"),
    (
        GOOD | {"in_shape": [None, 0]},
        "the last number in 'in_shape' is 0; expected a whole number of 1 or more",
    ),
    (network(5, lstm(RNG, 2, 3)), "layer 0 (lstm) takes 2 numbers, and is given 5"),
    (with_layer(stateful=True), "layer 0 (lstm) has 'stateful', which we don't know"),
    (with_layer(shape=[]), "the shape of layer 0 is []; expected a list of sizes"),
    (with_layer(weights=[]), "layer 0 (lstm) has 0 weights; expected 3"),
    (with_layer(weights=None), "layer 0 (lstm) has no weights; expected 3"),
    (
        with_layer(shape=[None, 4]),
        "weight 0 of layer 0 (lstm) has shape (2, 12); expected (any, 16)",
    ),
    (
        with_layer(weights=[[[]], *GOOD["layers"][0]["weights"][1:]]),
        "weight 0 of layer 0 (lstm) has shape (1, 0); expected (any, 12)",
    ),
    (
        with_layer(weights=[[["a"] * 12] * 2, *GOOD["layers"][0]["weights"][1:]]),
        "weight 0 of layer 0 (lstm) is not numbers in lists of equal lengths",
    ),
    (
        with_layer(weights=[[[1e40] * 12] * 2, *GOOD["layers"][0]["weights"][1:]]),
        "weight 0 of layer 0 (lstm) holds a number that is not finite in float32",
    ),
    (
        network(2, dense(RNG, 2, 3, "elu")),
        "layer 0 (dense) has activation 'elu'; tanh, relu, sigmoid, softmax can be imported",
    ),
    (
        network(2, dense(RNG, 3, 3)),
        "weight 0 of layer 0 (dense) has shape (3, 3); expected (2, 3)",
    ),
    (
        network(2, entry("activation", 3, activation="tanh")),
        "layer 0 (activation) has 3 outputs for 2 inputs; expected as many",
    ),
    (
        network(2, batch_norm(RNG, 2) | {"epsilon": None}),
        "layer 0 (batchnorm) has epsilon None",
    ),
    (
        network(2, batch_norm(RNG, 2) | {"activation": "relu"}),
        "layer 0 (batchnorm) has activation 'relu', which RTNeural does not run; make it an "
        "activation layer",
    ),
    (
        network(2, batch_norm(RNG, 2) | {"weights": [[1, 1], [-1, -1]]}),
        "layer 0 (batchnorm) has a variance that is not above 0",
    ),
    (
        {"glossary": {"title": "weightless"}},
        "{path} is JSON, but neither RTNeural's ('in_shape' and 'layers') nor a PyTorch state dict",
    ),
]


def refusal(path: Path, **how: Any) -> str:
    with pytest.raises(UnsupportedModelError) as refused:
        sl.import_model(path, **how)
    return str(refused.value)


@pytest.mark.parametrize(("file", "sentence"), REFUSED)
def test_what_is_refused(file: Any, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, file)
    known = "dense, time-distributed-dense, lstm, gru, activation, batchnorm"
    assert refusal(path) == sentence.replace("{path}", str(path)).replace("{known}", known)


def test_a_flow_that_the_file_tells_itself_is_refused(tmp_path: Path) -> None:
    for file in (GOOD, simple_rnn()):
        path = written(tmp_path, file)
        sentence = f"{path} tells its flow itself; leave out flow="
        assert refusal(path, flow=["rec", "lin"]) == sentence


@pytest.mark.parametrize("beside", [{"skip": 1}, {"head": {"weight": [[1.0]]}}, {"mean": [0.5]}])
def test_what_stands_beside_a_state_dict_is_refused(beside: Any, tmp_path: Path) -> None:
    """It may change the outputs; a date does not."""
    held = simple_rnn()["state_dict"]
    path = written(tmp_path, {"state_dict": held, "date": "2020-01-01", "skip": 0} | beside)
    name = next(iter(beside))
    assert refusal(path, flow=["rec", "lin"]) == (
        f"{path} holds {name!r} beside the state dict, and does not tell whether that changes the "
        "outputs; take it out if it does not"
    )


def test_damaged_files(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    whole = path.read_bytes()
    for damage in (*(whole[:n] for n in range(0, len(whole), 41)), b"\xff", b"[" * 100_000):
        path.write_bytes(damage)
        assert " is not JSON (" in refusal(path)


def state_dict(rows: int = 4, inputs: int = 2, units: int = 3, layers: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(layers):
        shapes[f"rec.weight_ih_l{k}"] = (rows * units, units if k else inputs)
        shapes[f"rec.weight_hh_l{k}"] = (rows * units, units)
        shapes[f"rec.bias_ih_l{k}"] = shapes[f"rec.bias_hh_l{k}"] = (rows * units,)
    shapes |= {"lin.weight": (1, units), "lin.bias": (1,)}
    return {key: rng.uniform(-1, 1, shape).astype("f4").tolist() for key, shape in shapes.items()}


def simple_rnn(unit: str = "LSTM", **changes: Any) -> dict[str, Any]:
    data = {
        "model": "SimpleRNN",
        "input_size": 2,
        "skip": 0,
        "output_size": 1,
        "unit_type": unit,
        "num_layers": 2,
        "hidden_size": 3,
        "bias_fl": True,
    }
    rows = 4 if unit == "LSTM" else 3
    return {"model_data": data | changes, "state_dict": state_dict(rows, layers=2)}


def torch_run(held: dict[str, Any], layers: int, x: Array) -> Array:
    """nn.LSTM and nn.Linear in float64: gates i, f, g, o as blocks of rows, biases added."""
    tensors = {key: np.array(a) for key, a in held.items()}
    units = tensors["lin.weight"].shape[1]
    states = [[np.zeros(units), np.zeros(units)] for _ in range(layers)]
    found = []
    for event in x:
        a = event
        for k, (h, c) in enumerate(states):
            z = tensors[f"rec.weight_ih_l{k}"] @ a + tensors[f"rec.weight_hh_l{k}"] @ h
            z = (z + tensors[f"rec.bias_ih_l{k}"] + tensors[f"rec.bias_hh_l{k}"]).reshape(4, -1)
            c_next = sigmoid(z[1]) * c + sigmoid(z[0]) * np.tanh(z[2])
            a = sigmoid(z[3]) * np.tanh(c_next)
            states[k] = [a, c_next]
        found.append(tensors["lin.weight"] @ a + tensors["lin.bias"])
    return np.array(found)


@pytest.mark.parametrize("form", ["plain", "under state_dict", "model_data"])
def test_state_dicts(form: str, tmp_path: Path) -> None:
    file: dict[str, Any] = simple_rnn()
    held = file["state_dict"]
    if form != "model_data":
        file = held if form == "plain" else {"state_dict": held, "date": "today", "skip": 0}
    path = written(tmp_path, file)
    if form != "model_data":
        assert "does not tell how its layers run (rec, lin)" in refusal(path)
    model = sl.import_model(path, flow=None if form == "model_data" else ["rec", "lin"])
    x = np.random.default_rng(1).standard_normal((60, 2))
    ours, _ = reference.run(model, x)
    assert np.abs(ours - torch_run(held, 2, x)).max() < 1e-6


def test_a_gru_of_core_audio_ml(tmp_path: Path) -> None:
    model = sl.import_model(written(tmp_path, simple_rnn("GRU")))
    assert [layer.kind for layer in model.layers] == ["gru", "gru", "dense"]


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            simple_rnn(skip=1),
            "model_data has 'skip': 1, which adds the input to the output; set it to 0, import "
            "the rest and add the input yourself",
        ),
        (
            simple_rnn(unit_type="RNN"),
            "model_data has 'unit_type': 'RNN'; LSTM and GRU can be imported",
        ),
        (
            simple_rnn(model="RecNet"),
            "model_data has 'model': 'RecNet'; of CoreAudioML's networks only 'SimpleRNN' can "
            "be imported",
        ),
        (
            simple_rnn(conditioned=2),
            "model_data has 'conditioned': 2; of CoreAudioML's networks only 'SimpleRNN' can be "
            "imported",
        ),
        (
            simple_rnn(num_layers=10**12),
            "model_data has 1,000,000,000,000 layers, and state_dict has fewer",
        ),
        (
            simple_rnn(hidden_size=4),
            "tensor 'lin.weight' has shape (1, 3); by model_data it is (1, 4)",
        ),
        (
            simple_rnn(bias_fl=False),
            "tensor 'lin.bias' has shape (1,); by model_data it is None",
        ),
        (
            simple_rnn(num_layers=1),
            "tensor 'rec.bias_hh_l1' has shape (12,); by model_data it is None",
        ),
        ({"model_data": {}}, "model_data and state_dict must both be objects"),
    ],
)
def test_what_is_refused_of_core_audio_ml(file: Any, sentence: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, file)) == sentence


def test_a_skip_that_is_not_told_is_there(tmp_path: Path) -> None:
    """SimpleRNN adds the input unless it is told not to."""
    file = simple_rnn()
    del file["model_data"]["skip"]
    assert refusal(written(tmp_path, file)).startswith("model_data has 'skip': 1, ")
