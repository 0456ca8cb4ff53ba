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
    model = sl.from_torch(tensors | linear("out.", 5, 2, bias=False))
    assert kinds(model) == [("lstm", 4), ("gru", 5), ("dense", 2)]
    assert not model.layers[0].b.any()
    assert not model.layers[2].b.any()


def test_layers_in_the_order_of_the_keys():
    tensors = linear("embed.", 3, 6) | lstm("lstm.", 6, 4) | linear("head.", 4, 2)
    model = sl.from_torch(tensors, activations=["relu", "linear"], inputs=["a", "b", "c"])
    assert kinds(model) == [("dense", 6), ("lstm", 4), ("dense", 2)]
    assert [m.activation for m in model.layers if isinstance(m, sl.Dense)] == ["relu", "linear"]
    x = events(model, 6)
    with sl.Engine(model) as engine:
        y = engine.open("a").run(x)
    np.testing.assert_allclose(y, reference.run(model, x)[0], atol=1e-4)


def test_batch_norm_is_folded():
    """eps is torch's default, 1e-5, which a state dict does not keep."""
    tensors = lstm("lstm.", 3, 4) | batch_norm("norm.", 4) | linear("head.", 4, 2)
    model = sl.from_torch(tensors)
    assert kinds(model) == [("lstm", 4), ("dense", 2)]
    h = told_lstm({k: a for k, a in tensors.items() if "lstm" in k}, X, prefix="lstm.")
    t = {k.removeprefix("norm."): a.astype(float) for k, a in tensors.items()}
    h = (h - t["running_mean"]) / np.sqrt(t["running_var"] + 1e-5) * t["weight"] + t["bias"]
    y = h @ tensors["head.weight"].T + tensors["head.bias"]
    np.testing.assert_allclose(reference.run(model, X)[0], y, atol=1e-4)


def test_batch_norm_without_affine_and_before_the_lstm():
    tensors = {"norm.running_mean": normal(3), "norm.running_var": normal(3) ** 2}
    assert kinds(sl.from_torch(tensors | lstm("lstm.", 3, 4))) == [("lstm", 4)]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ({"tokens.weight": normal(9, 5)}, ("embedding", 5)),
        ({"embed.weight": normal(9, 5)}, ("embedding", 5)),
        ({"embed.weight": normal(5, 9)}, ("dense", 5)),
        ({"project.weight": normal(5, 5)}, ("dense", 5)),
        (linear("embed.", 5, 5), ("dense", 5)),
    ],
)
def test_embedding_or_linear(first, kind):
    """What the LSTM takes tells which of the two a bare matrix is."""
    assert kinds(sl.from_torch(first | lstm("lstm.", 5, 4))) == [kind, ("lstm", 4)]


def test_an_embedding_looks_up():
    table, tensors = normal(9, 3), lstm("", 3, 4)
    model = sl.from_torch({"embed.weight": table} | tensors)
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


