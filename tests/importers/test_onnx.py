"""ONNX files written here, and what is read from them; nothing runs them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

import streamlstm as sl
from onnx_files import FLOAT, INT64, cell, constants, gru, lstm, model, node, rng, save
from streamlstm import reference
from streamlstm.errors import ModelError, UnsupportedModelError
from streamlstm.importers import gate_orders, open_source
from streamlstm.importers.onnx.graph import Node
from streamlstm.layers import Activation, Dense, Embedding

X = rng(9).normal(size=(30, 3)).astype(np.float32)


def same_answers(imported: sl.Model, expected: Any, x: Any = X, atol: float = 1e-6) -> None:
    y, _ = reference.run(imported, x)
    np.testing.assert_allclose(y, reference.run(sl.Model(expected), x)[0], rtol=0, atol=atol)


def one(layer: Any, tmp_path: Any, **more: Any) -> Any:
    """The path of a file with just this layer."""
    made, inits = cell(layer, outputs=["y"], **more)
    return save(model([made], inits), tmp_path)


VARIANTS = {
    "plain": lstm(),
    "one unit": lstm(1, 1),
    "peepholes": lstm(peep=True),
    "coupled": lstm(coupled="f"),
    "coupled with peepholes": lstm(coupled="f", peep=True),
    "clip": lstm(clip_gates=0.25),
    "start": lstm(start=True),
    "functions": lstm(
        gate_function="hard_sigmoid", candidate_function="relu", output_function="sigmoid"
    ),
    "torch's hard sigmoid": lstm(gate_function="hard_sigmoid6"),
    "all": lstm(
        peep=True,
        start=True,
        coupled="f",
        clip_gates=0.5,
        gate_function="hard_sigmoid",
        output_function="hard_sigmoid6",
    ),
    "gru, reset after": gru(),
    "gru, reset before": gru(reset_after=False),
    "gru, all": gru(start=True, clip_gates=0.5, gate_function="hard_sigmoid6"),
}


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("case", VARIANTS)
def test_every_cell(case, layout, tmp_path):
    layer = VARIANTS[case]
    made, inits = cell(layer, outputs=["y"], **({"layout": 1} if layout else {}))
    if layout:
        inits = {name: a.swapaxes(0, 1) if "initial" in name else a for name, a in inits.items()}
    shape = ("B", "T", layer.input_size) if layout else ("T", "B", layer.input_size)
    path = save(model([made], inits, shape), tmp_path)
    imported = sl.import_model(path)
    (read,) = imported.layers
    assert read.options() == layer.options()
    tensors = layer.tensors()
    assert read.tensors().keys() == tensors.keys()
    for name, a in tensors.items():
        np.testing.assert_allclose(getattr(read, name), a, rtol=0, atol=2e-7)
    x = rng(1).normal(size=(30, layer.input_size)).astype(np.float32)
    same_answers(imported, [layer], x)
    (found,) = open_source(path).recurrent()
    kind = "GRU" if isinstance(layer, sl.GRU) else "LSTM"
    assert (found.where, found.text, found.refusal) == (
        kind.lower(),
        f"{kind} {layer.input_size} -> {layer.units}",
        "",
    )
    same_answers(sl.import_model(path, select=found.where), [layer], x)


# A wrong table, and a layer that shows it.
MUTANTS = {
    "i and f swapped": ("lstm", "foig", lstm()),
    "g and o swapped": ("lstm", "igfo", lstm()),
    "PyTorch's order": ("lstm", "ifgo", lstm()),
    "peepholes i, f, o": ("peepholes", "ifo", lstm(peep=True)),
    "r and z swapped": ("gru", "rzn", gru()),
}


@pytest.mark.parametrize("case", MUTANTS)
def test_a_wrong_gate_order_is_seen(case, monkeypatch, tmp_path):
    kind, order, layer = MUTANTS[case]
    path = one(layer, tmp_path)
    same_answers(sl.import_model(path), [layer])
    monkeypatch.setitem(gate_orders.ORDERS["onnx"], kind, order)
    with pytest.raises(AssertionError):
        same_answers(sl.import_model(path), [layer], atol=1e-3)


@pytest.mark.parametrize("after", [True, False])
def test_a_flipped_reset_is_seen(after, monkeypatch, tmp_path):
    layer = gru(reset_after=after)
    path = one(layer, tmp_path)
    attributes = Node.attributes

    def flipped(self: Node, **known: str) -> dict[str, Any]:
        given = attributes(self, **known)
        return given | {"linear_before_reset": int(not after)}

    monkeypatch.setattr(Node, "attributes", flipped)
    with pytest.raises(AssertionError):
        same_answers(sl.import_model(path), [layer], atol=1e-3)


def test_swapped_bias_halves_are_seen(tmp_path):
    """For reset after, where they are not just added."""
    layer = gru()
    made, inits = cell(layer, outputs=["y"])
    inits["gru.B"] = np.roll(inits["gru.B"], 3 * layer.units, axis=1)
    with pytest.raises(AssertionError):
        same_answers(sl.import_model(save(model([made], inits), tmp_path)), [layer], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("columns", [1, 16])
def test_quantized_weights(dtype, columns, tmp_path):
    """onnxruntime's DynamicQuantizeLSTM holds these numbers exactly."""
    r = rng(3)
    info = np.iinfo(dtype)
    w, h = (r.integers(info.min, info.max, (1, n, 16), dtype, endpoint=True) for n in (3, 4))
    scales = [r.uniform(0.002, 0.01, (1, columns)[columns == 1 :]).astype(np.float32)] * 2
    zeros = [r.integers(info.min, info.max, s.shape, dtype) for s in scales]
    inits = {"W": w, "R": h, "sw": scales[0], "zw": zeros[0], "sr": scales[1], "zr": zeros[1]}
    names = ["x", "W", "R", "", "", "", "", "", "sw", "zw", "sr", "zr"]
    made = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y"], name="q", domain="com.microsoft", hidden_size=4
    )
    imported = sl.import_model(save(model([made], inits), tmp_path))
    for name, stored, k in (("w_x", w, 0), ("w_h", h, 1)):
        exact = (stored.astype(np.float32) - zeros[k].astype(np.float32)) * scales[k]
        i, o, f, g = np.split(exact[0].T, 4)
        np.testing.assert_array_equal(
            getattr(imported.layers[0], name), np.concatenate([i, f, g, o])
        )
    assert open_source(tmp_path / "net.onnx").recurrent()[0].text == "DynamicQuantizeLSTM 3 -> 4"


ROUNDED = [
    node("DynamicQuantizeLinear", "lstm.Y", "q s z", name="round"),
    node("MatMulInteger", "q k z kz", "n", name="sum"),
    node("Cast", "n", "f", to=1),
    node("Mul", "s ks", "c", name="scales"),
    node("Mul", "f c", "m", name="scaled"),
    node("Add", "m b", "y"),
]
EIGHT_BIT = {
    "k": rng(12).integers(0, 256, (4, 2), np.uint8),
    "kz": np.array([100, 120], np.uint8),
    "ks": np.array([0.01, 0.02], np.float32),
}


def test_a_dense_layer_that_rounds(tmp_path):
    """As onnxruntime's quantize_dynamic writes it."""
    path = save(around(ROUNDED, EIGHT_BIT), tmp_path)
    source = open_source(path)
    assert source.quantizes
    exact = (EIGHT_BIT["k"].astype("f4") - EIGHT_BIT["kz"].astype("f4")) * EIGHT_BIT["ks"]
    same_answers(sl.import_model(path), [NET, Dense(exact.T, BIAS)])
    assert not open_source(one(NET, tmp_path)).quantizes


