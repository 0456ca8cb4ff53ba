"""PyTorch's state dicts without PyTorch, as arrays and in .safetensors.

test_pytorch_files has the .pt files; tests/parity has the same with PyTorch itself.
"""

from __future__ import annotations

import re
import struct
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import streamlstm as sl
from networks import events, stacked
from streamlstm import reference
from streamlstm.errors import ModelError, UnsupportedModelError
from streamlstm.importers import gate_orders, model_of, pytorch
from streamlstm.importers.pytorch.pickles import Made
from streamlstm.importers.source import selected
from torch_files import (
    batch_norm,
    gru,
    linear,
    lstm,
    normal,
    peepholes,
    projected,
    rng,
    to_bfloat16,
    upper_halves,
    zipped,
)


def kinds(model: sl.Model) -> list[tuple[str, int]]:
    return [(layer.kind, layer.output_size) for layer in model.layers]


# -- the equations of torch.nn's documentation, on torch's own tensors -----------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def told_lstm(t, x, suffix="_l0", prefix=""):
    """h of all steps; peepholes and starts as this package names them."""
    t = {k.removeprefix(prefix).removesuffix(suffix): a.astype(float) for k, a in t.items()}
    p = t.get("weight_hr", np.eye(t["weight_hh"].shape[1]))
    h = t.get("h0", np.zeros(len(p)))
    c = t.get("c0", np.zeros(p.shape[1]))
    peep = [t.get(f"peep_{gate}", 0) for gate in "ifo"]
    out = []
    for event in x:
        z = t["weight_ih"] @ event + t["weight_hh"] @ h
        z = z + t.get("bias_ih", 0) + t.get("bias_hh", 0)
        i, f, g, o = np.split(z, 4)
        i, f = sigmoid(i + peep[0] * c), sigmoid(f + peep[1] * c)
        c = f * c + i * np.tanh(g)
        h = p @ (sigmoid(o + peep[2] * c) * np.tanh(c)) + t.get("bias_hr", 0)
        out.append(h)
    return np.array(out)


def told_gru(t, x, suffix="_l0", prefix=""):
    t = {k.removeprefix(prefix).removesuffix(suffix): a.astype(float) for k, a in t.items()}
    h = t.get("h0", np.zeros(t["weight_hh"].shape[1]))
    out = []
    for event in x:
        a_r, a_z, a_n = np.split(t["weight_ih"] @ event + t.get("bias_ih", 0), 3)
        b_r, b_z, b_n = np.split(t["weight_hh"] @ h + t.get("bias_hh", 0), 3)
        r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
        h = (1 - z) * np.tanh(a_n + r * b_n) + z * h
        out.append(h)
    return np.array(out)


X = rng.standard_normal((40, 3))
CELLS = {
    "LSTM": (lstm("", 3, 4), told_lstm),
    "LSTM without bias": (lstm("", 3, 4, bias=False), told_lstm),
    "projection": (projected("", 3, 5, 2), told_lstm),
    "projection with bias": (projected("", 3, 5, 2) | {"bias_hr_l0": normal(2)}, told_lstm),
    "peepholes": (lstm("", 3, 4) | peepholes("", 4), told_lstm),
    "start": (lstm("", 3, 4) | {"h0_l0": normal(4), "c0_l0": normal(4)}, told_lstm),
    "all of it": (
        projected("", 3, 5, 2)
        | peepholes("", 5)
        | {"bias_hr_l0": normal(2), "h0_l0": normal(2), "c0_l0": normal(5)},
        told_lstm,
    ),
    "GRU": (gru("", 3, 4), told_gru),
    "GRU without bias": (gru("", 3, 4, bias=False), told_gru),
    "GRU with a start": (gru("", 3, 4) | {"h0_l0": normal(4)}, told_gru),
}


def difference(case: str) -> float:
    tensors, told = CELLS[case]
    model = sl.from_torch(tensors)
    return np.max(np.abs(reference.run(model, X)[0] - told(tensors, X)))


@pytest.mark.parametrize("case", CELLS)
def test_cells(case):
    assert difference(case) < 1e-6


