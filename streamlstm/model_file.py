"""Model files: safetensors, with a JSON description in the metadata.

Metadata key "streamlstm" holds {"format": 1, "name", "fingerprint", "dtype", "layers", "inputs",
"outputs"} and, of a model that has one, "head" (Model.description). Tensors are "<layer>.<tensor>"
(0.w_x, 0.w_h, 0.b, 1.w, ...) and a test vector: "test.x" [steps, inputs] with "test.y" [steps,
outputs], in float64. reference.py computes up to 16 steps of it when the file is written; an
imported network's are what its own framework answered, and "proof": {"framework", "steps",
"largest", "flow_by"} is in the description.
load() compares the fingerprint and replays the vector, so that a damaged file (the one) or a
broken build (the other) says so instead of answering plausibly.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as packed

from streamlstm import reference
from streamlstm.engine import Engine
from streamlstm.errors import InputError, ModelError, ModelFileError
from streamlstm.head import Head
from streamlstm.layers import KINDS, Array, Layer
from streamlstm.model import Model
from streamlstm.wording import counted

FORMAT = 1
SPEC = ("kind", "inputs", "units")  # of a layer; all else are its options
TEST_STEPS = 16
# Error allowed on the test vector, as a share of an output's std or largest value.
# A swapped gate moves outputs by tenths; float32's own error stays far below.
TEST_TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
# Frameworks answer in float32, also for a float64 model.
PROOF_TOLERANCE = TEST_TOLERANCE["float32"]


# Whose flow a comparison ran: the source's own; or each layer alone, in the order that the file
# tells, that the user says, or that nobody tells: of one recurrent stack with nothing beside it.
FlowBy = Literal["source", "file", "user", "stack"]


@dataclass(frozen=True, eq=False)
class Proof:
    """What a comparison with a model's source framework saw; verify makes it.

    framework: its name and version. x [steps, inputs]: the events; y [steps, outputs]: the
    framework's answers; both float64, in the features' own units. largest: the largest
    difference of our answers from y. flow_by: "source" where the source's own flow ran; otherwise
    the framework ran the layers one by one, in the order that the "file" tells or the "user" says,
    or those of a recurrent "stack" that stood alone: that proves the cells, not the flow.
    """

    framework: str
    x: Array
    y: Array
    largest: float
    flow_by: FlowBy = "source"

    def __repr__(self) -> str:
        cells = "" if self.flow_by == "source" else " cells only,"
        steps = counted(len(self.x), "step")
        return f"<Proof: {self.framework},{cells} {steps}, largest {self.largest:.1e}>"


@dataclass(frozen=True)
class Comparison:
    """What training saw when it streamed its rows here and in its framework.

    framework: its name and version. steps: compared. largest: the largest difference, in std of
    the target.
    """

    framework: str
    steps: int
    largest: float


def random_events(model: Model, steps: int, seed: int = 0) -> Array:
    """Events to try a model with: [steps, inputs] in its event_dtype, reproducible by `seed`.

    Standard normal at the scale of the inputs; for an embedding uniform whole numbers; for a head
    a reading a step, with what its policies take: a missing one, a gap and a repeated one.
    """
    rng = np.random.default_rng(seed)
    if model.head is not None:
        return _random_readings(model.head, steps, rng)
    if model.vocabulary:
        return rng.integers(0, model.vocabulary, (steps, model.input_size)).astype(model.dtype)
    mean, std = np.array([(f.mean, f.std) for f in model.inputs]).T
    x: Array = mean + std * rng.standard_normal((steps, model.input_size))
    return x.astype(model.dtype)


def _random_readings(head: Head, steps: int, rng: np.random.Generator) -> Array:
    mean, std = np.array([(f.mean, f.std) for f in (head.target, *head.others)]).T
    x: Array = mean + std * rng.standard_normal((steps, len(mean)))
    if head.missing != "reject":
        x[4::11, 0] = np.nan
    if head.time is None:
        return x
    grid = np.arange(steps) + 3 * (np.arange(steps) >= steps // 2)
    time_s = 1e9 + head.step_s * grid
    if head.late != "reject":
        time_s[6::13] = time_s[5:-1:13]
    return np.column_stack([time_s, x])


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    proof: Proof | None = None,
    compared: Comparison | None = None,
) -> None:
    """Write `model` to `path`, whole or not at all.

    compared: goes along, and is not looked at; of a model that was trained here.

    proof: its events and answers become the test vector. Raises OSError, and ModelError when
    load would find that the proof does not hold.
    """
    tensors = {
        f"{k}.{name}": np.array(a)
        for k, layer in enumerate(model.layers)
        for name, a in layer.tensors().items()
    }
    description = {"format": FORMAT, "name": model.name, "fingerprint": model.fingerprint}
    description |= model.description()
    if proof is None:
        tensors["test.x"], tensors["test.y"] = _test_vector(model)
    else:
        tensors["test.x"], tensors["test.y"] = (np.array(a, np.float64) for a in (proof.x, proof.y))
        description["proof"] = _checked_proof(model, proof)
    if compared is not None:
        description["compared"] = asdict(compared)
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        partial.write_bytes(packed(tensors, metadata={"streamlstm": json.dumps(description)}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _test_vector(model: Model) -> tuple[Array, Array]:
    """Events and the reference's answers, as far as the dtype's rounding leaves them alike."""
    # Both sides see the same events: those that the model's dtype can hold.
    x = random_events(model, TEST_STEPS).astype(np.float64)
    if model.head is None:
        y, _ = reference.run(model, x)
    else:
        stream = reference.stream(model)
        y = np.array([stream.read(reading) for reading in x])
    # A network that magnifies every rounding has a short vector; the margin is for other CPUs.
    steps = int(np.sum(_replay(model, x, y) <= TEST_TOLERANCE[model.dtype.name] / 10))
    if not steps:
        raise ModelError(
            f"model {model.name!r} has weights so large that {model.dtype} and float64 differ at "
            "the first event; a file of it could not be checked: use dtype='float64'"
        )
    return x[:steps], y[:steps]


def _checked_proof(model: Model, proof: Proof) -> dict[str, Any]:
    """What the description says of a proof that load will accept."""
    try:
        worst = _replay(model, proof.x, proof.y)[-1]
    except (InputError, ValueError) as e:
        raise ModelError(f"the proof is not of model {model.name!r}: {e}") from e
    if not worst <= PROOF_TOLERANCE:
        raise ModelError(
            f"model {model.name!r} and the answers of {proof.framework} differ by {worst:.2g} of "
            f"their scale, more than {PROOF_TOLERANCE:g}: they are not the same network"
        )
    told = {"framework": proof.framework, "steps": len(proof.x), "largest": float(proof.largest)}
    return told | {"flow_by": proof.flow_by}


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file and replay its test vector.

    Raises OSError, and ModelFileError when the file is not ours, of a version we don't
    know, damaged, or gives other numbers here than where it was written.
    """
    path = os.fspath(path)
    description, tensors = _read(path)
    try:
        layers = [_layer(k, spec, tensors) for k, spec in enumerate(description["layers"])]
        head = description.get("head")
        model = Model(
            layers,
            inputs=description["inputs"] if head is None else None,
            outputs=description["outputs"] if head is None else None,
            name=description["name"],
            dtype=description["dtype"],
            head=None if head is None else Head.read(head),
        )
        if model.fingerprint != description["fingerprint"]:
            raise ModelError(f"its fingerprint is {model.fingerprint}, not the one written in it")
        if any(description[key] != told for key, told in model.description().items()):
            raise ModelError("its description is not that of the network in it")
        worst = _replay(model, tensors["test.x"], tensors["test.y"])[-1]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, ModelError) as e:
        raise ModelFileError(
            f"{path} is damaged: {type(e).__name__}: {e}; write it again with model.save"
        ) from e
    tolerance = TEST_TOLERANCE[model.dtype.name] if "proof" not in description else PROOF_TOLERANCE
    if not worst <= tolerance:
        raise ModelFileError(
            f"{path}: the test vector inside gives outputs that differ by {worst:.2g} "
            "of their scale here; the file is damaged or this build computes wrongly"
        )
    return model