@pytest.mark.parametrize(
    ("place", "other", "who"),
    [
        (1, node("MatMulInteger", "q k z2 kz", "n", name="sum"), "sum' (MatMulInteger"),
        (1, node("MatMulInteger", "q kz z kz", "n", name="sum"), "sum' (MatMulInteger"),
        (1, node("MatMulInteger", "k q z kz", "n", name="sum"), "sum' (MatMulInteger"),
        (2, node("Cast", "n", "f", to=TensorProto.DOUBLE), "Cast' (Cast"),
        (3, node("Mul", "s s", "c", name="scales"), "scales' (Mul"),
        (4, node("Mul", "f s", "m", name="scaled"), "scaled' (Mul"),
        (4, node("Mul", "f ks", "m", name="scaled"), "scaled' (Mul"),
    ],
)
def test_other_layers_that_round(place, other, who, tmp_path):
    nodes = [*ROUNDED[:place], other, *ROUNDED[place + 1 :]]
    nodes.insert(0, node("DynamicQuantizeLinear", "lstm.Y_h", "q2 s2 z2", name="round 2"))
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(save(around(nodes, EIGHT_BIT), tmp_path))
    assert str(caught.value) == (
        f"node '{who}) is of no quantised layer as onnxruntime writes them; {SELECT}"
    )


# --- constants that are computed ------------------------------------------------------------------


def branch(name: str, layer: Any) -> Any:
    """A subgraph with an LSTM node whose weights are cut and joined from one pool."""
    made, inits = cell(layer, outputs=[f"{name}_Y"], W="W", R="R", B="B", name="LSTM_12")
    pool = np.concatenate([a.ravel() for a in inits.values()])
    inputs, units = layer.input_size, layer.units
    ends = np.cumsum([0, 4 * units * inputs, 4 * units * units, 8 * units])
    inits = {
        "pool": np.stack([pool, np.zeros_like(pool)]),
        "axis": np.array([1]),
        "zero": np.array(0),
    }
    nodes = [node("Gather", "pool zero", "row", name="row", axis=0)]
    shapes = ((1, 4 * units, inputs), (1, units, 4 * units), (1, 8 * units))
    for key, start, end, shape in zip("WRB", ends[:-1], ends[1:], shapes, strict=True):
        inits |= constants(**{f"{key}s": [start], f"{key}e": [end], f"{key}shape": shape[1:]})
        if key == "R":  # kept transposed
            a = pool[start:end].reshape(4 * units, units).T
            inits["pool"][0, start:end] = a.ravel()
        nodes += [
            node("Slice", f"row {key}s {key}e", f"{key}1", name=f"{key}1"),
            node("Reshape", f"{key}1 {key}shape", f"{key}2", name=f"{key}2"),
        ]
    nodes += [
        node("Transpose", "R2", "R3", name="R3", perm=[1, 0]),
        node("Unsqueeze", "R3 first", "R"),
        node("Unsqueeze", "W2 first", "W", name="W3"),
        node("Split", "B2", "B_w B_r", name="B3", num_outputs=2),
        node("Concat", "B_w B_r", "B4", name="B4", axis=0),
        node("Unsqueeze", "B4 first", "B", name="B5"),
        made,
    ]
    inits["first"] = np.array([0])
    return helper.make_graph(
        nodes,
        name,
        [],
        [helper.make_tensor_value_info(f"{name}_Y", FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in inits.items()],
    )


A, B = lstm(seed=1), lstm(seed=2)


def two_branches(condition: str, inits: dict[str, Any], **more: Any) -> Any:
    choice = helper.make_node(
        "If",
        [condition],
        ["y"],
        name="If_0",
        then_branch=branch("then", A),
        else_branch=branch("else", B),
    )
    return model([*more.pop("before", []), choice], inits, **more)


@pytest.mark.parametrize(("rate", "layer"), [(16000, A), (8000, B)])
def test_a_branch_that_folds(rate, layer, tmp_path):
    before = [node("Equal", "rate wanted", "is16k")]
    inits = constants(rate=rate, wanted=16000)
    path = save(two_branches("is16k", inits, before=before), tmp_path)
    same_answers(sl.import_model(path), [layer])
    assert [each.where for each in open_source(path).recurrent()] == [
        "If_0/else_branch/LSTM_12",
        "If_0/then_branch/LSTM_12",
    ]


def test_branches_chosen_while_it_runs(tmp_path):
    """The layers in them can be selected, with the right weights."""
    made = two_branches("is16k", {}, inputs={"is16k": []})
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    path = save(made, tmp_path)
    for where, layer in (("then", A), ("else", B)):
        select = f"If_0/{where}_branch/LSTM_12"
        same_answers(sl.import_model(path, select=select), [layer])
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path)
    assert str(caught.value) == (
        "node 'If_0' (If) chooses its branch while the graph runs, by no constant; select one "
        "recurrent layer: 'If_0/else_branch/LSTM_12', 'If_0/then_branch/LSTM_12'"
    )


def test_states_in_a_branch_are_not_reached(tmp_path):
    """Where the graph is for 10 steps, they would have to go from run to run."""
    made = two_branches("c", {"c": np.array(True), "shape": np.array([10, 4])}, x=(10, 1, 3))
    made.graph.node[0].output[0] = "z"
    made.graph.node.append(node("Reshape", "z shape", "y"))
    path = save(made, tmp_path)
    same_answers(sl.import_model(path), [A])
    with pytest.raises(UnsupportedModelError) as caught:
        open_source(path).answers(X, None)
    assert str(caught.value) == (
        "onnxruntime can't run the graph step by step: the states of node "
        "'If_0/then_branch/LSTM_12' (LSTM) can't be reached in its branch; compare it alone, by "
        "selecting it"
    )


def test_branches_in_branches(tmp_path):
    inner = helper.make_node(
        "If",
        ["yes"],
        ["inner"],
        name="If_3",
        then_branch=branch("then", A),
        else_branch=branch("else", B),
    )
    truth = [node("Constant", "", "one", value_int=1), node("Cast", "one", "yes", to=9)]
    made = helper.make_tensor_value_info("inner", FLOAT, None)
    outer = helper.make_graph([*truth, inner], "outer", [], [made])
    choice = helper.make_node(
        "If", ["c"], ["y"], name="If_0", then_branch=outer, else_branch=branch("other", B)
    )
    path = save(model([choice], {"c": np.array(True)}), tmp_path)
    same_answers(sl.import_model(path), [A])
    assert [each.where for each in open_source(path).recurrent()] == [
        "If_0/else_branch/LSTM_12",
        "If_0/then_branch/If_3/else_branch/LSTM_12",
        "If_0/then_branch/If_3/then_branch/LSTM_12",
    ]


def test_constants_that_vary_run_out(tmp_path):
    """Of sizes that the assumed length gives, again and again; nothing of it is needed."""
    nodes = [node("Shape", "x", "s"), node("Concat", "s big", "size", axis=0)]
    nodes += [node("ConstantOfShape", "size", f"c{k}", name=f"c{k}") for k in range(100)]
    inits = cell(NET)[1] | constants(big=[100_000])
    path = save(model([*nodes, cell(NET, outputs=["y"])[0]], inits), tmp_path)
    same_answers(sl.import_model(path), [NET])
    made = onnx.load(path)
    made.graph.output[0].name = "c99"
    with pytest.raises(
        UnsupportedModelError,
        match=r"^node 'c99' \(ConstantOfShape\) would make [\d,]+ numbers, too many for a file of",
    ):
        sl.import_model(save(made, tmp_path))


def test_weights_dequantised_by_the_graph(tmp_path):
    layer = lstm()
    made, inits = cell(layer, outputs=["y"])
    w = inits.pop("lstm.W")
    scale = np.float32(np.abs(w).max() / 127)
    inits |= {"q": np.round(w / scale).astype(np.int8), "s": scale}
    nodes = [node("DequantizeLinear", "q s", "lstm.W"), made]
    read = sl.import_model(save(model(nodes, inits), tmp_path)).layers[0]
    np.testing.assert_allclose(read.w_x, layer.w_x, atol=scale)


