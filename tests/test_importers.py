"""Foreign networks without their frameworks: state dicts of arrays, safetensors files.

tests/parity has the same with PyTorch itself.
"""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import streamlstm as sl
from networks import events, stacked
from streamlstm import reference
from streamlstm.errors import ModelError, UnsupportedModelError
from streamlstm.importers import gate_orders

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def lstm(prefix: str, inputs: int, units: int, layer: int | None = 0, bias: bool = True):
    """One layer as PyTorch names it; layer None: an LSTMCell."""
    suffix = "" if layer is None else f"_l{layer}"
    tensors = {
        f"{prefix}weight_ih{suffix}": normal(4 * units, inputs),
        f"{prefix}weight_hh{suffix}": normal(4 * units, units),
    }
    if bias:
        tensors |= {f"{prefix}bias_{k}{suffix}": normal(4 * units) for k in ("ih", "hh")}
    return tensors


def linear(prefix: str, inputs: int, outputs: int, bias: bool = True):
    tensors = {f"{prefix}weight": normal(outputs, inputs)}
    return tensors | ({f"{prefix}bias": normal(outputs)} if bias else {})


def kinds(model: sl.Model) -> list[tuple[str, int]]:
    return [(layer.kind, layer.units) for layer in model.layers]


def test_biases_are_added_and_gates_kept():
    tensors = lstm("", 3, 4)
    layer = sl.from_torch(tensors).layers[0]
    np.testing.assert_array_equal(layer.w_x, tensors["weight_ih_l0"])
    np.testing.assert_array_equal(layer.w_h, tensors["weight_hh_l0"])
    np.testing.assert_array_equal(layer.b, tensors["bias_ih_l0"] + tensors["bias_hh_l0"])


@pytest.mark.parametrize("prefix", ["", "lstm.", "model.encoder.rnn."])
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
    tensors = lstm("cell1.", 3, 4, None, bias=False) | lstm("cell2.", 4, 5, None)
    model = sl.from_torch(tensors | linear("out.", 5, 2, bias=False))
    assert kinds(model) == [("lstm", 4), ("lstm", 5), ("dense", 2)]
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


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes(dtype):
    tensors = {key: a.astype(dtype) for key, a in lstm("", 3, 4).items()}
    model = sl.from_torch(tensors)
    assert model.dtype == ("float64" if dtype == "float64" else "float32")


