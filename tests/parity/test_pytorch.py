"""Against PyTorch itself: live modules, state dicts and files, on shapes hypothesis picks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import streamlstm as sl
from networks import C_ERROR, H_ERROR
from streamlstm.errors import UnsupportedModelError

GOLDEN = Path(__file__).parent.parent / "golden"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Net(nn.Module):
    """nn.LSTM, and Linear layers with ReLU between them."""

    def __init__(self, inputs: int, units: int, layers: int, *widths: int, bias: bool = True):
        super().__init__()
        self.lstm = nn.LSTM(inputs, units, layers, bias=bias, batch_first=True)
        self.head = nn.ModuleList(
            nn.Linear(a, b, bias=bias) for a, b in zip((units, *widths), widths, strict=False)
        )

    def forward(self, x, state=None):
        a, state = self.lstm(x, state)
        for k, layer in enumerate(self.head):
            a = layer(a)
            if k < len(self.head) - 1:
                a = torch.relu(a)
        return a, state


def activations(net: Net) -> list[str]:
    return ["relu"] * (len(net.head) - 1) + ["linear"] * bool(len(net.head))


@st.composite
def nets(draw) -> Net:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    sizes = st.integers(1, 40)
    widths = draw(st.lists(st.integers(1, 12), max_size=3))
    net = Net(draw(sizes), draw(sizes), draw(st.integers(1, 3)), *widths, bias=draw(st.booleans()))
    return net.to(DTYPES[draw(st.sampled_from(list(DTYPES)))])


def check(net: Net, model: sl.Model, x: torch.Tensor) -> None:
    """Outputs, h and c after the sequences x [n, time, inputs], by group and one by one."""
    with torch.no_grad():
        expected, (h, c) = net(x)
    h_error, c_error = H_ERROR[model.dtype.name], C_ERROR[model.dtype.name]
    events = x.numpy()
    with sl.Engine(model) as engine:
        group = engine.group([engine.open(f"s{k}") for k in range(len(events))])
        y = group.run(events)
        np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=h_error)
        for k in range(len(events)):
            single = engine.open("single")
            y = np.stack([single.step(event) for event in events[k]])
            np.testing.assert_allclose(y, expected[k].numpy(), rtol=0, atol=h_error)
            for state in (single.state(), engine[f"s{k}"].state()):
                for layer in range(net.lstm.num_layers):
                    np.testing.assert_allclose(
                        state.h(layer), h[layer, k].numpy(), rtol=0, atol=h_error
                    )
                    np.testing.assert_allclose(state.c(layer), c[layer, k].numpy(), **c_error)
            single.close()


@given(nets(), st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=80)
def test_any_network(net, streams, steps):
    x = torch.randn(streams, steps, net.lstm.input_size, dtype=net.lstm.weight_ih_l0.dtype)
    check(net, sl.from_torch(net, activations=activations(net)), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_thousand_steps(layers, dtype):
    torch.manual_seed(layers)
    net = Net(16, 64, layers, 3).to(DTYPES[dtype])
    check(net, sl.from_torch(net), torch.randn(2, 1000, 16, dtype=DTYPES[dtype]))


def test_going_on_from_a_state_of_pytorchs():
    torch.manual_seed(0)
    net = Net(3, 8, 2).double()
    model = sl.from_torch(net)
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    with torch.no_grad(), sl.Engine(model) as engine:
        _, (h, c) = net(x[:, :10])
        numbers = torch.stack([h[:, 0], c[:, 0]], dim=1).flatten().numpy()
        session = engine.open("a")
        session.restore(sl.State(model.fingerprint, 10, (8, 8), numbers))
        expected, _ = net(x[:, 10:], (h, c))
        np.testing.assert_allclose(session.run(x[0, 10:].numpy()), expected[0], atol=1e-11)


def test_cells():
    torch.manual_seed(0)
    cells = nn.ModuleList([nn.LSTMCell(3, 5), nn.LSTMCell(5, 4)])
    x = torch.randn(10, 3)
    with torch.no_grad(), sl.Engine(sl.from_torch(cells)) as engine:
        session = engine.open("a")
        states = [None, None]
        for event in x:
            a = event[None]
            for k, cell in enumerate(cells):
                states[k] = cell(a, states[k])
                a = states[k][0]
            np.testing.assert_allclose(session.step(event.numpy()), a[0], atol=1e-5)


NET = Net(3, 8, 2, 4, 2)
HELD = {
    "the state dict": lambda net: net.state_dict(),
    "a checkpoint": lambda net: {"epoch": 3, "model": net.state_dict(), "lr": 0.1},
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("ending", ["pt", "pth"])
def test_pt_files(held, ending, tmp_path):
    path = tmp_path / f"pump.{ending}"
    torch.save(HELD[held](NET), path)
    model = sl.import_model(path, activations=activations(NET))
    assert model.name == "pump"
    check(NET, model, torch.randn(2, 12, 3))


def test_safetensors_files(tmp_path):
    save_file(NET.state_dict(), tmp_path / "pump.safetensors")
    model = sl.import_model(tmp_path / "pump.safetensors", activations=activations(NET))
    live = sl.from_torch(NET, activations=activations(NET))
    assert model.fingerprint == live.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    net = Net(3, 8, 1).to(dtype)
    model = sl.from_torch(net)
    assert model.dtype == np.float32
    check(net.float(), model, torch.randn(1, 12, 3))


def test_training_goes_on_without_the_model():
    """The model is a copy: an optimizer's step after it does not reach it."""
    net = Net(3, 8, 1)
    model = sl.from_torch(net)
    before = model.layers[0].w_x.copy()
    with torch.no_grad():
        for a in net.parameters():
            a.add_(1)
    np.testing.assert_array_equal(model.layers[0].w_x, before)


