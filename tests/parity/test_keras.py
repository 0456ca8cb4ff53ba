"""Keras itself: models that it built, saved and ran, and what we make of its files.

Keras 3 runs on PyTorch here. Files of Keras 2 need TF Keras and TensorFlow; their tests are left
out without them. They also have true CuDNNLSTM and CuDNNGRU files, which TF Keras still converts.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamlstm as sl
from agree import agree
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import open_source

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
keras = pytest.importorskip("keras")
L = keras.layers

STEPS = 300
FILES = ("net.keras", "net.h5")
GATES = ("sigmoid", "hard_sigmoid")
CANDIDATES = ("tanh", "relu", "sigmoid", "linear")
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu", "hard_sigmoid", "softmax")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore::UserWarning:keras.*"),
]
few = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def randomise(model: Any, seed: int) -> None:
    """Weights at half the scale of torch's own, or linear cells magnify rounding; variances above
    0."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False):
        if type(layer).__name__ == "BatchNormalization":
            size = layer.moving_mean.shape
            layer.set_weights([rng.uniform(0.5, 1.5, size) for _ in layer.weights])
        elif not any(True for _ in layer._flatten_layers(include_self=False)) and layer.weights:
            k = layer.weights[-1].shape[-1] ** -0.5
            k = k if "Cell" not in type(layer).__name__ else layer.units**-0.5 / 2
            layer.set_weights([rng.uniform(-k, k, w.shape) for w in layer.weights])


def events(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).standard_normal((STEPS, size)).astype(np.float32)


def run(model: Any, x: Any) -> list[Any]:
    outputs = model(x[None])
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [np.asarray(keras.ops.convert_to_numpy(y))[0] for y in outputs]


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)


@few
@given(
    kind=st.sampled_from(["LSTM", "GRU", "LSTM before", "GRU before", "RNN LSTM", "RNN GRU"]),
    options=st.fixed_dictionaries(
        {
            "units": sizes,
            "activation": st.sampled_from(CANDIDATES),
            "recurrent_activation": st.sampled_from(GATES),
            "use_bias": st.booleans(),
        }
    ),
    size=sizes,
    file=st.sampled_from(FILES),
    seed=seeds,
)
def test_cells(tmp_path, *, kind, options, size, file, seed):
    """Any recurrent layer and its states."""
    name = "GRU" if "GRU" in kind else "LSTM"
    if name == "GRU":
        options = options | {"reset_after": "before" not in kind}
    if kind.startswith("RNN"):
        cell = L.RNN(getattr(L, f"{name}Cell")(**options), return_sequences=True, return_state=True)
    else:
        cell = getattr(L, name)(**options, return_sequences=True, return_state=True)
    flow = keras.Input((None, size))
    outputs = cell(flow)
    whole = keras.Model(flow, outputs)
    randomise(whole, seed)
    keras.Model(flow, outputs[0]).save(tmp_path / file)
    x = events(seed, size)
    y, *state = run(whole, x)
    agree(sl.import_model(tmp_path / file), x, y, [tuple(state)])


LAYERS = {
    "LSTM": lambda o: L.LSTM(o["units"], return_sequences=True, stateful=o["flag"]),
    "GRU": lambda o: L.GRU(o["units"], return_sequences=True, reset_after=o["flag"]),
    "dense": lambda o: L.Dense(o["units"], activation=o["function"], use_bias=o["flag"]),
    "norm": lambda o: L.BatchNormalization(center=o["flag"], scale=o["units"] % 2 == 0),
    "given": lambda o: L.Normalization(mean=0.5, variance=o["units"] / 10),
    "rescaled": lambda o: L.Rescaling(0.5, offset=o["units"] / 10),
    "drop": lambda o: (L.Dropout if o["flag"] else L.GaussianNoise)(0.3),
    "activation": lambda o: L.Activation(o["function"]),
    "relu": lambda _: L.ReLU(),
    "softmax": lambda _: L.Softmax(),
    "each": lambda o: L.TimeDistributed(L.Dense(o["units"], activation=o["function"])),
    "stacked": lambda o: L.RNN(
        L.StackedRNNCells([L.LSTMCell(o["units"]), L.GRUCell(5)]), return_sequences=True
    ),
    "nested": lambda o: keras.Sequential(
        [L.Dense(o["units"]), L.LSTM(3, return_sequences=True), L.Dense(2)]
    ),
}
options_of_a_layer = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(LAYERS)),
        "units": sizes,
        "flag": st.booleans(),
        "function": st.sampled_from(ACTIVATIONS),
    }
)


