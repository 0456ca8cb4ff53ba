"""Neural Amp Modeler files against the format's own equations, and what is refused.

No framework here runs them: the vectors are of a NumPy cell written from the format's
definition (NeuralAmpModelerCore, NAM/lstm.cpp), with its own slices of the flat list.
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


def count(inputs: int, units: int, layers: int, outputs: int = 1) -> int:
    """How many weights a file has, layer by layer."""
    n = 0
    for k in range(layers):
        n += 4 * units * ((units if k else inputs) + units) + 4 * units + units + units
    return n + outputs * units + outputs


def content(
    inputs: int = 1, units: int = 3, layers: int = 1, outputs: int = 1, seed: int = 0
) -> dict[str, Any]:
    config = {"input_size": inputs, "hidden_size": units, "num_layers": layers}
    if outputs > 1:
        config |= {"in_channels": inputs, "out_channels": outputs}
    weights = np.random.default_rng(seed).uniform(-1, 1, count(inputs, units, layers, outputs))
    return {
        "version": "0.5.4",
        "metadata": {"name": "an amplifier", "loudness": -17.5},
        "architecture": "LSTM",
        "config": config,
        "weights": weights.astype("f4").tolist(),
        "sample_rate": 48000,
    }


def run(file: dict[str, Any], x: Array) -> Array:
    """The player's arithmetic in float64, one number read after the other."""
    config, numbers = file["config"], iter(file["weights"])
    units = config["hidden_size"]

    def take(*shape: int) -> Array:
        n = int(np.prod(shape))
        return np.array([next(numbers) for _ in range(n)]).reshape(shape)

    cells = []
    for k in range(config["num_layers"]):
        inputs = units if k else config["input_size"]
        w, b = take(4 * units, inputs + units), take(4 * units)
        cells.append([w, b, take(units), take(units)])
    outputs = config.get("out_channels", 1)
    head, bias = take(outputs, units), take(outputs)
    assert next(numbers, None) is None

    def sigmoid(z: Array) -> Array:
        return 1 / (1 + np.exp(-z))

    found = []
    for event in x:
        below = event
        for cell in cells:
            w, b, h, c = cell
            z = w @ np.concatenate([below, h]) + b
            c = sigmoid(z[units : 2 * units]) * c + sigmoid(z[:units]) * np.tanh(
                z[2 * units : 3 * units]
            )
            below = sigmoid(z[3 * units :]) * np.tanh(c)
            cell[2:] = below, c
        found.append(head @ below + bias)
    return np.array(found)


def written(tmp_path: Path, file: Any) -> Path:
    path = tmp_path / "amp.nam"
    path.write_text(json.dumps(file))
    return path


def difference(path: Path, file: dict[str, Any]) -> float:
    x = np.random.default_rng(1).standard_normal((100, file["config"]["input_size"]))
    ours, _ = reference.run(sl.import_model(path), x)
    return float(np.abs(ours - run(file, x)).max())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=st.integers(1, 4),
    units=st.integers(1, 9),
    layers=st.integers(1, 3),
    outputs=st.integers(1, 3),
)
def test_the_numbers(inputs: int, units: int, layers: int, outputs: int, tmp_path: Path) -> None:
    file = content(inputs, units, layers, outputs)
    assert difference(written(tmp_path, file), file) < 1e-12


def test_what_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, content(2, 3, 2))
    source = open_source(path)
    assert (source.format, source.framework) == ("NAM", "")
    assert [(found.where, found.text) for found in source.recurrent()] == [
        ("layer 0", "LSTM 2 -> 3"),
        ("layer 1", "LSTM 3 -> 3"),
    ]
    model = sl.import_model(path)
    assert model.dtype == "float32"
    assert model.name == "amp"
    assert [layer.kind for layer in model.layers] == ["lstm", "lstm", "dense"]
    top = sl.import_model(path, select="layer 1").layers
    assert [layer.input_size for layer in top] == [3]
    with pytest.raises(NotImplementedError):
        source.answers(np.zeros((1, 2)), None)


def test_a_wrong_gate_order_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = content(units=8)
    path = written(tmp_path, file)
    for order in ("figo", "iofg", "igfo", "ifog"):
        monkeypatch.setitem(gate_orders.ORDERS, "nam", {"lstm": order})
        assert difference(path, file) > 0.01


