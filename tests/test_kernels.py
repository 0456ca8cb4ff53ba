"""The fused kernels: which one runs, how exact it is, and that a stream's bits are its own."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamlstm as sl
from networks import events, models, stacked
from streamlstm import kernels, reference
from streamlstm.errors import EngineError
from streamlstm.kernels import table

HERE = [name for name in kernels.FUSED if kernels.available(name)]
LACKING = [name for name in kernels.FUSED if name not in HERE]
ONE_CLASS = [name for name in HERE if name != "portable"]


@pytest.fixture(params=kernels.FUSED)
def kernel(request, monkeypatch):
    """Each fused kernel in turn."""
    if request.param in LACKING:
        pytest.skip(f"this CPU lacks the {request.param} kernel")
    monkeypatch.setenv(kernels.VARIABLE, request.param)
    return request.param


def engine_with(kernel: str, model: sl.Model, **options) -> sl.Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.VARIABLE, kernel)
        return sl.Engine(model, **options)


def apply(kernel: str, function: str, x) -> np.ndarray:
    return table.apply(kernels.available(kernel), function, x)


def bits(a) -> bytes:
    return np.ascontiguousarray(a).tobytes()


# --- which kernel runs ---


def test_the_widest_kernel_runs_unless_another_is_asked_for(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert kernels.choose(np.dtype("f4")).row.name == HERE[0]
    assert kernels.choose(np.dtype("f8")).row.arithmetic == "f64-blas"
    for name in [*HERE, "blas"]:
        engine = engine_with(name, stacked())
        assert engine.network.row.name == name
    assert {engine_with(name, stacked()).arithmetic for name in ONE_CLASS} <= {"f32-fma-2"}
    assert engine_with("portable", stacked()).arithmetic == "f32-muladd-2"
    assert engine_with("blas", stacked()).arithmetic == "f32-blas"


def test_an_unknown_kernel_is_refused(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "sse2")
    with pytest.raises(EngineError, match="may be avx512, avx2, portable or blas"):
        sl.Engine(stacked())


def test_a_kernel_that_the_cpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda *_: None)
    monkeypatch.setenv(kernels.VARIABLE, "avx512")
    with pytest.raises(EngineError, match="this CPU lacks it"):
        sl.Engine(stacked())


def test_show_config_says_what_runs_and_why(monkeypatch, capsys):
    monkeypatch.setenv(kernels.VARIABLE, "portable")
    sl.show_config()
    shown = capsys.readouterr().out
    assert "float32: portable, arithmetic class f32-muladd-2 (STREAMLSTM_KERNEL=portable)" in shown
    assert "float64: blas" in shown


# --- the same bits ---


@pytest.mark.untraced
@given(models().filter(lambda m: m.dtype == "float32"), st.integers(0, 2**32 - 1), st.data())
def test_a_streams_bits_do_not_depend_on_its_company(model, seed, data):
    """Alone or in any batch, at any position, by every door, under each kernel of a class."""
    n, steps = data.draw(st.integers(2, 15)), data.draw(st.integers(1, 12))
    x = events(model, n, steps, seed=seed)
    for names in (ONE_CLASS, ["portable"]):
        seen = set()
        for name in names:
            with engine_with(name, model) as engine:
                order = data.draw(st.permutations(range(n)))
                by_group = [engine.open(f"group {k}") for k in order]
                y_group = engine.group(by_group).run(x[order])[np.argsort(order)]
                y_step = np.empty_like(y_group)
                group = engine.group([engine.open(f"step {k}") for k in order])
                for t in range(steps):
                    y_step[order, t] = group.step(x[order, t])
                alone = [engine.open(f"alone {k}") for k in range(n)]
                cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=3)))
                y_run = np.stack(
                    [
                        np.concatenate([s.run(part) for part in np.split(x[k], cuts)])
                        for k, s in enumerate(alone)
                    ]
                )
                one = engine.open("one")
                y_one = np.stack([one.step(x[0, t]) for t in range(steps)])
                seen |= {bits(y_group), bits(y_step), bits(y_run)}
                assert bits(y_one) == bits(y_run[0])
                states = {bits(engine[f"{way} 0"].state().numbers) for way in ("group", "step")}
                assert states == {bits(one.state().numbers)} == {bits(alone[0].state().numbers)}
        assert len(seen) <= 1


def test_negative_zeros_are_the_same_by_every_door():
    """h underflows to -0 here; longer than a block, so that outputs are moved together."""
    b = np.concatenate([np.full(3, v) for v in (0, 0, -0.05, -200)])
    model = sl.Model([sl.LSTM(np.zeros((12, 1)), np.zeros((12, 3)), b)], dtype="float32")
    x = np.zeros((2, 100, 1), np.float32)
    with sl.Engine(model) as engine:
        sessions = [engine.open(f"s{k}") for k in range(4)]
        y = engine.group(sessions[:2]).run(x)
        assert bits(y[0]) == bits(sessions[2].run(x[0]))
        assert bits(y[0]) == bits(np.stack([sessions[3].step(event) for event in x[0]]))


@pytest.mark.parametrize(("threads", "steps"), [(2, 2), (3, 40), (7, 1)])
def test_bits_do_not_depend_on_the_number_of_threads(threads, steps):
    model = stacked(inputs=32, units=128, outputs=3)
    x = events(model, 101, steps)
    with sl.Engine(model) as alone, sl.Engine(model, threads=threads) as shared:
        y = [e.group([e.open(f"s{k}") for k in range(101)]).run(x) for e in (alone, shared)]
    assert bits(y[0]) == bits(y[1])


@pytest.mark.blas
@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_parity_with_the_reference_at_every_width(inputs, units, seed):
    """Panels are 4, 8 or 16 units wide; most layers leave the last one part empty."""
    model = stacked(inputs, units, layers=2, outputs=units, seed=seed)
    x = events(model, 30, seed=seed)
    expected, _ = reference.run(model, x)
    for name in [*HERE, "blas"]:
        with engine_with(name, model) as engine:
            np.testing.assert_allclose(engine.open("a").run(x), expected, rtol=0, atol=1e-5)


# --- numerics ---

# Largest errors in units in the last place over all finite float32 (bench/ulp.py), rounded up.
ULP = {"exp": 1.1, "tanh": 2.1, "sigmoid": 2.5}
EXACT = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


@pytest.mark.parametrize("function", ULP)
def test_activations_are_exact_to_the_stated_ulp(kernel, function):
    every = np.arange(0, 2**32, 4999, dtype=np.uint64).astype(np.uint32).view(np.float32)
    limit = 80 if function == "exp" else 3e38
    low = -80 if function == "sigmoid" else -limit  # below: 1e-35 and less, see kernels/functions.h
    x = every[(every >= low) & (every <= limit) & (np.abs(every) > 1.2e-38)]
    with np.errstate(over="ignore"):
        exact = EXACT[function](x.astype(float))
    y = apply(kernel, function, x)
    error = np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert len(x) > 10_000
    assert error.max() <= ULP[function]


def test_activations_at_the_ends(kernel):
    x = np.array([-np.inf, -1e30, -100, -0.0, 0.0, 100, 1e30, np.inf], np.float32)
    np.testing.assert_array_equal(
        apply(kernel, "tanh", x), np.array([-1, -1, -1, 0, 0, 1, 1, 1], "f4")
    )
    sigmoid = apply(kernel, "sigmoid", x)
    assert (sigmoid[:3] < 2e-38).all()
    assert (sigmoid[3:] == np.array([0.5, 0.5, 1, 1, 1], "f4")).all()
    for function in ULP:
        assert np.isnan(apply(kernel, function, np.array([np.nan], "f4"))).all()


def plain_float32(layer: sl.LSTM, x) -> tuple[np.ndarray, np.ndarray]:
    """h and c of a float32 LSTM whose activations are rounded correctly."""
    h = c = np.zeros(layer.units, np.float32)
    for event in x:
        z = layer.w_x @ event + layer.w_h @ h + layer.b
        i, f, g, o = np.split(z.astype(float), 4)
        i, f, o = (reference.sigmoid(a).astype(np.float32) for a in (i, f, o))
        c = f * c + i * np.tanh(g).astype(np.float32)
        h = o * np.tanh(c.astype(float)).astype(np.float32)
    return h, c


@cache  # none of it knows kernels
def in_the_thousands():
    """A model whose units never forget and always add, events, states in float64 and float32."""
    rng = np.random.default_rng(0)
    H = 128
    weights = [rng.uniform(-0.01, 0.01, (4 * H, k)) for k in (2, H)]
    b = np.concatenate([np.full(H, v) for v in (9.0, 20.0, 2.0, 1.0)])
    layer = sl.Model([sl.LSTM(*weights, b)], dtype="float32").layers[0]
    model = sl.Model([layer])
    x = rng.standard_normal((2100, 2)).astype(np.float32)
    return model, x, reference.run(model, x)[1][0], plain_float32(layer, x)


@pytest.mark.usefixtures("kernel")
def test_states_in_the_thousands_keep_their_digits():
    """Units that never forget and always add: |c| reaches 2,000."""
    model, x, (h, c), (plain_h, plain_c) = in_the_thousands()
    assert np.abs(c).max() > 2000
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run(x)
        state = session.state()
    assert np.abs(state.c(0) - c).max() <= 2 * np.abs(plain_c - c).max()
    assert np.abs(state.h(0) - h).max() <= 2 * np.abs(plain_h - h).max()


def test_denormals_are_flushed_inside_and_nowhere_else():
    """A state that decays to nothing reaches zero; the caller's arithmetic keeps its denormals."""
    H = 16
    b = np.concatenate([np.full(H, v) for v in (-80.0, -3.0, 0.0, 5.0)])
    model = sl.Model([sl.LSTM(np.zeros((4 * H, 1)), np.zeros((4 * H, H)), b)], dtype="float32")
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.restore(
            sl.State(
                model.fingerprint, 0, ((H, H),), np.full(2 * H, 1, np.float32), engine.arithmetic
            )
        )
        session.run(np.zeros((60, 1)))
        c = session.state().c(0)
    assert ((c == 0) | (np.abs(c) >= np.finfo(np.float32).tiny)).all()
    assert np.float32(1e-39) * np.float32(0.5) != 0


# --- threads ---


def test_idle_threads_sleep():
    """Helpers wait in the kernel (state S), they do not spin."""
    before = set(os.listdir("/proc/self/task"))
    model = stacked(inputs=32, units=128)
    with sl.Engine(model, threads=3) as engine:
        helpers = set(os.listdir("/proc/self/task")) - before
        assert len(helpers) == 2
        group = engine.group([engine.open(f"s{k}") for k in range(120)])
        group.step(events(model, 120))
        for helper in helpers:
            # It may still be on its way to sleep: ask until it is there (or the test's limit).
            while (
                Path(f"/proc/self/task/{helper}/stat").read_text().rsplit(")")[1].split()[0] != "S"
            ):
                os.sched_yield()
    assert set(os.listdir("/proc/self/task")) == before


def test_a_closed_engine_has_no_threads_and_its_calls_are_refused():
    engine = sl.Engine(stacked(), threads=2)
    session = engine.open("a")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        session.step([0, 0, 0])


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_a_senseless_number_of_threads_is_refused(threads):
    with pytest.raises(EngineError, match="threads is"):
        sl.Engine(stacked(), threads=threads)