@few
@given(
    chosen=st.lists(options_of_a_layer, min_size=1, max_size=5).filter(
        lambda chosen: any(o["kind"] in ("LSTM", "GRU", "stacked", "nested") for o in chosen)
    ),
    size=sizes,
    embedded=st.booleans(),
    is_sequential=st.booleans(),
    file=st.sampled_from(FILES),
    seed=seeds,
)
def test_networks(tmp_path, *, chosen, size, embedded, is_sequential, file, seed):
    """Any layers that we have, in a Sequential or functional model."""
    layers = [L.Embedding(9, size)] if embedded else []
    layers += [LAYERS[o["kind"]](o) for o in chosen]
    flow = first = keras.Input(batch_shape=(1, None) if embedded else (1, None, size))
    if is_sequential:
        model = keras.Sequential([first, *layers])
    else:
        for layer in layers:
            flow = layer(flow)
        model = keras.Model(first, flow)
    randomise(model, seed)
    model.save(tmp_path / file)
    words = np.random.default_rng(seed).integers(0, 9, (STEPS, 1)).astype(np.float32)
    x = words if embedded else events(seed, size)
    (y,) = run(model, x[:, 0] if embedded else x)
    agree(sl.import_model(tmp_path / file), x, y)
    own = open_source(tmp_path / file).answers(x[:20], None)
    np.testing.assert_allclose(own, y[:20], atol=1e-5)


@pytest.mark.parametrize("file", FILES)
def test_answers_of_the_source(file, tmp_path):
    """Step by step, also where Keras would answer only once; and of each recurrent layer."""
    stacked = L.StackedRNNCells([L.LSTMCell(4), L.GRUCell(3)])
    inner = keras.Sequential([L.Dense(4), L.LSTM(6, return_sequences=True)], name="inner")
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(1, None, 5)),
            inner,
            L.RNN(stacked, return_sequences=True),
            L.GRU(7, name="gru", stateful=True, dtype="mixed_float16"),
            L.BatchNormalization(),
            L.Dense(3, activation="softmax"),
        ]
    )
    randomise(model, 5)
    model.save(tmp_path / file)
    source = open_source(tmp_path / file)
    assert source.framework == f"keras {keras.__version__}"
    x = events(1, 5)
    agree(sl.import_model(tmp_path / file), x, source.answers(x, None))
    model.get_layer("gru").dtype_policy = "float32"
    once = []
    for t in (0, 9):
        model.get_layer("gru").reset_state()
        once.append(run(model, x[: t + 1])[0])
    np.testing.assert_allclose(source.answers(x, None)[[0, 9]], once, atol=1e-5)
    found = source.recurrent()
    assert [f.text for f in found] == ["LSTM 4 -> 6", "LSTM 6 -> 4", "GRU 4 -> 3", "GRU 3 -> 7"]
    for f in found:
        x = events(2, f.layer.input_size)
        agree(sl.import_model(tmp_path / file, select=f.where), x, source.answers(x, f.where))


@pytest.mark.parametrize("file", ["w.weights.h5", "w.h5"])
def test_weights_only(file, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, 5)),
            L.LSTM(6, return_sequences=True, name="a"),
            L.GRU(4, return_sequences=True, name="b"),
            L.Dense(3, activation="relu", name="c"),
        ]
    )
    randomise(model, 6)
    if file == "w.h5":
        legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
        with h5py.File(tmp_path / file, "w") as f:
            legacy.save_weights_to_hdf5_group(f, model)
    else:
        model.save_weights(tmp_path / file)
    x = events(3, 5)
    told = {"flow": ["a", "b", "c", "relu"]}
    imported = sl.import_model(tmp_path / file, **told)
    agree(imported, x, run(model, x)[0])
    assert sl.verify(imported, open_source(tmp_path / file, **told)).largest < 1e-5


