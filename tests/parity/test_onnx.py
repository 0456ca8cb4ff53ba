"""ONNX files against onnxruntime: what its own run of the same file says."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnxruntime
import torch
from onnx import helper
from torch import nn

import streamlstm as sl
from agree import agree
from onnx_files import arrays, cell, constants, gru, lstm, model, node, rng, save
from streamlstm import reference
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import open_source

torch.set_num_threads(1)
STEPS = 300
SIZES = st.integers(1, 24)
BOUNDED = ("tanh", "sigmoid", "hard_sigmoid", "hard_sigmoid6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


def run(path: Any, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


def events(inputs: int, seed: int = 0) -> Any:
    return rng(seed).normal(size=(STEPS, inputs)).astype(np.float32)


def check(path: Any, inputs: int, seed: int = 0) -> None:
    """A file of one recurrent layer: outputs and last states, and its own answers()."""
    x = events(inputs, seed)
    y, *states = run(path, {"x": x[:, None]})
    imported = sl.import_model(path)
    agree(imported, x, y[:, 0, 0], [tuple(a[0, 0] for a in states)])
    source = open_source(path)
    (found,) = source.recurrent()
    for answers in (source.answers(x, None), source.answers(x, found.where)):
        np.testing.assert_allclose(answers, y[:, 0, 0], rtol=0, atol=1e-6)


@st.composite
def lstms(draw: st.DrawFn) -> sl.LSTM:
    return lstm(
        draw(SIZES),
        draw(SIZES),
        draw(st.integers(0, 2**16)),
        peep=draw(st.booleans()),
        start=draw(st.booleans()),
        coupled=draw(st.sampled_from(["", "f"])),
        clip_gates=draw(st.sampled_from([None, 0.125, 1.5])),
        gate_function=draw(st.sampled_from(["sigmoid", "hard_sigmoid", "hard_sigmoid6"])),
        candidate_function=draw(st.sampled_from(BOUNDED)),
        output_function=draw(st.sampled_from(BOUNDED)),
    )


@st.composite
def grus(draw: st.DrawFn) -> sl.GRU:
    return gru(
        draw(SIZES),
        draw(SIZES),
        draw(st.integers(0, 2**16)),
        start=draw(st.booleans()),
        reset_after=draw(st.booleans()),
        clip_gates=draw(st.sampled_from([None, 0.125, 1.5])),
        gate_function=draw(st.sampled_from(["sigmoid", "hard_sigmoid", "hard_sigmoid6"])),
        candidate_function=draw(st.sampled_from(BOUNDED)),
    )


def written(layer: Any, folder: Any) -> Any:
    made, inits = cell(layer, outputs=["Y", "Y_h", "Y_c"][: len(layer.state_sizes) + 1])
    shape = ("T", 1, layer.input_size)
    return save(model([made], inits, shape, " ".join(made.output)), folder)


@given(layer=lstms())
@settings(max_examples=25, deadline=None)
def test_any_lstm(layer, folder):
    check(written(layer, folder), layer.input_size)


@given(layer=grus())
@settings(max_examples=25, deadline=None)
def test_any_gru(layer, folder):
    check(written(layer, folder), layer.input_size)


OPTIONS = {
    "plain": {},
    "peepholes": {"peep": True},
    "coupled": {"coupled": "f"},
    "clip": {"clip_gates": 0.25},
    "learned start": {"start": True},
    "relu": {"candidate_function": "relu", "output_function": "relu", "clip_gates": 1.0},
    "tanh gates": {"gate_function": "tanh"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_an_lstm(option, folder):
    check(written(lstm(5, 16, **OPTIONS[option]), folder), 5)


@pytest.mark.parametrize("opset", [7, 9, 12, 13, 14, 22])
@pytest.mark.parametrize("layer", [lstm(), gru()], ids=["lstm", "gru"])
def test_operator_sets(layer, opset, folder):
    made, inits = cell(layer, outputs=["y"])
    path = save(model([made], inits, opset=opset), folder)
    x = events(3)
    agree(sl.import_model(path), x, run(path, {"x": x[:, None]})[0][:, 0, 0])


def test_clip_leaves_the_cell_alone(folder):
    """Also on its way into h, which the operator's spec leaves open: a start of c beyond clip."""
    layer = lstm(3, 4, clip_gates=0.5, h0=np.zeros(4, np.float32), c0=np.full(4, 5, np.float32))
    check(written(layer, folder), 3)