LSTM_ = lstm("lstm.", 3, 4)
REFUSED = {
    "reverse": (
        LSTM_ | {"lstm.weight_ih_l0_reverse": normal(16, 3)},
        "tensor 'lstm.weight_ih_l0_reverse' belongs to a reverse direction, which needs the future",
    ),
    "projection": (
        LSTM_ | {"lstm.weight_hh_l0": normal(16, 2), "lstm.weight_hr_l0": normal(2, 4)},
        "tensor 'lstm.weight_hr_l0' is a projection, which is not supported yet",
    ),
    "GRU": (
        {"gru.weight_ih_l0": normal(12, 3), "gru.weight_hh_l0": normal(12, 4)},
        "tensor 'gru.weight_hh_l0' [12, 4] belongs to a GRU; an LSTM's has [4H, H]",
    ),
    "plain RNN": (
        {"rnn.weight_ih_l0": normal(4, 3), "rnn.weight_hh_l0": normal(4, 4)},
        "tensor 'rnn.weight_hh_l0' [4, 4] belongs to no LSTM",
    ),
    "half an LSTM": ({"weight_ih_l0": normal(16, 3)}, "the state dict lacks 'weight_hh_l0'"),
    "wrong bias": (
        LSTM_ | {"lstm.bias_hh_l0": normal(1)},
        "the tensors of 'lstm.weight_ih_l0' and its companions don't fit each other: "
        "[16, 3], [16, 4], [16], [1]",
    ),
    "wrong gates": (LSTM_ | {"lstm.weight_ih_l0": normal(15, 3)}, "don't fit each other: [15, 3]"),
    "batch norm": (
        LSTM_ | {"norm.weight": normal(4), "norm.bias": normal(4)},
        "tensor 'norm.weight' [4] belongs to no LSTM or Linear layer",
    ),
    "convolution": (LSTM_ | {"conv.weight": normal(4, 4, 3)}, "tensor 'conv.weight' [4, 4, 3]"),
    "attention": (
        LSTM_ | {"attention.in_proj_weight": normal(12, 4)},
        "tensor 'attention.in_proj_weight' [12, 4] belongs to no LSTM or Linear layer",
    ),
    "integers": (
        LSTM_ | {"norm.num_batches_tracked": np.array(3)},
        "tensor 'norm.num_batches_tracked' has dtype int64; expected floats",
    ),
    "two Linear layers": (
        LSTM_ | linear("a.", 4, 4) | linear("b.", 4, 2),
        "a state dict does not tell what stands between its 2 Linear layers; "
        "pass activations= with 2 names, such as ['relu', 'linear']",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_state_dicts(case):
    tensors, sentence = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.from_torch(tensors)


def test_activations_must_fit():
    tensors = LSTM_ | linear("head.", 4, 2)
    for activations, count in (([], 0), (["relu", "linear"], 2)):
        sentence = f"{count} activations were given for 1 Linear layers; give one each"
        with pytest.raises(UnsupportedModelError, match=sentence):
            sl.from_torch(tensors, activations=activations)
    with pytest.raises(ModelError, match="has activation 'gelu'"):
        sl.from_torch(tensors, activations=["gelu"])


def test_sizes_that_do_not_follow_each_other():
    with pytest.raises(ModelError, match="layer 1 takes 5 inputs, but layer 0 gives 4 outputs"):
        sl.from_torch(LSTM_ | linear("head.", 5, 2))
    with pytest.raises(ModelError, match="at least one LSTM layer"):
        sl.from_torch(linear("head.", 5, 2))
    with pytest.raises(ModelError, match="at least one layer"):
        sl.from_torch({})


# -- files -------------------------------------------------------------------------------


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
    assert (
        sl.import_model(
            str(tmp_path / "pump.safetensors"), activations=["tanh", "linear"], name="other"
        ).name
        == "other"
    )


@pytest.mark.parametrize(
    ("tensors", "unclear"),
    [
        (LSTM_ | linear("a.", 4, 4) | linear("b.", 4, 4), "a.weight, b.weight"),
        (LSTM_ | linear("a.", 4, 2) | linear("b.", 4, 2), "a.weight, b.weight"),
        (lstm("encoder.", 4, 4) | lstm("decoder.", 4, 4), "decoder., encoder."),
        (
            LSTM_ | {k: a for n in range(6) for k, a in linear(f"f{n}.", 4 + n, 5 + n).items()},
            "f0.weight, f1.weight, f2.weight, f3.weight, f4.weight, f5.weight",
        ),
    ],
)
def test_an_order_that_a_file_does_not_tell(tensors, unclear, tmp_path):
    save_file(tensors, tmp_path / "net.safetensors")
    sentence = f"does not tell the order of {unclear}; import the .pt file or the live module"
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(tmp_path / "net.safetensors", activations=["linear"] * 6)


def test_numbered_lstm_modules_follow_their_numbers(tmp_path):
    tensors = lstm("lstm2.", 5, 6) | lstm("lstm1.", 3, 5)
    save_file(tensors, tmp_path / "net.safetensors")
    assert kinds(sl.import_model(tmp_path / "net.safetensors")) == [("lstm", 5), ("lstm", 6)]


def test_files_that_can_not_be_imported(tmp_path):
    def refused(name: str, sentence: str) -> None:
        with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
            sl.import_model(tmp_path / name)

    refused("net.onnx", "has an unknown ending; files ending in .pt, .pth, .safetensors can be")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    refused("junk.safetensors", "can't be read as safetensors")
    stacked().save(tmp_path / "own.safetensors")
    refused("own.safetensors", "is our own model file; read it with load")
    with pytest.raises(FileNotFoundError):
        sl.import_model(tmp_path / "none.safetensors")


def test_a_pt_file_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UnsupportedModelError, match=r"needs PyTorch: pip install 'streamlstm\[torch\]'"
    ):
        sl.import_model(tmp_path / "net.pt")


def test_gate_orders(monkeypatch):
    """The table puts any order into ours, i f g o."""
    monkeypatch.setitem(gate_orders.ORDERS, "other", "ogfi")
    blocks = np.arange(4).repeat(2)
    np.testing.assert_array_equal(gate_orders.canonical(blocks, "other"), blocks[::-1])
    np.testing.assert_array_equal(gate_orders.canonical(blocks, "pytorch"), blocks)
