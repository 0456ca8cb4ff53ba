"""`streamlstm import` and `inspect` in this process, with the reference for a framework."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from fake_source import FakeSource
from networks import stacked
from streamlstm import cli, model_file, proof
from streamlstm.commands import import_, inspect
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import verify
from streamlstm.layers import Layer

MODEL = stacked(outputs=2)


@pytest.fixture
def source(monkeypatch) -> FakeSource:
    """What trained.onnx holds; asked: how it was opened."""
    fake = FakeSource(MODEL)
    for command in (import_, inspect):
        monkeypatch.setattr(command, "open_source", lambda *_, **more: asked(fake, more))
    return fake


def asked(fake: FakeSource, more) -> FakeSource:
    fake.asked = more
    return fake


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in tmp_path, where trained.onnx lies: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("trained.onnx").touch()

    def run(*argv):
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capsys.readouterr())

    return run


IMPORT = ("import", "trained.onnx", "-o", "pump.safetensors")
FOUND = """\
format       ONNX
dtype        float32
parameters   402
state        64 bytes per session
layers
  lstm           3 -> 8
  dense          8 -> 2     linear
inputs
  x0                                mean 0  std 1
  x1                                mean 0  std 1
  x2                                mean 0  std 1
outputs
  y0                                mean 0  std 1
  y1                                mean 0  std 1
"""


@pytest.mark.usefixtures("source")
def test_an_import_is_shown_proven_and_written(run):
    code, out, err = run(*IMPORT)
    assert (code, err) == (0, "")
    proof = model_file.read_proof("pump.safetensors")
    assert len(proof.x) == 500
    assert out == FOUND + (
        f"proof        oracle 1.0: 500 steps, largest difference {proof.largest:.1e}\n"
        "written      pump.safetensors\n"
    )
    model = sl.load("pump.safetensors")
    assert (model.fingerprint, model.name) == (MODEL.fingerprint, "trained")


UNPROVEN = {
    "user": "the flow is as --flow says",
    "file": "the flow is as the file tells it",
    "stack": "that nothing runs before or after them no file tells",
}


@pytest.mark.parametrize("flow_by", UNPROVEN)
def test_a_comparison_of_cells_is_called_so(run, source, flow_by):
    """In every place that shows it: "proof" is where the source's own flow ran."""
    source.flow_by = flow_by
    end = f"{UNPROVEN[flow_by]}: give sl.verify the live network to prove it\n"
    _, imported, _ = run(*IMPORT)
    _, inspected, _ = run("inspect", "pump.safetensors")
    for out in (imported, inspected):
        assert "\ncompared     cells only, against oracle 1.0: 500 steps, largest diff" in out
        assert end in out
        assert "\nproof" not in out
    shown = repr(model_file.read_proof("pump.safetensors"))
    assert shown.startswith("<Proof: oracle 1.0, cells only, 500 steps, largest ")
    assert run("inspect", "trained.onnx")[1] == f"{FOUND}flow         not proven: {end}"
    source.framework = ""
    _, out, _ = run(*IMPORT)
    assert "\nproof        not compared: " in out
    assert f"\nflow         not proven: {end}" in out
    _, out, _ = run(*IMPORT, "--select", "rnn.0")
    assert "\nflow " not in out


def test_without_a_framework(run, source, monkeypatch):
    monkeypatch.setattr(verify, "find_spec", lambda _: None)
    source.framework = ""
    code, out, err = run(*IMPORT)
    assert (code, err) == (0, "")
    why = "nothing here runs ONNX networks: pip install onnxruntime"
    assert f"\nproof        not compared: {why}\n" in out
    assert model_file.read_proof("pump.safetensors") is None
    assert sl.load("pump.safetensors").fingerprint == MODEL.fingerprint


def test_a_framework_that_can_not_run_the_network(run, source):
    """Where the reader knows why, the model is written; where the framework fails, it is not."""

    def refuse(_x, _select):
        raise UnsupportedModelError("torch has no peepholes")

    source.answers = refuse
    code, out, _ = run(*IMPORT)
    assert code == 0
    assert "\nproof        not compared: torch has no peepholes\n" in out
    assert model_file.read_proof("pump.safetensors") is None
    Path("pump.safetensors").unlink()
    source.answers = lambda _x, _select: 1 / 0
    code, _, err = run(*IMPORT)
    assert (code, err) == (1, "streamlstm: oracle 1.0 failed on the network: division by zero\n")
    assert not Path("pump.safetensors").exists()