# --- around the cells -----------------------------------------------------------------------------

NET, SERIES = lstm(), lstm(1, 4, seed=3)
WEIGHTS = rng(5).normal(size=(4, 2)).astype(np.float32)
BIAS = np.array([0.5, -0.25], np.float32)
DENSE = Dense(WEIGHTS.T, BIAS)
START = constants(d=[1], W=WEIGHTS, b=BIAS)
SQUEEZE = node("Squeeze", "lstm.Y d", "s")


def around(nodes: list[Any], inits: dict[str, Any] | None = None, **more: Any) -> Any:
    """A model with NET at its start, and what stands behind it."""
    made, own = cell(NET, **more.pop("cell", {}))
    return model([*more.pop("before", []), made, *nodes], own | START | (inits or {}), **more)


def batch_norm_numbers(n: int) -> dict[str, Any]:
    r = rng(8)
    return constants(
        gamma=r.normal(size=n), beta=r.normal(size=n), mean=r.normal(size=n), var=r.uniform(1, 2, n)
    )


def normed(inits: dict[str, Any]) -> Dense:
    scale = inits["gamma"] / np.sqrt(inits["var"] + 1e-5)
    return Dense(np.diag(scale), inits["beta"] - inits["mean"] * scale)


BN4, BN3 = batch_norm_numbers(4), batch_norm_numbers(3)
LAST = constants(p=-1)
LAYER_2 = lstm(4, 5, seed=7)
CELL_2, INITS_2 = cell(LAYER_2, x="s", name="second")
LEARNED = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
TABLE = rng(6).normal(size=(7, 3)).astype(np.float32)
SHAPED = (  # what torch.onnx writes for states of an open batch
    [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "batch"),
        node("Unsqueeze", "batch zero", "batch1"),
        node("Concat", "one1 batch1 four", "zeros", axis=0),
        node("ConstantOfShape", "zeros", "h0"),
    ],
    constants(one=1, zero=[0], one1=[1], four=[4]),
)