def read_proof(path: str | os.PathLike[str]) -> Proof | None:
    """The proof in a model file, None where it has none; it is not replayed here, but by load.

    Raises OSError, ModelFileError.
    """
    path = os.fspath(path)
    description, tensors = _read(path)
    told = description.get("proof")
    if told is None:
        return None
    try:
        x, y = tensors["test.x"], tensors["test.y"]
        if told["steps"] != len(x):
            raise ValueError(f"a proof of {told['steps']} steps with {len(x)} events")
        # Before flow_by the framework's name said it.
        alone = "each layer alone" in str(told["framework"])
        flow_by = told.get("flow_by", "file" if alone else "source")
        if flow_by not in get_args(FlowBy):
            raise ValueError(f"a proof of a flow by {flow_by!r}")
        return Proof(str(told["framework"]), x, y, float(told["largest"]), flow_by)
    except (LookupError, TypeError, ValueError, OverflowError) as e:
        raise ModelFileError(f"{path} is damaged: {e}; import its network again") from e


def read_comparison(path: str | os.PathLike[str]) -> Comparison | None:
    """What training compared, None where the file does not say. Raises OSError, ModelFileError."""
    told = _read(os.fspath(path))[0].get("compared")
    try:
        return None if told is None else Comparison(**told)
    except TypeError as e:
        raise ModelFileError(f"{path} is damaged: {e}; train its network again") from e


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file calls itself one of ours, as other safetensors files don't."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as f:
            return "streamlstm" in (f.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _layer(k: int, spec: dict[str, Any], tensors: dict[str, Array]) -> Layer:
    options = {key: value for key, value in spec.items() if key not in SPEC}
    own = {name.split(".", 1)[1]: a for name, a in tensors.items() if name.startswith(f"{k}.")}
    return KINDS[spec["kind"]](**options | own)


def _read(path: str) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = f.metadata() or {}
            if "streamlstm" not in metadata:
                what = f"{path} is a safetensors file without a streamlstm description"
                raise ModelFileError(
                    f"{what}; if it holds a PyTorch state dict, read it with import_model",
                    command_line=f"{what}; if it holds a PyTorch state dict, make a model file of "
                    "it with streamlstm import",
                )
            description = json.loads(metadata["streamlstm"])
            version = description["format"]
            if version != FORMAT:
                raise ModelFileError(
                    f"{path} has format version {version!r}; this streamlstm reads version "
                    f"{FORMAT}: use a matching release, or save the model again"
                )
            return description, {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        what = f"{path} is not a streamlstm model file ({e})"
        raise ModelFileError(
            f"{what}; foreign files are read with import_model",
            command_line=f"{what}; streamlstm import makes one of a foreign file",
        ) from e


def _replay(model: Model, x: Array, y: Array) -> Array:
    """The largest error on the test vector up to each step [steps], as a share of that output's
    scale; NaN from where an answer is not finite."""
    with Engine(model, max_sessions=1) as engine:
        got = engine.open("test").run(x)
    if y.shape != got.shape or not y.size:
        raise ValueError(f"answers of shape {y.shape}, expected {got.shape}")
    std = np.array([f.std for f in model.outputs])
    if model.head is not None:  # of the verdict a rounding may turn a comparison, so it is left out
        q = len(model.head.quantiles)
        y, got, std = y[:, :q], got[:, :q], np.full(q, model.head.target.std)
    with np.errstate(invalid="ignore"):
        scale = np.maximum(std, np.abs(y).max(axis=0))
        errors: Array = np.maximum.accumulate((np.abs(got - y) / scale).max(axis=1))
    return errors