@pytest.mark.parametrize(("off", "code"), [(0.002, 0), (0.2, 1), (np.inf, 1)])
def test_a_framework_that_rounds_to_8_bits(run, source, off, code):
    """Its answers are compared, with a bound of their own, and not kept."""
    source.framework, source.off = "oracle 1.0 (quantizing activations)", off
    source.quantizes, source.assumed = True, ["linear after 'fc'"]
    got, out, err = run(*IMPORT)
    assert got == code
    if code:
        assert "pump.safetensors was not written: the largest difference to oracle" in err
        return
    assert "oracle 1.0 (quantizing activations): 500 steps, largest difference 2.0e-03\n" in out
    assert "assumed      linear after 'fc'\n" in out
    assert model_file.read_proof("pump.safetensors") is None
    assert sl.load("pump.safetensors").fingerprint == MODEL.fingerprint


@pytest.mark.parametrize(
    ("off", "told"), [(0.01, "1.0e-02"), (2e-4, "2.0e-04"), (np.nan, "nan"), (-np.inf, "inf")]
)
def test_answers_that_differ(run, source, off, told):
    source.off = off
    Path("pump.safetensors").write_text("the one before")
    code, out, err = run(*IMPORT, "--force")
    assert code == 1
    assert out == FOUND
    assert err.startswith(
        "streamlstm: pump.safetensors was not written: the largest difference to "
        f"oracle 1.0: 500 steps, largest difference {told}, beyond "
    )
    assert err.count("\n") == 1
    assert Path("pump.safetensors").read_text() == "the one before"


@pytest.mark.usefixtures("source")
def test_an_existing_model_is_replaced_by_the_same_import_only(run):
    Path("pump.safetensors").write_text("the one before")
    code, _, err = run(*IMPORT)
    assert code == 1
    assert "pump.safetensors is there, and is not what this command wrote of this input" in err
    assert run(*IMPORT, "--force")[0] == 0
    assert run(*IMPORT)[0] == 0
    assert sl.load("pump.safetensors").fingerprint == MODEL.fingerprint


def test_names_and_reading_options(run, source):
    code, out, _ = run(
        *IMPORT,
        *("--name", "pump", "--inputs", "flow, pressure,speed", "--outputs", "level,leak"),
        *("--flow", "a,relu,b", "--steps", "7", "--seed", "3"),
    )
    assert code == 0
    assert "oracle 1.0: 7 steps" in out
    assert source.asked == {"flow": ["a", "relu", "b"]}
    model = sl.load("pump.safetensors")
    assert model.name == "pump"
    assert [f.name for f in (*model.inputs, *model.outputs)] == (
        ["flow", "pressure", "speed", "level", "leak"]
    )
    events = proof.random_events(model, 7, 3)
    np.testing.assert_array_equal(model_file.read_proof("pump.safetensors").x, events)


def test_select(run, source):
    source.model = stacked(layers=2)
    code, out, _ = run(*IMPORT, "--select", "rnn.1")
    assert code == 0
    assert out.startswith("format       ONNX, rnn.1\n")
    assert [m.input_size for m in sl.load("pump.safetensors").layers] == [8]
    code, out, err = run(*IMPORT, "--select", "rnn.9")
    assert (code, out) == (1, "")
    assert err == (
        "streamlstm: no recurrent layer 'rnn.9' was found; there are: 'rnn.0', 'rnn.1'\n"
    )


# -- events of one's own ---------------------------------------------------------------------------

X = np.arange(12.0).reshape(4, 3) / 10


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(("more", "steps"), [((), 4), (("--steps", 3), 3), (("--steps", 9), 4)])
def test_data(run, more, steps):
    rows = [f"{x[2]},-,{x[0]},{x[1]}" for x in X.tolist()]
    Path("events.csv").write_text("\n".join(["speed,note,flow,pressure", *rows]))
    argv = (*IMPORT, "--inputs", "flow,pressure,speed", "--data", "events.csv", *more)
    code, out, _ = run(*argv)
    assert code == 0
    assert f"oracle 1.0: {steps} steps" in out
    x = model_file.read_proof("pump.safetensors").x
    np.testing.assert_array_equal(x, X[:steps].astype(np.float32))


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "events.csv holds no events"),
        ("1,2,3\n\n1,?,3\n", "events.csv, line 3: column x1 holds '?', expected a number"),
        ("1,2,3\n1,2\n", "events.csv, line 2: column x2 holds '', expected a number"),
        (
            "flow,x1,x2\n1,2,3\n",
            "the header lacks the model's input x0; it has flow, x1, x2",
        ),
        (None, "events.csv can't be read: there is no such file"),
    ],
)
def test_data_that_is_refused(run, text, sentence):
    if text is not None:
        Path("events.csv").write_text(text)
    code, out, err = run(*IMPORT, "--data", "events.csv")
    assert (code, out) == (1, FOUND)
    assert err == f"streamlstm: {sentence}\n"
    assert not Path("pump.safetensors").exists()


