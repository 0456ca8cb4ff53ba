"""PyTorch's .pt files, those of torch.save in both forms and of torch.jit.save, without PyTorch."""

from __future__ import annotations

import io
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest

import streamlstm as sl
from streamlstm.errors import ModelError, UnsupportedModelError
from torch_files import Call, Module, Writer, legacy, linear, lstm, normal, to_bfloat16, zipped

NET = lstm("lstm.", 3, 4) | lstm("lstm.", 4, 4, 1)
HEAD = linear("head.", 4, 2)


OPTIMIZER = {"state": {0: {"step": normal(), "exp_avg": normal(16, 3)}}, "param_groups": [1]}


@pytest.fixture
def imported(tmp_path):
    def imported(raw: bytes, **options) -> sl.Model:
        (tmp_path / "net.pt").write_bytes(raw)
        return sl.import_model(tmp_path / "net.pt", **options)

    return imported


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("held", [NET, {"epoch": 3, "model_state": NET, "optimizer": OPTIMIZER}])
def test_pt_files_without_pytorch(write, held, imported, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert imported(write(held)).fingerprint == sl.from_torch(NET, name="net").fingerprint


def test_views_in_old_files(imported):
    """Before 0.4 a tensor could name a part of a storage."""
    assert imported(legacy(NET, before=5)).fingerprint == sl.from_torch(NET).fingerprint


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_pt_files_of_other_dtypes(dtype, imported):
    tensors = {k: a.astype(dtype) for k, a in NET.items()}
    assert imported(zipped(tensors)).fingerprint == sl.from_torch(tensors).fingerprint


def test_bfloat16_in_pt_files(imported):
    tensors = {k: to_bfloat16(a) for k, a in NET.items()}
    read = imported(zipped(NET, bfloat16=True))
    assert read.fingerprint == sl.from_torch(tensors).fingerprint


def test_parameters_and_strangers_beside_them(imported):
    """What else a checkpoint holds is neither run nor in the way."""
    held = {
        "state_dict": {
            k: Call("torch._utils._rebuild_parameter", a, True, {}) for k, a in NET.items()
        },
        "hyper_parameters": Call("argparse.Namespace"),
        "planted": Call("builtins.exec", "raise SystemExit('run')"),
    }
    assert imported(zipped(held)).fingerprint == sl.from_torch(NET).fingerprint


HELD = {
    "deeper": {"ckpt": {"model": NET}, "optimizers": [OPTIMIZER], "loss": normal()},
    "no weights": {
        "state_dict": NET,
        "rng": {"cpu": np.arange(9)},
        "cuda": [np.arange(9)],
        "losses": {"best": normal()},
    },
    "no skip": {"state_dict": NET, "hyper_parameters": {"skip": False, "skip_rows": 3}},
}


@pytest.mark.parametrize("held", HELD)
def test_the_state_dict_of_a_checkpoint(held, imported):
    """The only one, wherever it is; what training keeps beside it is no part of the network."""
    assert imported(zipped(HELD[held])).fingerprint == sl.from_torch(NET).fingerprint


def test_negated_tensors(imported):
    """A tensor with the neg bit is kept unnegated, and the bit beside it."""
    key = "lstm.weight_hh_l1"
    file = zipped(NET | {key: -NET[key]}, negated=key)
    assert imported(file).fingerprint == sl.from_torch(NET).fingerprint


NN = "__torch__.torch.nn.modules."


def scripted(root: str = "__torch__.Net", **more) -> Module:
    head = Module(
        f"{NN}container.___torch_mangle_8.Sequential",
        training=False,
        **{
            "0": Module(f"{NN}linear.Linear", weight=normal(5, 4), bias=normal(5)),
            "1": Module(f"{NN}activation.ReLU"),
            "2": Module(f"{NN}dropout.Dropout"),
            "3": Module(f"{NN}linear.___torch_mangle_3.Linear", weight=normal(2, 5)),
        },
    )
    own = Module(f"{NN}rnn.LSTM", _is_full_backward_hook=None, **lstm("", 3, 4))
    return Module(root, training=True, lstm=own, head=head, **more)


def test_torchscript(imported, monkeypatch):
    """Modules, their order and activations are in the file; its code is not looked at."""
    monkeypatch.setitem(sys.modules, "torch", None)
    net = scripted()
    file = zipped(net, code=True)
    with pytest.raises(UnsupportedModelError, match=r"say so: flow=\['lstm', 'head'\], with relu"):
        imported(file)  # forward() of Net is code
    model = imported(file, flow=["lstm", "head"])
    assert [(m.kind, getattr(m, "activation", "")) for m in model.layers] == [
        ("lstm", ""),
        ("dense", "relu"),
        ("dense", "linear"),
    ]
    np.testing.assert_array_equal(model.layers[0].w_h, net["lstm"]["weight_hh_l0"])
    np.testing.assert_array_equal(model.layers[2].w, net["head"]["3"]["weight"])


def untold(keys: str, flow: list[str], how: str = "") -> str:
    return (
        f"a TorchScript file does not tell how its layers run ({keys}); import the live module "
        "(sl.from_torch) or an ONNX file, or, where they run one after the other, say so: "
        f"flow={flow}{how}, with relu, tanh ... where such a function runs"
    )


MINE = ", with what mine does as a function"
LINEAR = {"weight": normal(2, 4), "bias": normal(2)}
SCRIPTS = {
    "a Conv1d": (
        scripted(conv=Module(f"{NN}conv.Conv1d", weight=normal(2, 2, 1))),
        "module 'conv' is a Conv1d; only LSTM, GRU, their cells, Linear, Embedding, BatchNorm1d, "
        "Sequential, Dropout and the activations Tanh, Sigmoid, ReLU, Hardsigmoid, Softmax can "
        "be imported",
    ),
    "an activation whose place is unknown": (
        scripted(act=Module(f"{NN}activation.Tanh")),
        untold("lstm, head, act", ["lstm", "head", "act"]),
    ),
    "a module without tensors": (
        scripted(mine=Module("__torch__.Mine")),
        untold("lstm, head", ["lstm", "head"], MINE),
    ),
    "an activation between LSTM and Linear": (
        Module(
            "__torch__.Net",
            lstm=Module(f"{NN}rnn.LSTM", **lstm("", 3, 4)),
            act=Module(f"{NN}activation.ReLU"),
            fc=Module(f"{NN}linear.Linear", **LINEAR),
        ),
        untold("lstm, act, fc", ["lstm", "act", "fc"]),
    ),
    "a module without tensors between LSTM and Linear": (
        Module(
            f"{NN}container.Sequential",
            lstm=Module(f"{NN}rnn.LSTM", **lstm("", 3, 4)),
            mine=Module("__torch__.Mine", drop=Module(f"{NN}dropout.Dropout")),
            fc=Module(f"{NN}linear.Linear", **LINEAR),
        ),
        untold("lstm, fc", ["lstm", "fc"], MINE),
    ),
    "Softmax": (
        Module(f"{NN}container.Sequential", **{"0": Module(f"{NN}activation.Softmax")}),
        "module '0' is a Softmax, whose dim is in the file's code, which is not read; "
        "import the live module",
    ),
    "reverse": (
        Module(f"{NN}rnn.LSTM", **{f"{k}_reverse": a for k, a in lstm("", 3, 4).items()}),
        "tensor 'weight_ih_l0_reverse' belongs to a reverse direction, which needs the future "
        "and can't be streamed; train with bidirectional=False",
    ),
    "a quantised layer": (
        scripted(q=Module("__torch__.torch.ao.nn.quantized.dynamic.modules.rnn.LSTM")),
        "module 'q' is a torch.ao.nn.quantized.dynamic.modules.rnn.LSTM; only LSTM, GRU, their "
        "cells, Linear, Embedding, BatchNorm1d, "
        "Sequential, Dropout and the activations Tanh, Sigmoid, ReLU, Hardsigmoid, Softmax can "
        "be imported",
    ),
    "a stray tensor": (
        scripted(mean=normal(4)),
        "tensor 'mean' [4] belongs to no LSTM, GRU, Linear, Embedding or BatchNorm1d layer; leave "
        "it out if it does not change the outputs, or select a recurrent layer alone",
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_refused_torchscript(case, imported):
    net, sentence = SCRIPTS[case]
    with pytest.raises(UnsupportedModelError) as caught:
        imported(zipped(net, code=True))
    assert str(caught.value) == sentence


def test_a_sequential_of_torchscript_tells_its_flow(imported):
    """And a flow beside that is refused."""
    net = Module(f"{NN}container.Sequential", **scripted())
    file = zipped(net, code=True)
    assert [m.kind for m in imported(file).layers] == ["lstm", "dense", "dense"]
    with pytest.raises(UnsupportedModelError) as caught:
        imported(file, flow=["lstm", "head"])
    assert str(caught.value) == "a TorchScript file tells its flow itself; leave out flow="


def test_functions_of_torchscript_are_said_by_name_or_by_what_they_do(imported):
    net = SCRIPTS["an activation between LSTM and Linear"][0]
    file = zipped(net, code=True)
    models = [imported(file, flow=["lstm", name, "fc"]) for name in ("act", "relu")]
    assert [m.kind for m in models[0].layers] == ["lstm", "activation", "dense"]
    assert models[0].fingerprint == models[1].fingerprint
    with pytest.raises(UnsupportedModelError, match="flow= leaves out act;"):
        imported(file, flow=["lstm", "fc"])


def script_of(*parts: bytes) -> bytes:
    """A file of torch.jit.save's with this pickle, and no storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("net/data.pkl", b"\x80\x02" + b"".join(parts) + b".")
        z.writestr("net/code/__torch__.py", "")
        z.writestr("net/data/0", bytes(48))
        z.writestr("net/data/1", bytes(64))
    return out.getvalue()


def test_a_module_in_two_places(imported):
    w = Writer()
    tensors = lstm("", 1, 1, bias=False) | {
        "weight_ih_l0": normal(4, 3),
        "weight_hh_l0": normal(4, 1),
    }
    shared = w.put(Module(f"{NN}rnn.LSTM", **tensors)) + b"q\x00"
    root = w.name("__torch__.Net") + b")\x81}("
    raw = script_of(root, w.put("a"), shared, w.put("b"), b"h\x00", b"ub")
    with pytest.raises(UnsupportedModelError) as caught:
        imported(raw)
    assert str(caught.value) == (
        "module 'b' is also module 'a', and only its forward() tells where it runs; "
        "give each place a module of its own"
    )


def test_a_module_that_holds_itself(imported):
    w = Writer()
    root = w.name("__torch__.Net") + b")\x81q\x00}"
    with pytest.raises(UnsupportedModelError) as caught:
        imported(script_of(root, w.put("a"), b"h\x00sb"))
    assert str(caught.value) == (
        "a TorchScript module '__torch__.Net' stands in itself, or too deep; "
        "save model.state_dict() instead"
    )


def test_modules_without_number(imported):
    """Each holds the next one twice: 2^31 of them in a file of some kilobytes."""
    w = Writer()
    made = w.name("__torch__.Net") + b")\x81}"
    raw = made + b"b"
    for k in range(31):
        raw = made + b"(" + w.put("a") + raw + b"q%c" % k + w.put("b") + b"h%cub" % k
    with pytest.raises(UnsupportedModelError, match="there are more than 100000 modules"):
        imported(script_of(raw))


FILES = {
    "no module": (
        zipped({"a": 1}, code=True),
        "{path} is TorchScript, but holds no module",
    ),
    "frozen": (
        zipped(Module("__torch__.Net"), code=True),
        "{path} is TorchScript without parameters, as torch.jit.freeze leaves it; "
        "save the module unfrozen, or its state_dict()",
    ),
    "a pickled module": (
        zipped(Module("net.Net", training=False, _modules={})),
        "{path} holds a pickled net.Net (the whole file), and code from a file is never run; "
        "save model.state_dict() instead",
    ),
    "a pickled module in a checkpoint": (
        zipped({"epoch": 3, "model": Module("net.Net", training=False)}),
        "{path} holds a pickled net.Net (model), and code from a file is never run; "
        "save model.state_dict() instead",
    ),
    "code": (
        zipped(Call("os.system", "exit 1")),
        "{path} holds a pickled os.system (the whole file), and code from a file is never run; "
        "save model.state_dict() instead",
    ),
    "one tensor": (
        zipped(normal(3)),
        "{path} holds no state dict (the whole file); save just model.state_dict()",
    ),
    "two state dicts": (
        zipped({"a": NET, "b": NET, "c": 1}),
        "{path} holds 2 state dicts (a, b), and does not tell which run and how they are "
        "connected; save just model.state_dict() of the whole network",
    ),
    "a state dict of each module": (
        zipped({"lstm": lstm("", 3, 4), "norm": {"weight": normal(4)}, "step": 7}),
        "{path} holds 2 state dicts (lstm, norm), and does not tell which run and how they are "
        "connected; save just model.state_dict() of the whole network",
    ),
    "state dicts in a list": (
        zipped({"models": [NET, NET | HEAD]}),
        "{path} holds 2 state dicts (0, 1), and does not tell which run and how they are "
        "connected; save just model.state_dict() of the whole network",
    ),
    "tensors beside the state dict": (
        zipped({"state_dict": NET, "mean": normal(3), "std": normal(3), "loss": normal()}),
        "{path} holds mean, std beside the state dict, and does not tell whether that changes the "
        "outputs; save just model.state_dict()",
    ),
    "a skip": (
        zipped({"state_dict": NET, "hyper_parameters": {"hidden": 4, "skip_connection": True}}),
        "{path} holds skip_connection beside the state dict, and does not tell whether that "
        "changes the outputs; save just model.state_dict()",
    ),
    "quantised weights": (
        zipped(NET | {"fc._packed_params": Call("torch.ScriptObject", 1)}),
        "{path} holds a pickled torch.ScriptObject (fc._packed_params), and code from a file is "
        "never run; save the unquantised model's state_dict() instead",
    ),
    "a quantised tensor": (
        zipped(NET | {"head.weight": Call("torch._utils._rebuild_qtensor", 1)}),
        "tensor 'head.weight' is made by torch._utils._rebuild_qtensor; only dense tensors of "
        "floats can be imported",
    ),
    "big-endian": (
        zipped(NET, byteorder=b"big"),
        "{path} can't be read as a PyTorch file (ValueError: it was written on a big-endian "
        "machine); save model.state_dict() anew",
    ),
    "big-endian, old": (
        legacy(NET, little=False),
        "{path} can't be read as a PyTorch file (ValueError: it was written on a big-endian "
        "machine); save model.state_dict() anew",
    ),
    "another version": (
        legacy(NET, version=1002),
        "{path} can't be read as a PyTorch file (ValueError: its version is not 1001); "
        "save model.state_dict() anew",
    ),
    "any pickle": (
        pickle.dumps({"a": 1}),
        "{path} can't be read as a PyTorch file (ValueError: it does not start as PyTorch's "
        "files do); save model.state_dict() anew",
    ),
    "compressed": (
        zipped(NET, compression=zipfile.ZIP_DEFLATED),
        "{path} can't be read as a PyTorch file (ValueError: member 'net/byteorder' is "
        "compressed, which PyTorch never does); save model.state_dict() anew",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_refused_pt_files(case, imported, tmp_path):
    raw, sentence = FILES[case]
    with pytest.raises(UnsupportedModelError) as caught:
        imported(raw)
    assert str(caught.value) == sentence.format(path=tmp_path / "net.pt")


@pytest.mark.parametrize(
    "raw",
    [zipped(NET), zipped(scripted(), code=True), legacy(NET)],
    ids=["zip", "TorchScript", "old"],
)
def test_damaged_pt_files(raw, imported):
    """Cut anywhere, or with any byte changed: one sentence, or a network that can be checked."""
    damage = np.random.default_rng(1)
    for _ in range(150):
        broken = bytearray(raw)
        if damage.integers(2):
            del broken[damage.integers(len(raw)) :]
        else:
            broken[damage.integers(len(raw))] ^= int(damage.integers(1, 256))
        sentence = ""
        try:
            imported(bytes(broken))
        except ModelError as e:
            sentence = str(e)
        assert "\n" not in sentence


def opcodes(*parts: bytes) -> bytes:
    """A file of torch.save's with this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("net/data.pkl", b"\x80\x02" + b"".join(parts) + b".")
        z.writestr("net/data/0", bytes(16))
    return out.getvalue()


def tensor_opcodes(start: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 4):
    w = Writer()
    pid = w.put("storage") + w.name("torch.FloatStorage") + w.put("0") + w.put("cpu")
    rest = w.put(start) + w.put(size) + w.put(stride) + b"\x89" + w.put({})
    made = w.name("torch._utils._rebuild_tensor_v2")
    tensor = made + b"((" + pid + w.put(count) + b"tQ" + rest + b"tR"
    return opcodes(b"}", w.put("a.weight"), tensor, b"s")


UNREADABLE = {
    "an id that is no storage's": (
        opcodes(b"(", Writer().put("what"), b"NNNNtQ"),
        "ValueError: it refers to something that is no storage",
    ),
    "a tensor without a storage": (
        opcodes(
            Writer().put(Call("torch._utils._rebuild_tensor_v2", None, 0, (1,), (1,), False, {}))
        ),
        "ValueError: a tensor has no storage",
    ),
    "an expanded tensor": (
        tensor_opcodes(0, (6, 1), (0, 1)),
        "ValueError: a tensor of size (6, 1) is larger than its storage of 4, unless it is an "
        "expanded one, to be saved .contiguous()",
    ),
    "another rank of strides": (
        tensor_opcodes(0, (2, 2), (1,)),
        "ValueError: a tensor has size (2, 2), stride (1,), start 0",
    ),
    "an unknown opcode": (
        opcodes(b"\x97"),
        "ValueError: a pickle's opcode NEXT_BUFFER is not known",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_pt_files_that_can_not_be_read(case, imported, tmp_path):
    raw, what = UNREADABLE[case]
    with pytest.raises(UnsupportedModelError) as caught:
        imported(raw)
    assert str(caught.value) == (
        f"{tmp_path / 'net.pt'} can't be read as a PyTorch file ({what}); "
        "save model.state_dict() anew"
    )


HOSTILE = {
    "a tensor larger than its storage": tensor_opcodes(0, (2**40, 1), (0, 1)),
    "a tensor behind its storage": tensor_opcodes(2, (3, 1), (1, 1)),
    "a huge storage": tensor_opcodes(0, (1, 1), (1, 1), 2**40),
    "a text of 4 GiB": opcodes(b"X\xff\xff\xff\xffabc"),
    "a number of 2 GiB": opcodes(b"\x8b\xff\xff\xff\x7fabc"),
    "a memo of 4 billion": opcodes(b"Nr\xff\xff\xff\xff"),
    "nested without end": opcodes(b"]" * 100_000 + b"a" * 99_999),
    "a key that can't be hashed": opcodes(b"}" + b")" + b"\x85" * 100_000 + b"Ns"),
    "a dict in itself": opcodes(b"}q\x00X\x01\x00\x00\x00ah\x00s"),
    "a million laughs": opcodes(b"]" + b"".join(b"q%c](h%ch%ce" % (k, k, k) for k in range(60))),
    "an empty stack": opcodes(b"R"),
    "no mark": opcodes(b"Nt"),
    "an unknown opcode": opcodes(b"\xff"),
    "two values": opcodes(b"NN"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pt_files(case, imported, tmp_path):
    with pytest.raises(UnsupportedModelError, match=re.escape(str(tmp_path / "net.pt"))):
        imported(HOSTILE[case])
