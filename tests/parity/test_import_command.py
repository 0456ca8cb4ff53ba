"""`streamlstm import` and sl.verify with PyTorch itself for the framework."""

from __future__ import annotations

import re
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


TOLD = ("--flow", "lstm,hidden,relu,head")


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in argv])
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("name", ["trained.safetensors", "trained.pt"])
def test_a_state_dict(capsys, net, name):
    code, out, err = run(capsys, "import", name, "-o", "pump.safetensors", *TOLD)
    assert (code, err) == (0, "")
    proof = model_file.read_proof("pump.safetensors")
    assert proof.framework.startswith("PyTorch ")
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
    told = "a state dict does not tell how its layers run (lstm, hidden, head); "
    assert told in err
    assert "--flow lstm,hidden,head, with relu, tanh" in err
    assert not Path("pump.safetensors").exists()
    code, out, err = run(capsys, "inspect", "trained.pt")
    assert code == 1
    assert "LSTM 3 -> 16\n" in out
    assert told in err


@pytest.mark.usefixtures("net")
def test_a_flow_of_the_users_is_no_proof(capsys):
    """Neither at the import nor when the file is looked at; a live module is one."""
    _, imported, _ = run(capsys, "import", "trained.pt", "-o", "pump.safetensors", *TOLD)
    _, inspected, _ = run(capsys, "inspect", "pump.safetensors")
    for out in (imported, inspected):
        line = re.search(r"^compared .*$", out, re.MULTILINE)[0]
        assert re.fullmatch(
            r"compared     cells only, against PyTorch [\d.]+: 500 steps, largest difference \S+; "
            r"the flow is as --flow says: give sl.verify the live network to prove it",
            line,
        )
        assert "\nproof" not in out


def test_a_live_module_proves_the_flow(net, capsys):
    model = sl.from_torch(net, flow=["lstm", "hidden", "relu", "head"])
    model.save("pump.safetensors", proof=sl.verify(model, net))
    _, out, _ = run(capsys, "inspect", "pump.safetensors")
    assert re.search(r"^proof        PyTorch [\d.]+: 500 steps, largest", out, re.MULTILINE)


@pytest.mark.usefixtures("net")
def test_one_layer_taken_out_is_proven(capsys):
    argv = ("import", "trained.pt", "-o", "pump.safetensors", "--select", "lstm.l1")
    assert "\nproof        PyTorch " in run(capsys, *argv)[1]


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
    model = sl.import_model("trained.pt", flow=["lstm", "hidden", "relu", "head"])
    source = open_source("trained.pt", flow=["lstm", "hidden", "relu", "head"])

    def answers(x):
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()

    flow = ["lstm", "hidden", "relu", "head"]
    proofs = [sl.verify(model, against) for against in (source, net, answers)]
    proofs.append(sl.verify(model, "trained.pt", flow=flow))
    assert [proof.flow_by for proof in proofs] == ["user", "source", "source", "user"]
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
    assert "pump.safetensors was not written: the largest difference to PyTorch" in err
    assert not Path("pump.safetensors").exists()


def test_onnxruntime_tells_that_it_rounds():
    """The word that the import command looks for."""
    pytest.importorskip("onnxruntime")
    assert "quantizing" in onnx_run.framework(quantized=True)
    assert "quantizing" not in onnx_run.framework(quantized=False)