# -- --list, and what does not go together ---------------------------------------------------------


def test_list(run, source):
    assert run("import", "trained.onnx", "--list") == (0, "  rnn.0  LSTM 3 -> 8\n", "")
    source.refusal = "node 'Foo' is a custom op; cut it off"
    lines = (
        "  rnn.0  LSTM 3 -> 8\n"
        "  back   LSTM 3 -> 8  can't be imported: node 'back' runs backwards; no stream can\n"
    )
    assert run("import", "trained.onnx", "--list") == (0, lines, "")
    source.recurrent = list
    assert run("import", "trained.onnx", "--list")[1] == "no recurrent layer in this ONNX file\n"


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "import: say where to write the model with -o MODEL, or --list"),
        (["-o", "m", "--data", "e", "--seed", "1"], "import: --seed is of random events; leave it"),
        (["-o", "./trained.onnx"], "import: -o is FILE itself; write the model elsewhere"),
        (["-o", "m", "--list"], "import: --list goes with --flow only"),
        (["--list", "--select", "a"], "import: --list goes with"),
        (["--list", "--seed", "0"], "import: --list goes with"),
        (["-o", "m", "--steps", "0"], "--steps: must be a whole number of 1 or more, got 0"),
        (["-o", "m", "--seed", "-1"], "--seed: must be a whole number of 0 or more, got -1"),
        (["-o", "m", "--inputs", "a,,b"], "must be names with commas between them, got 'a,,b'"),
    ],
)
def test_wrong_usage(run, argv, sentence):
    code, out, err = run("import", "trained.onnx", *argv)
    assert (code, out) == (2, "")
    assert sentence in err


@pytest.mark.usefixtures("source")
def test_a_wrong_number_of_names(run):
    code, _, err = run(*IMPORT, "--inputs", "flow")
    assert code == 1
    assert err == "streamlstm: the network has 3 inputs, but 1 was described\n"


@pytest.mark.usefixtures("source")
def test_a_folder_that_is_not_there(run, tmp_path):
    """Said before anything is compared."""
    code, out, err = run("import", "trained.onnx", "-o", "no/such/pump.safetensors")
    assert (code, out) == (1, "")
    assert err == (
        "streamlstm: no/such/pump.safetensors can't be written: there is no folder "
        f"{tmp_path / 'no' / 'such'}\n"
    )


def test_endings_and_files_that_are_not_there(run):
    code, _, err = run("import", "none.onnx", "--list")
    assert (code, err) == (1, "streamlstm: none.onnx can't be read: there is no such file\n")
    Path("notes.txt").touch()
    for command in (("import", "notes.txt", "--list"), ("inspect", "notes.txt")):
        code, _, err = run(*command)
        assert code == 1
        assert err.startswith("streamlstm: notes.txt has an unknown ending; files ending in .pt,")
    code, _, err = run("inspect", "none.onnx")
    assert (code, err) == (1, "streamlstm: none.onnx can't be read: there is no such file\n")


# -- inspect ---------------------------------------------------------------------------------------


def test_sentences_name_the_command_lines_own_words(run):
    """Python's name Python's: an error carries both."""
    MODEL.save("own.safetensors")
    code, _, err = run("import", "own.safetensors", "-o", "m.safetensors")
    assert (code, err) == (
        1,
        "streamlstm: own.safetensors is our own model file, and needs no import\n",
    )
    with pytest.raises(UnsupportedModelError, match="is our own model file; read it with load"):
        sl.import_model("own.safetensors")
    Path("trained.pt").write_bytes(b"PK")
    _, _, err = run("stream", "trained.pt")
    assert err.endswith("; streamlstm import makes one of a foreign file\n")
    with pytest.raises(sl.StreamLSTMError, match="foreign files are read with import_model") as e:
        sl.load("trained.pt")
    assert pickle.loads(pickle.dumps(e.value)).command_line == e.value.command_line