# Name: the model, the layers that it is.
NETWORKS: dict[str, tuple[Any, list[Any]]] = {
    "a start that is repeated over the batch": (
        around(
            [],
            constants(p=[1], e=[2], ones=[1], h=[[LEARNED]]),
            before=[
                node("Shape", "x", "shape"),
                node("Slice", "shape p e", "n"),
                node("Concat", "ones n ones", "times", axis=0),
                node("Tile", "h times", "h0"),
            ],
            cell={"initial_h": "h0", "initial_c": "h0"},
            x=("T", "B", 3),
            outputs="lstm.Y",
        ),
        [replace(NET, h0=LEARNED, c0=LEARNED)],
    ),
    "half precision between": (
        around(
            [node("Cast", "lstm.Y", "y", name="back", to=FLOAT)],
            before=[node("Cast", "x", "half", to=TensorProto.FLOAT16)],
            cell={"x": "half"},
        ),
        [NET],
    ),
    "Gemm behind an unbatched sequence": (
        around([SQUEEZE, node("Squeeze", "s d", "s2", name="s2"), node("Gemm", "s2 W b", "y")]),
        [NET, DENSE],
    ),
    "Gemm with factors, transposed": (
        around(
            [
                SQUEEZE,
                node("Squeeze", "s d", "s2", name="s2"),
                node("Gemm", "s2 V b", "y", transB=1, alpha=2.0, beta=0.5),
            ],
            {"V": WEIGHTS.T.copy()},
        ),
        [NET, Dense(2 * WEIGHTS.T, BIAS / 2)],
    ),
    "MatMul and Add": (
        around([SQUEEZE, node("MatMul", "s W", "m"), node("Add", "b m", "y")]),
        [NET, DENSE],
    ),
    "Mul, Sub, Div by numbers": (
        around(
            [
                SQUEEZE,
                node("MatMul", "s W", "m"),
                node("Mul", "m two", "a"),
                node("Sub", "b a", "c"),
                node("Div", "c three", "y"),
            ],
            constants(two=2.0, three=[[[3.0]]]),
        ),
        [NET, Dense(-2 / 3 * WEIGHTS.T, BIAS / 3)],
    ),
    "functions": (
        around(
            [
                node("Tanh", "lstm.Y", "a"),
                node("Relu", "a", "r"),
                node("HardSigmoid", "r", "h", alpha=1 / 6),
                node("Sigmoid", "h", "g"),
                node("Softmax", "g", "y", axis=-1),
            ]
        ),
        [
            NET,
            *(Activation(f, 4) for f in ("tanh", "relu", "hard_sigmoid6", "sigmoid", "softmax")),
        ],
    ),
    "batch first": (
        around(
            [
                SQUEEZE,
                node("Transpose", "s", "t2", name="t2", perm=[1, 0, 2]),
                node("MatMul", "t2 W", "y"),
            ],
            before=[node("Transpose", "x", "t1", name="t1", perm=[1, 0, 2])],
            cell={"x": "t1"},
            x=("B", "T", 3),
        ),
        [NET, Dense(WEIGHTS.T, 0 * BIAS)],
    ),
    "batch norm before and behind": (
        around(
            [
                node("Gather", "lstm.Y_h zero", "s", axis=0),
                node("BatchNormalization", "s gamma beta mean var", "y"),
            ],
            BN4 | {k + "3": v for k, v in BN3.items()} | constants(zero=0),
            before=[
                node("BatchNormalization", "x gamma3 beta3 mean3 var3", "n", name="n"),
                node("Transpose", "n", "t", perm=[2, 0, 1]),
            ],
            cell={"x": "t"},
            x=("B", 3, "T"),
        ),
        [normed(BN3), NET, normed(BN4)],
    ),
    "embedding": (
        around(
            [node("Identity", "lstm.Y", "y")],
            {"E": TABLE},
            before=[node("Gather", "E x", "e"), node("Transpose", "e", "t", perm=[1, 0, 2])],
            cell={"x": "t"},
            x=("B", "T"),
            kind=INT64,
        ),
        [Embedding(TABLE), NET],
    ),
    "the last step, by Gather": (
        around([SQUEEZE, node("Gather", "s p", "g", axis=0), node("Gemm", "g W b", "y")], LAST),
        [NET, DENSE],
    ),
    "the last step, by Slice": (
        around(
            [SQUEEZE, node("Slice", "s p end zero", "l"), node("MatMul", "l W", "y")],
            constants(p=[-1], end=[2**62], zero=[0]),
        ),
        [NET, Dense(WEIGHTS.T, 0 * BIAS)],
    ),
    "the last step, by Y_h": (
        around([node("Squeeze", "lstm.Y_h z", "h"), node("Gemm", "h W b", "y")], constants(z=[0])),
        [NET, DENSE],
    ),
    "Y, Y_h and Y_c are all outputs": (around([], outputs="lstm.Y lstm.Y_h lstm.Y_c"), [NET]),
    "just Y_h": (around([], outputs="lstm.Y_h"), [NET]),
    "two layers": (
        around([SQUEEZE, CELL_2], INITS_2, outputs="second.Y"),
        [NET, LAYER_2],
    ),
    "h of the upper of two layers": (
        around(
            [
                SQUEEZE,
                CELL_2,
                node("Concat", "lstm.Y_h second.Y_h", "h_n", axis=0),
                node("Gather", "h_n p", "y", axis=0),
            ],
            INITS_2 | LAST,
        ),
        [NET, LAYER_2],
    ),
    "h of the upper of two layers, by Slice": (
        around(
            [
                SQUEEZE,
                CELL_2,
                node("Concat", "lstm.Y_h second.Y_h", "h_n", axis=0),
                node("Slice", "h_n q e p", "y"),
            ],
            INITS_2 | constants(q=[1], e=[2], p=[0]),
            outputs="y h_n",
        ),
        [NET, LAYER_2],
    ),
    "two layers, states in and out": (
        around(
            [
                SQUEEZE,
                cell(LAYER_2, x="s", name="second", initial_h="h1", initial_c="c1")[0],
                node("Concat", "lstm.Y_h second.Y_h", "h_n", axis=0),
            ],
            INITS_2 | constants(p=[0], e=[1]),
            before=[node("Slice", "h p e", "h0s", name="h0s")],
            cell={"initial_h": "h0s", "initial_c": "c"},
            inputs={"h": [2, 1, 4], "c": [1, 1, 4], "h1": [1, 1, 5], "c1": [1, 1, 5]},
            outputs="second.Y h_n lstm.Y_c",
        ),
        [NET, LAYER_2],
    ),
    "one step, with states": (
        around(
            [
                node("Squeeze", "lstm.Y", "s"),
                node("Unsqueeze", "s zero1", "s1"),
                node("MatMul", "s1 W", "y"),
            ],
            constants(zero1=[0]),
            before=[
                node("Unsqueeze", "x zero1", "t1"),
                node("Unsqueeze", "t1 zero1", "t", name="t2"),
            ],
            cell={"x": "t", "initial_h": "h", "initial_c": "c"},
            inputs={"h": [1, 1, 4], "c": [1, 1, 4]},
            x=(3,),
        ),
        [NET, Dense(WEIGHTS.T, 0 * BIAS)],
    ),
    "states of an open batch": (
        around(
            [node("Identity", "lstm.Y", "y")],
            SHAPED[1],
            before=SHAPED[0],
            cell={"initial_h": "h0", "initial_c": "h0"},
            x=("T", "B", 3),
        ),
        [NET],
    ),
    "learned states of an open batch": (
        around(
            [node("Identity", "lstm.Y", "y")],
            SHAPED[1] | constants(learned=[[[0.1, 0.2, 0.3, 0.4]]]),
            before=[*SHAPED[0][:-1], node("Expand", "learned zeros", "h0")],
            cell={"initial_h": "h0", "initial_c": "h0"},
            x=("T", "B", 3),
        ),
        [lstm(h0=LEARNED, c0=LEARNED)],
    ),
    "a batch of 4, fixed, and 10 steps": (
        around(
            [node("Reshape", "lstm.Y shape", "r"), node("MatMul", "r W", "y")],
            constants(shape=[10, 4, 4], start=np.tile([0.1, 0.2, 0.3, 0.4], (1, 4, 1))),
            cell={"initial_h": "start"},
            x=(10, 4, 3),
        ),
        [lstm(h0=LEARNED), Dense(WEIGHTS.T, 0 * BIAS)],
    ),
    "reshaped without mixing": (
        around(
            [node("Reshape", "lstm.Y shape", "r"), node("Gemm", "r W b", "y")],
            constants(shape=[-1, 4]),
            x=("T", 1, 3),
        ),
        [NET, DENSE],
    ),
    "a series [B, T] without features": (
        model(
            [
                node("Unsqueeze", "x two", "u"),
                node("Transpose", "u", "t", perm=[1, 0, 2]),
                cell(SERIES, x="t", outputs=["y"])[0],
            ],
            cell(SERIES)[1] | constants(two=[2]),
            ("B", "T"),
        ),
        [SERIES],
    ),
    "no shape of x declared": (around([node("Dropout", "lstm.Y", "y")], x=None), [NET]),
    "double": (
        model(
            [cell(NET, outputs=["y"])[0]],
            {k: a.astype(float) for k, a in cell(NET)[1].items()},
            kind=TensorProto.DOUBLE,
        ),
        [NET],
    ),
    "operator set 9": (
        around(
            [
                node("Squeeze", "lstm.Y", "s", axes=[1]),
                node("Slice", "s", "l", starts=[-1], ends=[2**31], axes=[0]),
                node("Squeeze", "l", "l2", name="l2", axes=[0]),
                node("Gemm", "l2 W b", "g"),
                node("Softmax", "g", "y"),
            ],
            opset=9,
        ),
        [NET, DENSE, Activation("softmax", 2)],
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_networks(case, tmp_path):
    made, layers = NETWORKS[case]
    imported = sl.import_model(save(made, tmp_path))
    x = rng(2).normal(size=(30, imported.input_size)).astype(np.float32)
    if imported.vocabulary:
        x = rng(2).integers(0, imported.vocabulary, (30, 1)).astype(np.float32)
    same_answers(imported, layers, x)


def test_dtypes(tmp_path):
    assert sl.import_model(save(NETWORKS["double"][0], tmp_path)).dtype == np.float64
    half = {k: a.astype(np.float16) for k, a in cell(NET)[1].items()}
    made = model([cell(NET, outputs=["y"])[0]], half, kind=TensorProto.FLOAT16)
    read = sl.import_model(save(made, tmp_path))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read.layers[0].w_x, NET.w_x, rtol=1e-3)


# --- refusals -------------------------------------------------------------------------------------

SELECT = "select one recurrent layer, or export without it"


def with_node(**more: Any) -> Any:
    made, inits = cell(NET, outputs=["y"], **more)
    return model([made], inits)


def unrolled() -> Any:
    nodes = [
        node("Gemm", "x W b", "g"),
        node("Split", "g", "a c", num_outputs=2),
        node("Sigmoid", "a", "i"),
        node("Tanh", "c", "j"),
        node("Mul", "i j", "y"),
    ]
    return model(nodes, START | constants(W=np.zeros((3, 2))), (1, 3))


def looped() -> Any:
    body = helper.make_graph(
        [cell(NET, x="xs", outputs=["ys"], W="W")[0]],
        "body",
        [helper.make_tensor_value_info("xs", FLOAT, None)],
        [helper.make_tensor_value_info("ys", FLOAT, None)],
    )
    made = node("Scan", "x", "y", num_scan_inputs=1, body=body)
    return model([made], cell(NET)[1] | {"W": cell(NET)[1]["lstm.W"]})


def by_length() -> Any:
    """An If that takes other weights for sequences of 7 steps."""

    def constant(name: str) -> Any:
        made = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([node("Identity", "lstm.W", name)], name, [], [made])

    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "steps"),
        node("Equal", "steps seven", "short"),
        node("If", "short", "W", then_branch=constant("a"), else_branch=constant("b")),
        cell(NET, outputs=["y"], W="W")[0],
    ]
    return model(nodes, cell(NET)[1] | constants(zero=0, seven=7))


def renamed_input() -> Any:
    made = with_node()
    made.graph.node[0].input[1] = "x2"
    made.graph.input.append(helper.make_tensor_value_info("x2", FLOAT, [1, 16, 3]))
    return made


def huge() -> Any:
    nodes = [
        node("ConstantOfShape", "shape", "z"),
        node("Slice", "z zero one", "W"),
        cell(NET, outputs=["y"], W="W")[0],
    ]
    return model(nodes, cell(NET)[1] | constants(shape=[1 << 20, 1 << 20], zero=[0], one=[1]))


def function_inside() -> Any:
    made = with_node()
    made.functions.append(
        helper.make_function("mine", "Cell", ["a"], ["b"], [node("Tanh", "a", "b")], [])
    )
    return made


def taken_twice() -> Any:
    return around([node("Tanh", "lstm.Y", "y"), node("Relu", "lstm.Y", "y")])


def two_initializers() -> Any:
    made = with_node()
    made.graph.initializer.append(made.graph.initializer[0])
    return made


def nine_inputs() -> Any:
    made, inits = cell(NET, outputs=["y"])
    made.input.extend(["x"] * (9 - len(made.input)))
    return model([made], inits)


