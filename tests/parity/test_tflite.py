"""TensorFlow Lite's own kernels against the imported network.

The files are written by tflite_files, an independent writer: converters don't make most of
these cells any more. What runs them is the real interpreter, without delegates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamlstm as sl
from agree import agree
from streamlstm import importers
from streamlstm.errors import UnsupportedModelError
from tflite_files import (
    Graph,
    Operator,
    add_constant,
    add_dense,
    add_lstm,
    cell,
    one_cell,
    schema,
)

STEPS = 300
RELAXED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def cells(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of cell(), for anything that the operator can express."""
    norm = draw(st.booleans())
    # Sums that lie close together are torn apart by layer norm, rounding and all, and a gate of
    # few units over few inputs has such sums every so often.
    units = draw(st.integers(8 if norm else 1, 24))
    function = draw(st.sampled_from(["TANH", "TANH", "RELU"]))
    clips = st.sampled_from([0.0, 0.05, 0.5])
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "inputs": draw(st.integers(4 if norm else 1, 12)),
        "units": units,
        "cifg": draw(st.booleans()),
        "peephole": draw(st.booleans()),
        "norm": norm,
        "projected": draw(st.sampled_from([0, 0, 1, units // 2 + 1])),
        "projection_bias": draw(st.booleans()),
        "function": function,
        # Without a bound RELU lets c grow for ever.
        "cell_clip": draw(clips) if function == "TANH" else 0.5,
        "proj_clip": draw(clips),
    }


def run(content: bytes, x: Any, *states: int) -> tuple[Any, list[Any]]:
    """The interpreter's outputs for x [steps, inputs], one run a step, and its states' end."""
    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.reset_all_variables()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for event in x:
        interpreter.set_tensor(into["index"], event.reshape(into["shape"]).astype(into["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(out["index"]).reshape(-1))
    return np.array(found), [interpreter.get_tensor(k).reshape(-1) for k in states]


def events(inputs: int, steps: int = STEPS) -> Any:
    return np.random.default_rng(1).standard_normal((steps, inputs)).astype("f4")


@RELAXED
@given(kind=cells(), single=st.booleans())
def test_every_cell(kind: dict[str, Any], single: bool, tmp_path: Path) -> None:
    graph, made = Graph(), cell(**kind)
    inputs = made.w_x["f"].shape[1]
    shape = (1, inputs) if single else (1, 1, inputs)
    x = graph.tensor(*shape)
    out, h, c = add_lstm(graph, x, made, shape, single=single)
    content = graph.finish([x], [out])
    path = tmp_path / "cell.tflite"
    path.write_bytes(content)
    given_x = events(inputs)
    y, states = run(content, given_x, h, c)
    agree(sl.import_model(path), given_x, y, [tuple(states)])


@RELAXED
@given(kind=cells(), units=st.integers(1, 16), outputs=st.integers(1, 5), major=st.booleans())
def test_a_whole_network(
    kind: dict[str, Any], units: int, outputs: int, major: bool, tmp_path: Path
) -> None:
    """Scaling, two LSTMs, dense layers with a function, softmax; and each layer alone."""
    rng = np.random.default_rng(units)
    first = cell(**kind)
    inputs, second = first.w_x["f"].shape[1], cell(0, first.outputs, units)
    shape = (1, 1, inputs)
    graph = Graph()
    x = graph.tensor(*shape)
    scaled = graph.apply(
        Operator.MUL,
        [x, add_constant(graph, rng.uniform(0.5, 2, inputs).astype("f4"))],
        *shape,
        options=schema.MulOptionsT(),
    )
    below, *_ = add_lstm(graph, scaled, first, shape, time_major=major)
    below, *_ = add_lstm(graph, below, second, (1, 1, first.outputs), time_major=major)
    w, b = rng.uniform(-1, 1, (7, units)).astype("f4"), rng.uniform(-1, 1, 7).astype("f4")
    below = graph.apply(Operator.TANH, [add_dense(graph, below, w, b, 1, 1, units)], 1, 1, 7)
    w = rng.uniform(-1, 1, (outputs, 7)).astype("f4")
    below = add_dense(graph, below, w, None, 1, 1, 7)
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    content = graph.finish(
        [x], [graph.apply(Operator.SOFTMAX, [below], 1, 1, outputs, options=options)]
    )
    path = tmp_path / "network.tflite"
    path.write_bytes(content)
    given_x = events(inputs)
    y, _ = run(content, given_x)
    agree(sl.import_model(path), given_x, y)

    source = importers.open_source(path)
    np.testing.assert_array_equal(source.answers(given_x, None), y)
    for found, made in zip(source.recurrent(), (first, second), strict=True):
        alone = events(made.w_x["f"].shape[1])
        y, _ = run(one_cell(made), alone)
        np.testing.assert_array_equal(source.answers(alone, found.where), y)
        agree(sl.import_model(path, select=found.where), alone, y)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("steps", [1, 7])
def test_answers_are_the_same_in_any_length(steps: int, time_major: bool, tmp_path: Path) -> None:
    """States go from one run to the next, and the last run is filled up."""
    made = cell(0, 3, 5, peephole=True)
    path = tmp_path / "cell.tflite"
    path.write_bytes(one_cell(made, steps=steps, time_major=time_major))
    x = events(3, 50)
    y, _ = run(one_cell(made), x)
    source = importers.open_source(path)
    assert source.framework.startswith("ai-edge-litert ")
    np.testing.assert_allclose(source.answers(x, None), y, atol=1e-6)
    np.testing.assert_allclose(source.answers(x, "op 0"), y, atol=1e-6)


def half(graph: Graph, a: Any) -> int:
    return graph.apply(Operator.DEQUANTIZE, [add_constant(graph, a.astype("f2"))], *a.shape)


@pytest.mark.parametrize("constant", [add_constant, half])
def test_only_the_last_step_goes_out(constant: Any, tmp_path: Path) -> None:
    """A file that classifies a sequence is stepped, and each step's answer is had; one of half
    precision makes its states anew in each run, and so is run over ever longer sequences."""
    made = cell(0, 3, 5)
    graph = Graph()
    x = graph.tensor(1, 9, 3)
    below, h, c = add_lstm(graph, x, made, (1, 9, 3), constant=constant)
    if constant is half:
        for state in (h, c):
            zero = add_constant(graph, np.zeros((1, 5), "f2"))
            graph.apply_many(Operator.DEQUANTIZE, [zero], [state])
        graph.graph.operators.insert(0, graph.graph.operators.pop())
        graph.graph.operators.insert(0, graph.graph.operators.pop())
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = 5
    options.shrinkAxisMask = 2
    cut = [add_constant(graph, np.array(a, "i4")) for a in ([0, -1, 0], [0, 0, 0], [1, 1, 1])]
    out = graph.apply(Operator.STRIDED_SLICE, [below, *cut], 1, 5, options=options)
    path = tmp_path / "last.tflite"
    path.write_bytes(graph.finish([x], [out]))
    given_x = events(3, 100)
    y, _ = run(one_cell(made, constant=constant), given_x)
    source = importers.open_source(path)
    np.testing.assert_allclose(source.answers(given_x, None), y, atol=1e-6)
    alone = source.answers(given_x, source.recurrent()[0].where)
    np.testing.assert_allclose(alone, y, atol=1e-6)
    agree(sl.import_model(path), given_x, y)


def eighth(graph: Graph, a: Any) -> int:
    if a.ndim == 1:  # biases stay
        return add_constant(graph, a)
    scale = np.abs(a).max() / 127
    return add_constant(graph, np.round(a / scale).astype("i1"), [scale])


def test_a_file_that_cannot_be_stepped_is_named(tmp_path: Path) -> None:
    """It says the length of its sequences in a constant, and gives only the last step."""
    graph = Graph()
    x = graph.tensor(1, 9, 3)
    fixed = add_constant(graph, np.array([1, 9, 3], "i4"))
    below = graph.apply(Operator.RESHAPE, [x, fixed], 1, 9, 3)
    below, *_ = add_lstm(graph, below, cell(0, 3, 5), (1, 9, 3))
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = 5
    options.shrinkAxisMask = 2
    cut = [add_constant(graph, np.array(a, "i4")) for a in ([0, -1, 0], [0, 0, 0], [1, 1, 1])]
    out = graph.apply(Operator.STRIDED_SLICE, [below, *cut], 1, 5, options=options)
    path = tmp_path / "fixed.tflite"
    path.write_bytes(graph.finish([x], [out]))
    sl.import_model(path)
    with pytest.raises(
        UnsupportedModelError, match=r"^TensorFlow Lite can't run this file step by step: "
    ):
        importers.open_source(path).answers(events(3), None)


def test_half_precision(tmp_path: Path) -> None:
    made = cell(0, 4, 6, projected=3, peephole=True)
    content = one_cell(made, constant=half)
    path = tmp_path / "half.tflite"
    path.write_bytes(content)
    x = events(4)
    y, _ = run(content, x)
    agree(sl.import_model(path), x, y)


def test_hybrid_weights_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    """The kernel rounds events to 8 bits too, we don't: only close to it."""
    made = cell(0, 32, 32)
    content = one_cell(made, constant=eighth)
    path = tmp_path / "hybrid.tflite"
    path.write_bytes(content)
    x = events(32)
    y, _ = run(content, x)
    with sl.Engine(sl.import_model(path), max_sessions=1) as engine:
        session = engine.open("a")
        ours = np.array([session.step(event) for event in x])
    assert 1e-6 < np.abs(ours - y).max() < 0.03


def test_an_embedding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = cell(0, 4, 6)
    graph = Graph()
    x = graph.tensor(1, 1)
    graph.graph.tensors[x].type = schema.TensorType.INT32
    options = schema.GatherOptionsT()
    options.axis = 0
    table = add_constant(graph, rng.standard_normal((9, 4)).astype("f4"))
    below = graph.apply(Operator.GATHER, [table, x], 1, 1, 4, options=options)
    out, *_ = add_lstm(graph, below, made, (1, 1, 4))
    content = graph.finish([x], [out])
    path = tmp_path / "words.tflite"
    path.write_bytes(content)
    words = rng.integers(0, 9, (STEPS, 1)).astype("f4")
    y, _ = run(content, words)
    agree(sl.import_model(path), words, y)
