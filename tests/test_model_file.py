"""Model files: what comes back is what was written, or a sentence that says why not."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import streamlstm as sl
from networks import events, models, stacked
from streamlstm import model_file, proof, reference
from streamlstm.errors import ModelError, ModelFileError

GOLDEN = Path(__file__).parent / "golden"
FORMAT_1 = GOLDEN / "format_1.safetensors"
# Printed by make_format_1.py. Where it moves, saved states no longer fit their models.
FORMAT_1_FINGERPRINT = "775bcc81cd2b5757bdcdfb56eb02d86bfa18588337bbefbc8dfdb55f3a8dc1fb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def same(a: sl.Model, b: sl.Model) -> bool:
    return (a.fingerprint, a.dtype, a.inputs, a.outputs) == (
        b.fingerprint,
        b.dtype,
        b.inputs,
        b.outputs,
    )


@pytest.mark.blas
@given(models(), st.text(min_size=1).filter(lambda s: s.isprintable()))
@settings(max_examples=30)
def test_round_trip(folder, model, name):
    model = sl.Model(model.layers, inputs=model.inputs, outputs=model.outputs, name=name)
    path = folder / "model.safetensors"
    model.save(path)
    again = sl.load(path)
    assert same(again, model)
    assert again.name == name
    x = events(model, 5)
    with sl.Engine(model) as one, sl.Engine(again) as two:
        np.testing.assert_array_equal(one.open("a").run(x), two.open("a").run(x))


def test_a_file_of_format_1_always_loads():
    model = sl.load(FORMAT_1)
    assert model.fingerprint == FORMAT_1_FINGERPRINT
    assert model.name == "format 1"
    assert model.inputs == (
        sl.Feature("flow", "m³/h", 12.5, 3.25),
        sl.Feature("temperature", "°C", -1.5, 8.0),
    )
    assert [layer.kind for layer in model.layers] == [
        "dense",
        "lstm",
        *["dense", "lstm"],
        *["dense"] * 2,
    ]


def test_loading_holds_no_file(folder):
    """The file may be replaced or removed while its model runs."""
    path = folder / "gone.safetensors"
    stacked().save(path)
    model = sl.load(path)
    path.write_bytes(b"")
    path.unlink()
    with sl.Engine(model) as engine:
        engine.open("a").step([1, 2, 3])


def test_saving_is_whole_or_not_at_all(folder, monkeypatch):
    path = folder / "kept.safetensors"
    stacked(seed=1).save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        stacked(seed=2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in folder.glob("kept*")] == [path.name]


def test_a_saved_file_has_the_usual_permissions(folder):
    mask = os.umask(0o022)
    try:
        stacked().save(folder / "shared.safetensors")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((folder / "shared.safetensors").stat().st_mode) == 0o644


def test_paths_that_are_no_file(folder):
    with pytest.raises(FileNotFoundError):
        sl.load(folder / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        stacked().save(folder / "nowhere" / "model.safetensors")
    with pytest.raises(OSError, match=r"."):
        sl.load(folder)


# -- damaged files -----------------------------------------------------------------------


def load_bytes(folder: Path, data: bytes) -> sl.Model:
    path = folder / "damaged.safetensors"
    path.write_bytes(data)
    return sl.load(path)


def loads_the_same_or_refuses(folder: Path, data: bytes) -> None:
    try:
        model = load_bytes(folder, data)
    except ModelFileError:
        return
    assert same(model, sl.load(FORMAT_1))


WHOLE = FORMAT_1.read_bytes()
HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]


@given(st.integers(0, len(WHOLE) * 8 - 1))
@settings(max_examples=600)
@example(16_382)  # a signalling NaN among the test vector's events
def test_one_flipped_bit(folder, bit):
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    loads_the_same_or_refuses(folder, bytes(data))


@given(st.integers(0, HEADER - 1), st.binary(min_size=1, max_size=12))
@settings(max_examples=300)
@example(at=WHOLE.index(b"12.5"), junk=b"1e99")
@example(at=WHOLE.index(b"12.5"), junk=b'"ab"')
def test_junk_in_the_header(folder, at, junk):
    loads_the_same_or_refuses(folder, WHOLE[:at] + junk + WHOLE[at + len(junk) :])


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated(folder, length):
    with pytest.raises(ModelFileError):
        load_bytes(folder, WHOLE[:length])


@given(st.binary(max_size=200))
def test_other_bytes(folder, data):
    with pytest.raises(ModelFileError, match="is not a streamlstm model file"):
        load_bytes(folder, data)


# -- files that are whole but wrong ------------------------------------------------------


def rewritten(folder: Path, change, source: Path = FORMAT_1) -> Path:
    """A copy with its description and tensors changed by change(description, tensors)."""
    with safe_open(source, framework="numpy") as f:
        description = json.loads(f.metadata()["streamlstm"])
    tensors = load_file(source)
    change(description, tensors)
    path = folder / "rewritten.safetensors"
    save_file(tensors, path, metadata={"streamlstm": json.dumps(description)})
    return path


def refused(folder: Path, sentence: str, change) -> None:
    path = rewritten(folder, change)
    with pytest.raises(ModelFileError, match=re.escape(sentence)) as caught:
        sl.load(path)
    assert str(path) in str(caught.value)


def test_nothing_changed_loads(folder):
    assert same(sl.load(rewritten(folder, lambda _d, _t: None)), sl.load(FORMAT_1))


@pytest.mark.parametrize("version", [0, 2, 1.5, "1", None, []])
def test_another_format_version_is_refused_by_name(version, folder):
    refused(
        folder,
        f"has format version {version!r}; this streamlstm reads version 1: use a matching release",
        lambda d, _t: d.update(format=version),
    )


DAMAGES = {
    "fingerprint": (lambda d, _t: d.update(fingerprint="00"), "not the one written in it"),
    "no fingerprint": (lambda d, _t: d.pop("fingerprint"), "is damaged: KeyError: 'fingerprint'"),
    "weight": (lambda _d, t: t["0.w"].__setitem__((0, 0), 1e-9), "not the one written in it"),
    "lacking": (lambda _d, t: t.pop("1.w_h"), "is damaged: TypeError"),
    "surplus": (lambda _d, t: t.update({"1.w_q": t["0.w"]}), "is damaged: TypeError"),
    "lacking layer": (lambda d, _t: d["layers"].pop(), "has 2 outputs, but 1 was described"),
    "unknown layer": (lambda d, _t: d["layers"][0].update(kind="rnn"), "KeyError: 'rnn'"),
    "activation": (lambda d, _t: d["layers"][0].update(activation="gelu"), "'gelu'; known are"),
    "layers no list": (lambda d, _t: d.update(layers=7), "is damaged: TypeError"),
    "layer no map": (lambda d, _t: d.update(layers=[7]), "is damaged: AttributeError"),
    "no name": (lambda d, _t: d.pop("name"), "is damaged: KeyError: 'name'"),
    "mean": (lambda d, _t: d["inputs"][0].update(mean="?"), "is damaged: ValueError"),
    "vast mean": (lambda d, _t: d["inputs"][0].update(mean=10**400), "is damaged: OverflowError"),
    "field": (lambda d, _t: d["inputs"][0].update(scale=1), "is damaged: ModelError"),
    "inputs": (lambda d, _t: d["inputs"].pop(), "has 2 inputs, but 1 was described"),
    "dtype": (lambda d, _t: d.update(dtype="float16"), "is damaged: ModelError"),
    "no dtype": (lambda d, _t: d.update(dtype="?!"), "is damaged: TypeError"),
    "no test": (lambda _d, t: t.pop("test.x"), "is damaged: KeyError: 'test.x'"),
    "test shape": (lambda _d, t: t.update({"test.x": np.zeros((16, 5))}), "is damaged: ShapeError"),
    "test length": (lambda _d, t: t.update({"test.y": np.zeros((3, 1))}), "is damaged: ValueError"),
    "empty test": (
        lambda _d, t: t.update({"test.x": np.zeros((0, 2)), "test.y": np.zeros((0, 1))}),
        "is damaged: ValueError",
    ),
    "test NaN": (lambda _d, t: t["test.x"].fill(np.nan), "is damaged: NonFiniteError"),
    "answers NaN": (lambda _d, t: t["test.y"].fill(np.nan), "outputs that differ by nan"),
    "answers": (
        lambda _d, t: t["test.y"].__iadd__(0.01),
        "of their scale here; the file is damaged or this build computes wrongly",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_whole_but_wrong(case, folder):
    change, sentence = DAMAGES[case]
    refused(folder, sentence, change)


def test_a_build_that_computes_wrongly_is_noticed(folder, monkeypatch):
    """Gates in another order: plausible answers, refused by the test vector."""
    model = stacked(outputs=1)
    i, f, g, o = np.split(model.layers[0].w_x, 4)
    swapped = sl.LSTM(np.concatenate([f, i, g, o]), model.layers[0].w_h, model.layers[0].b)
    broken = sl.Model([swapped, model.layers[1]])
    path = folder / "wrong.safetensors"
    model.save(path)
    with safe_open(path, framework="numpy") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        metadata = f.metadata()
    tensors["test.y"], _ = reference.run(broken, tensors["test.x"])
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ModelFileError, match="this build computes wrongly"):
        sl.load(path)
    answers = reference.run
    monkeypatch.setattr(reference, "run", lambda _model, x: answers(broken, x))
    with pytest.raises(ModelError, match="differ at the first event"):
        model.save(path)


def test_a_network_that_magnifies_rounding_has_a_short_test_vector(folder):
    """The GRU's tanh gates drift apart in float32 and float64; load still accepts the file."""
    rng = np.random.default_rng(3)
    gates = {"reset_after": False, "gate_function": "tanh"}
    wild = sl.GRU(*(rng.uniform(-2, 2, s) for s in ((90, 3), (90, 30), 90)), **gates)
    model = sl.Model([wild], dtype="float32")
    model.save(folder / "wild.safetensors")
    with safe_open(folder / "wild.safetensors", framework="numpy") as f:
        assert 1 <= len(f.get_tensor("test.x")) < 16
    assert sl.load(folder / "wild.safetensors").fingerprint == model.fingerprint