# --- exported by PyTorch --------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, kind: Any, layers: int, batch_first: bool, take: str) -> None:
        super().__init__()
        self.cells = kind(3, 8, layers, batch_first=batch_first)
        self.dense, self.take = nn.Linear(8, 2), take

    def forward(self, x: Any, states: Any = None) -> Any:
        y, states = self.cells(x, states)
        if self.take == "last":
            y = y[:, -1] if self.cells.batch_first else y[-1]
        elif self.take == "h":
            y = (states if isinstance(self.cells, nn.GRU) else states[0])[-1]
        y = torch.tanh(self.dense(y))
        return (y, states) if self.take == "states" else y


class Around(nn.Module):
    """An embedding or a batch norm before, a batch norm and softmax behind."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(7, 3) if embedding else nn.BatchNorm1d(3)
        self.lstm, self.norm = nn.LSTM(3, 8, batch_first=True), nn.BatchNorm1d(8)
        self.dense = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        x = (
            self.first(x)
            if isinstance(self.first, nn.Embedding)
            else self.first(x.transpose(1, 2)).transpose(1, 2)
        )
        y, _ = self.lstm(x)
        return torch.softmax(self.dense(self.norm(y.transpose(1, 2)).transpose(1, 2)), -1)


def exported(net: Any, args: Any, folder: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    for a in net.parameters():
        nn.init.uniform_(a, -0.4, 0.4)
    for a in net.buffers():
        if a.is_floating_point():
            nn.init.uniform_(a, 0.5, 1.5)
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), args, path, dynamo=False, input_names=["x"], **more)
    return path


OPEN = [None, {"x": {0: "b", 1: "t"}}]


@pytest.mark.filterwarnings("ignore")  # the exporter is deprecated
@pytest.mark.parametrize("axes", OPEN, ids=["fixed", "open"])
@pytest.mark.parametrize("take", ["all", "last", "h"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_exports(kind, batch_first, take, axes, folder):
    net = Net(kind, 2, batch_first, take)
    shape = (1, 6, 3) if batch_first else (6, 1, 3)
    path = exported(net, (torch.zeros(shape),), folder, dynamic_axes=axes)
    x = events(3)
    imported = sl.import_model(path)
    answers = open_source(path).answers(x, None)
    agree(imported, x, answers)
    # And PyTorch itself says the same of the module.
    net.take = "all"
    with torch.no_grad():
        y = net(torch.from_numpy(x)[None] if batch_first else torch.from_numpy(x)[:, None])
    np.testing.assert_allclose(answers, y.reshape(STEPS, 2), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("embedding", [True, False])
def test_exports_with_more_around(embedding, folder):
    example = torch.zeros((1, 5), dtype=torch.int64) if embedding else torch.zeros(1, 5, 3)
    path = exported(Around(embedding), (example,), folder, dynamic_axes=OPEN[1])
    x = rng(1).integers(0, 7, (STEPS, 1)).astype(np.float32) if embedding else events(3)
    agree(sl.import_model(path), x, open_source(path).answers(x, None))


@pytest.mark.filterwarnings("ignore")
def test_states_as_inputs_and_outputs(folder):
    """The graph's own loop: what it ends with goes in again."""
    net = Net(nn.LSTM, 2, False, "states")
    zeros = torch.zeros(2, 1, 8)
    path = exported(net, (torch.zeros(1, 1, 3), (zeros, zeros)), folder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (_, h, c), (_, *ends) = (
        [a.name for a in io] for io in (session.get_inputs(), session.get_outputs())
    )
    x = events(3)
    states, y = [zeros.numpy()] * 2, []
    for event in x:
        out, *states = session.run(None, {"x": event[None, None], h: states[0], c: states[1]})
        y.append(out[0, 0])
    assert len(ends) == 2
    last = [(states[0][k, 0], states[1][k, 0]) for k in range(2)]
    agree(sl.import_model(path), x, np.array(y), last)
    np.testing.assert_allclose(open_source(path).answers(x, None), y, rtol=0, atol=1e-6)


# --- how answers() runs a graph -------------------------------------------------------------------


def stepwise(graph_steps: int, batch: int, *, last: bool) -> Any:
    """A graph for so many steps, which its Reshape fixes."""
    _, inits = cell(lstm())
    take = [node("Gather", "s end", "y", axis=0)] if last else [node("Identity", "s", "y")]
    nodes = [
        node("Reshape", "x shape", "r"),
        cell(lstm(), x="r")[0],
        node("Squeeze", "lstm.Y one", "s"),
        *take,
    ]
    inits |= constants(shape=[graph_steps, batch, 3], one=[1], end=-1)
    return model(nodes, inits, (graph_steps, batch, 3))


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (7, 1), (7, 4), (STEPS, 1)])
def test_graphs_for_one_length_are_run_in_pieces(steps, batch, folder):
    path = save(stepwise(steps, batch, last=False), folder)
    x = events(3)
    agree(sl.import_model(path), x, open_source(path).answers(x, None))