def test_inspect_ours(run):
    scaled = sl.Model(MODEL.layers, inputs=[sl.Feature("flow", "l/s", 12.5, 3), "p", "t"])
    scaled.save("plain.safetensors")
    code, out, _ = run("inspect", "plain.safetensors")
    assert code == 0
    assert f"fingerprint  {scaled.fingerprint}\n" in out
    assert "  flow                 [l/s]        mean 12.5  std 3\n" in out
    assert out.endswith("proof        none\n")
    scaled.save("proven.safetensors", proof=sl.verify(scaled, FakeSource(MODEL), steps=20))
    assert (
        "\nproof        oracle 1.0: 20 steps, largest " in run("inspect", "proven.safetensors")[1]
    )
    shown = repr(model_file.read_proof("proven.safetensors"))
    assert re.fullmatch(r"<Proof: oracle 1.0, 20 steps, largest \S+>", shown)


def test_inspect_a_foreign_file(run, source):
    assert run("inspect", "trained.onnx") == (0, FOUND, "")
    source.assumed = ["linear after 'fc'"]
    code, out, _ = run("inspect", "trained.onnx", "--flow", "a,b,relu")
    assert (code, out) == (0, FOUND + "assumed      linear after 'fc'\n")
    source.refusal = "node 'Foo' is a custom op; cut it off"
    code, out, err = run("inspect", "trained.onnx")
    assert (code, err) == (1, "streamlstm: node 'Foo' is a custom op; cut it off\n")
    assert out.startswith("format       ONNX\n  rnn.0  LSTM 3 -> 8\n  back   LSTM 3 -> 8  can't")


def test_what_would_move_the_cursor_is_escaped(run, source):
    sl.Model(MODEL.layers, name="a\x1b[2Jb").save("odd.safetensors")
    source.framework = "evil\n1.0"
    outs = [run("inspect", "odd.safetensors")[1], run(*IMPORT)[1]]
    assert "model        'a\\x1b[2Jb'\n" in outs[0]
    assert r"'evil\n1.0: 500 steps" in outs[1]
    assert not any("\x1b" in out for out in outs)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


PLAIN = {"w_x": ones(16, 3), "w_h": ones(16, 4), "b": ones(16)}
COUPLED = {"w_x": ones(12, 3), "w_h": ones(12, 4), "b": ones(12)}
PROJECTED = {"w_x": ones(16, 3), "w_h": ones(16, 2), "b": ones(16), "w_p": ones(2, 4)}
GRU = {"w_x": ones(12, 3), "w_h": ones(12, 4), "b": ones(12)}


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (sl.LSTM(**PLAIN), "lstm           3 -> 4"),
        (sl.LSTM(**PLAIN, peep=ones(12)), "lstm           3 -> 4     peepholes"),
        (
            sl.LSTM(**PLAIN, norm=ones(16), h0=ones(4), c0=ones(4)),
            "lstm           3 -> 4     layer norm, learned h0 and c0",
        ),
        (sl.LSTM(**PLAIN, c0=ones(4)), "lstm           3 -> 4     learned c0"),
        (sl.LSTM(**COUPLED, coupled="f"), "lstm           3 -> 4     f = 1 - i"),
        (sl.LSTM(**COUPLED, coupled="i"), "lstm           3 -> 4     i = 1 - f"),
        (sl.LSTM(**PROJECTED), "lstm           3 -> 2     projection of 4 units"),
        (
            sl.LSTM(**PROJECTED, b_p=ones(2), clip_projection=2.5),
            "lstm           3 -> 2     projection of 4 units with bias, clip projection 2.5",
        ),
        (
            sl.LSTM(**PLAIN, clip_cell=10.0, clip_gates=3, gate_function="hard_sigmoid"),
            "lstm           3 -> 4     gate function hard_sigmoid, clip gates 3, clip cell 10",
        ),
        (sl.GRU(**GRU), "gru            3 -> 4     reset after the product"),
        (
            sl.GRU(**GRU, reset_after=False, candidate_function="relu", h0=ones(4)),
            "gru            3 -> 4     reset before the product, learned h0, "
            "candidate function relu",
        ),
        (sl.Dense(ones(1, 4), ones(1), "softmax"), "dense          4 -> 1     softmax"),
        (sl.Activation("tanh", 4), "activation     4 -> 4     tanh"),
        (sl.Embedding(ones(9, 4)), "embedding      1 -> 4     vocabulary of 9"),
    ],
)
def test_what_is_said_of_a_layer(run, source, layer: Layer, line):
    embedded = isinstance(layer, sl.Embedding)
    alone = isinstance(layer, sl.LSTM | sl.GRU)
    rnn = sl.LSTM(ones(16, 4 if embedded else 3), ones(16, 4), ones(16))
    layers = [layer] if alone else [layer, rnn] if embedded else [rnn, layer]
    source.model = sl.Model(layers)
    code, out, _ = run("inspect", "trained.onnx")
    assert code == 0
    assert re.search(f"^  {re.escape(line)}$", out, re.MULTILINE), out
