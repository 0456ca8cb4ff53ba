"""Golden vectors: PyTorch's answers over 1,000 steps, committed; see golden/make_golden.py."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import streamlstm as sl
from networks import C_ERROR, H_ERROR
from streamlstm import kernels, reference

pytestmark = pytest.mark.blas
GOLDEN = Path(__file__).parent / "golden"
CASES = [
    pytest.param((layers, head, dtype, kernel), id=f"{layers} layers{', head' * head}, {kernel}")
    for layers in (1, 2, 3)
    for head in (False, True)
    for dtype, kernel in (
        *(("float32", kernel) for kernel in (*kernels.FUSED, "blas")),
        ("float64", "float64"),
    )
]


class Golden:
    def __init__(self, layers: int, head: bool, dtype: str) -> None:
        self.tensors = load_file(GOLDEN / f"lstm-{layers}.safetensors")
        flow = ("lstm", "head")[: 1 + head]
        state_dict = {
            k: a.astype(dtype) for k, a in self.tensors.items() if k.startswith(tuple(flow))
        }
        self.model = sl.from_torch(state_dict, flow=flow)
        self.x = self.tensors["x"].astype(dtype)
        self.steps = self.tensors["steps"]
        self.h, self.c, y = (self.tensors[f"{k}.{self.x.dtype.str[1:]}"] for k in "hcy")
        self.y = y if head else self.h[:, -1]
        self.h_error, self.c_error = H_ERROR[dtype], C_ERROR[dtype]

    def check_state(self, state: sl.State, at: int) -> None:
        for layer in range(len(state.sizes)):
            np.testing.assert_allclose(state.h(layer), self.h[at, layer], rtol=0, atol=self.h_error)
            np.testing.assert_allclose(state.c(layer), self.c[at, layer], **self.c_error)


@pytest.fixture(params=CASES)
def golden(request, monkeypatch):
    *case, kernel = request.param
    if kernel in kernels.FUSED and not kernels.available(kernel):
        pytest.skip(f"this CPU lacks the {kernel} kernel")
    if kernel != "float64":
        monkeypatch.setenv(kernels.VARIABLE, kernel)
    return Golden(*case)


@pytest.mark.untraced
def test_step_by_step_with_all_states(golden):
    places = {int(step): at for at, step in enumerate(golden.steps)}
    with sl.Engine(golden.model) as engine:
        session = engine.open("a")
        for t, event in enumerate(golden.x):
            y = session.step(event)
            if t in places:
                np.testing.assert_allclose(y, golden.y[places[t]], rtol=0, atol=golden.h_error)
                golden.check_state(session.state(), places[t])
        assert session.seq == len(golden.x)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_agrees_too(layers, head, dtype):
    """The oracle of the other tests, held against PyTorch's float64. It uses no kernel."""
    golden = Golden(layers, head, dtype)
    y, states = reference.run(golden.model, golden.x)
    np.testing.assert_allclose(y[golden.steps], golden.y, rtol=0, atol=golden.h_error)
    for layer, (h, c) in enumerate(states):
        np.testing.assert_allclose(h, golden.h[-1, layer], rtol=0, atol=golden.h_error)
        np.testing.assert_allclose(c, golden.c[-1, layer], **golden.c_error)


def test_whole_sequence(golden):
    with sl.Engine(golden.model) as engine:
        session = engine.open("a")
        y = session.run(golden.x)
        np.testing.assert_allclose(y[golden.steps], golden.y, rtol=0, atol=golden.h_error)
        golden.check_state(session.state(), -1)


@pytest.mark.untraced
def test_group_in_changing_order(golden):
    """Streams that start at different times, stepped together in an order that changes."""
    late = (0, 7, 100, 101)
    rng = np.random.default_rng(0)
    answers = np.empty((len(late), *golden.x.shape[:1], golden.model.output_size))
    with sl.Engine(golden.model) as engine:
        sessions = [engine.open(f"s{k}") for k in range(len(late))]
        for now in range(len(golden.x) + max(late)):
            due = [k for k, start in enumerate(late) if 0 <= now - start < len(golden.x)]
            order = rng.permutation(due)
            events = np.stack([golden.x[now - late[k]] for k in order])
            for k, y in zip(order, engine.step([sessions[k] for k in order], events), strict=True):
                answers[k, now - late[k]] = y
        for k, session in enumerate(sessions):
            np.testing.assert_allclose(
                answers[k, golden.steps], golden.y, rtol=0, atol=golden.h_error
            )
            golden.check_state(session.state(), -1)


@pytest.mark.untraced
def test_group_run_in_uneven_chunks(golden):
    with sl.Engine(golden.model) as engine:
        group = engine.group([engine.open(name) for name in "abc"])
        x = np.stack([golden.x] * 3)
        parts = np.split(x, [1, 2, 10, 700], axis=1)
        y = np.concatenate([group.run(part) for part in parts], axis=1)
        for k, name in enumerate("abc"):
            np.testing.assert_allclose(y[k, golden.steps], golden.y, rtol=0, atol=golden.h_error)
            golden.check_state(engine[name].state(), -1)