def swapped(order: str):
    def mutate(monkeypatch):
        monkeypatch.setitem(gate_orders.ORDERS["pytorch"], "lstm", order)

    return mutate


def gru_swapped(monkeypatch):
    monkeypatch.setitem(gate_orders.ORDERS["pytorch"], "gru", "zrn")


def bias_halves_swapped(monkeypatch):
    right = pytorch.layers._biases
    monkeypatch.setattr(pytorch.layers, "_biases", lambda a: right(a)[::-1])


def reset_flipped(monkeypatch):
    right = pytorch.layers.GRU

    def flipped(w_x, w_h, b, b_n, h0):
        b = b.copy()
        b[-len(b_n) :] += b_n
        return right(w_x, w_h, b, None, h0, reset_after=False)

    monkeypatch.setattr(pytorch.layers, "GRU", flipped)


def peepholes_in_onnx_order(monkeypatch):
    monkeypatch.setattr(pytorch.layers, "PEEPHOLES", ("peep_i", "peep_o", "peep_f"))


@pytest.mark.parametrize(
    ("mutate", "case"),
    [
        (swapped("figo"), "LSTM"),
        (swapped("iofg"), "LSTM"),
        (swapped("ifog"), "projection"),
        (gru_swapped, "GRU"),
        (bias_halves_swapped, "GRU"),
        (reset_flipped, "GRU"),
        (peepholes_in_onnx_order, "peepholes"),
    ],
)
def test_wrong_orders_are_seen(mutate, case, monkeypatch):
    mutate(monkeypatch)
    assert difference(case) > 1e-2


def test_biases_are_added_and_gates_kept():
    tensors = lstm("", 3, 4)
    layer = sl.from_torch(tensors).layers[0]
    np.testing.assert_array_equal(layer.w_x, tensors["weight_ih_l0"])
    np.testing.assert_array_equal(layer.w_h, tensors["weight_hh_l0"])
    np.testing.assert_array_equal(layer.b, tensors["bias_ih_l0"] + tensors["bias_hh_l0"])


def test_gate_orders(monkeypatch):
    """The table puts any order into ours, i f g o."""
    monkeypatch.setitem(gate_orders.ORDERS, "other", {"lstm": "ogfi"})
    blocks = np.arange(4).repeat(2)
    np.testing.assert_array_equal(gate_orders.canonical(blocks, "other", "lstm"), blocks[::-1])
    np.testing.assert_array_equal(gate_orders.canonical(blocks, "pytorch", "lstm"), blocks)


# -- networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "lstm.", "model.encoder.rnn.", "fw_"])
def test_stacked_layers_under_any_prefix(prefix):
    tensors = lstm(prefix, 3, 4, 0) | lstm(prefix, 4, 4, 1) | lstm(prefix, 4, 4, 2)
    assert kinds(sl.from_torch(tensors)) == [("lstm", 4)] * 3


def test_only_an_lstm_answers_with_the_top_h():
    model = sl.from_torch(lstm("", 3, 4, 0) | lstm("", 4, 4, 1))
    with sl.Engine(model) as engine:
        session = engine.open("a")
        y = session.step([1, 2, 3])
        np.testing.assert_array_equal(y, session.state().h(1))


def test_cells_and_missing_biases():
    tensors = lstm("cell1.", 3, 4, None, bias=False) | gru("cell2.", 4, 5, None)
    tensors |= linear("out.", 5, 2, bias=False)
    model = sl.from_torch(tensors, flow=["cell1", "cell2", "out"])
    assert kinds(model) == [("lstm", 4), ("gru", 5), ("dense", 2)]
    assert not model.layers[0].b.any()
    assert not model.layers[2].b.any()