def quantized(**changed: Any) -> Any:
    """A DynamicQuantizeLSTM with such inputs in place of W's."""
    inits = {"w": np.ones((1, 3, 16), np.int8), "scale": np.ones(1, np.float32)} | changed
    inits = {"zero": np.zeros(1, np.int8), "r": np.ones((1, 4, 16), np.int8)} | inits
    names = ["x", "w", "r", *[""] * 5, "scale", "zero", "scale", "zero"]
    made = helper.make_node("DynamicQuantizeLSTM", names, ["y"], name="q", domain="com.microsoft")
    return model([made], inits)


def states_alone() -> Any:
    joined = node("Concat", "lstm.Y_h second.Y_h", "y", axis=0)
    return around(
        [SQUEEZE, cell(lstm(4, 4), x="s", name="second")[0], joined],
        cell(lstm(4, 4), name="second")[1],
    )


REFUSED: dict[str, tuple[Any, str]] = {
    "reverse": (
        with_node(direction="reverse"),
        "node 'lstm' (LSTM) has direction 'reverse', which needs the future and can't be "
        "streamed; train with a forward one",
    ),
    "bidirectional": (
        with_node(direction="bidirectional"),
        "node 'lstm' (LSTM) has direction 'bidirectional', which needs the future and can't be "
        "streamed; train with a forward one",
    ),
    "RNN": (
        model(
            [node("RNN", "x W R", "y", hidden_size=4)],
            constants(W=np.zeros((1, 4, 3)), R=np.zeros((1, 4, 4))),
        ),
        "node 'RNN' (RNN) is neither an LSTM nor a GRU, and streamlstm has no other recurrent "
        "layer; train with one of these",
    ),
    "an unknown attribute": (
        with_node(peek=1),
        "node 'lstm' (LSTM) has the attribute 'peek', which is not known; export without it",
    ),
    "an attribute of another type": (
        with_node(clip="much"),
        "attribute 'clip' of node 'lstm' (LSTM) is no single float; the file is damaged",
    ),
    "clip": (
        with_node(clip=-1.0),
        "node 'lstm' (LSTM) has clip -1.0; expected a number above 0",
    ),
    "layout": (with_node(layout=2), "node 'lstm' (LSTM) has layout 2; known are 0 and 1"),
    "input_forget": (
        with_node(input_forget=2),
        "node 'lstm' (LSTM) has input_forget 2; known are 0 and 1",
    ),
    "hidden_size": (
        with_node(hidden_size=5),
        "node 'lstm' (LSTM) has hidden_size 5, but R is for 4 units; the file is damaged",
    ),
    "activation": (
        with_node(activations=["Sigmoid", "Affine", "Tanh"]),
        "node 'lstm' (LSTM) has the activation 'Affine'; known are Tanh, Sigmoid, Relu and "
        "HardSigmoid",
    ),
    "activations": (
        with_node(activations=["Sigmoid", "Tanh"]),
        "node 'lstm' (LSTM) has 2 activations, expected 3; the file is damaged",
    ),
    "hard sigmoid": (
        with_node(activations=["HardSigmoid", "Tanh", "Tanh"], activation_alpha=[0.3]),
        "node 'lstm' (LSTM) has a HardSigmoid with alpha 0.3 and beta 0.5; known are alpha 0.2 "
        "or 1/6 with beta 0.5",
    ),
    "whose alpha": (
        with_node(activations=["HardSigmoid", "Tanh", "Tanh"], activation_alpha=[0.2, 0.0, 0.0]),
        "node 'lstm' (LSTM) has more activation_alpha or activation_beta than activations that "
        "take one, so whose they are can't be told; export it with as many as HardSigmoids",
    ),
    "shape of B": (
        model([cell(NET, outputs=["y"], B="b")[0]], cell(NET)[1] | START),
        "B of node 'lstm' (LSTM) is float32 [2], expected floats [1, 32]; the file is damaged",
    ),
    "shape of W": (
        model([cell(NET, outputs=["y"], W="b")[0]], cell(NET)[1] | START),
        "W of node 'lstm' (LSTM) is no array of floats [1, 4H, ...]; the file is damaged",
    ),
    "shape of P": (
        model([cell(NET, outputs=["y"], P="b")[0]], cell(NET)[1] | START),
        "P of node 'lstm' (LSTM) is float32 [2], expected floats [1, 12]; the file is damaged",
    ),
    "weights of a graph input": (
        renamed_input(),
        "W of node 'lstm' (LSTM) is no constant: it comes from a graph input; export with "
        "constant weights",
    ),
    "sequence_lens": (
        model(
            [helper.make_node("LSTM", ["x", "lstm.W", "lstm.R", "", "n"], ["y"], name="lstm")],
            cell(NET)[1] | {"n": np.array([3], np.int32)},
        ),
        "node 'lstm' (LSTM) has sequence_lens, which end some sequences early; a stream has no "
        "end: export without it",
    ),
    "states that differ in the batch": (
        around(
            [],
            constants(h=[[[1.0] * 4, [2.0] * 4]]),
            cell={"initial_h": "h"},
            x=("T", 2, 3),
            outputs="lstm.Y",
        ),
        "initial_h of node 'lstm' (LSTM) differs from sequence to sequence of the batch; export "
        "with a batch of 1",
    ),
    "a decoder": (
        around(
            [
                SQUEEZE,
                cell(LAYER_2, x="s", name="second", initial_h="lstm.Y_h")[0],
            ],
            INITS_2,
            outputs="second.Y",
        ),
        "initial_h of node 'second' (LSTM) is computed while the graph runs; export with a "
        "constant or a graph input there",
    ),
    "a state joined to another": (
        around(
            [],
            constants(one=[[[1.0] * 4]], p=[1], e=[2]),
            before=[node("Concat", "h one", "hh", axis=0), node("Slice", "hh p e", "h1")],
            cell={"initial_h": "h1"},
            inputs={"h": [1, 1, 4]},
            outputs="lstm.Y",
        ),
        "initial_h of node 'lstm' (LSTM) is computed while the graph runs; export with a "
        "constant or a graph input there",
    ),
    "weights chosen by the length": (
        by_length(),
        "W of node 'lstm' (LSTM) depends on the size of the graph's input; export with constant "
        "weights",
    ),
    "a layer that takes the last step": (
        around(
            [cell(lstm(4, 5), x="lstm.Y_h", name="second")[0]],
            cell(lstm(4, 5), name="second")[1],
            outputs="second.Y",
        ),
        "node 'second' (LSTM) starts when the sequence has ended, from the last step of the layer "
        "below; a stream has no end: select one recurrent layer",
    ),
    "axes": (
        around(
            [],
            cell={"x": "t"},
            before=[node("Transpose", "x", "t", perm=[0, 2, 1])],
            x=("T", 1, 3),
            outputs="lstm.Y",
        ),
        "X of node 'lstm' (LSTM) has its steps, batch or features on other axes than the node "
        "takes (features must be 3); export with an input [steps, batch, features]",
    ),
    "unrolled": (
        unrolled(),
        "no LSTM or GRU node is in the graph (mostly Gemm, Split, Sigmoid, Tanh): if its layers "
        "were unrolled into steps or loops, export them whole, from torch.nn.LSTM rather than "
        "LSTMCell, or from Keras without unroll",
    ),
    "a loop": (
        looped(),
        "node 'Scan' (Scan) runs a graph of its own in a loop, which can't be imported; export "
        "with LSTM or GRU nodes, or select one recurrent layer",
    ),
    "an operator": (
        around([SQUEEZE, node("LayerNormalization", "s b", "y")]),
        "node 'LayerNormalization' (LayerNormalization) is an operator that streamlstm does not "
        f"have; {SELECT}",
    ),
    "an operator of another domain": (
        around([SQUEEZE, node("FusedMatMul", "s W", "y", domain="com.microsoft")]),
        "node 'FusedMatMul' (com.microsoft.FusedMatMul) is an operator that streamlstm does not "
        f"have; {SELECT}",
    ),
    "a residual": (
        around([SQUEEZE, node("Tanh", "s", "t"), node("Add", "s t", "y")]),
        "node 'Add' (Add) joins two paths through the network; streamlstm runs one after the "
        "other: select one recurrent layer",
    ),
    "a mean over the steps": (
        around([node("ReduceMean", "lstm.Y", "y", axes=[0])], opset=13),
        f"node 'ReduceMean' (ReduceMean) is an operator that streamlstm does not have; {SELECT}",
    ),
    "steps among the features": (
        around([node("Reshape", "lstm.Y shape", "y")], constants(shape=[1, 40]), x=(10, 1, 3)),
        "node 'Reshape' (Reshape) makes [1, 40] of [10, 1, 1, 4], so that steps or features mix; "
        f"{SELECT}",
    ),
    "steps and features swapped": (
        around([node("Reshape", "lstm.Y shape", "y")], constants(shape=[4, 10]), x=(10, 1, 3)),
        "node 'Reshape' (Reshape) makes [4, 10] of [10, 1, 1, 4], so that steps or features mix; "
        f"{SELECT}",
    ),
    "a dense layer over the steps": (
        around(
            [SQUEEZE, node("Transpose", "s", "t", perm=[1, 2, 0]), node("MatMul", "t W", "y")],
            x=(4, 1, 3),
        ),
        "node 'MatMul' (MatMul) sums over an axis that is not that of its features; " + SELECT,
    ),
    "softmax over the steps": (
        around([SQUEEZE, node("Softmax", "s", "y", axis=0)]),
        "node 'Softmax' (Softmax) goes over an axis that is not the last one, of its features; "
        + SELECT,
    ),
    "the first step": (
        around([SQUEEZE, node("Gather", "s p", "y", axis=0)], constants(p=0)),
        f"node 'Gather' (Gather) takes out a part that is not the last step; {SELECT}",
    ),
    "some features": (
        around([SQUEEZE, node("Slice", "s p e a", "y")], constants(p=[0], e=[2], a=[2])),
        f"node 'Slice' (Slice) takes out some of the features; {SELECT}",
    ),
    "one sequence of the batch": (
        around([SQUEEZE, node("Gather", "s p", "y", axis=1)], constants(p=0), x=("T", 2, 3)),
        f"node 'Gather' (Gather) takes out a part that is not the last step; {SELECT}",
    ),
    "a bias for each step": (
        around([SQUEEZE, node("Add", "s c", "y")], constants(c=np.ones((10, 1, 4))), x=(10, 1, 3)),
        "node 'Add' (Add) has constants [10, 1, 4] that are not one for each feature; " + SELECT,
    ),
    "a bias for each row": (
        around(
            [SQUEEZE, node("Squeeze", "s d", "q", name="q"), node("Gemm", "q W c", "y")],
            constants(c=np.ones((2, 1))),
            x=(2, 1, 3),
        ),
        f"node 'Gemm' (Gemm) has weights [2, 4] and biases [2, 1]; {SELECT}",
    ),
    "transA": (
        around(
            [SQUEEZE, node("Squeeze", "s d", "q", name="q"), node("Gemm", "q W b", "y", transA=1)]
        ),
        f"node 'Gemm' (Gemm) has transA, which would make steps of the features; {SELECT}",
    ),
    "a batch norm in training": (
        around(
            [
                node("Squeeze", "lstm.Y_h z", "s"),
                node("BatchNormalization", "s gamma beta mean var", "y", training_mode=1),
            ],
            BN4 | constants(z=[0]),
        ),
        "node 'BatchNormalization' (BatchNormalization) is a batch normalisation in training, or "
        f"not for each channel; {SELECT}",
    ),
    "dropout in training": (
        around([node("Dropout", "lstm.Y r t", "y")], constants(r=0.5) | {"t": np.array(True)}),
        f"node 'Dropout' (Dropout) drops numbers, as in training; {SELECT}",
    ),
    "a cast": (
        around([node("Cast", "lstm.Y", "y", to=TensorProto.INT32)]),
        f"node 'Cast' (Cast) changes the type of the numbers; {SELECT}",
    ),
    "constants beside": (
        around([SQUEEZE, node("Concat", "s c", "y", axis=2)], constants(c=np.zeros((1, 1, 1)))),
        f"node 'Concat' (Concat) puts constants beside the network's numbers; {SELECT}",
    ),
    "a second input": (
        around([SQUEEZE, node("Concat", "s z", "y", axis=2)], inputs={"z": ["T", 1, 2]}),
        "node 'Concat' (Concat) takes a recurrent state or a second input of the graph, which "
        "can't be imported; select one recurrent layer",
    ),
    "the cell as the answer": (
        around([node("Tanh", "lstm.Y_c", "y")]),
        "node 'Tanh' (Tanh) takes a recurrent state or a second input of the graph, which can't "
        "be imported; select one recurrent layer",
    ),
    "two heads": (
        around(
            [SQUEEZE, node("Tanh", "s", "a"), node("MatMul", "s W", "m"), node("Relu", "m", "b2")],
            outputs="a b2",
        ),
        "outputs 'a' and 'b2' come from different layers; a network here has one output: cut the "
        "graph behind it, or select one recurrent layer",
    ),
    "an answer that knows no input": (
        around([node("Identity", "b", "y")]),
        "none of the outputs ['y'] is computed from the graph's input; select one recurrent layer",
    ),
    "the length as a factor": (
        around(
            [
                node("Shape", "x", "shape"),
                node("Gather", "shape p", "n"),
                node("Cast", "n", "nf", to=1),
                node("Mul", "lstm.Y nf", "y"),
            ],
            constants(p=0),
        ),
        "the network depends on the length of the sequence, which a stream has not; select one "
        "recurrent layer",
    ),
    "a huge constant": (
        huge(),
        "W of node 'lstm' (LSTM) is no constant: node 'ConstantOfShape' (ConstantOfShape) would "
        "make 1,099,511,627,776 numbers, too many for a file of this size; export with constant "
        "weights",
    ),
    "local functions": (
        function_inside(),
        "{path} holds local functions, such as 'Cell'; inline them first with "
        "onnx.inliner.inline_local_functions",
    ),
    "a newer operator set": (
        model([cell(NET, outputs=["y"])[0]], cell(NET)[1], opset=99),
        "{path} is of operator set 99; export with one from 1 to 28",
    ),
    "one name twice": (
        taken_twice(),
        "node 'Relu' (Relu) makes a value of a name that is taken; the file is damaged",
    ),
    "two initializers of a name": (
        two_initializers(),
        "two initializers of the graph have the same name; the file is damaged",
    ),
    "a value that nothing makes": (
        around([node("Add", "lstm.Y nowhere", "y")]),
        "node 'Add' (Add) takes 'nowhere', which nothing makes; the file is damaged",
    ),
    "an order of other axes": (
        around([node("Transpose", "lstm.Y", "y", perm=[0, 0, 1, 2])]),
        "node 'Transpose' (Transpose) orders 4 axes by [0, 0, 1, 2]; " + SELECT,
    ),
    "squeezing an axis that is not there": (
        around([node("Squeeze", "lstm.Y c", "y")], constants(c=[9])),
        "node 'Squeeze' (Squeeze) has axes [9] of 4; " + SELECT,
    ),
    "squeezing the features": (
        around([node("Squeeze", "lstm.Y c", "y")], constants(c=[3])),
        "node 'Squeeze' (Squeeze) drops an axis that is not of size 1; " + SELECT,
    ),
    "unsqueezing nothing": (
        around([node("Unsqueeze", "lstm.Y", "y")]),
        "node 'Unsqueeze' (Unsqueeze) has no axes; " + SELECT,
    ),
    "a place on an axis that is not there": (
        around([node("Gather", "lstm.Y p", "y", axis=9)], LAST),
        "node 'Gather' (Gather) has no axis 9; " + SELECT,
    ),
    "a place that is not there": (
        around([node("Gather", "lstm.Y c", "y")], constants(c=99), x=(10, 1, 3)),
        "node 'Gather' (Gather) takes out what is not there; " + SELECT,
    ),
    "a slice of no places": (
        around([node("Slice", "lstm.Y", "y")]),
        "node 'Slice' (Slice) has no starts and ends; " + SELECT,
    ),
    "a slice of places that don't fit": (
        around([node("Slice", "lstm.Y c d", "y")], constants(c=[0, 0])),
        "node 'Slice' (Slice) has starts, ends, axes and steps that don't fit each other; "
        + SELECT,
    ),
    "scales of other weights": (
        quantized(zero=np.zeros((1, 2), np.int8)),
        "W of node 'q' (com.microsoft.DynamicQuantizeLSTM) is not 8-bit [1, n, 4H] with a "
        "scale and zero point [1] or [1, 4H]; the file is damaged",
    ),
    "a constant of two values": (
        around(
            [node("Constant", "", "k", value_int=1, value_float=2.0), node("Mul", "lstm.Y k", "y")]
        ),
        "node 'Constant' (Constant) has 2 values; the file is damaged",
    ),
    "constants that don't fit each other": (
        around([node("Add", "W c", "k"), node("MatMul", "lstm.Y k", "y")], constants(c=[1.0] * 7)),
        "node 'Add' (Add) has inputs that don't fit it or each other; the file is damaged",
    ),
    "a negative size": (
        around(
            [node("ConstantOfShape", "c", "k"), node("MatMul", "lstm.Y k", "y")], constants(c=[-4])
        ),
        "node 'ConstantOfShape' (ConstantOfShape) has inputs that don't fit it or each other;"
        " the file is damaged",
    ),
    "a cast to text": (
        around([node("Cast", "W", "k", to=TensorProto.STRING), node("MatMul", "lstm.Y k", "y")]),
        "node 'Cast' (Cast) casts to a type that is no number's",
    ),
    "a constant of text": (
        around(
            [
                node(
                    "ConstantOfShape",
                    "d",
                    "k",
                    value=helper.make_tensor("", TensorProto.STRING, [1], [b"a"]),
                ),
                node("MatMul", "lstm.Y k", "y"),
            ]
        ),
        "node 'ConstantOfShape' (ConstantOfShape) makes what is no array of numbers",
    ),
    "weights of text": (
        around([node("MatMul", "lstm.Y k", "y")], {"k": np.array(["a"])}),
        "tensor 'k' holds object, not numbers",
    ),
    "a product with nothing": (
        around([node("MatMul", "lstm.Y", "y")]),
        "node 'MatMul' (MatMul) lacks its input 1; the file is damaged",
    ),
    "axes that are no whole numbers": (
        around([node("Squeeze", "lstm.Y b", "y")]),
        "node 'Squeeze' (Squeeze) has float32 where it needs whole numbers",
    ),
    "weights that are whole numbers": (
        around([node("MatMul", "lstm.Y k", "y")], constants(k=[[1]] * 4)),
        "node 'MatMul' (MatMul) has constants of int64; expected floats",
    ),
    "a Gemm of four axes": (
        around([node("Gemm", "lstm.Y W b", "y")]),
        "node 'Gemm' (Gemm) takes 4 axes; a Gemm takes 2; " + SELECT,
    ),
    "weights that are no matrix": (
        around([node("MatMul", "lstm.Y k", "y")], constants(k=[1.0] * 4)),
        "node 'MatMul' (MatMul) has weights [4]; expected a matrix; " + SELECT,
    ),
    "axes of an old operator": (
        around([node("Add", "lstm.Y b", "y", broadcast=1)], opset=6),
        "node 'Add' (Add) has axes of its own (operator set below 7); " + SELECT,
    ),
    "constants for other features": (
        around([node("Add", "lstm.Y b", "y")]),
        "node 'Add' (Add) has constants [2] for 4 features; " + SELECT,
    ),
    "no constants": (
        model(
            [node("Add", "x c", "a"), cell(NET, x="a", outputs=["y"])[0]],
            cell(NET)[1] | constants(c=[0.0] * 0),
            ("T", 1, "F"),
        ),
        "node 'Add' (Add) has constants [0] for 1 feature; " + SELECT,
    ),
    "a batch norm of other features": (
        around(
            [
                node("Squeeze", "lstm.Y_h d", "s"),
                node("BatchNormalization", "s gamma beta mean var", "y"),
            ],
            BN3 | {"d": np.array([0])},
        ),
        "node 'BatchNormalization' (BatchNormalization) has no four numbers for each feature;"
        " " + SELECT,
    ),
    "a function before the width is known": (
        model(
            [node("Tanh", "x", "a"), cell(NET, x="a", outputs=["y"])[0]],
            cell(NET)[1],
            ("T", "B", "F"),
        ),
        "node 'Tanh' (Tanh) needs the size of the features, which the graph's input does not "
        "tell; export with a fixed one",
    ),
    "rows of a table by floats": (
        around([node("Gather", "W x", "y")]),
        "node 'Gather' (Gather) looks up what is no embedding of the events; " + SELECT,
    ),
    "columns of a table": (
        model(
            [node("Gather", "k x", "e", axis=1), cell(NET, x="e", outputs=["y"])[0]],
            cell(NET)[1] | {"k": TABLE},
            ("T", 1),
            kind=INT64,
        ),
        "node 'Gather' (Gather) looks up columns; expected rows; " + SELECT,
    ),
    "more inputs": (
        nine_inputs(),
        "node 'lstm' (LSTM) has more inputs than are known",
    ),
    "states alone": (
        states_alone(),
        "the outputs ['y'] are states that a sequence ends with, and not h of one layer; "
        "export the last layer's output too, or select one recurrent layer",
    ),
    "a start that is the length": (
        around(
            [],
            constants(p=[0], e=[1], size=[1, 1, 4]),
            before=[
                node("Shape", "x", "shape"),
                node("Slice", "shape p e", "t"),
                node("Cast", "t", "f", to=1),
                node("Expand", "f size", "h"),
            ],
            cell={"initial_h": "h"},
            outputs="lstm.Y",
        ),
        "the network depends on the length of the sequence, which a stream has not; select "
        "one recurrent layer",
    ),
    "an encoder and a decoder": (
        around(
            [cell(lstm(3, 4), name="second", initial_h="lstm.Y_h")[0]],
            cell(lstm(3, 4), name="second")[1],
            outputs="second.Y",
        ),
        "initial_h of node 'second' (LSTM) is computed while the graph runs; export with a "
        "constant or a graph input there",
    ),
    "more nodes": (
        around([node("Relu", f"r{k}", f"r{k + 1}", name=f"r{k}") for k in range(10_000)]),
        "{path} has 10,001 nodes, more than the 10,000 that are followed; export its "
        "recurrent layers whole, not unrolled into steps",
    ),
    "more layers": (
        around(
            [
                node("Relu", f"r{k}" if k else "lstm.Y", f"r{k + 1}", name=f"r{k}")
                for k in range(300)
            ],
            outputs="r300",
        ),
        "the network has more than 256 layers, one behind the other",
    ),
    "more inputs than can be tried": (
        around(
            [node("Elu", "lstm.Y", f"r{k}", name=f"r{k}") for k in range(1000)],
            inputs={f"i{k}": ["a", "b", "c"] for k in range(20)},
            outputs="r0",
        ),
        "the graph has too many inputs to try which one holds the events; select one "
        "recurrent layer",
    ),
    "no graph": (
        helper.make_model(helper.make_graph([], "empty", [], [])),
        "{path} holds no ONNX graph; is the file complete?",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, tmp_path):
    made, sentence = REFUSED[case]
    path = save(made, tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path)
    assert str(caught.value) == sentence.replace("{path}", str(path))


@pytest.mark.parametrize("case", ["an operator", "a residual", "two heads", "a cast"])
def test_a_layer_can_be_taken_out_all_the_same(case, tmp_path):
    path = save(REFUSED[case][0], tmp_path)
    same_answers(sl.import_model(path, select="lstm"), [NET])


def test_layers_that_cannot_be_imported_are_listed(tmp_path):
    made, inits = cell(NET, outputs=["back"], direction="reverse", name="back")
    path = save(around([made], inits, outputs="lstm.Y"), tmp_path)
    back, forward = sorted(open_source(path).recurrent(), key=lambda each: each.where)
    assert (back.where, back.layer, back.text) == ("back", None, "LSTM 3 -> 4")
    assert back.refusal.startswith("node 'back' (LSTM) has direction 'reverse'")
    assert forward.layer is not None
    same_answers(sl.import_model(path), [NET])  # it is on no way to the output
    for take in (
        lambda: sl.import_model(path, select="back"),
        lambda: open_source(path).answers(X, "back"),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            take()
        assert str(caught.value) == back.refusal


def test_nodes_without_names(tmp_path):
    made, inits = cell(NET, outputs=["y"])
    made.name = ""
    twin = helper.make_node("Identity", ["y"], ["z"])
    path = save(model([made, twin], inits, outputs="z"), tmp_path)
    assert [each.where for each in open_source(path).recurrent()] == ["LSTM_0"]


def test_nodes_of_one_name(tmp_path):
    cells = [
        cell(lstm(4, 4) if k else NET, x=f"y{k}" if k else "x", outputs=[f"y{k + 1}"])
        for k in range(3)
    ]
    nodes, inits = [made for made, _ in cells], {}
    for k, (made, own) in enumerate(cells):
        inits |= {f"{name}{k}": a for name, a in own.items()}
        made.input[1:4] = [f"{name}{k}" for name in made.input[1:4]]
    nodes[1].name = "lstm#2"
    squeezes = [node("Squeeze", f"y{k} d", f"s{k}", name=f"s{k}") for k in (1, 2)]
    nodes[1].input[0], nodes[2].input[0] = "s1", "s2"
    made = model(
        [nodes[0], squeezes[0], nodes[1], squeezes[1], nodes[2]], inits | START, outputs="y3"
    )
    source = open_source(save(made, tmp_path))
    assert [each.where for each in source.recurrent()] == ["lstm", "lstm#2", "lstm#3"]


def test_a_flow_that_the_file_tells_itself_is_refused(tmp_path):
    path = one(NET, tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path, flow=["lstm"])
    assert str(caught.value) == f"{path} tells its flow itself; leave out flow="


def test_without_onnx(tmp_path, monkeypatch):
    path = one(NET, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path)
    assert str(caught.value) == f"reading {path} needs onnx: pip install 'streamlstm[onnx]'"


# --- external data --------------------------------------------------------------------------------


def outside(tmp_path: Any, location: str, **more: Any) -> Any:
    """A file whose W is kept in another one, named `location`."""
    made, inits = cell(NET, outputs=["y"])
    proto = model([made], inits)
    w = next(t for t in proto.graph.initializer if t.name == "lstm.W")
    content = w.raw_data
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": len(content), **more}.items():
        w.external_data.add(key=key, value=str(value))
    return save(proto, tmp_path), content


def test_external_data_beside_the_file(tmp_path):
    path, content = outside(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(content)
    same_answers(sl.import_model(path), [NET])


@pytest.mark.parametrize("location", ["", "..", "../weights.bin", "/etc/passwd", "missing", "link"])
def test_external_data_elsewhere(location, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path, content = outside(folder, location)
    (tmp_path / "weights.bin").write_bytes(content)
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path)
    assert str(caught.value) == (
        f"tensor 'lstm.W' is kept in the file {location!r}, which is not beside {path}; put it "
        "there, or save the model as one file"
    )


def test_external_data_that_is_not_all_there(tmp_path):
    path, content = outside(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(content[:-4])
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path)
    assert str(caught.value) == WANTS_MORE


WANTS_MORE = "tensor 'lstm.W' wants more of the file 'weights.bin' than it holds"


@pytest.mark.parametrize(
    "entry", [{"length": "9" * 5000}, {"length": -1}, {"offset": -1}, {"offset": "here"}]
)
def test_external_data_in_no_place(entry, tmp_path):
    path, content = outside(tmp_path, "weights.bin", **entry)
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(path)
    assert str(caught.value) == WANTS_MORE


def test_external_data_that_is_wanted_again_and_again(tmp_path):
    """A size of 0 does not tell how much is read."""
    path, content = outside(tmp_path, "weights.bin", length="")
    (tmp_path / "weights.bin").write_bytes(content)
    same_answers(sl.import_model(path), [NET])
    made = onnx.load(path, load_external_data=False)
    for k in range(2):
        again = made.graph.initializer.add()
        again.CopyFrom(next(t for t in made.graph.initializer if t.name == "lstm.W"))
        again.name = f"again {k}"
        again.dims[:] = [0]
    with pytest.raises(UnsupportedModelError, match="'again 1' wants more of the file"):
        sl.import_model(save(made, tmp_path))


# --- damage ---------------------------------------------------------------------------------------


def imported_or_refused(path: Any) -> None:
    sentence = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            source = open_source(path)
            source.recurrent()
            sl.import_model(path)
        except ModelError as e:
            sentence = str(e)
    assert "\n" not in sentence


def test_junk(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"junk" * 100)
    with pytest.raises(UnsupportedModelError, match="can't be read as ONNX"):
        sl.import_model(path)
    path.write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="holds no ONNX graph"):
        sl.import_model(path)


@pytest.mark.untraced
@pytest.mark.parametrize("case", ["batch norm before and behind", "states of an open batch"])
def test_cut_files(case, tmp_path):
    content = NETWORKS[case][0].SerializeToString()
    path = tmp_path / "net.onnx"
    for size in range(1, len(content), 17):
        path.write_bytes(content[:size])
        imported_or_refused(path)


@pytest.mark.untraced
@pytest.mark.parametrize(
    "made",
    [
        NETWORKS["batch norm before and behind"][0],
        NETWORKS["learned states of an open batch"][0],
        NETWORKS["two layers, states in and out"][0],
        two_branches("c", {"c": np.array(True)}),
    ],
    ids=["batch norm", "open batch", "states", "branches"],
)
def test_flipped_bytes(made, tmp_path):
    content = made.SerializeToString()
    path = tmp_path / "net.onnx"
    r = rng(11)
    for _ in range(150):
        damaged = bytearray(content)
        for k in r.integers(0, len(content), r.integers(1, 4)):
            damaged[k] = r.integers(256)
        path.write_bytes(bytes(damaged))
        imported_or_refused(path)


def test_huge_dimensions_are_not_believed(tmp_path):
    made = with_node()
    del made.graph.initializer[0].dims[:]
    made.graph.initializer[0].dims.extend([1, 2**40, 2**20])
    path = save(made, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"^W of node 'lstm' \(LSTM\) is no constant"):
        sl.import_model(path)


def test_doubling_constants_run_out(tmp_path):
    """30 times twice the same: 2**30 times the first."""
    nodes = [node("Concat", f"c{k} c{k}", f"c{k + 1}", name=f"c{k}", axis=0) for k in range(30)]
    made = model(
        [*nodes, cell(NET, outputs=["y"], B="c30")[0]], cell(NET)[1] | constants(c0=[0.5] * 64)
    )
    with pytest.raises(UnsupportedModelError, match="too many for a file of this size"):
        sl.import_model(save(made, tmp_path))
