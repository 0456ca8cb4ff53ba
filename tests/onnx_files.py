"""Small ONNX files for tests, written from canonical layers gate by gate.

The orders are spelled out here once more, after the operators' spec, so that the importer's
table is checked against something else than itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import streamlstm as sl

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
NAMES = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"} | dict.fromkeys(
    ("hard_sigmoid", "hard_sigmoid6"), "HardSigmoid"
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _f4(a: Any) -> np.ndarray:
    return np.asarray(a, np.float32)


def lstm(inputs: int = 3, units: int = 4, seed: int = 0, **options: Any) -> sl.LSTM:
    """A canonical layer with random weights; peep=True, start=True and LSTM's options."""
    r = rng(seed)
    gates = 3 if options.get("coupled") else 4
    peep = _f4(r.normal(size=(gates - 1) * units)) if options.pop("peep", False) else None
    start = {}
    if options.pop("start", False):
        start = {"h0": _f4(r.uniform(-1, 1, units)), "c0": _f4(r.uniform(-2, 2, units))}
    k, rows = units**-0.5, gates * units
    w_x, w_h, b = (_f4(r.uniform(-k, k, s)) for s in ((rows, inputs), (rows, units), rows))
    return sl.LSTM(w_x, w_h, b, peep=peep, **start, **options)


def gru(inputs: int = 3, units: int = 4, seed: int = 0, **options: Any) -> sl.GRU:
    r = rng(seed)
    start = {"h0": _f4(r.uniform(-1, 1, units))} if options.pop("start", False) else {}
    k = units**-0.5
    w_x, w_h, b, b_n = (
        _f4(r.uniform(-k, k, s))
        for s in ((3 * units, inputs), (3 * units, units), 3 * units, units)
    )
    after = options.get("reset_after", True)
    return sl.GRU(w_x, w_h, b, b_n=b_n if after else None, **start, **options)


def arrays(layer: sl.LSTM | sl.GRU, name: str = "") -> dict[str, np.ndarray]:
    """The node's inputs W, R, B, P, initial_h, initial_c, by the operator's spec."""
    blocks: dict[str, Any] = {}
    own = layer.gates if isinstance(layer, sl.LSTM) else "rzn"
    for key in ("w_x", "w_h", "b"):
        a = getattr(layer, key)
        blocks[key] = dict(zip(own, np.split(a, len(own)), strict=True))
        for gate in "if" if isinstance(layer, sl.LSTM) else "":
            # What a coupled node does not look at.
            blocks[key].setdefault(gate, np.full_like(blocks[key]["g"], 99))
    order = "iofg" if isinstance(layer, sl.LSTM) else "zrn"
    w, r, b = (np.concatenate([blocks[key][g] for g in order]) for key in ("w_x", "w_h", "b"))
    half = np.zeros_like(b)
    if isinstance(layer, sl.GRU):
        n = slice(2 * layer.units, None)
        half[: 2 * layer.units] = np.round(b[: 2 * layer.units], 1)
        half[n] = layer.b_n if layer.b_n is not None else np.round(b[n], 1)
        b = b - np.where(np.arange(len(b)) < 2 * layer.units, half, 0)
        if not layer.reset_after:
            b[n] = b[n] - half[n]
    else:
        half = np.round(b, 1)
        b = b - half
    out = {"W": w[None], "R": r[None], "B": np.concatenate([b, half])[None]}
    if isinstance(layer, sl.LSTM) and layer.peep is not None:
        looking = own.replace("g", "")
        peep = dict(zip(looking, np.split(layer.peep, len(looking)), strict=True))
        peep.setdefault("f", np.full_like(peep["i"], 99))
        out["P"] = np.concatenate([peep[g] for g in "iof"])[None]
    if layer.h0 is not None:
        out["initial_h"] = layer.h0[None, None]
    if isinstance(layer, sl.LSTM) and layer.c0 is not None:
        out["initial_c"] = layer.c0[None, None]
    return {name + key: a for key, a in out.items()}


def attributes(layer: sl.LSTM | sl.GRU) -> dict[str, Any]:
    given: dict[str, Any] = {"hidden_size": layer.units}
    functions = [layer.gate_function, layer.candidate_function]
    if isinstance(layer, sl.LSTM):
        functions.append(layer.output_function)
        if layer.coupled == "f":
            given["input_forget"] = 1
    elif layer.reset_after:
        given["linear_before_reset"] = 1
    if functions[0] != "sigmoid" or set(functions[1:]) != {"tanh"}:
        given["activations"] = [NAMES[f] for f in functions]
        given["activation_alpha"] = [
            {"hard_sigmoid": 0.2, "hard_sigmoid6": 1 / 6}[f] for f in functions if "hard" in f
        ]
        given["activation_beta"] = [0.5 for f in functions if "hard" in f]
    if layer.clip_gates is not None:
        given["clip"] = layer.clip_gates
    return {key: value for key, value in given.items() if value != []}


def cell(
    layer: sl.LSTM | sl.GRU, x: str = "x", outputs: list[str] | None = None, **more: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    """A node of `layer`, and the initializers that it needs, named by `more["name"]`."""
    op = "LSTM" if isinstance(layer, sl.LSTM) else "GRU"
    name = more.pop("name", op.lower())
    inits = arrays(layer, f"{name}.")
    inputs = [x]
    for key in ("W", "R", "B", "", "initial_h", "initial_c", "P")[: 7 if op == "LSTM" else 5]:
        given = more.pop(key, f"{name}.{key}") if key else ""
        inputs.append(given if given in inits or not given.startswith(f"{name}.") else "")
    outputs = outputs or [f"{name}.Y", f"{name}.Y_h", f"{name}.Y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, name=name, **attributes(layer) | more)
    return node, inits


def constants(**arrays: Any) -> dict[str, np.ndarray]:
    """Initializers; whole numbers become int64."""
    made = {name: np.asarray(a) for name, a in arrays.items()}
    return {n: a.astype(np.int64) if a.dtype.kind == "i" else _f4(a) for n, a in made.items()}


def node(op: str, inputs: str, outputs: str, **more: Any) -> Any:
    """node("Add", "a b", "c"); "_" is an input left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=more.pop("name", op), **more)


def model(
    nodes: list[Any],
    inits: dict[str, Any],
    x: Any = ("T", 1, 3),
    outputs: str = "y",
    *,
    opset: int = 20,
    inputs: dict[str, Any] | None = None,
    kind: int = FLOAT,
) -> Any:
    """A model whose input x has this shape (None: not declared), beside other `inputs`."""
    declared = [helper.make_tensor_value_info("x", kind, x)]
    for name, shape in (inputs or {}).items():
        declared.append(helper.make_tensor_value_info(name, FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "net",
        declared,
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in inits.items()],
    )
    domains = {"": opset} | {n.domain: 1 for n in nodes if n.domain}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in domains.items()], ir_version=8
    )


def save(made: Any, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path