def twice(*prefixes: str):
    """The same names and sizes under each prefix, the events' as many as the units."""
    return {
        k: a
        for p in prefixes
        for k, a in (lstm(f"{p}lstm.", 4, 4) | linear(f"{p}fc.", 4, 4)).items()
    }


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
    "wrong batch norm": (
        LSTM_ | batch_norm("norm.", 1),
        "module 'norm' normalises 1 numbers, but there are 4 where it stands",
    ),
    "embedding or square Linear": (
        {"embed.weight": normal(3, 3)} | LSTM_,
        "tensor 'embed.weight' [3, 3] can be an Embedding's or a Linear layer's without bias; "
        "import the live module",
    ),
    "two Linear layers": (
        LSTM_ | linear("a.", 4, 4) | linear("b.", 4, 2),
        "a state dict does not tell what stands between its 2 Linear layers; "
        "pass activations= with 2 names, such as ['relu', 'linear'] "
        "(for sl.verify: to open_source)",
    ),
    "Linear and batch norm": (
        LSTM_ | linear("a.", 4, 2) | batch_norm("norm.", 2),
        "a state dict does not tell what stands between its 1 Linear layers; "
        "pass activations= with 1 names, such as ['relu', 'linear'] "
        "(for sl.verify: to open_source)",
    ),
    "a network and its moving average": (
        twice("model.", "ema_model."),
        "'model' and 'ema_model' hold the same layers, and a file does not tell whether both run; "
        "keep one of them, or select a recurrent layer alone",
    ),
    "two halves alike": (
        lstm("encoder.", 4, 4) | lstm("decoder.", 4, 4),
        "'encoder' and 'decoder' hold the same layers, and a file does not tell whether both run; "
        "keep one of them, or select a recurrent layer alone",
    ),
    "two dtypes": (
        LSTM_ | {k: a.astype(float) for k, a in linear("head.", 4, 2).items()},
        "a state dict has layers of float32 and float64; make them one with model.float()",
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


def test_activations_must_fit():
    tensors = LSTM_ | linear("head.", 4, 2)
    for activations, count in (([], 0), (["relu", "linear"], 2)):
        sentence = f"{count} activations were given for 1 Linear layers; give one each"
        with pytest.raises(UnsupportedModelError, match=sentence):
            sl.from_torch(tensors, activations=activations)
    with pytest.raises(ModelError, match="'gelu'"):
        sl.from_torch(tensors, activations=["gelu"])


def test_an_activation_beside_a_batch_norm_has_no_place():
    tensors = LSTM_ | linear("a.", 4, 2) | batch_norm("norm.", 2)
    assert kinds(sl.from_torch(tensors, activations=["linear"])) == [("lstm", 4), ("dense", 2)]
    with pytest.raises(UnsupportedModelError) as caught:
        sl.from_torch(tensors, activations=["relu"])
    assert str(caught.value) == (
        "a state dict does not tell whether 'relu' stands before or after the BatchNorm1d behind "
        "'a'; import an nn.Sequential of them"
    )


def test_sizes_that_do_not_follow_each_other():
    with pytest.raises(ModelError, match="layer 1 takes 5 inputs, but layer 0 gives 4 outputs"):
        sl.from_torch(LSTM_ | linear("head.", 5, 2))
    with pytest.raises(ModelError, match="at least one LSTM or GRU layer"):
        sl.from_torch(linear("head.", 5, 2))
    with pytest.raises(ModelError, match="at least one layer"):
        sl.from_torch({})


def test_layers_names_are_for_other_formats(tmp_path):
    save_file(LSTM_, tmp_path / "net.safetensors")
    with pytest.raises(UnsupportedModelError, match="names its layers itself; layers= is for"):
        sl.import_model(tmp_path / "net.safetensors", layers=["lstm"])


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
    """A file keeps no order: LSTM layers by their numbers, Linear ones by their sizes."""
    tensors = {}
    for k in range(11):  # l10 comes before l2 in the alphabet
        tensors |= lstm("net.lstm.", 4 if k else 3, 4, k)
    tensors |= linear("net.z.", 4, 7) | linear("net.a.", 7, 2)
    save_file(tensors, tmp_path / "pump.safetensors")
    model = sl.import_model(tmp_path / "pump.safetensors", activations=["tanh", "linear"])
    assert model.name == "pump"
    assert kinds(model) == [("lstm", 4)] * 11 + [("dense", 7), ("dense", 2)]
    np.testing.assert_array_equal(model.layers[2].w_x, tensors["net.lstm.weight_ih_l2"])
    path = str(tmp_path / "pump.safetensors")
    assert sl.import_model(path, activations=["tanh", "linear"], name="other").name == "other"


@pytest.mark.parametrize(
    ("tensors", "unclear"),
    [
        (LSTM_ | linear("a.", 4, 4) | linear("b.", 4, 4), "a, b, lstm"),
        (LSTM_ | linear("a.", 4, 2) | linear("b.", 4, 2), "a, b, lstm"),
        (lstm("encoder.", 3, 4) | lstm("decoder.", 4, 4), "decoder, encoder"),
        (lstm("encoder.a.", 4, 4, None) | gru("encoder.b.", 4, 4, None), "encoder.a, encoder.b"),
        (lstm("lstm.", 4, 4) | linear("a.", 4, 4), "a, lstm"),
        (LSTM_ | batch_norm("norm.", 4) | linear("a.", 4, 2), "a, lstm, norm"),
        (
            LSTM_ | {k: a for n in range(6) for k, a in linear(f"f{n}.", 4 + n, 5 + n).items()},
            "f0, f1, f2, f3, f4, f5, lstm",
        ),
    ],
)
def test_an_order_that_a_file_does_not_tell(tensors, unclear, tmp_path):
    save_file(tensors, tmp_path / "net.safetensors")
    sentence = f"does not tell the order of {unclear}; import the .pt file or the live module"
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(tmp_path / "net.safetensors", activations=["linear"] * 6)
    first = next(iter(pytorch.read(tmp_path / "net.safetensors").recurrent()))
    assert first.layer is not None  # one layer can be taken from it nonetheless


@pytest.mark.parametrize("names", [("lstm1", "lstm2"), ("rnn", "rnn2"), ("a.2.rnn", "a.10.rnn")])
def test_numbered_lstm_modules_follow_their_numbers(names, tmp_path):
    """Also where their sizes would fit the other way round; a bare name comes first."""
    first, second = (lstm(f"{name}.", 4, 4) | lstm(f"{name}.", 4, 4, 1) for name in names)
    save_file(second | first | linear("fc.", 4, 2), tmp_path / "net.safetensors")
    model = sl.import_model(tmp_path / "net.safetensors")
    assert kinds(model) == [("lstm", 4)] * 4 + [("dense", 2)]
    for k, (name, held) in enumerate((n, t) for n, t in zip(names, (first, second), strict=True)):
        np.testing.assert_array_equal(model.layers[2 * k].w_x, held[f"{name}.weight_ih_l0"])


def test_a_linear_layer_before_the_lstm_where_only_that_fits(tmp_path):
    save_file(LSTM_ | linear("z.", 5, 3), tmp_path / "net.safetensors")
    assert kinds(sl.import_model(tmp_path / "net.safetensors")) == [("dense", 3), ("lstm", 4)]


def test_tied_weights_are_restored(tmp_path):
    """safetensors.torch.save_model writes one of them, and notes the other."""
    tensors = lstm("lstm.", 3, 3) | linear("out.", 3, 9)
    notes = {"embed.weight": "out.weight", "format": "pt"}
    save_file(tensors, tmp_path / "net.safetensors", notes)
    model = sl.import_model(tmp_path / "net.safetensors")
    assert kinds(model) == [("embedding", 3), ("lstm", 3), ("dense", 9)]
    np.testing.assert_array_equal(model.layers[0].w, tensors["out.weight"])


# -- what is assumed ---------------------------------------------------------------------

ORDER = "the layers follow each other in the order read, with nothing else between them: "
ASSUMED = {
    "nothing of one module": (lstm("", 3, 4) | lstm("", 4, 4, 1), {}, []),
    "flow": (
        LSTM_ | linear("fc.", 4, 2),
        {},
        [f"{ORDER}lstm, fc", "nothing follows 'fc' (pass activations= if something does)"],
    ),
    "order alone": (LSTM_ | linear("fc.", 4, 2), {"activations": ["relu"]}, [f"{ORDER}lstm, fc"]),
    "options": (
        {"embed.weight": normal(9, 3)} | LSTM_ | batch_norm("norm.", 4),
        {},
        [
            "Embedding 'embed' has no max_norm",
            "the eps of BatchNorm1d 'norm' is 1e-05, torch's default",
            f"{ORDER}embed, lstm, norm",
        ],
    ),
}


@pytest.mark.parametrize("case", ASSUMED)
def test_what_is_assumed_is_said(case):
    tensors, options, clauses = ASSUMED[case]
    source = pytorch.source_of(tensors, **options)
    assert source.assumed == []
    for _ in range(2):
        source.network()
        assert source.assumed == clauses


def test_an_embedding_stands_first(tmp_path):
    tensors = {"a_embedding.weight": normal(9, 3)} | LSTM_ | linear("z.", 4, 2)
    save_file(tensors, tmp_path / "net.safetensors")
    model = sl.import_model(tmp_path / "net.safetensors")
    assert kinds(model) == [("embedding", 3), ("lstm", 4), ("dense", 2)]


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