def test_a_model_of_ones_own_class(tmp_path):
    """Its flow is Python code; its weights are named after its attributes."""

    @keras.saving.register_keras_serializable("tests")
    class Mine(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.body = L.LSTM(4, return_sequences=True, name="body")
            self.head = L.Dense(2, name="head")

        def call(self, x: Any) -> Any:
            return self.head(self.body(x))

    model = Mine()
    x = events(4, 3)
    y = run(model, x)[0]
    model.save(tmp_path / "n.keras")
    with pytest.raises(UnsupportedModelError, match=r"say so: flow=\['body', 'head'\]"):
        sl.import_model(tmp_path / "n.keras")
    own = sl.import_model(tmp_path / "n.keras", flow=["body", "head"])
    agree(own, x, y)


def test_a_lambda_is_neither_run_nor_loaded(tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), L.LSTM(4, return_sequences=True, name="a")])
    model.add(L.Lambda(lambda a: a + 1, name="add"))
    model.save(tmp_path / "n.keras")
    source = open_source(tmp_path / "n.keras")
    with pytest.raises(UnsupportedModelError, match=r"layer 'add' \(Lambda\) holds Python code"):
        source.network()
    with pytest.raises(UnsupportedModelError, match=r"layer 'add' \(Lambda\) holds Python code"):
        source.answers(events(1, 3), None)
    alone = sl.import_model(tmp_path / "n.keras", select="a")
    assert sl.verify(alone, tmp_path / "n.keras", select="a").largest < 1e-5


# -- Keras 2 -----------------------------------------------------------------------------


