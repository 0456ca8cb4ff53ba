"""`streamlstm import` and sl.verify with PyTorch itself for the framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

import streamlstm as sl  # noqa: E402
from streamlstm import cli, model_file  # noqa: E402
from streamlstm.importers import gate_orders, open_source  # noqa: E402
from streamlstm.importers.onnx import run as onnx_run  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 16, 2)
        self.hidden = nn.Linear(16, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.lstm(x)[0])))


@pytest.fixture
def net(tmp_path, monkeypatch) -> Net:
    """A network, and its state dict in trained.safetensors and trained.pt of this folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    net = Net().eval()
    save_file(net.state_dict(), "trained.safetensors")
    torch.save(net.state_dict(), "trained.pt")
    return net


TOLD = ("--activations", "relu,linear")


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in argv])
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("name", ["trained.safetensors", "trained.pt"])
def test_a_state_dict(capsys, net, name):
    code, out, err = run(capsys, "import", name, "-o", "pump.safetensors", *TOLD)
    assert (code, err) == (0, "")
    proof = model_file.read_proof("pump.safetensors")
    assert proof.framework.startswith("torch ")
    assert proof.framework.split("+")[0] in out
    assert 0 < proof.largest < 1e-6
    with torch.no_grad():
        want = net(torch.from_numpy(proof.x.astype(np.float32)))
    np.testing.assert_allclose(proof.y, want, atol=1e-6)
    assert sl.load("pump.safetensors").parameters == sum(p.numel() for p in net.parameters()) - (
        2 * 4 * 16  # of each layer two biases are one
    )


@pytest.mark.usefixtures("net")
def test_what_the_file_does_not_tell(capsys):
    code, _, err = run(capsys, "import", "trained.pt", "-o", "pump.safetensors")
    assert code == 1
    assert "activations" in err
    assert not Path("pump.safetensors").exists()
    code, out, err = run(capsys, "inspect", "trained.pt")
    assert code == 1
    assert "LSTM 3 -> 16\n" in out
    assert "activations" in err


@pytest.mark.usefixtures("net")
def test_select_takes_a_layer_out(capsys):
    _, listed, _ = run(capsys, "import", "trained.pt", "--list")
    where = [line.split()[0] for line in listed.splitlines()]
    assert len(where) == 2
    argv = ("import", "trained.pt", "-o", "pump.safetensors", "--select", where[1])
    assert run(capsys, *argv)[0] == 0
    assert [m.input_size for m in sl.load("pump.safetensors").layers] == [16]
    assert model_file.read_proof("pump.safetensors").largest < 1e-6


def test_verify_takes_file_source_and_module(net):
    model = sl.import_model("trained.pt", activations=["relu", "linear"])
    source = open_source("trained.pt", activations=["relu", "linear"])

    def answers(x):
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()

    proofs = [sl.verify(model, against) for against in (source, net, answers)]
    for proof in proofs:
        assert proof.largest < 1e-6
        np.testing.assert_allclose(proof.y, proofs[0].y, atol=1e-6)
    lstm = nn.LSTM(3, 16)
    save_file(lstm.state_dict(), "lstm.safetensors")
    assert sl.verify(sl.from_torch(lstm), "lstm.safetensors").largest < 1e-6


@pytest.mark.usefixtures("net")
@pytest.mark.parametrize("order", ["figo", "igfo", "iofg", "gifo"])
def test_gates_in_a_wrong_order_are_not_written(capsys, monkeypatch, order):
    """The bug that importers have most: plausible answers, and now an error."""
    monkeypatch.setitem(gate_orders.ORDERS["pytorch"], "lstm", order)
    code, _, err = run(capsys, "import", "trained.pt", "-o", "pump.safetensors", *TOLD)
    assert code == 1
    assert "pump.safetensors was not written: the largest difference to torch" in err
    assert not Path("pump.safetensors").exists()


def test_onnxruntime_tells_that_it_rounds():
    """The word that the import command looks for."""
    pytest.importorskip("onnxruntime")
    assert "quantizing" in onnx_run.framework(quantized=True)
    assert "quantizing" not in onnx_run.framework(quantized=False)
