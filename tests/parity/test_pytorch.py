"""Against PyTorch itself: live modules, state dicts and files, on shapes hypothesis picks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.nn.utils import prune

import streamlstm as sl
from agree import agree
from networks import C_ERROR, H_ERROR
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import model_of, open_source, pytorch
from streamlstm.importers.pytorch import run as torch_run

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


def flow(net: Net) -> list[str]:
    heads = [f"head.{k}" for k in range(len(net.head))]
    return ["lstm", *" relu ".join(heads).split()]


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
    check(net, sl.from_torch(net, flow=flow(net)), x)


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
    with torch.no_grad(), sl.Engine(sl.from_torch(cells, flow=["0", "1"])) as engine:
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
    model = sl.import_model(path, flow=flow(NET))
    assert model.name == "pump"
    check(NET, model, torch.randn(2, 12, 3))


def test_safetensors_files(tmp_path):
    save_file(NET.state_dict(), tmp_path / "pump.safetensors")
    model = sl.import_model(tmp_path / "pump.safetensors", flow=flow(NET))
    live = sl.from_torch(NET, flow=flow(NET))
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


# -- every cell, in every form that PyTorch gives it ---------------------------------------


class Peephole(nn.Module):
    """What torch lacks: an LSTM with peepholes, its parameters named as this package reads them."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        like = nn.LSTM(inputs, units)
        for name, a in like.named_parameters():
            self.register_parameter(name, nn.Parameter(a.detach()))
        # Peepholes of 2 and more make chaos of a few units: a last digit soon shows.
        for gate in "ifo":
            self.register_parameter(f"peep_{gate}_l0", nn.Parameter(0.5 * torch.randn(units)))

    def forward(self, x):
        """x [1, time, inputs]."""
        h = c = torch.zeros_like(self.peep_i_l0)
        out = []
        for event in x[0]:
            z = self.weight_ih_l0 @ event + self.bias_ih_l0 + self.weight_hh_l0 @ h
            i, f, g, o = (z + self.bias_hh_l0).chunk(4)
            i, f = torch.sigmoid(i + self.peep_i_l0 * c), torch.sigmoid(f + self.peep_f_l0 * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.peep_o_l0 * c) * torch.tanh(c)
            out.append(h)
        return torch.stack(out)[None]


class Around(nn.Module):
    """A recurrent layer, a batch norm and a head that says the last step, as people write it."""

    def __init__(self, rnn: nn.Module, outputs: int):
        super().__init__()
        width = rnn.proj_size or rnn.hidden_size
        self.rnn = rnn
        self.norm = nn.BatchNorm1d(width, eps=1e-3)
        self.head = nn.Sequential(
            nn.Linear(width, 6), nn.Hardsigmoid(), nn.Dropout(0.5), nn.Linear(6, outputs), nn.Tanh()
        )
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        a, _ = self.rnn(x)
        return self.head(self.norm(a[:, -1]))


def recurrent_layer(kind: str, inputs: int, units: int, layers: int, bias: bool) -> nn.Module:
    if kind == "projected":
        options = {"proj_size": max(1, units // 2)} if units > 1 else {}
        return nn.LSTM(inputs, units, layers, bias=bias, batch_first=True, **options)
    return getattr(nn, kind)(inputs, units, layers, bias=bias, batch_first=True)


def states_of(rnn: nn.Module, x: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
    """The last (h, c), of a GRU (h,), of each layer after x [time, inputs]."""
    with torch.no_grad():
        last = rnn(x)[1]
    parts = last if isinstance(last, tuple) else (last,)
    return [tuple(a[k].numpy() for a in parts) for k in range(rnn.num_layers)]


OLD = {"_use_new_zipfile_serialization": False}


def forms(net: nn.Module, folder: Path):
    """The same network as each file that torch writes."""
    torch.save(net.state_dict(), folder / "zip.pt")
    torch.save(
        {"model": net.state_dict()}, folder / "old.pth", _use_new_zipfile_serialization=False
    )
    save_file(net.state_dict(), folder / "flat.safetensors")
    torch.jit.save(torch.jit.script(net), folder / "script.pt")
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 2, net.input_size)), folder / "trace.pt")
    return sorted(folder.iterdir())