# -- refusals ----------------------------------------------------------------------------

KINDS = (
    "only LSTM, LSTMCell and Linear layers and the activations ReLU, Sigmoid, Tanh can be imported"
)
REFUSED = {
    "bidirectional": (
        nn.LSTM(3, 4, bidirectional=True),
        "tensor 'weight_ih_l0_reverse' belongs to a reverse direction, which needs the future "
        "and can't be streamed; train with bidirectional=False",
    ),
    "proj_size": (
        nn.LSTM(3, 4, proj_size=2),
        "tensor 'weight_hr_l0' is a projection, which is not supported yet; train with proj_size=0",
    ),
    "GRU": (nn.GRU(3, 4), f"module 'GRU' is a GRU; {KINDS}"),
    "RNN": (nn.RNN(3, 4), f"module 'RNN' is a RNN; {KINDS}"),
    "convolution": (
        nn.Sequential(nn.LSTM(3, 4), nn.Conv1d(4, 4, 3)),
        f"module '1' is a Conv1d; {KINDS}",
    ),
    "normalisation without tensors": (
        nn.Sequential(nn.LSTM(3, 4), nn.LayerNorm(4, elementwise_affine=False)),
        f"module '1' is a LayerNorm; {KINDS}",
    ),
    "other activation": (
        nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2), nn.GELU()),
        f"module '2' is a GELU; {KINDS}",
    ),
    "activation": (
        nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2), nn.Tanh()),
        "module '2' is a Tanh, and a module does not tell after which layer it stands; "
        "pass activations= with one name for each Linear layer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_modules(case):
    module, sentence = REFUSED[case]
    with pytest.raises(UnsupportedModelError) as caught:
        sl.from_torch(module)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (nn.GRU, "tensor 'weight_hh_l0' [12, 4] belongs to a GRU; an LSTM's has [4H, H]"),
        (nn.RNN, "tensor 'weight_hh_l0' [4, 4] belongs to no LSTM; an LSTM's has [4H, H]"),
    ],
)
def test_refused_state_dicts(kind, sentence, tmp_path):
    torch.save(kind(3, 4).state_dict(), tmp_path / "net.pt")
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(tmp_path / "net.pt")
    assert str(caught.value) == sentence


def test_dropout_and_identity_are_nothing_when_run():
    module = nn.Sequential(nn.LSTM(3, 4, 2, dropout=0.5), nn.Dropout(0.5), nn.Linear(4, 2))
    model = sl.from_torch(module)
    assert [layer.kind for layer in model.layers] == ["lstm", "lstm", "dense"]


def test_activations_are_taken_where_given():
    module = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2), nn.Tanh())
    assert sl.from_torch(module, activations=["tanh"]).layers[1].activation == "tanh"


ran = []


class Planted:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return (ran.append, ("code from the file",))


@pytest.mark.parametrize(
    "held", [NET, {"model": Planted()}, Planted()], ids=["module", "planted", "code"]
)
def test_code_in_a_file_is_never_run(held, tmp_path):
    torch.save(held, tmp_path / "net.pt")
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(tmp_path / "net.pt")
    assert re.fullmatch(
        re.escape(f"{tmp_path / 'net.pt'} is not a plain state dict (")
        + ".*"
        + re.escape("); pickled modules are never run: save model.state_dict() instead"),
        str(caught.value),
    )
    assert not ran


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (torch.zeros(3), "holds 0 state dicts among the keys []"),
        ({"a": NET.state_dict(), "b": NET.state_dict()}, "holds 2 state dicts among the keys"),
        ({}, "holds 0 state dicts among the keys []; save just model.state_dict()"),
    ],
)
def test_files_that_hold_no_single_state_dict(held, sentence, tmp_path):
    torch.save(held, tmp_path / "net.pt")
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.import_model(tmp_path / "net.pt")


def test_other_pt_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        sl.import_model(tmp_path / "none.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(UnsupportedModelError, match="is not a plain state dict"):
        sl.import_model(tmp_path / "junk.pt")


def test_integer_tensors_are_refused():
    tensors = nn.LSTM(3, 4).state_dict()
    tensors["weight_ih_l0"] = tensors["weight_ih_l0"].to(torch.int8)
    with pytest.raises(
        UnsupportedModelError, match="'weight_ih_l0' has dtype int8; expected floats"
    ):
        sl.from_torch(tensors)


def test_the_golden_vectors_are_what_their_script_makes():
    """tests/golden's numbers against this PyTorch, which may differ in the last digits."""
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    torch.manual_seed(1)
    net = make_golden.Net(1)
    x = make_golden.events()
    golden = load_file(GOLDEN / "lstm-1.safetensors")
    np.testing.assert_array_equal(golden["x"], x)
    made = make_golden.answers(net, x.double())
    for name, a in made.items():
        np.testing.assert_allclose(a, golden[f"{name}.f8"], rtol=0, atol=1e-11)