@pytest.fixture
def tf_keras(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tf_keras")


@pytest.mark.parametrize("file", FILES)
def test_files_of_keras_2(file, tf_keras, tmp_path):
    old = tf_keras.layers
    stacked = old.StackedRNNCells([old.LSTMCell(4), old.GRUCell(3)])
    inner = tf_keras.Sequential([old.Dense(4, activation="hard_sigmoid"), old.Dense(3)])
    given = flow = tf_keras.Input((None, 5))
    for layer in (
        inner,
        old.LSTM(6, return_sequences=True, recurrent_activation="hard_sigmoid"),
        old.RNN(stacked, return_sequences=True),
        old.TimeDistributed(old.Dense(4)),
        old.BatchNormalization(epsilon=0.01),
        old.GRU(3, return_sequences=True, reset_after=False),
        old.GRU(4),
        old.ReLU(),
        old.Dense(2, activation="softmax"),
    ):
        flow = layer(flow)
    model = tf_keras.Model(given, flow)
    rng = np.random.default_rng(8)
    model.set_weights([rng.uniform(0.1, 0.6, w.shape) for w in model.get_weights()])
    model.save(tmp_path / file)
    source = open_source(tmp_path / file)
    assert source.framework == f"tf_keras {tf_keras.__version__}"
    x = events(5, 5)
    agree(sl.import_model(tmp_path / file), x, source.answers(x, None))
    for f in source.recurrent():
        x = events(6, f.layer.input_size)
        agree(sl.import_model(tmp_path / file, select=f.where), x, source.answers(x, f.where))


def test_a_stateful_network_of_a_batch(tf_keras, tmp_path):
    """Keras would take nothing but 32 sequences at once."""
    old = tf_keras.layers
    lstm = old.LSTM(5, stateful=True, dtype="float16", batch_input_shape=(32, None, 3))
    tf_keras.Sequential([lstm, old.Dense(1)]).save(tmp_path / "n.h5")
    assert sl.verify(sl.import_model(tmp_path / "n.h5"), tmp_path / "n.h5").largest < 1e-5


def evil_file(case: str, tf_keras: Any, tmp_path: Any, trace: Any) -> Any:
    """A file whose loading by TF Keras makes the file `trace`."""
    old = tf_keras.layers
    given = tf_keras.Input((None, 3))
    flow = old.LSTM(4, return_sequences=True, name="enc")(given)
    model = tf_keras.Model(given, old.Dense(1)(flow))
    path = tmp_path / ("n.keras" if case == "gadget" else "n.h5")
    code = f"lambda a: (open({str(trace)!r}, 'w').close(), a)[1]"
    evil = old.Lambda(eval(code), output_shape=(None, 4), name="evil")
    if case == "select":
        model = tf_keras.Model(given, old.Dense(1)(evil(flow)))
    model.save(path)
    if case == "side":
        side = json.loads(tf_keras.Model(given, evil(given)).to_json())["config"]["layers"][1]
        with h5py.File(path, "a") as f:
            config = json.loads(f.attrs["model_config"])
            config["config"]["layers"].append(side)
            f.attrs["model_config"] = json.dumps(config).encode()
    elif case == "gadget":
        with zipfile.ZipFile(path) as z:
            members = {name: z.read(name) for name in z.namelist()}
        config = json.loads(members["config.json"])
        options = {"name": "op", "trainable": True, "dtype": "float32", "function": "io.write_file"}
        config["config"]["layers"].append(
            {
                "module": "keras.layers",
                "class_name": "TFOpLambda",
                "config": options,
                "registered_name": "TFOpLambda",
                "name": "op",
                "inbound_nodes": [["_CONSTANT_VALUE", -1, str(trace), {"contents": "x"}]],
            }
        )
        members["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(path, "w") as z:
            for name, data in members.items():
                z.writestr(name, data)
    return path


@pytest.mark.parametrize("case", ["side", "select", "gadget"])
def test_evil_files_run_nothing(case, tf_keras, tmp_path):
    """A Lambda beside the flow, one in it, and an operation run as the graph is made."""
    trace = tmp_path / "trace"
    path = evil_file(case, tf_keras, tmp_path, trace)
    trace.unlink(missing_ok=True)  # making the Lambda has run it
    select = "enc" if case == "select" else None
    model = sl.import_model(path, select=select)
    proof = sl.verify(model, path, select=select)
    assert proof.framework == f"tf_keras {tf_keras.__version__}"
    assert proof.largest < 1e-5
    assert not trace.exists()
    with contextlib.suppress(Exception):
        tf_keras.models.load_model(path, compile=False, safe_mode=True)
    assert trace.exists()  # so the file is evil


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("size", [3, 6, 10])
def test_cudnn_files(kind, size, tf_keras, tmp_path):
    """TF Keras makes a CuDNN layer (which only a GPU could run), takes plain weights into it,
    saves it, and runs the plain layer."""
    module = pytest.importorskip(f"tf_keras.src.layers.rnn.cudnn_{kind.lower()}")
    cudnn = getattr(module, f"CuDNN{kind}")
    legacy = pytest.importorskip("tf_keras.src.saving.legacy.hdf5_format")
    plain = getattr(tf_keras.layers, kind)(6, return_sequences=True)
    y_model = tf_keras.Sequential([tf_keras.Input((None, size)), plain])
    rng = np.random.default_rng(9)
    weights = [rng.uniform(-0.5, 0.5, w.shape).astype("f4") for w in plain.get_weights()]
    plain.set_weights(weights)
    layer = cudnn(6, return_sequences=True, name="rnn")
    model = tf_keras.Sequential([tf_keras.Input((None, size)), layer])
    layer.set_weights(legacy.preprocess_weights_for_loading(layer, weights, "2"))
    model.save(tmp_path / "n.h5")
    x = events(7, size)
    imported = sl.import_model(tmp_path / "n.h5")
    agree(imported, x, np.asarray(y_model(x[None]))[0])
    source = open_source(tmp_path / "n.h5")
    assert source.recurrent()[0].text == f"CuDNN{kind} {size} -> 6"
    with pytest.raises(UnsupportedModelError, match=rf"^layer 'rnn' \(CuDNN{kind}\) runs on GPUs"):
        source.answers(x, None)


@pytest.mark.parametrize("file", FILES)
def test_adapted_normalization(file, tmp_path):
    normalization = L.Normalization()
    normalization.adapt(events(1, 3) * [[1, 3, 0]] + 2)  # the last has no variance
    model = keras.Sequential([keras.Input((None, 3)), normalization, L.Dense(4), L.GRU(5)])
    model.save(tmp_path / file)
    x = events(1, 3) * [[1, 3, 0]] + 2
    x = x.astype(np.float32)
    agree(sl.import_model(tmp_path / file), x, open_source(tmp_path / file).answers(x, None))
    once = run(model, x[:9])[0]
    np.testing.assert_allclose(
        open_source(tmp_path / file).answers(x[:9], None)[-1], once, atol=1e-5
    )
