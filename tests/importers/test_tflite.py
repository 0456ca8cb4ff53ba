"""`.tflite` files against the operators' equations in NumPy, and what is refused.

The files are tflite_files', whose cell is written from the kernel's definition; the kernel
itself is asked in parity/test_tflite.py. The schema comes with ai-edge-litert.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import flatbuffers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamlstm as sl
from streamlstm import reference
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import gate_orders, open_source, tflite
from tflite_files import (
    Cell,
    Graph,
    Operator,
    add_constant,
    add_dense,
    add_lstm,
    cell,
    one_cell,
    run,
    schema,
)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "network.tflite"
    path.write_bytes(content)
    return path


def difference(path: Path, made: Cell, steps: int = 40) -> float:
    x = np.random.default_rng(1).standard_normal((steps, made.w_x["f"].shape[1]))
    ours, ((_, c),) = reference.run(sl.import_model(path), x)
    y, _, c_end = run(made, x)
    return float(max(np.abs(ours - y).max(), np.abs(c - c_end).max()))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_numbers(data: st.DataObject, tmp_path: Path) -> None:
    draw, either = data.draw, st.booleans()
    norm = draw(either)
    function = draw(st.sampled_from(["TANH", "RELU"]))
    made = cell(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, 6)),
        draw(st.integers(4 if norm else 1, 9)),
        cifg=draw(either),
        peephole=draw(either),
        norm=norm,
        projected=draw(st.sampled_from([0, 1, 3, 12])),
        projection_bias=draw(either),
        cell_clip=draw(st.sampled_from([0.0, 0.125])) if function == "TANH" else 0.5,
        proj_clip=draw(st.sampled_from([0.0, 0.125])),
        function=function,
    )
    how = {"time_major": draw(either), "single": draw(either), "old": not norm and draw(either)}
    path = written(tmp_path, one_cell(made, **how))
    assert difference(path, made) < 1e-9


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cifg": {"cifg": True},
    "peephole": {"peephole": True, "norm": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrong_gate_order_shows(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cell(0, 3, 8, **VARIANTS[variant])
    path = written(tmp_path, one_cell(made))
    assert difference(path, made) < 1e-12
    for order, peepholes in (("figo", "ifo"), ("iofg", "ifo"), ("ifgo", "iof")):
        if (order, variant) in {("ifgo", "plain"), ("ifgo", "cifg"), ("figo", "cifg")}:
            continue  # no peepholes, or nothing of i's, to be mistaken
        monkeypatch.setitem(gate_orders.ORDERS, "tflite", {"lstm": order, "peepholes": peepholes})
        assert difference(path, made) > 0.005


def test_a_gate_coupled_the_other_way_shows(tmp_path: Path) -> None:
    """CIFG is i = 1 - f; ONNX's input_forget is f = 1 - i."""
    made = cell(0, 3, 8, cifg=True)
    (layer,) = sl.import_model(written(tmp_path, one_cell(made))).layers
    assert isinstance(layer, sl.LSTM)
    assert layer.coupled == "i"
    wrong = sl.LSTM(layer.w_x, layer.w_h, layer.b, coupled="f")
    x = np.random.default_rng(1).standard_normal((40, 3))
    assert np.abs(reference.run(sl.Model([wrong]), x)[0] - run(made, x)[0]).max() > 0.005


def half(graph: Graph, a: Any) -> int:
    return graph.apply(Operator.DEQUANTIZE, [add_constant(graph, a.astype("f2"))], *a.shape)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    made = cell(0, 3, 5)
    path = written(tmp_path, one_cell(made, constant=half))
    assert not open_source(path).quantizes
    (layer,) = sl.import_model(path).layers
    assert isinstance(layer, sl.LSTM)
    assert layer.w_x.dtype == np.float32
    np.testing.assert_array_equal(layer.w_x[:5], made.w_x["i"].astype("f2").astype("f4"))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_hybrid_weights_are_dequantised(axis: int | None, tmp_path: Path) -> None:
    scales = np.array([0.5, 0.25, 0.125]) if axis is not None else np.array([0.5])

    def eighth(graph: Graph, a: Any) -> int:
        if a.ndim == 1:
            return add_constant(graph, a)
        return add_constant(graph, np.full(a.shape, -3, "i1"), scales, axis or 0)

    made = cell(0, 3, 3)
    path = written(tmp_path, one_cell(made, constant=eighth))
    source = open_source(path)
    assert source.quantizes
    assert source.framework.endswith(" (quantizing activations)")
    (layer,) = sl.import_model(path).layers
    assert isinstance(layer, sl.LSTM)
    per_row = np.broadcast_to(-3 * scales[:, None] if axis == 0 else -3 * scales, (3, 3))
    np.testing.assert_array_equal(layer.w_x, np.tile(per_row, (4, 1)).astype("f4"))