def test_layers_and_functions_in_the_order_of_the_flow():
    tensors = linear("embed.", 3, 6) | lstm("lstm.", 6, 4) | linear("head.", 4, 2)
    model = sl.from_torch(tensors, flow=["embed", "relu", "lstm", "head"], inputs=["a", "b", "c"])
    assert kinds(model) == [("dense", 6), ("lstm", 4), ("dense", 2)]
    assert [m.activation for m in model.layers if isinstance(m, sl.Dense)] == ["relu", "linear"]
    x = events(model, 6)
    with sl.Engine(model) as engine:
        y = engine.open("a").run(x)
    np.testing.assert_allclose(y, reference.run(model, x)[0], atol=1e-4)


def test_batch_norm_is_folded():
    """eps is torch's default, 1e-5, which a state dict does not keep."""
    tensors = lstm("lstm.", 3, 4) | batch_norm("norm.", 4) | linear("head.", 4, 2)
    model = sl.from_torch(tensors, flow=["lstm", "norm", "head"])
    assert kinds(model) == [("lstm", 4), ("dense", 2)]
    h = told_lstm({k: a for k, a in tensors.items() if "lstm" in k}, X, prefix="lstm.")
    t = {k.removeprefix("norm."): a.astype(float) for k, a in tensors.items()}
    h = (h - t["running_mean"]) / np.sqrt(t["running_var"] + 1e-5) * t["weight"] + t["bias"]
    y = h @ tensors["head.weight"].T + tensors["head.bias"]
    np.testing.assert_allclose(reference.run(model, X)[0], y, atol=1e-4)


def test_batch_norm_without_affine_and_before_the_lstm():
    tensors = {"norm.running_mean": normal(3), "norm.running_var": normal(3) ** 2}
    model = sl.from_torch(tensors | lstm("lstm.", 3, 4), flow=["norm", "lstm"])
    assert kinds(model) == [("lstm", 4)]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ({"tokens.weight": normal(9, 5)}, ("embedding", 5)),
        ({"embed.weight": normal(9, 5)}, ("embedding", 5)),
        ({"embed.weight": normal(5, 9)}, ("dense", 5)),
        (linear("embed.", 5, 5), ("dense", 5)),
    ],
)
def test_embedding_or_linear(first, kind):
    """What the LSTM takes tells which of the two a bare matrix is."""
    flow = [next(iter(first)).split(".")[0], "lstm"]
    assert kinds(sl.from_torch(first | lstm("lstm.", 5, 4), flow=flow)) == [kind, ("lstm", 4)]