def test_foreign_safetensors(folder):
    path = folder / "foreign.safetensors"
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ModelFileError, match=r"without a streamlstm description.*import_model"):
        sl.load(path)
    save_file({"a": np.zeros(3)}, path, metadata={"streamlstm": "no json"})
    with pytest.raises(ModelFileError, match="is not a streamlstm model file"):
        sl.load(path)


@pytest.mark.parametrize("mean", [0.0, 101325.37, 1e9])
def test_inputs_far_from_zero_survive(mean, folder):
    """The test vector holds events that the model's dtype can hold."""
    base = stacked(inputs=1, outputs=1)
    model = sl.Model(base.layers, inputs=[sl.Feature("p", "Pa", mean, 10.0)])
    model.save(folder / "far.safetensors")
    assert same(sl.load(folder / "far.safetensors"), model)


# -- proofs ------------------------------------------------------------------------------


def proof_of(model: sl.Model, steps: int = 40, **changed) -> sl.Proof:
    x = proof.random_events(model, steps, seed=3).astype(float)
    y = reference.run(model, x)[0].astype(np.float32).astype(float)
    return sl.Proof(**({"framework": "oracle 1.0", "x": x, "y": y, "largest": 2e-7} | changed))


@pytest.fixture
def proven(folder):
    path = folder / "proven.safetensors"
    stacked(outputs=2).save(path, proof=proof_of(stacked(outputs=2)))
    return path