def strided(graph: Graph, below: int, begin: Any, end: Any, out: Any, **masks: int) -> int:
    options = schema.StridedSliceOptionsT()
    for name, value in masks.items():
        setattr(options, name, value)
    ones = [1] * len(begin)
    cut = [add_constant(graph, np.array(a, "i4")) for a in (begin, end, ones)]
    return graph.apply(Operator.STRIDED_SLICE, [below, *cut], *out, options=options)


LAST = {"beginMask": 5, "endMask": 5, "shrinkAxisMask": 2}


def reshaped(graph: Graph, below: int, *shape: int, to: Any = None) -> int:
    wanted = add_constant(graph, np.array(shape if to is None else to, "i4"))
    return graph.apply(Operator.RESHAPE, [below, wanted], *shape)


def around(graph: Graph, x: int) -> int:
    """Every operator that leaves rows alone, around an LSTM over 4 steps of 3 numbers."""
    below = reshaped(graph, x, 1, 4, 3, to=[1, -1, 3])
    order = add_constant(graph, np.array([1, 0, 2], "i4"))
    below = graph.apply(Operator.TRANSPOSE, [below, order], 4, 1, 3)
    squeeze = schema.SqueezeOptionsT()
    squeeze.squeezeDims = [1]
    below = graph.apply(Operator.SQUEEZE, [below], 4, 3, options=squeeze)
    axis = add_constant(graph, np.array(-2, "i4"))
    below = graph.apply(
        Operator.EXPAND_DIMS, [below, axis], 4, 1, 3, options=schema.ExpandDimsOptionsT()
    )
    three = [add_constant(graph, np.array(a, "f4")) for a in ([1, 2, 3], [[[0.5, 0, 1]]], 0.25)]
    below = graph.apply(Operator.MUL, [three[0], below], 4, 1, 3, options=schema.MulOptionsT())
    below = graph.apply(Operator.SUB, [below, three[1]], 4, 1, 3, options=schema.SubOptionsT())
    add = schema.AddOptionsT()
    add.fusedActivationFunction = schema.ActivationFunctionType.RELU
    below = graph.apply(Operator.ADD, [below, three[2]], 4, 1, 3, options=add)
    below, *_ = add_lstm(graph, below, cell(0, 3, 5), (4, 1, 3), time_major=True)
    below = strided(
        graph, below, [-1, 0, 0], [0, 1, 5], (1, 5), shrinkAxisMask=1, endMask=1, beginMask=2
    )
    below = graph.apply(Operator.LOGISTIC, [below], 1, 5)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    w = add_constant(graph, np.linspace(-1, 1, 10, dtype="f4").reshape(2, 5))
    below = graph.apply(Operator.FULLY_CONNECTED, [below, w, -1], 1, 2, options=options)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    return graph.apply(Operator.SOFTMAX, [below], 1, 2, options=softmax)