def test_a_graph_that_cannot_be_stepped(folder):
    path = save(stepwise(7, 1, last=True), folder)
    x = events(3)
    np.testing.assert_allclose(
        reference.run(sl.import_model(path), x)[0], open_source(path).answers(x, "lstm"), atol=1e-6
    )
    with pytest.raises(UnsupportedModelError) as caught:
        open_source(path).answers(x, None)
    assert str(caught.value) == (
        "onnxruntime can't run the graph step by step: it answers only the last of 7 steps; "
        "export it with a sequence length that is left open"
    )


def test_layout_1_is_selected(folder):
    """onnxruntime has it not on CPUs; a selected node is run by layout 0."""
    made, inits = cell(lstm(), outputs=["y"], layout=1)
    path = save(model([made], inits, (1, "T", 3)), folder)
    x = events(3)
    agree(sl.import_model(path), x, open_source(path).answers(x, "lstm"))


@pytest.mark.parametrize("columns", [1, 32])
def test_dynamic_quantization(columns, folder):
    """The weights are had exactly; onnxruntime itself also rounds x and h to 8 bits on their
    way, so that its answers can only be near."""
    r = rng(4)
    w, h = (r.integers(-127, 128, (1, n, 32), np.int8) for n in (3, 8))
    scale = r.uniform(0.002, 0.004, columns).astype(np.float32)[None][:, : columns or 1]
    scale = scale[0] if columns == 1 else scale
    zero = np.zeros(scale.shape, np.int8)
    inits = {"W": w, "R": h, "s": scale, "z": zero}
    names = ["x", "W", "R", "", "", "", "", "", "s", "z", "s", "z"]
    made = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y"], name="q", domain="com.microsoft", hidden_size=8
    )
    path = save(model([made], inits), folder)
    x = events(3)
    source = open_source(path)
    assert source.framework.endswith("(quantizing activations)")
    imported = sl.import_model(path)
    ours = reference.run(imported, x)[0]
    for theirs in (source.answers(x, None), source.answers(x, "q")):
        assert np.max(np.abs(ours - theirs)) < 0.05
    # The dequantised weights as a plain LSTM, which onnxruntime runs in floats.
    plain = written(imported.layers[0], folder)
    check(plain, 3)
    np.testing.assert_array_equal(
        arrays(imported.layers[0])["W"], ((w.astype(np.float32)) * scale).transpose(0, 2, 1)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_dynamic(per_channel, folder):
    """An LSTM and its head: as near as rounding to 8 bits lets them be."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = exported(Net(nn.LSTM, 2, True, "all"), (torch.zeros(1, 6, 3),), folder)
    eight = folder / "eight.onnx"
    quantization.quantize_dynamic(path, eight, per_channel=per_channel)
    source, x = open_source(eight), events(3)[:6]
    assert source.quantizes
    ours = reference.run(sl.import_model(eight), x)[0]
    assert np.max(np.abs(ours - source.answers(x, None))) < 0.02
