"""PyTorch against imported RTNeural files and state dicts in JSON.

RTNeural is C++; its files are written here from torch modules, as its
python/model_utils_torch.py does for GRU (gates z and r swapped, matrices transposed), and for
LSTM with the sum of both biases, which that file forgets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

import streamlstm as sl
from agree import agree

RELAXED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KINDS = st.sampled_from(["lstm", "gru"])


def swapped(a: Any) -> Any:
    """Rows r, z, n as z, r, n."""
    r, z, n = a.chunk(3)
    return torch.cat([z, r, n])


def entry(kind: str, part: Any) -> dict[str, Any]:
    if kind == "dense":
        return {
            "type": "dense",
            "activation": "",
            "shape": [None, None, part.out_features],
            "weights": [part.weight.T.tolist(), part.bias.tolist()],
        }
    w, u, b, d = part.weight_ih_l0, part.weight_hh_l0, part.bias_ih_l0, part.bias_hh_l0
    if kind == "gru":
        w, u, b, d = (swapped(a) for a in (w, u, b, d))
    bias = (b + d).tolist() if kind == "lstm" else [b.tolist(), d.tolist()]
    return {
        "type": kind,
        "activation": "tanh",
        "shape": [None, None, part.hidden_size],
        "weights": [w.T.tolist(), u.T.tolist(), bias],
    }


def recurrent(kind: str, inputs: int, units: int, layers: int = 1) -> Any:
    return {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](inputs, units, layers)


def last(kind: str, state: Any) -> list[tuple[Any, ...]]:
    parts = state if kind == "lstm" else (state,)
    return [tuple(a[k].numpy() for a in parts) for k in range(len(parts[0]))]


@RELAXED
@given(
    kinds=st.lists(KINDS, min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 20), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_files(kinds: list[str], sizes: list[int], seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    inputs, *units = sizes
    below = torch.randn(300, inputs)
    x, layers, states = below.numpy(), [], []
    with torch.no_grad():
        width = inputs
        for kind, size in zip(kinds, units, strict=False):
            part = recurrent(kind, width, size)
            below, state = part(below)
            layers.append(entry(kind, part))
            states += last(kind, state)
            width = size
        head = torch.nn.Linear(width, units[-1])
        y = head(below).numpy()
    layers.append(entry("dense", head))
    path = tmp_path / "network.json"
    path.write_text(json.dumps({"in_shape": [None, None, inputs], "layers": layers}))
    agree(sl.import_model(path), x, y, states)


@RELAXED
@given(
    kind=KINDS,
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
def test_core_audio_ml(kind: str, sizes: tuple[int, ...], seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    inputs, units, layers = sizes
    parts = torch.nn.ModuleDict(
        {"rec": recurrent(kind, inputs, units, layers), "lin": torch.nn.Linear(units, 2)}
    )
    data = {
        "model": "SimpleRNN",
        "input_size": inputs,
        "skip": 0,
        "output_size": 2,
        "unit_type": kind.upper(),
        "num_layers": layers,
        "hidden_size": units,
        "bias_fl": True,
    }
    held = {key: a.tolist() for key, a in parts.state_dict().items()}
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_data": data, "state_dict": held}))
    x = np.random.default_rng(seed).standard_normal((300, inputs)).astype("f4")
    with torch.no_grad():
        h, state = parts["rec"](torch.from_numpy(x))
        y = parts["lin"](h).numpy()
    agree(sl.import_model(path), x, y, last(kind, state))
