"""Model files: safetensors, with a JSON description in the metadata.

Metadata key "streamlstm" holds {"format": 1, "name", "fingerprint", "dtype", "layers", "inputs",
"outputs"} and, of a model that has one, "head" (Model.description). Tensors are "<layer>.<tensor>"
(0.w_x, 0.w_h, 0.b, 1.w, ...) and a test vector: "test.x" [steps, inputs] with "test.y" [steps,
outputs], in float64. reference.py computes up to 16 steps of it when the file is written; an
imported network's are what its own framework answered, and "proof": {"framework", "steps",
"largest", "flow_by"} is in the description.
read() compares the fingerprint; proof.load replays the vector too, so that a damaged file (the one)
or a broken build (the other) says so instead of answering plausibly.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as packed

from streamlstm.errors import ModelError, ModelFileError
from streamlstm.head import Head
from streamlstm.layers import KINDS, Array, Layer
from streamlstm.model import Model
from streamlstm.wording import counted

FORMAT = 1
SPEC = ("kind", "inputs", "units")  # of a layer; all else are its options
INVALID = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, ModelError)
"""What damaged contents make a model, or its replay, raise."""


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


class Read(NamedTuple):
    """A file's model with its test vector x [steps, inputs], y [steps, outputs], float64; proven:
    whether another framework answered y."""

    model: Model
    x: Array
    y: Array
    proven: bool


def write(
    model: Model,
    path: str | os.PathLike[str],
    x: Array,
    y: Array,
    *,
    proof: Proof | None = None,
    compared: Comparison | None = None,
) -> None:
    """Write `model` to `path` with its test vector, whole or not at all; nothing is looked at.

    proof: whose x and y they are. compared: of a model that was trained here. Raises OSError.
    """
    tensors = {
        f"{k}.{name}": np.array(a)
        for k, layer in enumerate(model.layers)
        for name, a in layer.tensors().items()
    }
    tensors |= {"test.x": np.array(x, np.float64), "test.y": np.array(y, np.float64)}
    description = {"format": FORMAT, "name": model.name, "fingerprint": model.fingerprint}
    description |= model.description()
    if proof is not None:
        told = {"framework": proof.framework, "steps": len(proof.x)}
        told |= {"largest": float(proof.largest), "flow_by": proof.flow_by}
        description["proof"] = told
    if compared is not None:
        description["compared"] = asdict(compared)
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        partial.write_bytes(packed(tensors, metadata={"streamlstm": json.dumps(description)}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Read:
    """What a model file holds; its test vector is not replayed here, but by proof.load.

    Raises OSError, and ModelFileError when the file is not ours, of a version we don't know, or
    damaged.
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
        return Read(model, tensors["test.x"], tensors["test.y"], "proof" in description)
    except INVALID as e:
        raise damaged(path, e) from e


def damaged(path: str, error: Exception) -> ModelFileError:
    """What to say of one of INVALID."""
    what = f"{path} is damaged: {type(error).__name__}: {error}"
    return ModelFileError(
        f"{what}; write it again with model.save",
        command_line=f"{what}; write it again with streamlstm train or import",
    )


def read_proof(path: str | os.PathLike[str]) -> Proof | None:
    """The proof in a model file, None where it has none; not replayed here, but by proof.load.

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
    open(path, "rb").close()  # safe_open's own OSError has neither number nor file
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