def test_an_embedding_looks_up():
    table, tensors = normal(9, 3), lstm("", 3, 4)
    model = sl.from_torch({"embed.weight": table} | tensors, flow=["embed", "lstm"])
    words = rng.integers(0, 9, 20)
    y = reference.run(model, words[:, None])[0]
    np.testing.assert_allclose(y, told_lstm(tensors, table[words]), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes(dtype):
    tensors = {key: a.astype(dtype) for key, a in lstm("", 3, 4).items()}
    model = sl.from_torch(tensors)
    assert model.dtype == ("float64" if dtype == "float64" else "float32")


# -- refusals ----------------------------------------------------------------------------

LSTM_ = lstm("lstm.", 3, 4)
NO_LAYER = "belongs to no LSTM, GRU, Linear, Embedding or BatchNorm1d layer"
STRANGER = (
    f"{NO_LAYER}; leave it out if it does not change the outputs, or select a recurrent layer alone"
)
PERMANENT = (
    "make pruning or a parametrisation permanent first (prune.remove, remove_parametrizations)"
)
WEIGHTS = ("weight_ih", "weight_hh")


REFUSED = {
    "reverse": (
        LSTM_ | {k + "_reverse": a for k, a in LSTM_.items()},
        "tensor 'lstm.weight_ih_l0_reverse' belongs to a reverse direction, which needs the "
        "future and can't be streamed; train with bidirectional=False",
    ),
    "plain RNN": (
        {"rnn.weight_ih_l0": normal(4, 3), "rnn.weight_hh_l0": normal(4, 4)},
        "tensor 'rnn.weight_hh_l0' [4, 4] belongs to a plain RNN, which can't be imported; "
        "train an LSTM or a GRU",
    ),
    "no cell": (
        {"rnn.weight_ih_l0": normal(8, 3), "rnn.weight_hh_l0": normal(8, 4)},
        "tensor 'rnn.weight_hh_l0' [8, 4] belongs to no LSTM and no GRU; theirs have [4H, H] "
        "and [3H, H], with a weight_hr [P, H] [4H, P]",
    ),
    "projected GRU": (
        gru("g.", 3, 4) | {"g.weight_hr_l0": normal(2, 4), "g.weight_hh_l0": normal(12, 2)},
        "tensor 'g.weight_hh_l0' [12, 2] belongs to no LSTM and no GRU; theirs have [4H, H] "
        "and [3H, H], with a weight_hr [P, H] [4H, P]",
    ),
    "wrong projection": (
        projected("", 3, 5, 2) | {"weight_hr_l0": normal(3, 5)},
        "tensor 'weight_hr_l0' has shape [3, 5]; expected [2, 5] beside its companions",
    ),
    "half an LSTM": (
        {"weight_ih_l0": normal(16, 3)},
        f"the state dict lacks 'weight_hh_l0'; {PERMANENT}",
    ),
    "no matrix": (
        {f"lstm.{name}_l0": Made("torch._utils._rebuild_qtensor", ()) for name in WEIGHTS},
        "tensor 'lstm.weight_ih_l0' is made by torch._utils._rebuild_qtensor; only dense tensors "
        "of floats can be imported",
    ),
    "pruned": (
        LSTM_ | {"head.bias": normal(2), "head.weight_orig": normal(2, 4)},
        f"tensor 'head.weight_orig' [2, 4] {STRANGER}",
    ),
    "half a bias": (
        {k: a for k, a in LSTM_.items() if "bias_ih" not in k},
        "the state dict has 'lstm.bias_hh_l0' but lacks 'lstm.bias_ih_l0'",
    ),
    "some peepholes": (
        LSTM_ | {"lstm.peep_i_l0": normal(4), "lstm.peep_f_l0": normal(4)},
        "the state dict has 'lstm.peep_i_l0' but lacks 'lstm.peep_o_l0'",
    ),
    "full peepholes": (
        LSTM_ | {k: np.diag(a) for k, a in peepholes("lstm.", 4).items()},
        "tensor 'lstm.peep_i_l0' has shape [4, 4]; expected [4] beside its companions",
    ),
    "peepholes of a GRU": (
        gru("", 3, 4) | {"peep_i_l0": normal(4)},
        "tensor 'peep_i_l0' [4] is not known beside 'weight_ih_l0', 'weight_hh_l0', "
        "'bias_ih_l0', 'bias_hh_l0'",
    ),
    "a layer left out": (
        lstm("lstm.", 3, 4) | lstm("lstm.", 4, 4, 2),
        "the state dict lacks 'lstm.weight_ih_l1'",
    ),
    "wrong bias": (
        LSTM_ | {"lstm.bias_hh_l0": normal(1)},
        "tensor 'lstm.bias_hh_l0' has shape [1]; expected [16] beside its companions",
    ),
    "wrong gates": (
        LSTM_ | {"lstm.weight_ih_l0": normal(15, 3)},
        "tensor 'lstm.weight_ih_l0' has shape [15, 3]; expected [16, 3] beside its companions",
    ),
    "layer norm": (
        LSTM_ | {"norm.weight": normal(4), "norm.bias": normal(4)},
        f"tensor 'norm.weight' [4] {STRANGER}",
    ),
    "convolution": (
        LSTM_ | {"conv.weight": normal(4, 4, 3)},
        f"tensor 'conv.weight' [4, 4, 3] {STRANGER}",
    ),
    "attention": (
        LSTM_ | {"attention.in_proj_weight": normal(12, 4)},
        f"tensor 'attention.in_proj_weight' [12, 4] {STRANGER}",
    ),
    "a start of another module": (
        {"h0": normal(1, 1, 4)} | LSTM_,
        f"tensor 'h0' [1, 1, 4] {NO_LAYER}; a learned start is called h0_l0 or c0_l0 [H] beside "
        "its layer's weight_ih_l0",
    ),
    "old weight norm": (
        LSTM_ | {"head.bias": normal(2), "head.weight_g": normal(2), "head.weight_v": normal(2)},
        f"tensor 'head.weight_g' [2] {STRANGER}",
    ),
    "wrong Linear bias": (
        LSTM_ | {"head.weight": normal(2, 4), "head.bias": normal(3)},
        "tensor 'head.bias' has shape [3]; expected [2] beside its companions",
    ),
    "integers": (
        LSTM_ | {"lstm.weight_ih_l0": np.ones((16, 3), np.int8)},
        "tensor 'lstm.weight_ih_l0' has dtype int8; expected floats",
    ),
    "no tensor": (
        LSTM_ | {"epoch": 3},
        "'epoch' holds a int and no tensor; pass just the state dict",
    ),
    "half a batch norm": (
        LSTM_ | {"norm.running_mean": normal(4)},
        "the state dict has 'norm.running_mean' but lacks 'norm.running_var'",
    ),
    "half of an affine batch norm": (
        LSTM_ | {k: a for k, a in batch_norm("norm.", 4).items() if "bias" not in k},
        "'norm.weight' and 'norm.bias' come only together",
    ),
    "negative variance": (
        LSTM_ | batch_norm("norm.", 4) | {"norm.running_var": -np.ones(4, np.float32)},
        "'norm.running_var' holds negative numbers or NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_state_dicts(case):
    tensors, sentence = REFUSED[case]
    with pytest.raises(UnsupportedModelError) as caught:
        sl.from_torch(tensors)
    assert str(caught.value) == sentence


def test_what_is_no_module_and_no_state_dict():
    with pytest.raises(UnsupportedModelError, match="a list is no torch"):
        sl.from_torch([])


# -- the flow ----------------------------------------------------------------------------

FC = linear("fc.", 4, 2)


def untold(keys: str, flow: list[str], how: str = "", what: str = "a state dict") -> str:
    return (
        f"{what} does not tell how its layers run ({keys}); import the live module "
        "(sl.from_torch) or an ONNX file, or, where they run one after the other, say so: "
        f"flow={flow}{how}, with relu, tanh ... where such a function runs"
    )


GAP = ", FUNCTION being what has no tensors there"
ANY = " in the order in which they run"
UNTOLD = {
    "LSTM and Linear": (LSTM_ | FC, untold("lstm, fc", ["lstm", "fc"])),
    "keys in another order": (FC | LSTM_, untold("fc, lstm", ["lstm", "fc"])),
    "a Sequential's numbers or a ModuleList's": (
        lstm("0.", 3, 4) | linear("1.", 4, 2),
        untold("0, 1", ["0", "1"]),
    ),
    "a gap": (
        LSTM_ | linear("head.0.", 4, 5) | linear("head.3.", 5, 2),
        untold("lstm, head.0, head.3", ["lstm", "head.0", "FUNCTION", "head.3"], GAP),
    ),
    "a gap before": (
        LSTM_ | linear("head.1.", 4, 5),
        untold("lstm, head.1", ["lstm", "FUNCTION", "head.1"], GAP),
    ),
    "two heads": (
        LSTM_ | linear("a.", 4, 2) | linear("b.", 4, 2),
        untold("lstm, a, b", ["lstm", "a", "b"], ANY),
    ),
    "encoder and decoder": (
        lstm("encoder.", 4, 4) | lstm("decoder.", 4, 4),
        untold("encoder, decoder", ["encoder", "decoder"]),
    ),
    "a network and its moving average": (
        {f"{p}.{key}": a for p in ("model", "ema") for key, a in (LSTM_ | FC).items()},
        untold(
            "model.lstm, model.fc, ema.lstm, ema.fc",
            ["model.lstm", "model.fc", "ema.lstm", "ema.fc"],
            ANY,
        ),
    ),
    "batch norm": (LSTM_ | batch_norm("norm.", 4), untold("lstm, norm", ["lstm", "norm"])),
    "embedding": (
        LSTM_ | {"word_emb.weight": normal(9, 3)},
        untold("lstm, word_emb", ["word_emb", "lstm"]),
    ),
    "Linear alone": (FC, untold("fc", ["fc"])),
}


@pytest.mark.parametrize("form", ["a dict", "net.safetensors", "net.pt"])
@pytest.mark.parametrize("case", UNTOLD)
def test_a_flow_that_nobody_tells_is_refused(case, form, tmp_path):
    """With the flow that is likely, and one layer can be taken from it nonetheless."""
    tensors, sentence = UNTOLD[case]
    (tmp_path / "net.pt").write_bytes(zipped(tensors))
    save_file(tensors, tmp_path / "net.safetensors")
    source = pytorch.source_of(tensors) if form == "a dict" else pytorch.read(tmp_path / form)
    with pytest.raises(UnsupportedModelError) as caught:
        source.network()
    if form != "net.safetensors":  # which has the keys in the alphabet's order
        assert str(caught.value) == sentence
    assert "say so: flow=['" in str(caught.value)
    assert ": --flow " in caught.value.command_line
    assert "flow=" not in caught.value.command_line
    if case != "Linear alone":
        assert source.recurrent()[0].layer is not None


def test_keys_that_would_move_the_cursor_are_escaped():
    with pytest.raises(UnsupportedModelError) as caught:
        sl.from_torch(LSTM_ | linear("a\x1b[2J\n.", 4, 2))
    assert r"(lstm, a\x1b[2J\n); import" in str(caught.value)
    assert caught.value.command_line.isprintable()


def test_a_likely_flow_is_found_without_an_order(tmp_path):
    tensors = {f"net.z.{key}": a for key, a in (LSTM_ | FC).items()} | lstm("net.z.lstm.", 4, 4, 1)
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"say so: flow=\['net.z.lstm', 'net.z.fc'\],"):
        sl.import_model(tmp_path / "net.safetensors")


X3 = rng.standard_normal((30, 3)).astype(np.float32)
FLOWS = {
    "fc(lstm)": (["lstm", "fc"], lambda h, fc: fc(h)),
    "fc(relu(lstm))": (["lstm", "relu", "fc"], lambda h, fc: fc(np.maximum(h, 0))),
    "tanh(fc(lstm))": (["lstm", "fc", "tanh"], lambda h, fc: np.tanh(fc(h))),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("case", FLOWS)
def test_a_flow_that_the_user_says(case, order):
    """Also where the keys stand the other way round."""
    flow, told = FLOWS[case]
    tensors = dict([*(LSTM_ | FC).items()][::order])
    source = pytorch.source_of(tensors, flow=flow)
    h = told_lstm(LSTM_, X3, prefix="lstm.")
    y = told(h, lambda a: a @ FC["fc.weight"].T + FC["fc.bias"])
    np.testing.assert_allclose(reference.run(model_of(source), X3)[0], y, atol=1e-5)
    assert source.flow_by == "user"
    assert pytorch.source_of(LSTM_).flow_by == "stack"


def test_a_layer_that_is_called_as_a_function_is_the_layer():
    tensors = lstm("relu.", 3, 4) | linear("linear.", 4, 4) | linear("tanh.", 4, 2)
    model = sl.from_torch(tensors, flow=["relu", "linear", "sigmoid", "tanh"])
    assert kinds(model) == [("lstm", 4), ("dense", 4), ("dense", 2)]
    assert [m.activation for m in model.layers[1:]] == ["sigmoid", "linear"]


def test_what_has_no_name_of_its_own_is_called_by_its_kind():
    bare = lstm("", 3, 4) | lstm("", 4, 4, 1)
    model = sl.from_torch(bare | FC, flow=["lstm", "fc"])
    assert kinds(model) == [("lstm", 4), ("lstm", 4), ("dense", 2)]
    assert kinds(sl.from_torch(bare, flow=["lstm", "tanh"])) == [
        *[("lstm", 4)] * 2,
        ("activation", 4),
    ]


FUNCTIONS = "the functions linear, tanh, sigmoid, relu, hard_sigmoid, hard_sigmoid6, softmax"
MISSAID = {
    "unknown": (
        ["lstm", "fd"],
        f"flow= has 'fd', which is no layer of the file and no function; the layers are lstm, fc, "
        f"{FUNCTIONS}",
    ),
    "a sum": (
        ["lstm", "fc + x"],
        "flow= has 'fc + x', which is no layer of the file and no function; the layers are lstm, "
        f"fc, {FUNCTIONS}; a flow is a chain of layers and functions: for sums, products and "
        "branches import an ONNX file or the live module, or select one recurrent layer alone",
    ),
    "left out": (
        ["lstm", "relu"],
        "flow= leaves out fc; say where each of the file's layers runs, or save the weights "
        "without those that don't run",
    ),
    "sizes": (
        ["fc", "lstm"],
        "'lstm.l0' takes 3 numbers a step, and is given 2: the layers run in another order, or "
        "with something between them",
    ),
    "a text": ("lstm,fc", "flow= is one text; give a list: flow=['lstm', 'fc']"),
}


@pytest.mark.parametrize("case", MISSAID)
def test_flows_that_do_not_fit(case):
    flow, sentence = MISSAID[case]
    with pytest.raises(UnsupportedModelError) as caught:
        sl.from_torch(LSTM_ | FC, flow=flow)
    assert str(caught.value) == sentence
    assert caught.value.command_line == sentence.replace("flow=", "--flow", 1).replace(
        "flow=['lstm', 'fc']", "--flow lstm,fc"
    )


NOT_FITTING = {
    "batch norm": (
        LSTM_ | batch_norm("norm.", 1),
        ["lstm", "norm"],
        "module 'norm' normalises 1 number, and is given 4",
    ),
    "embedding or square Linear": (
        {"embed.weight": normal(3, 3)} | LSTM_,
        ["embed", "lstm"],
        "tensor 'embed.weight' [3, 3] can be an Embedding's or a Linear layer's without bias; "
        "import the live module",
    ),
    "two dtypes": (
        LSTM_ | {k: a.astype(float) for k, a in FC.items()},
        ["lstm", "fc"],
        "a state dict has layers of float32 and float64; make them one with model.float()",
    ),
    "no recurrent layer": (FC, ["fc"], "a model needs at least one LSTM or GRU layer"),
    "nothing": ({}, [], "a model needs at least one layer"),
}


@pytest.mark.parametrize("case", NOT_FITTING)
def test_layers_that_do_not_fit_the_flow(case):
    tensors, flow, sentence = NOT_FITTING[case]
    with pytest.raises(ModelError) as caught:
        sl.from_torch(tensors, flow=flow)
    assert sentence in str(caught.value)


# -- one layer of many -------------------------------------------------------------------


def test_every_recurrent_layer_is_found():
    """Also those that can't be imported, and where the whole network can't."""
    tensors = lstm("a.", 3, 4) | lstm("a.", 4, 4, 1) | projected("p.", 4, 5, 2)
    tensors |= {k + "_reverse": a for k, a in lstm("a.", 3, 4).items()}
    tensors |= gru("cell.", 2, 6, None) | {"conv.weight": normal(4, 4, 3)}
    tensors |= {"rnn.weight_ih_l0": normal(4, 3), "rnn.weight_hh_l0": normal(4, 4)}
    tensors |= {"half.weight_ih_l0": normal(4, 3)}
    source = pytorch.source_of(tensors)
    found = {f.where: (f.text, f.layer is not None) for f in source.recurrent()}
    assert found == {
        "a.l0": ("LSTM 3 -> 4", True),
        "a.l0_reverse": ("LSTM 3 -> 4", False),
        "a.l1": ("LSTM 4 -> 4", True),
        "p.l0": ("LSTM 4 -> 2 (5 units)", True),
        "cell": ("GRUCell 2 -> 6", True),
        "rnn.l0": ("RNN 3 -> 4", False),
        "half.l0": ("LSTM", False),
    }
    assert all(bool(f.refusal) != (f.layer is not None) for f in source.recurrent())
    assert kinds(model_of(source, "a.l1")) == [("lstm", 4)]
    with pytest.raises(UnsupportedModelError, match="needs the future"):
        selected(source, "a.l0_reverse")
    with pytest.raises(UnsupportedModelError, match="no recurrent layer 'b' was found"):
        selected(source, "b")


def test_nothing_runs_it_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    source = pytorch.source_of(LSTM_)
    assert (source.format, source.framework) == ("PyTorch", "")


# -- safetensors -------------------------------------------------------------------------


def test_safetensors_files(tmp_path):
    """LSTM layers go by their numbers, the rest by the flow."""
    tensors = {}
    for k in range(11):  # l10 comes before l2 in the alphabet
        tensors |= lstm("net.lstm.", 4 if k else 3, 4, k)
    tensors |= linear("net.z.", 4, 7) | linear("net.a.", 7, 2)
    save_file(tensors, tmp_path / "pump.safetensors")
    flow = ["net.lstm", "net.z", "tanh", "net.a"]
    model = sl.import_model(tmp_path / "pump.safetensors", flow=flow)
    assert model.name == "pump"
    assert kinds(model) == [("lstm", 4)] * 11 + [("dense", 7), ("dense", 2)]
    np.testing.assert_array_equal(model.layers[2].w_x, tensors["net.lstm.weight_ih_l2"])
    path = str(tmp_path / "pump.safetensors")
    assert sl.import_model(path, flow=flow, name="other").name == "other"


def test_tied_weights_are_restored(tmp_path):
    """safetensors.torch.save_model writes one of them, and notes the other."""
    tensors = lstm("lstm.", 3, 3) | linear("out.", 3, 9)
    notes = {"embed.weight": "out.weight", "format": "pt"}
    save_file(tensors, tmp_path / "net.safetensors", notes)
    model = sl.import_model(tmp_path / "net.safetensors", flow=["embed", "lstm", "out"])
    assert kinds(model) == [("embedding", 3), ("lstm", 3), ("dense", 9)]
    np.testing.assert_array_equal(model.layers[0].w, tensors["out.weight"])


# -- what is assumed ---------------------------------------------------------------------


def test_what_is_assumed_is_said():
    """Options that a state dict does not keep."""
    tensors = {"embed.weight": normal(9, 3)} | LSTM_ | batch_norm("norm.", 4)
    source = pytorch.source_of(tensors, flow=["embed", "lstm", "norm"])
    assert source.assumed == []
    for _ in range(2):
        source.network()
        assert source.assumed == [
            "Embedding 'embed' has no max_norm",
            "the eps of BatchNorm1d 'norm' is 1e-05, torch's default",
        ]


def test_bfloat16_in_safetensors(tmp_path):
    tensors = {k: to_bfloat16(a) for k, a in lstm("", 3, 4).items()}
    header, data = {}, b""
    for key, a in tensors.items():
        raw = upper_halves(a)
        header[key] = {
            "dtype": "BF16",
            "shape": list(a.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = re.sub("'", '"', str(header)).encode()
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    model = sl.import_model(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(model.layers[0].w_x, tensors["weight_ih_l0"])


@pytest.mark.parametrize("name", ["last.ckpt", "pytorch_model.bin", "best.PTH.tar"])
def test_other_endings_of_torch_save(name, tmp_path):
    (tmp_path / name).write_bytes(zipped({"state_dict": LSTM_}))
    assert kinds(sl.import_model(tmp_path / name)) == [("lstm", 4)]


def test_files_that_can_not_be_imported(tmp_path):
    def refused(name: str, sentence: str) -> None:
        with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
            sl.import_model(tmp_path / name)

    refused("net.xyz", "has an unknown ending; files ending in .pt, .pth, .pth.tar, .ckpt, .bin")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    refused("junk.safetensors", "can't be read as safetensors")
    stacked().save(tmp_path / "own.safetensors")
    refused("own.safetensors", "is our own model file; read it with load")
    with pytest.raises(FileNotFoundError):
        sl.import_model(tmp_path / "none.safetensors")
