"""When an imported network agrees with its framework: the same bounds for every format."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import streamlstm as sl
from networks import C_ERROR, H_ERROR
from streamlstm import reference

Array = NDArray[Any]


def agree(model: sl.Model, x: Array, y: Array, states: list[tuple[Array, ...]] | None = None):
    """model, stepped over x [steps, inputs] from its initial state, gives the framework's y.

    y [steps, outputs]: what the framework said in float32; states: its last (h, c), of a GRU
    (h,), of each recurrent layer. h and outputs within 1e-5 (of values beyond 1, relative), c
    within rtol 1e-5 and atol 1e-4; and no further from the equations in float64 than twice the
    framework itself, and 1e-6.
    """
    x = np.asarray(x, np.float32)
    model = model.astype("float32")
    exact, exact_states = reference.run(model, x)
    with sl.Engine(model, max_sessions=1) as engine:
        session = engine.open("a")
        ours = np.array([session.step(event) for event in x])
        state = session.state()
    scale = np.maximum(1, np.abs(exact))
    assert np.max(np.abs(ours - y) / scale) <= H_ERROR["float32"]
    error, theirs = (np.max(np.abs(a - exact) / scale) for a in (ours, y))
    assert error <= 2 * theirs + 1e-6
    for k, (h, *c) in enumerate(states or []):
        np.testing.assert_allclose(state.h(k), h, rtol=1e-5, atol=H_ERROR["float32"])
        np.testing.assert_allclose(exact_states[k][0], h, rtol=1e-4, atol=H_ERROR["float32"])
        if c:
            np.testing.assert_allclose(state.c(k), c[0], **C_ERROR["float32"])