def test_columns_taken_as_rows_show(tmp_path: Path) -> None:
    """The flat list is [4H, inputs + H] by rows: filled by columns it is another network."""
    file = content(units=4)
    n = 4 * 4 * (1 + 4)
    mutant = file | {
        "weights": np.array(file["weights"][:n]).reshape(5, 16).T.ravel().tolist()
        + file["weights"][n:]
    }
    assert difference(written(tmp_path, mutant), file) > 0.01


def changed(**config: Any) -> dict[str, Any]:
    file = content()
    file["config"] |= config
    return file


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            content() | {"architecture": "WaveNet"},
            "{path} holds a 'WaveNet' network; of NAM's architectures only 'LSTM' is recurrent "
            "and can be imported",
        ),
        (
            {},
            "{path} holds a None network; of NAM's architectures only 'LSTM' is recurrent and "
            "can be imported",
        ),
        (
            content() | {"version": "0.8.0"},
            "{path} is of version '0.8.0'; NAM files of versions 0.5 to 0.7 can be imported",
        ),
        (
            content() | {"version": None},
            "{path} is of version None; NAM files of versions 0.5 to 0.7 can be imported",
        ),
        (
            content() | {"config": []},
            "config is missing or no object; is the file complete?",
        ),
        (
            changed(head_scale=2),
            "config has 'head_scale', which we don't know; known are hidden_size, in_channels, "
            "input_size, num_layers, out_channels",
        ),
        (
            changed(num_layers=True),
            "config's num_layers is True; expected a whole number of 1 or more",
        ),
        (
            changed(hidden_size=0),
            "config's hidden_size is 0; expected a whole number of 1 or more",
        ),
        (
            changed(input_size="1"),
            "config's input_size is '1'; expected a whole number of 1 or more",
        ),
        (
            changed(out_channels=-1),
            "config's out_channels is -1; expected a whole number of 1 or more",
        ),
        (
            changed(in_channels=2),
            "config's in_channels is 2 and its input_size 1; expected the same",
        ),
        (
            content() | {"weights": content()["weights"][:-1]},
            "weights has shape (69,); 1 layer of 3 units over 1 input with 1 output need (70,)",
        ),
        (
            content() | {"weights": [*content()["weights"], 0.0]},
            "weights has shape (71,); 1 layer of 3 units over 1 input with 1 output need (70,)",
        ),
        (
            changed(num_layers=10**15),
            "weights has shape (70,); 1,000,000,000,000,000 layers of 3 units over 1 input with "
            "1 output need (89999999999999980,)",
        ),
        (
            content() | {"weights": [[1.0], 2.0]},
            "weights is not numbers in lists of equal lengths",
        ),
        (
            content() | {"weights": "0.1"},
            "weights is not numbers in lists of equal lengths",
        ),
        (
            content() | {"weights": [10**400] * 70},
            "weights is not numbers in lists of equal lengths",
        ),
        (
            content() | {"weights": [float("nan")] * 70},
            "weights holds a number that is not finite in float32",
        ),
        (
            content() | {"weights": [1e39] * 70},
            "weights holds a number that is not finite in float32",
        ),
        ([], "{path} holds no JSON object; expected a network's file"),
    ],
)
def test_what_is_refused(file: Any, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, file)
    with pytest.raises(UnsupportedModelError) as refused:
        sl.import_model(path)
    assert str(refused.value) == sentence.replace("{path}", str(path))


def test_a_flow_that_the_file_tells_itself_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, content())
    with pytest.raises(UnsupportedModelError) as refused:
        sl.import_model(path, flow=["lstm"])
    assert str(refused.value) == f"{path} tells its flow itself; leave out flow="


def test_damaged_files(tmp_path: Path) -> None:
    """Cut short anywhere, not text, or nested without end: one sentence."""
    path = written(tmp_path, content())
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 37)]
    for damage in (*damaged, b"\xff\xfe\x00", b"[" * 100_000, b'{"weights": ' + b"[" * 100_000):
        path.write_bytes(damage)
        with pytest.raises(UnsupportedModelError, match=r"^[^\n]* is not JSON [^\n]*$"):
            sl.import_model(path)
