"""PyTorch against imported Neural Amp Modeler files.

No player runs in Python; what its trainer saves are torch modules, and the file is written here
as its exporter does (neural-amp-modeler, nam/models/recurrent.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

import streamlstm as sl
from agree import agree


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    inputs=st.integers(1, 4),
    units=st.integers(1, 24),
    layers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_trainers_module(
    inputs: int, units: int, layers: int, seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    core = torch.nn.LSTM(inputs, units, layers, batch_first=True)
    head = torch.nn.Linear(units, 1)
    h0, c0 = torch.randn(layers, 1, units), torch.randn(layers, 1, units)
    numbers = []
    for k in range(layers):
        weights = [getattr(core, f"weight_{which}_l{k}") for which in ("ih", "hh")]
        bias = getattr(core, f"bias_ih_l{k}") + getattr(core, f"bias_hh_l{k}")
        numbers += [torch.cat(weights, dim=1), bias, h0[k], c0[k]]
    numbers += [head.weight, head.bias]
    path = tmp_path / "amp.nam"
    path.write_text(
        json.dumps(
            {
                "version": "0.5.4",
                "architecture": "LSTM",
                "config": {"input_size": inputs, "hidden_size": units, "num_layers": layers},
                "weights": torch.cat([a.detach().flatten() for a in numbers]).tolist(),
            }
        )
    )
    x = np.random.default_rng(seed).standard_normal((300, inputs)).astype("f4")
    with torch.no_grad():
        h, (h_n, c_n) = core(torch.from_numpy(x)[None], (h0, c0))
        y = head(h)[0].numpy()
    states = [(h_n[k, 0].numpy(), c_n[k, 0].numpy()) for k in range(layers)]
    agree(sl.import_model(path), x, y, states)