def test_a_proof_comes_back_with_the_same_model(proven):
    model = stacked(outputs=2)
    want, got = proof_of(model), model_file.read_proof(proven)
    assert (got.framework, got.largest) == (want.framework, want.largest)
    np.testing.assert_array_equal(got.x, want.x)
    np.testing.assert_array_equal(got.y, want.y)
    assert same(sl.load(proven), model)
    with safe_open(proven, framework="numpy") as f:
        description = json.loads(f.metadata()["streamlstm"])
    assert description["proof"] == {
        "framework": "oracle 1.0",
        "steps": 40,
        "largest": 2e-7,
        "flow_by": "source",
    }
    assert model.description().items() <= description.items()


@pytest.mark.parametrize(
    ("framework", "flow_by"),
    [("torch 2.9, each layer alone in the order read", "file"), ("onnxruntime 1.20", "source")],
)
def test_a_proof_from_before_flows_were_told(folder, framework, flow_by):
    """It claims no more than was compared."""
    model = stacked(outputs=2)
    path = folder / "old.safetensors"
    model.save(path, proof=proof_of(model, framework=framework, flow_by="user"))
    assert model_file.read_proof(path).flow_by == "user"
    old = rewritten(folder, lambda d, _: d["proof"].pop("flow_by"), path)
    assert model_file.read_proof(old).flow_by == flow_by
    path = rewritten(folder, lambda d, _: d["proof"].update(flow_by="nobody"), path)
    with pytest.raises(ModelFileError, match="a proof of a flow by 'nobody'"):
        model_file.read_proof(path)