def test_what_stands_around(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.tensor(4, 3)
    path = written(tmp_path, graph.finish([x], [around(graph, x)]))
    a = np.random.default_rng(1).standard_normal((40, 3))
    ours, _ = reference.run(sl.import_model(path), a)
    scaled = np.maximum(a * [1, 2, 3] - [0.5, 0, 1] + 0.25, 0)
    h, _, _ = run(cell(0, 3, 5), scaled)
    w = np.linspace(-1, 1, 10, dtype="f4").reshape(2, 5)
    z = np.exp(np.maximum((1 / (1 + np.exp(-h))) @ w.T.astype(float), 0))
    np.testing.assert_allclose(ours, z / z.sum(axis=1, keepdims=True), atol=1e-7)


def test_an_embedding(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.tensor(1, 4)
    graph.graph.tensors[x].type = schema.TensorType.INT32
    table, options = (
        np.random.default_rng(0).standard_normal((7, 3)).astype("f4"),
        schema.GatherOptionsT(),
    )
    below = graph.apply(Operator.GATHER, [add_constant(graph, table), x], 1, 4, 3, options=options)
    made = cell(0, 3, 5)
    out, *_ = add_lstm(graph, below, made, (1, 4, 3))
    model = sl.import_model(written(tmp_path, graph.finish([x], [out])))
    words = np.array([[0], [6], [2], [2]])
    ours, _ = reference.run(model, words)
    np.testing.assert_allclose(ours, run(made, table[words[:, 0]])[0], atol=1e-12)


def test_shapes_in_options(tmp_path: Path) -> None:
    """RESHAPE with one input, SQUEEZE of all axes of 1."""
    graph = Graph()
    x = graph.tensor(1, 4, 1, 3)
    options = schema.ReshapeOptionsT()
    options.newShape = [1, -1, 3]
    below = graph.apply(Operator.RESHAPE, [squeezed(graph, x)], 1, 4, 3, options=options)
    below, *_ = add_lstm(graph, below, cell(0, 3, 3), (1, 4, 3))
    out = softmax(graph, dense(graph, below, keepNumDims=True))
    model = sl.import_model(written(tmp_path, graph.finish([x], [out])))
    assert [layer.kind for layer in model.layers] == ["lstm", "dense"]


def test_shapes_that_are_computed(tmp_path: Path) -> None:
    """TimeDistributed over sequences of any length: the dense layer makes rows again."""
    graph = Graph()
    x = graph.tensor(1, 1, 3)
    graph.graph.tensors[x].shapeSignature = [1, -1, 3]
    made = cell(0, 3, 5)
    below, *_ = add_lstm(graph, x, made, (1, 1, 3))
    shape = graph.apply(Operator.SHAPE, [below], 3, options=schema.ShapeOptionsT())
    below = graph.apply(Operator.RESHAPE, [below, shape], 1, 1, 5)
    w = np.ones((1, 5), "f4")
    below = graph.apply(
        Operator.FULLY_CONNECTED,
        [below, add_constant(graph, w), add_constant(graph, np.ones(1, "f4"))],
        *(1, 1),
        options=schema.FullyConnectedOptionsT(),
    )
    out = graph.apply(Operator.RESHAPE, [below, shape], 1, 1, 1)
    model = sl.import_model(written(tmp_path, graph.finish([x], [out])))
    a = np.random.default_rng(1).standard_normal((9, 3))
    np.testing.assert_allclose(
        reference.run(model, a)[0], run(made, a)[0].sum(axis=1, keepdims=True) + 1, atol=1e-12
    )


def test_a_shape_that_the_run_tells_but_its_signature_too(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.tensor(1, 1, 3)
    graph.graph.tensors[x].shapeSignature = [1, -1, 3]
    shape = graph.apply(Operator.SHAPE, [x], 3, options=schema.ShapeOptionsT())
    below = graph.apply(Operator.RESHAPE, [x, shape], 1, 1, 3)
    graph.graph.tensors[below].shapeSignature = [1, -1, 3]
    made = cell(0, 3, 5)
    out, *_ = add_lstm(graph, below, made, (1, 1, 3))
    model = sl.import_model(written(tmp_path, graph.finish([x], [out])))
    a = np.random.default_rng(1).standard_normal((9, 3))
    np.testing.assert_allclose(reference.run(model, a)[0], run(made, a)[0], atol=1e-12)


def refusal(path: Path, **how: Any) -> str:
    with pytest.raises(UnsupportedModelError) as refused:
        sl.import_model(path, **how)
    return str(refused.value)


Change = Callable[[Graph, Any, Any], object]
LSTM = "op 0 (UNIDIRECTIONAL_SEQUENCE_LSTM)"


def named(name: str, value: Any) -> Change:
    return lambda _, op, __: setattr(op.builtinOptions, name, value)


def without(*places: int) -> Change:
    def change(_: Graph, op: Any, __: Any) -> None:
        for place in places:
            op.inputs[place] = -1

    return change


def tensor(place: int, name: str, value: Any) -> Change:
    def change(graph: Graph, op: Any, _: Any) -> None:
        setattr(graph.graph.tensors[op.inputs[place]], name, value)

    return change


def second_user(graph: Graph, op: Any, _: Any) -> None:
    graph.apply(Operator.TANH, [op.inputs[18]], 1, 5)


def started(graph: Graph, op: Any, _: Any) -> None:
    """The states are written by an operator, from a constant that is not 0."""
    ones = add_constant(graph, np.ones((1, 5), "f2"))
    graph.apply_many(Operator.DEQUANTIZE, [ones], [op.inputs[18]])


def driven(graph: Graph, op: Any, x: Any) -> None:
    graph.apply_many(Operator.TANH, [x], [op.inputs[19]])


def spoilt(graph: Graph, op: Any, _: Any) -> None:
    op.inputs[1] = add_constant(graph, np.full((5, 3), np.nan, "f4"))


def another_shape(graph: Graph, op: Any, _: Any) -> None:
    op.inputs[13] = add_constant(graph, np.ones(4, "f4"))


def matrix(graph: Graph, op: Any, _: Any) -> None:
    op.inputs[16] = add_constant(graph, np.ones((2, 4), "f4"))


def flat(graph: Graph, op: Any, _: Any) -> None:
    for place in range(1, 9):
        op.inputs[place] = add_constant(graph, np.ones(5, "f4"))


def unsigned(graph: Graph, op: Any, _: Any) -> None:
    op.inputs[1] = add_constant(graph, np.ones((5, 3), "u1"))


def scaleless(graph: Graph, op: Any, _: Any) -> None:
    op.inputs[1] = add_constant(graph, np.ones((5, 3), "i1"))


def off_zero(graph: Graph, op: Any, _: Any) -> None:
    op.inputs[1] = add_constant(graph, np.ones((5, 3), "i1"), [0.5])
    graph.graph.tensors[op.inputs[1]].quantization.zeroPoint[:] = 3


CELL_REFUSED: dict[str, tuple[Change, str]] = {
    "function": (
        named("fusedActivationFunction", schema.ActivationFunctionType.RELU6),
        f"{LSTM} has activation RELU6; RELU and TANH can be imported",
    ),
    "no function": (
        named("fusedActivationFunction", schema.ActivationFunctionType.NONE),
        f"{LSTM} has activation NONE; RELU and TANH can be imported",
    ),
    "clip": (named("cellClip", -1.0), f"{LSTM} has cellClip -1.0; expected 0 (none) or more"),
    "diagonal": (
        named("diagonalRecurrentTensors", True),
        f"{LSTM} has diagonal recurrent weights, which we don't have",
    ),
    "no weight": (
        without(2),
        f"{LSTM} has only some of the inputs 1 to 4, one for each gate",
    ),
    "half coupled": (
        without(5),
        f"{LSTM} has only some of the inputs 5 to 8, one for each gate",
    ),
    "a bias of a coupled gate": (
        without(1, 5),
        f"{LSTM} has only some of the inputs 12 to 15, one for each gate",
    ),
    "no biases": (
        without(12, 13, 14, 15),
        f"{LSTM} lacks weights or biases; is the file damaged?",
    ),
    "bias alone": (
        lambda graph, op, _: op.inputs.__setitem__(17, add_constant(graph, np.ones(5, "f4"))),
        f"{LSTM} has a projection's bias and no projection",
    ),
    "no state": (
        without(18),
        f"{LSTM} has a state (input 18) that is not a variable of its own",
    ),
    "a given state": (
        tensor(19, "isVariable", False),
        f"{LSTM} has a state (input 19) that is not a variable of its own",
    ),
    "a shared state": (
        second_user,
        f"{LSTM} has a state (input 18) that is not a variable of its own",
    ),
    "a start": (started, f"{LSTM} has a state (input 18) that does not start at zero"),
    "a driven state": (driven, f"{LSTM} has a state (input 19) that does not start at zero"),
    "computed weights": (
        lambda graph, op, x: op.inputs.__setitem__(1, graph.apply(Operator.TANH, [x], 5, 3)),
        f"{LSTM} has an input 1 that is no constant of real numbers, as weights must be",
    ),
    "inputs": (
        lambda _, op, __: op.inputs.pop(),
        f"{LSTM} has 23 inputs and 1 output; expected 20 or 24, and 1",
    ),
    "different shapes": (another_shape, f"{LSTM} has inputs 12 to 15 of different shapes"),
    "projection": (
        matrix,
        f"{LSTM} has sizes that don't fit: its w_p is (2, 4), expected (5, 5)",
    ),
    "flat weights": (flat, f"{LSTM} has weights that are no matrices"),
    "tensors": (
        lambda _, op, __: op.outputs.append(99),
        "the file names tensors (15, 99) of 16; is it damaged?",
    ),
    "code": (
        lambda _, op, __: setattr(op, "opcodeIndex", 1),
        "an operator has no code; is the file damaged?",
    ),
    "nan": (spoilt, "tensor 16 holds numbers that are not finite"),
    "unsigned": (
        unsigned,
        "tensor 16 holds UINT8 numbers; FLOAT32, FLOAT16, INT8, INT32, INT64 can be imported",
    ),
    "no scales": (
        scaleless,
        "tensor 16 has INT8 numbers without the scales to read them by",
    ),
    "zero point": (
        off_zero,
        "tensor 16 has a zero point that is not 0, as weights never do; is the file damaged?",
    ),
    "sparse": (
        tensor(1, "sparsity", schema.SparsityParametersT()),
        "tensor 3 is sparse; convert the network without pruning",
    ),
    "shape": (
        tensor(1, "shape", [2**31 - 1, 2**31 - 1]),
        "tensor 3 of shape (2147483647, 2147483647) holds 60 bytes; is the file damaged?",
    ),
    "outside": (
        tensor(1, "externalBuffer", 7),
        "tensor 3 is kept outside the FlatBuffer; convert it anew",
    ),
    "buffer": (
        tensor(1, "buffer", 4000),
        "tensor 3 has no buffer; is the file damaged?",
    ),
    "no options": (
        lambda _, op, __: setattr(op, "builtinOptions", None),
        f"{LSTM} has no diagonalRecurrentTensors; is the file damaged?",
    ),
}


@pytest.mark.parametrize("what", CELL_REFUSED)
def test_cells_that_are_refused(what: str, tmp_path: Path) -> None:
    change, sentence = CELL_REFUSED[what]
    graph = Graph()
    x = graph.tensor(1, 4, 3)
    out, *_ = add_lstm(graph, x, cell(0, 3, 5), (1, 4, 3))
    op = graph.graph.operators[0]
    change(graph, op, x)
    path = written(tmp_path, graph.finish([x], [out]))
    assert refusal(path) == sentence
    assert refusal(path, select="op 0") == sentence


KNOWN = (
    "UNIDIRECTIONAL_SEQUENCE_LSTM, LSTM, FULLY_CONNECTED, LOGISTIC, TANH, RELU, SOFTMAX, ADD, SUB, "
    "MUL, GATHER, RESHAPE, SQUEEZE, EXPAND_DIMS, TRANSPOSE, STRIDED_SLICE"
)


def dense(graph: Graph, x: int, inputs: int = 3, **options: Any) -> int:
    given_options = schema.FullyConnectedOptionsT()
    for name, value in options.items():
        setattr(given_options, name, value)
    w = add_constant(graph, np.ones((2, inputs), "f4"))
    return graph.apply(Operator.FULLY_CONNECTED, [x, w, -1], 4, 2, options=given_options)


def softmax(graph: Graph, x: int, beta: float = 1.0) -> int:
    options = schema.SoftmaxOptionsT()
    options.beta = beta
    return graph.apply(Operator.SOFTMAX, [x], 1, 4, 3, options=options)


def dequantised(graph: Graph, x: int) -> int:
    below = int8(graph, x)
    graph.graph.tensors[below].type = schema.TensorType.INT8
    return graph.apply(Operator.DEQUANTIZE, [below], 1, 4, 3)


def both_directions(graph: Graph, x: int) -> int:
    back = graph.apply(Operator.REVERSE_V2, [x], 1, 4, 3)
    return graph.apply(Operator.CONCATENATION, [x, back], 1, 4, 6)


def int8(graph: Graph, x: int) -> int:
    graph.graph.tensors[x].type = schema.TensorType.INT8
    return graph.apply(Operator.TANH, [x], 1, 4, 3)


def behind_the_last(graph: Graph, x: int) -> int:
    below = strided(graph, x, [0, -1, 0], [0, 0, 0], (1, 3), **LAST)
    below = reshaped(graph, below, 1, 1, 3)
    return add_lstm(graph, below, cell(0, 3, 5), (1, 1, 3))[0]


def added(graph: Graph, x: int, *shape: int) -> int:
    constant = add_constant(graph, np.ones(shape, "f4"))
    return graph.apply(Operator.ADD, [x, constant], 1, 4, 3, options=schema.AddOptionsT())


def summed(graph: Graph, x: int) -> int:
    other = graph.apply(Operator.TANH, [x], 1, 4, 3)
    return graph.apply(Operator.ADD, [x, other], 1, 4, 3, options=schema.AddOptionsT())


def squeezed(graph: Graph, x: int, *axes: int) -> int:
    options = schema.SqueezeOptionsT()
    options.squeezeDims = axes or None
    return graph.apply(Operator.SQUEEZE, [x], 1, 4, 3, options=options)


def turned(graph: Graph, x: int, *order: int) -> int:
    return graph.apply(Operator.TRANSPOSE, [x, add_constant(graph, np.array(order, "i4"))], 1, 3, 4)


LAST_ONLY = (
    "op 0 (STRIDED_SLICE) takes more or less than the last step of its input; only that leaves a "
    "network that can be streamed"
)
NETWORK_REFUSED: dict[str, tuple[Callable[[Graph, int], int], str]] = {
    "an operator": (
        lambda graph, x: graph.apply(Operator.ELU, [x], 1, 4, 3),
        f"op 0 (ELU) can't be imported; known are {KNOWN}",
    ),
    "a loop": (
        lambda graph, x: graph.apply(Operator.WHILE, [x], 1, 4, 3),
        "op 0 (WHILE) is a loop, which is how a recurrent layer that is not fused is written; "
        "import the file that it was converted from",
    ),
    "full integers": (
        dequantised,
        "op 1 (DEQUANTIZE) works on INT8 numbers; convert the network without full-integer "
        "quantisation",
    ),
    "both directions": (
        both_directions,
        "op 0 (REVERSE_V2) reverses the sequence, which can't be streamed",
    ),
    "a reversal": (
        lambda graph, x: graph.apply(Operator.REVERSE_V2, [x], 1, 4, 3),
        "op 0 (REVERSE_V2) reverses the sequence, which can't be streamed",
    ),
    "a batch": (
        lambda graph, x: add_lstm(graph, reshaped(graph, x, 4, 1, 3), cell(0, 3, 5), (4, 1, 3))[0],
        "op 1 (UNIDIRECTIONAL_SEQUENCE_LSTM) runs over a tensor of shape (4, 1, 3); expected 3 "
        "axes and a batch of 1: convert the network with that",
    ),
    "behind the last step": (
        behind_the_last,
        "op 2 (UNIDIRECTIONAL_SEQUENCE_LSTM) stands behind the last step of another layer, which "
        "can't be streamed",
    ),
    "width": (
        lambda graph, x: add_lstm(graph, x, cell(0, 2, 5), (1, 4, 3))[0],
        f"{LSTM} takes 2 numbers, and is given 3",
    ),
    "several steps at once": (
        lambda graph, x: dense(graph, x, 12),
        "op 0 (FULLY_CONNECTED) has weights of shape (2, 12); expected plain ones of [outputs, 3]: "
        "it must work on the numbers of one step",
    ),
    "shuffled weights": (
        lambda graph, x: dense(graph, x, weightsFormat=1),
        "op 0 (FULLY_CONNECTED) has weights of shape (2, 3); expected plain ones of [outputs, 3]: "
        "it must work on the numbers of one step",
    ),
    "a function": (
        lambda graph, x: dense(graph, x, fusedActivationFunction=3),
        "op 0 (FULLY_CONNECTED) has activation RELU6; NONE and RELU can be imported",
    ),
    "a bias": (
        lambda graph, x: add_dense(graph, x, np.ones((2, 3), "f4"), np.ones(3, "f4"), 1, 4, 3),
        "op 0 (FULLY_CONNECTED) has a bias of shape (3,) for 2 outputs",
    ),
    "beta": (
        lambda graph, x: softmax(graph, x, 0.5),
        "op 0 (SOFTMAX) has beta 0.5; expected 1",
    ),
    "softmax over steps": (
        lambda graph, x: softmax(graph, reshaped(graph, x, 3, 4)),
        "op 1 (SOFTMAX) works on a tensor of shape (3, 4); expected 3 numbers on the last axis",
    ),
    "integers": (
        int8,
        "op 0 (TANH) works on INT8 numbers; convert the network without full-integer quantisation",
    ),
    "a constant of steps": (
        lambda graph, x: added(graph, x, 4, 1),
        "op 0 (ADD) has a constant of shape (4, 1); expected one number for each of 3 features, "
        "or one for all",
    ),
    "a residual": (summed, "op 1 (ADD) needs a constant as its second input"),
    "features to steps": (
        lambda graph, x: turned(graph, x, 0, 2, 1),
        "op 0 (TRANSPOSE) has order [0, 2, 1] for a tensor of shape (1, 4, 3), and so mixes steps "
        "or features",
    ),
    "no order": (
        lambda graph, x: turned(graph, x, 0, 1, 1),
        "op 0 (TRANSPOSE) has order [0, 1, 1] for a tensor of shape (1, 4, 3)",
    ),
    "an impossible shape": (
        lambda graph, x: reshaped(graph, x, 1, 5, 3),
        "op 0 (RESHAPE) gives a tensor of shape (1, 4, 3) the shape (1, 5, 3)",
    ),
    "the first step": (
        lambda graph, x: strided(graph, x, [0, 0, 0], [0, 0, 0], (1, 3), **LAST),
        LAST_ONLY,
    ),
    "a step with a number": (
        lambda graph, x: strided(graph, x, [0, 3, 0], [0, 0, 0], (1, 3), **LAST),
        LAST_ONLY,
    ),
    "some features": (
        lambda graph, x: strided(
            graph, x, [0, -1, 1], [0, 0, 0], (1, 2), **(LAST | {"beginMask": 1})
        ),
        LAST_ONLY,
    ),
    "the last steps": (
        lambda graph, x: strided(
            graph, x, [0, -2, 0], [0, 0, 0], (1, 2, 3), beginMask=5, endMask=7
        ),
        LAST_ONLY,
    ),
    "no embedding": (
        lambda graph, x: graph.apply(
            Operator.GATHER,
            [add_constant(graph, np.ones((9, 3), "f4")), x],
            *(1, 4, 3),
            options=schema.GatherOptionsT(),
        ),
        "op 0 (GATHER) is no embedding of the graph's whole-number input in a table of rows",
    ),
    "computed weights": (
        lambda graph, x: graph.apply(
            Operator.FULLY_CONNECTED, [x, x, -1], 4, 4, options=schema.FullyConnectedOptionsT()
        ),
        "op 0 (FULLY_CONNECTED) has an input 1 that is no constant",
    ),
    "flat weights": (
        lambda graph, x: add_dense(graph, x, np.ones(3, "f4"), None, 1, 4, 3),
        "op 0 (FULLY_CONNECTED) has an input 1 that is no matrix of weights",
    ),
    "a computed bias": (
        lambda graph, x: graph.apply(
            Operator.FULLY_CONNECTED,
            [x, add_constant(graph, np.ones((2, 3), "f4")), x],
            *(4, 2),
            options=schema.FullyConnectedOptionsT(),
        ),
        "op 0 (FULLY_CONNECTED) has an input 2 that is no constant",
    ),
    "a shape with two unknowns": (
        lambda graph, x: reshaped(graph, x, 1, 4, 3, to=[-1, -1, 3]),
        "op 0 (RESHAPE) has the shape (-1, -1, 3)",
    ),
    "a computed shape": (
        lambda graph, x: softmax(
            graph,
            graph.apply(
                Operator.RESHAPE,
                [x, graph.apply(Operator.SHAPE, [x], 3, options=schema.ShapeOptionsT())],
                *(1, 4, 3),
            ),
        ),
        "op 2 (SOFTMAX) works on a tensor of a shape that only the run tells; expected 3 numbers "
        "on the last axis",
    ),
    "a squeezed axis that is more than 1": (
        lambda graph, x: softmax(graph, squeezed(graph, x, 1)),
        "op 1 (SOFTMAX) works on a tensor of a shape that only the run tells; expected 3 numbers "
        "on the last axis",
    ),
    "an axis of two numbers": (
        lambda graph, x: softmax(
            graph,
            graph.apply(
                Operator.EXPAND_DIMS,
                [x, add_constant(graph, np.array([0, 1], "i4"))],
                *(1, 4, 3),
                options=schema.ExpandDimsOptionsT(),
            ),
        ),
        "op 1 (SOFTMAX) works on a tensor of a shape that only the run tells; expected 3 numbers "
        "on the last axis",
    ),
    "more axes by a constant": (
        lambda graph, x: softmax(graph, added(graph, x, 1, 1, 1, 1)),
        "op 1 (SOFTMAX) works on a tensor of a shape that only the run tells; expected 3 numbers "
        "on the last axis",
    ),
    "no input": (
        lambda graph, _: graph.apply(Operator.TANH, [], 1, 4, 3),
        "op 0 (TANH) has no input 0; is the file damaged?",
    ),
    "nothing": (
        lambda graph, _: graph.tensor(1, 4, 3),
        "the graph's output does not come from its input",
    ),
}


@pytest.mark.parametrize("what", NETWORK_REFUSED)
def test_networks_that_are_refused(what: str, tmp_path: Path) -> None:
    make, sentence = NETWORK_REFUSED[what]
    graph = Graph()
    x = graph.tensor(1, 4, 3)
    assert refusal(written(tmp_path, graph.finish([x], [make(graph, x)]))) == sentence


def test_inputs_and_outputs_that_are_refused(tmp_path: Path) -> None:
    graph = Graph()
    x, other = graph.tensor(1, 4, 3), graph.tensor(1, 4, 3)
    out = graph.apply(Operator.TANH, [x], 1, 4, 3)
    assert refusal(written(tmp_path, graph.finish([x, other], [out]))) == (
        "the graph has 2 inputs and 1 output; expected one of each"
    )
    graph.graph.tensors[x].shapeSignature = [1, 4, -1]
    assert refusal(written(tmp_path, graph.finish([x], [out]))) == (
        "the graph's input has -1 numbers a step; convert the network with a fixed number of "
        "features"
    )


def test_a_circle_ends(tmp_path: Path) -> None:
    graph = Graph()
    x, a = graph.tensor(1, 4, 3), graph.tensor(1, 4, 3)
    b = graph.apply(Operator.TANH, [a], 1, 4, 3)
    graph.apply_many(Operator.TANH, [b], [a])
    assert refusal(written(tmp_path, graph.finish([x], [b]))) == (
        "the graph's output does not come from its input"
    )


def test_every_recurrent_layer_is_listed(tmp_path: Path) -> None:
    """Also those that can't be imported, and in a graph that can't be."""
    graph = Graph()
    x = graph.tensor(1, 4, 3)
    made = cell(0, 3, 5)
    forth, *_ = add_lstm(graph, x, made, (1, 4, 3))
    reverse = graph.apply(Operator.REVERSE_V2, [x], 1, 4, 3)
    back, *_ = add_lstm(graph, reshaped(graph, reverse, 1, 4, 3), made, (1, 4, 3))
    out = graph.apply(Operator.CONCATENATION, [forth, back], 1, 4, 10)
    graph.apply(Operator.UNIDIRECTIONAL_SEQUENCE_RNN, [x], 1, 4, 3)
    graph.apply(Operator.BIDIRECTIONAL_SEQUENCE_LSTM, [x], 1, 4, 3)
    graph.apply(Operator.WHILE, [x], 1, 4, 3)
    basic = schema.LSTMOptionsT()
    basic.kernelType = schema.LSTMKernelType.BASIC
    graph.apply(Operator.LSTM, [x], 1, 4, 3, options=basic)
    path = written(tmp_path, graph.finish([x], [out]))
    found = open_source(path).recurrent()
    assert [(each.where, each.text, each.refusal) for each in found] == [
        ("op 0", "LSTM 3 -> 5", ""),
        (
            "op 3",
            "UNIDIRECTIONAL_SEQUENCE_LSTM",
            "op 3 (UNIDIRECTIONAL_SEQUENCE_LSTM) reads its sequence backwards, which can't be "
            "streamed",
        ),
        (
            "op 5",
            "UNIDIRECTIONAL_SEQUENCE_RNN",
            "op 5 (UNIDIRECTIONAL_SEQUENCE_RNN) is a simple RNN; LSTM can be imported",
        ),
        (
            "op 6",
            "BIDIRECTIONAL_SEQUENCE_LSTM",
            "op 6 (BIDIRECTIONAL_SEQUENCE_LSTM) also reads its sequence backwards, which can't "
            "be streamed",
        ),
        (
            "op 7",
            "WHILE",
            "op 7 (WHILE) is a loop, which is how a recurrent layer that is not fused is "
            "written; import the file that it was converted from",
        ),
        (
            "op 8",
            "LSTM",
            "op 8 (LSTM) is of the basic kernel, whose states are the graph's own inputs; "
            "convert the network anew, or import the file that it came from",
        ),
    ]
    (layer,) = sl.import_model(path, select="op 0").layers
    assert layer.output_size == 5


def test_an_lstm_in_a_branch_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.tensor(1, 4, 3)
    out, *_ = add_lstm(graph, x, cell(0, 3, 5), (1, 4, 3))
    graph.graph.inputs, graph.graph.outputs = [x], [out]
    main = Graph()
    x = main.tensor(1, 4, 3)
    out = main.apply(Operator.TANH, [x], 1, 4, 3)
    graph.model.subgraphs.insert(0, main.graph)
    graph.model.operatorCodes += main.model.operatorCodes
    main.graph.inputs, main.graph.outputs = [x], [out]
    main.graph.operators[0].opcodeIndex = 1
    path = written(tmp_path, graph.finish(graph.graph.inputs, graph.graph.outputs))
    assert refusal(path, select="subgraph 1 op 0") == (
        f"{LSTM} is part of subgraph 1, a loop or a branch; only what always runs can be imported"
    )


def test_a_custom_operator_is_named(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.tensor(1, 4, 3)
    out = graph.apply(Operator.CUSTOM, [x], 1, 4, 3)
    graph.model.operatorCodes[0].customCode = "FlexMine"
    assert refusal(written(tmp_path, graph.finish([x], [out]))) == (
        f"op 0 (CUSTOM FlexMine) can't be imported; known are {KNOWN}"
    )


def test_a_flow_that_the_file_tells_itself_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, one_cell(cell(0, 3, 5)))
    assert refusal(path, flow=["lstm"]) == f"{path} tells its flow itself; leave out flow="


def test_no_framework_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(written(tmp_path, one_cell(cell(0, 3, 5))))
    assert source.framework.startswith("ai-edge-litert ")

    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(tflite, "version", unknown)
    assert source.framework == ""


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, one_cell(cell(0, 3, 5)))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    assert refusal(path) == (
        "reading a .tflite file needs ai-edge-litert: pip install 'streamlstm[tflite]'"
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_one_sentence(data: st.DataObject, tmp_path: Path) -> None:
    """Cut short, or with bytes changed: another network or one sentence, nothing else."""
    graph = Graph()
    x = graph.tensor(4, 3)
    content = bytearray(graph.finish([x], [around(graph, x)]))
    del content[data.draw(st.integers(0, 3 * len(content))) :]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    path = written(tmp_path, bytes(content))
    sentence = ""
    try:
        open_source(path).recurrent()
        sl.import_model(path)
    except UnsupportedModelError as e:
        sentence = str(e)
    assert "\n" not in sentence


def test_what_is_no_tflite_file(tmp_path: Path) -> None:
    path = written(tmp_path, b"PK\x03\x04 a zip file")
    assert refusal(path) == f"{path} can't be read as a .tflite file: it lacks the mark TFL3"
    graph = Graph()
    graph.model.version = 2
    path = written(tmp_path, graph.finish([], []))
    assert refusal(path) == (
        f"{path} can't be read as a .tflite file: its version is 2, and 3 is known"
    )


def shared(subgraphs: int, operators: int, tensors: int, name: int) -> bytes:
    """A small file whose offsets point to the same table, or name, again and again."""
    builder = flatbuffers.Builder()

    def again(table: int, times: int) -> int:
        builder.StartVector(4, times, 4)
        for _ in range(times):
            builder.PrependUOffsetTRelative(table)
        return int(builder.EndVector())

    label = builder.CreateByteVector(b"a" * name)
    schema.VarHandleOptionsStart(builder)
    schema.VarHandleOptionsAddContainer(builder, label)
    options = schema.VarHandleOptionsEnd(builder)
    schema.OperatorStart(builder)
    schema.OperatorAddBuiltinOptionsType(builder, schema.BuiltinOptions.VarHandleOptions)
    schema.OperatorAddBuiltinOptions(builder, options)
    op = again(schema.OperatorEnd(builder), operators)
    schema.TensorStart(builder)
    schema.TensorAddName(builder, label)
    tensor = again(schema.TensorEnd(builder), tensors)
    schema.SubGraphStart(builder)
    schema.SubGraphAddOperators(builder, op)
    schema.SubGraphAddTensors(builder, tensor)
    graphs = again(schema.SubGraphEnd(builder), subgraphs)
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("how", [(300, 300, 1, 1), (1, 1, 5000, 200_000), (1, 50, 1, 200_000)])
def test_parts_that_are_used_again_and_again(how: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, shared(*how))
    assert refusal(path) == (
        f"{path} can't be read as a .tflite file: its parts stand for more than its size"
    )


@pytest.mark.untraced
def test_more_operators_than_are_followed(tmp_path: Path) -> None:
    graph = Graph()
    x = out = graph.tensor(1, 4, 3)
    for _ in range(10_001):
        out = graph.apply(Operator.TANH, [x], 1, 4, 3)
    path = written(tmp_path, graph.finish([x], [out]))
    assert refusal(path) == (
        f"{path} can't be read as a .tflite file: its 10,001 operators are more than 10,000"
    )