kinds = st.sampled_from(["LSTM", "projected", "GRU"])
sizes = st.integers(1, 40)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@given(
    kind=kinds,
    inputs=sizes,
    units=sizes,
    layers=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_every_cell_in_every_form(*, kind, inputs, units, layers, bias, seed):
    torch.manual_seed(seed)
    net = recurrent_layer(kind, inputs, units, layers, bias)
    source = pytorch.source_of(net)
    assert source.flow_by == "source"
    x = torch.randn(300, inputs)
    y = source.answers(x.numpy(), None)
    with torch.no_grad():
        np.testing.assert_array_equal(y, net(x[None])[0][0])
    model = model_of(source)
    agree(model, x.numpy(), y, states_of(net, x))
    with TemporaryDirectory() as folder:
        for path in forms(net, Path(folder)):
            file = open_source(path)
            assert model_of(file).fingerprint == model.fingerprint
            np.testing.assert_allclose(file.answers(x.numpy(), None), y, atol=1e-6)


@given(st.sampled_from(["LSTMCell", "GRUCell"]), sizes, sizes, st.booleans(), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_every_cell_by_hand(kind, inputs, units, bias, seed):
    torch.manual_seed(seed)
    cell = getattr(nn, kind)(inputs, units, bias=bias)
    x = torch.randn(300, inputs)
    state, out = None, []
    with torch.no_grad():
        for event in x:
            state = cell(event, state)
            out.append(state[0] if kind == "LSTMCell" else state)
    source = pytorch.source_of(cell)
    y = source.answers(x.numpy(), None)
    np.testing.assert_allclose(y, torch.stack(out), atol=1e-6)
    last = tuple(a.numpy() for a in state) if kind == "LSTMCell" else (y[-1],)
    agree(model_of(source), x.numpy(), y, [last])


@given(sizes, st.integers(1, 24), st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_peepholes(inputs, units, seed):
    """torch has none: a module of ours runs, and a file of its tensors has nothing to run it."""
    torch.manual_seed(seed)
    net = Peephole(inputs, units)
    source = pytorch.source_of(net)
    x = torch.randn(300, inputs).numpy()
    agree(model_of(source), x, source.answers(x, None))
    assert source.flow_by == "source"
    file = pytorch.source_of(net.state_dict())
    assert file.framework == ""
    with pytest.raises(UnsupportedModelError, match="torch has no peepholes, so it can't run 'l0'"):
        file.answers(x, None)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@given(
    kind=kinds,
    inputs=sizes,
    units=st.integers(2, 24),
    layers=st.integers(1, 2),
    outputs=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15, deadline=None)
def test_what_stands_around(*, kind, inputs, units, layers, outputs, seed):
    """Batch norm, activations in a Sequential; asked for each last step."""
    torch.manual_seed(seed)
    net = Around(recurrent_layer(kind, inputs, units, layers, True), outputs)
    source = pytorch.source_of(net)
    assert source.flow_by == "source"
    assert net.training
    x = torch.randn(100, inputs).numpy()
    y = source.answers(x, None)
    model = model_of(source)
    agree(model, x, y)
    turn = torch_run.in_turn(source._chain, x)
    np.testing.assert_allclose(turn, y, atol=1e-5)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.gru = nn.GRU(5, 7)
        self.head = nn.Sequential(nn.Linear(7, 9), nn.Softmax(dim=-1))

    def forward(self, x):
        return self.head(self.gru(self.embed(x))[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_words(tmp_path):
    torch.manual_seed(0)
    net = Words()
    x = np.random.default_rng(0).integers(0, 9, (300, 1)).astype(np.float32)
    source = pytorch.source_of(net)
    y = source.answers(x, None)
    agree(model_of(source), x, y)
    torch.save(net.state_dict(), tmp_path / "words.pt")
    file = open_source(tmp_path / "words.pt", flow=["embed", "gru", "head.0", "softmax"])
    assert model_of(file).fingerprint == model_of(source).fingerprint
    np.testing.assert_allclose(file.answers(x, None), y, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_tells_its_activations(tmp_path):
    torch.manual_seed(0)
    net = Around(nn.GRU(3, 8, batch_first=True), 2)
    net.norm.eps = 1e-5  # TorchScript keeps it in its code
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    model = sl.import_model(tmp_path / "net.pt", flow=["rnn", "norm", "head"], name="model")
    assert model.fingerprint == sl.from_torch(net).fingerprint
    loaded = torch.jit.load(tmp_path / "net.pt")
    assert sl.from_torch(loaded).fingerprint == model.fingerprint


# -- flows -------------------------------------------------------------------------------


class Plain(nn.Module):
    """fc(between(lstm)), then after of it and of the events; made in either order."""

    between = after = staticmethod(lambda a, *_: a)

    def __init__(self, inputs: int = 4, turned: bool = False):
        super().__init__()
        layers = {"rnn": nn.LSTM(inputs, 4, batch_first=True), "fc": nn.Linear(4, inputs)}
        for name in sorted(layers, reverse=not turned):
            self.add_module(name, layers[name])

    def forward(self, x):
        return self.after(self.fc(self.between(self.rnn(x)[0])), x)


class ReluBetween(Plain):
    between = staticmethod(torch.relu)


class TanhAfter(Plain):
    after = staticmethod(lambda y, _: torch.tanh(y))


class Limited(Plain):
    """Its bounds are where no event gets: seen though no number tells."""

    after = staticmethod(lambda y, _: y.clamp(-9, 9))


class Half(Plain):
    after = staticmethod(lambda y, _: 0.5 * y)


class Skip(Plain):
    after = staticmethod(lambda y, x: y + x)


class Residual(Plain):
    def forward(self, x):
        h = self.rnn(x)[0]
        return self.fc(h + x)


class Autoencoder(nn.Module):
    """Its decoder repeats what the encoder ended with."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (nn.LSTM(4, 4, batch_first=True) for _ in range(2))

    def forward(self, x):
        h = self.encoder(x)[0][:, -1:]
        return self.decoder(h.expand(-1, x.shape[1], -1))[0]


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.rnn(x)[0]
        return self.a(h) * self.b(h)


# A flow that says it, None where a chain can't.
NETS = {
    "fc(lstm)": (Plain, ["rnn", "fc"]),
    "fc(relu(lstm))": (ReluBetween, ["rnn", "relu", "fc"]),
    "tanh(fc(lstm))": (TanhAfter, ["rnn", "fc", "tanh"]),
    "fc(lstm) within bounds": (Limited, None),
    "0.5 fc(lstm)": (Half, None),
    "fc(lstm) + x": (Skip, None),
    "fc(lstm + x)": (Residual, None),
    "a window's autoencoder": (Autoencoder, None),
    "two heads": (Heads, None),
    "made the other way round": (lambda: Plain(turned=True), ["rnn", "fc"]),
}
FORMS = ["module", "state dict", "net.pt", "net.safetensors", "modules.pt", "script.pt"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", NETS)
def test_no_flow_is_guessed(case, form, tmp_path):
    """A file is refused; a live module is, too, unless its own forward() was taken."""
    torch.manual_seed(0)
    make, flow = NETS[case]
    net = make().eval()
    tensors = net.state_dict()
    torch.save(tensors, tmp_path / "net.pt")
    save_file(tensors, tmp_path / "net.safetensors")
    parts = {name: m.state_dict() for name, m in net.named_children()}
    torch.save({"epoch": 3, **parts}, tmp_path / "modules.pt")
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 5, 4)), tmp_path / "script.pt")

    def model(**told) -> sl.Model:
        of = {"module": net, "state dict": tensors}.get(form)
        if of is not None:
            return sl.from_torch(of, **told)
        return sl.import_model(tmp_path / form, **told)

    x = torch.randn(200, 4)
    with torch.no_grad():
        y = net(x[None])[0].numpy()
    if form == "module" and case in ("fc(lstm)", "made the other way round"):
        agree(model(), x.numpy(), y)
    else:
        with pytest.raises(UnsupportedModelError):
            model()
    if flow is not None and form != "modules.pt":
        agree(model(flow=flow), x.numpy(), y)
    if form == "module":
        with pytest.raises(UnsupportedModelError, match="forward\\(\\) answers other than"):
            model(flow=[*net._modules, "sigmoid"])


@given(
    st.lists(st.sampled_from(["relu", "tanh", "sigmoid", "hard_sigmoid6", "fc"]), max_size=4),
    st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_any_flow_of_a_state_dict_is_run_as_said(items, seed):
    torch.manual_seed(seed)
    layers = nn.ModuleDict({"lstm": nn.LSTM(3, 6, 2, batch_first=True)})
    flow, x = ["lstm"], torch.randn(60, 3)
    with torch.no_grad():
        y = layers["lstm"](x[None])[0][0]
        for k, item in enumerate(items):
            if item == "fc":
                layers[f"fc{k}"] = nn.Linear(6, 6)
                y = layers[f"fc{k}"](y)
            else:
                y = (
                    nn.functional.hardsigmoid(y)
                    if item == "hard_sigmoid6"
                    else getattr(torch, item)(y)
                )
            flow.append(f"fc{k}" if item == "fc" else item)
    source = pytorch.source_of(layers.state_dict(), flow=flow)
    assert source.flow_by == "user"
    agree(model_of(source), x.numpy(), y.numpy())
    np.testing.assert_allclose(source.answers(x.numpy(), None), y, atol=1e-5)


def test_a_module_that_takes_one_step_is_not_run_over_a_batch():
    class OneStep(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x.reshape(-1, 1, 3))[0][:, 0])

    torch.manual_seed(0)
    source = pytorch.source_of(OneStep(), flow=["rnn", "head"])
    assert source.flow_by == "user"
    x = torch.randn(50, 3).numpy()
    agree(model_of(source), x, source.answers(x, None))


def test_one_layer_of_many():
    torch.manual_seed(0)
    net = Net(3, 8, 2, 4, 2)
    source = pytorch.source_of(net)
    assert [found.where for found in source.recurrent()] == ["lstm.l0", "lstm.l1"]
    x = torch.randn(300, 8)
    top = nn.LSTM(8, 8)
    top.load_state_dict(
        {k.replace("l1", "l0"): a for k, a in net.lstm.state_dict().items() if "l1" in k}
    )
    with torch.no_grad():
        expected = top(x)[0].numpy()
    y = source.answers(x.numpy(), "lstm.l1")
    np.testing.assert_array_equal(y, expected)
    agree(model_of(source, "lstm.l1"), x.numpy(), y)


def test_a_cell_state_of_a_thousand():
    """Units that never forget and always take in: c counts the steps."""
    net = nn.LSTM(2, 4)
    with torch.no_grad():
        for a in net.parameters():
            a.mul_(0.01)
        net.bias_ih_l0[:12] = 30.0
    x = torch.randn(1000, 2)
    states = states_of(net, x)
    assert states[0][1].min() > 990
    source = pytorch.source_of(net)
    agree(model_of(source), x.numpy(), source.answers(x.numpy(), None), states)


def test_views_and_shared_storages(tmp_path):
    """Tensors that are slices and transposes of others, in both of torch's formats."""
    torch.manual_seed(0)
    net = nn.LSTM(3, 4)
    tensors = net.state_dict()
    both = torch.cat([tensors["bias_ih_l0"], tensors["bias_hh_l0"]])
    tensors["bias_ih_l0"], tensors["bias_hh_l0"] = both[:16], both[16:]
    tensors["weight_ih_l0"] = tensors["weight_ih_l0"].t().contiguous().t()
    for new in (True, False):
        torch.save(tensors, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
        assert sl.import_model(tmp_path / "model.pt").fingerprint == sl.from_torch(net).fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_files(dtype, tmp_path):
    torch.manual_seed(0)
    net = nn.GRU(3, 4).to(dtype)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    torch.save(net.state_dict(), tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        assert sl.import_model(path).fingerprint == sl.from_torch(net).fingerprint


# -- refusals ----------------------------------------------------------------------------

KINDS = (
    "only LSTM, GRU, their cells, Linear, Embedding, BatchNorm1d, Sequential, Dropout and the "
    "activations Tanh, Sigmoid, ReLU, Hardsigmoid, Softmax can be imported"
)


class Loose(nn.Module):
    """Activation modules beside the layers, so that only forward() tells where they run."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


REVERSE = (
    "belongs to a reverse direction, which needs the future and can't be streamed; "
    "train with bidirectional=False"
)
LSTM = nn.LSTM(3, 4)
REFUSED = {
    "bidirectional": (
        nn.LSTM(3, 4, bidirectional=True),
        f"tensor 'weight_ih_l0_reverse' {REVERSE}",
    ),
    "bidirectional GRU": (
        nn.GRU(3, 4, bidirectional=True),
        f"tensor 'weight_ih_l0_reverse' {REVERSE}",
    ),
    "RNN": (
        nn.RNN(3, 4),
        "tensor 'weight_hh_l0' [4, 4] belongs to a plain RNN, which can't be imported; "
        "train an LSTM or a GRU",
    ),
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
    "parametrised": (
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
        "module 'ParametrizedLinear' is a torch.nn.utils.parametrize.ParametrizedLinear; take that "
        "off with remove_parametrizations",
    ),
    "pruned": (
        prune.random_unstructured(nn.Linear(4, 2), "weight", 0.5),
        "'weight' of a Linear is missing or is no matrix; make pruning or a parametrisation "
        "permanent first (prune.remove, remove_parametrizations)",
    ),
    "without statistics": (
        nn.Sequential(nn.LSTM(3, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "'1.running_mean' is missing: a BatchNorm1d without running statistics needs a whole "
        "batch; train with track_running_stats=True",
    ),
    "other softmax": (
        nn.Sequential(nn.LSTM(3, 4), nn.Softmax(dim=1)),
        "module '1' is a Softmax with dim=1; only dim=-1 is over the numbers of one step; set it",
    ),
    "rows that change": (
        nn.Sequential(nn.Embedding(9, 3, max_norm=1.0), nn.LSTM(3, 4)),
        "module '0' is an Embedding with max_norm=1.0, which changes its rows as it runs; "
        "train with max_norm=None",
    ),
    "one module twice": (
        Loose(a=LSTM, b=nn.Sequential(LSTM)),
        "module 'b.0' is also module 'a', and only its forward() tells where it runs; "
        "give each place a module of its own",
    ),
    "activation": (
        Loose(lstm=nn.LSTM(3, 4), head=nn.Linear(4, 2), act=nn.Tanh()),
        "a module does not tell how its layers run (lstm, head, act); give it a forward() that "
        "takes a whole sequence, export it to ONNX, or, where they run one after the other, say "
        "so: flow=['lstm', 'head', 'act'], with relu, tanh ... where such a function runs",
    ),
    "no numbers": (
        nn.LSTM(3, 4, device="meta"),
        "tensor 'weight_ih_l0' has no numbers to read (Cannot copy out of meta tensor; no data!); "
        "only dense tensors of floats can be imported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_modules(case):
    module, sentence = REFUSED[case]
    with pytest.raises(UnsupportedModelError) as caught:
        sl.from_torch(module)
    assert str(caught.value) == sentence


def test_a_sequential_is_said_as_one():
    net = Loose(lstm=nn.LSTM(3, 4), a=nn.Linear(4, 2), b=nn.Sequential(nn.Tanh(), nn.Linear(2, 2)))
    model = sl.from_torch(net, flow=["lstm", "a", "b"])
    assert [(m.kind, m.output_size) for m in model.layers] == [
        ("lstm", 4),
        ("dense", 2),
        ("dense", 2),
    ]
    assert model.layers[1].activation == "tanh"


class Own(nn.Module):
    def forward(self, x):
        return torch.relu(x)


def test_an_activation_of_ones_own_in_a_sequential():
    net = nn.Sequential(
        nn.LSTM(3, 4), nn.Linear(4, 4), nn.Sequential(Own()), nn.Sequential(), nn.Linear(4, 2)
    )
    with pytest.raises(UnsupportedModelError, match=r"with what 2\.0 does as a function"):
        sl.from_torch(net)
    model = sl.from_torch(net, flow=["0", "1", "relu", "4"])
    assert [m.activation for m in model.layers[1:]] == ["relu", "linear"]


class Kept(nn.Module):
    """As PyTorch Lightning's modules are: with a loss and a metric's state beside the layers."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.loss, self.more = nn.CrossEntropyLoss(weight=torch.ones(2)), nn.ModuleList()
        self.fc = nn.Linear(4, 2)
        self.state, self.runs = None, 0

    def forward(self, x):
        self.runs += 1
        y, self.state = self.lstm(x, self.state)
        return self.fc(y)


WRAPPED = {
    "bare": lambda net: net,
    "DataParallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_module_is_left_as_it_was(wrapped):
    """It is asked on copies: what it keeps of a sequence neither stays nor disturbs."""
    torch.manual_seed(0)
    net = Kept()
    against = WRAPPED[wrapped](net)
    proof = sl.verify(sl.from_torch(against), against, steps=50)
    assert proof.flow_by == "source"
    assert proof.largest < 1e-6
    assert (net.state, net.runs, net.training) == (None, 0, True)


def test_a_live_module_is_asked_also_where_it_can_not_be_imported():
    """It needs no flow then; and a batch norm at the start is its own affair."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.norm.running_mean += 0.5
            self.lstm, self.act = nn.LSTM(3, 4, batch_first=True), nn.Tanh()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y, _ = self.lstm(self.norm(x.transpose(1, 2)).transpose(1, 2))
            return self.b(torch.sigmoid(self.a(self.act(y))))

    torch.manual_seed(0)
    net = Scaled()
    same = nn.Sequential(net.norm, net.lstm, net.act, net.a, nn.Sigmoid(), net.b)
    proof = sl.verify(sl.from_torch(same), net, steps=50)
    assert proof.flow_by == "source"
    assert proof.largest < 1e-6


def test_a_way_to_ask_is_looked_for_once(monkeypatch):
    asked = []
    right = torch_run.way_to_ask
    monkeypatch.setattr(torch_run, "way_to_ask", lambda *a: asked.append(1) or right(*a))
    net = Kept()
    source = pytorch.source_of(net)
    sl.verify(model_of(source), source, steps=5)
    assert len(asked) == 1


def test_options_are_assumed_where_a_file_lacks_them(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 3), nn.GRU(3, 4), nn.BatchNorm1d(4, eps=0.1))
    live = pytorch.source_of(net)
    live.network()
    assert live.assumed == []
    torch.save(net.state_dict(), tmp_path / "net.pt")
    file = open_source(tmp_path / "net.pt", flow=["0", "1", "2"])
    file.network()
    assert file.assumed == [
        "Embedding '0' has no max_norm",
        "the eps of BatchNorm1d '2' is 1e-05, torch's default",
    ]
    assert file.framework == f"PyTorch {torch.__version__.partition('+')[0]}"
    assert (live.flow_by, file.flow_by) == ("file", "user")


def test_tied_weights_in_safetensors(tmp_path):
    torch.manual_seed(0)
    net = Loose(embed=nn.Embedding(9, 4), lstm=nn.LSTM(4, 4), out=nn.Linear(4, 9, bias=False))
    net.embed.weight = net.out.weight
    save_model(net, tmp_path / "model.safetensors")
    flow = ["embed", "lstm", "out"]
    read = sl.import_model(tmp_path / "model.safetensors", flow=flow)
    assert read.fingerprint == sl.from_torch(net, flow=flow).fingerprint


def test_negated_tensors(tmp_path):
    tensors = nn.LSTM(3, 4).state_dict()
    right = sl.from_torch(tensors)
    pair = torch.complex(torch.zeros(16, 3), -tensors["weight_ih_l0"]).conj()
    tensors["weight_ih_l0"] = pair.imag
    assert tensors["weight_ih_l0"].is_neg()
    torch.save(tensors, tmp_path / "model.pt")
    for model in (sl.from_torch(tensors), sl.import_model(tmp_path / "model.pt")):
        assert model.fingerprint == right.fingerprint


def test_dropout_and_identity_are_nothing_when_run():
    module = nn.Sequential(nn.LSTM(3, 4, 2, dropout=0.5), nn.Dropout(0.5), nn.Linear(4, 2))
    model = sl.from_torch(module)
    assert [layer.kind for layer in model.layers] == ["lstm", "lstm", "dense"]


def test_a_sequential_tells_its_activations():
    module = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2), nn.Tanh())
    assert sl.from_torch(module).layers[1].activation == "tanh"
    with pytest.raises(UnsupportedModelError, match="a module tells its flow itself; leave out"):
        sl.from_torch(module, flow=["0", "1", "tanh"])


ran = []


class Planted:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return (ran.append, ("code from the file",))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(
    ("held", "what"),
    [
        (NET, "Net (the whole file)"),
        ({"model": Planted()}, "getattr() (model)"),
        (Planted(), "getattr() (the whole file)"),
    ],
    ids=["module", "planted", "code"],
)
def test_code_in_a_file_is_never_run(held, what, new, tmp_path):
    torch.save(held, tmp_path / "net.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(UnsupportedModelError) as caught:
        sl.import_model(tmp_path / "net.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'net.pt'} holds a pickled ")
    assert str(caught.value).endswith(
        f"{what}, and code from a file is never run; save model.state_dict() instead"
    )
    assert not ran


def test_code_beside_a_state_dict_is_not_run_either(tmp_path):
    torch.save({"model": NET.state_dict(), "planted": Planted()}, tmp_path / "net.pt")
    model = sl.import_model(tmp_path / "net.pt", flow=flow(NET), name="model")
    assert model.fingerprint == sl.from_torch(NET, flow=flow(NET)).fingerprint
    assert not ran


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (torch.zeros(3), "holds no state dict (the whole file)"),
        ({"a": NET.state_dict(), "b": NET.state_dict()}, "holds 2 state dicts (a, b)"),
        ({}, "holds no state dict (); save just model.state_dict()"),
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
    with pytest.raises(UnsupportedModelError, match="can't be read as a PyTorch file"):
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