def test_a_file_without_a_proof(folder):
    stacked().save(folder / "plain.safetensors")
    assert model_file.read_proof(folder / "plain.safetensors") is None
    assert model_file.read_proof(FORMAT_1) is None


@pytest.mark.blas
def test_a_float64_model_takes_answers_in_float32(folder):
    model = stacked(outputs=2, dtype="float64")
    model.save(folder / "double.safetensors", proof=proof_of(model))
    assert same(sl.load(folder / "double.safetensors"), model)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"y": np.ones((40, 1))}, "is not of model 'model': answers of shape (40, 1), expected"),
        ({"x": np.ones((40, 2))}, "is not of model 'model': events have shape (40, 2)"),
        ({"x": np.full((40, 3), np.nan)}, "is not of model 'model': "),
        ({"y": np.full((40, 2), np.nan)}, "answers of oracle 1.0 differ by nan of their scale"),
        ({"y": np.full((40, 2), np.inf)}, "answers of oracle 1.0 differ by nan of their scale"),
        (
            {"y": np.ones((40, 2))},
            "of their scale, more than 0.001: they are not the same network",
        ),
    ],
)
def test_a_proof_that_does_not_hold_is_refused(folder, changed, sentence):
    model, path = stacked(outputs=2), folder / "refused.safetensors"
    with pytest.raises(ModelError, match=re.escape(sentence)):
        model.save(path, proof=proof_of(model, **changed))
    assert not list(folder.glob("refused*"))


def test_the_frameworks_answers_are_replayed(folder, proven):
    path = rewritten(folder, lambda _d, t: t["test.y"].__iadd__(0.01), proven)
    with pytest.raises(ModelFileError, match="this build computes wrongly"):
        sl.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d, _t: d.update(proof=7),
        lambda d, _t: d.update(proof=[]),
        lambda d, _t: d["proof"].pop("framework"),
        lambda d, _t: d["proof"].pop("largest"),
        lambda d, _t: d["proof"].update(steps=41),
        lambda d, _t: d["proof"].update(largest="small"),
        lambda d, _t: d["proof"].update(largest=10**400),
        lambda _d, t: t.pop("test.y"),
    ],
)
def test_a_damaged_proof(folder, proven, change):
    path = rewritten(folder, change, proven)
    with pytest.raises(
        ModelFileError, match=r"rewritten\.safetensors is damaged: .*import its net"
    ):
        model_file.read_proof(path)


def test_which_files_are_ours(folder, proven):
    save_file({"a": np.zeros(3)}, folder / "foreign.safetensors")
    (folder / "junk.safetensors").write_bytes(b"junk")
    theirs = ["foreign.safetensors", "junk.safetensors", "none.safetensors"]
    assert [model_file.is_model_file(folder / name) for name in theirs] == [False] * 3
    assert model_file.is_model_file(folder) is False
    assert model_file.is_model_file(proven)
