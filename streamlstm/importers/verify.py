"""Proof that an import is right: the source framework and our engine, step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.engine import Engine
from streamlstm.errors import ModelError, ShapeError, UnsupportedModelError
from streamlstm.events import as_events
from streamlstm.importers import open_source
from streamlstm.importers.flow import Flow
from streamlstm.importers.fold import Scale, leading
from streamlstm.importers.source import Source
from streamlstm.layers import Layer
from streamlstm.model import Model
from streamlstm.model_file import FlowBy, Proof
from streamlstm.proof import random_events
from streamlstm.wording import counted

__all__ = ["Proof", "no_framework", "verify"]

Array = NDArray[Any]

# What runs a format's networks, beside what reads them: module, and the name to install it by.
FRAMEWORKS = {
    "PyTorch": ("torch", "torch"),
    "Keras": ("keras", "tensorflow-cpu"),
    "ONNX": ("onnxruntime", "onnxruntime"),
}


def verify(
    model: Model,
    against: Any,
    *,
    select: str | None = None,
    flow: Flow | None = None,
    x: ArrayLike | None = None,
    steps: int = 500,
    seed: int = 0,
) -> Proof:
    """Run `model` and the network that it came from over the same events, step by step.

    against: the file that the model was imported from, a live torch module, a Source (see
    importers.open_source), or a function that takes events [steps, inputs], float32 as the first
    layer sees them (scaled), and gives the network's outputs [steps, outputs] from its initial
    state. select, flow: as in import_model. x [steps, inputs]: events in the inputs' own units; by
    default `steps` random ones of `seed`.
    A large difference raises nothing: Proof.largest tells it, not a number if an answer is none.
    Raises UnsupportedModelError when the framework is not installed or can't run this network;
    ModelError when it fails, or its outputs are no [steps, outputs]; InputError for x; OSError.
    """
    framework, answers, (mean, std), flow_by = _answering(against, select, flow)
    if x is None:
        if steps < 1:
            raise ShapeError(f"steps is {steps}; give 1 or more")
        events = random_events(model, steps, seed)
    else:
        events = as_events(x, [f.name for f in model.inputs], 2, model.dtype)
        if not len(events):
            raise ShapeError("x holds no events; give 1 or more")
    if np.size(std) not in (1, model.input_size):
        raise ModelError(
            f"{framework} scales {counted(np.size(std), 'input')} first where the model has "
            f"{model.input_size}; compare it with the network that it came from"
        )
    ours = _stepped(model, events)
    mean_x, std_x = np.array([(f.mean, f.std) for f in model.inputs]).T
    mean_y, std_y = np.array([(f.mean, f.std) for f in model.outputs]).T
    with np.errstate(all="ignore"):  # answers that are not finite are the finding
        y = np.asarray(answers(((events - mean_x) / std_x * std + mean).astype(np.float32)))
        if y.shape != ours.shape or y.dtype.kind not in "fiu":
            raise ModelError(
                f"{framework} gives outputs of shape {list(y.shape)} ({y.dtype}) where the model "
                f"gives {list(ours.shape)}; compare it with the network that it came from"
            )
        y = y.astype(np.float64) * std_y + mean_y
        largest = float(np.max(np.abs(ours - y)))
    return Proof(framework, events.astype(np.float64), y, largest, flow_by)


def no_framework(source: Source) -> str:
    """Why nothing can run a source whose framework is "", and what to do."""
    module, name = FRAMEWORKS.get(source.format, ("", ""))
    if name and find_spec(module) is None:
        return f"nothing here runs {source.format} networks: pip install {name}"
    return f"nothing here runs this {source.format} network; give sl.verify a function that does"


def _stepped(model: Model, events: Array) -> Array:
    """Our outputs, one event at a time: [steps, outputs]."""
    with Engine(model, max_sessions=1) as engine:
        session = engine.open("verify")
        return np.array([session.step(event) for event in events], np.float64)


def _answering(
    against: Any, select: str | None, flow: Flow | None
) -> tuple[str, Callable[[Array], Any], tuple[Any, Any], FlowBy]:
    """Name of what answers, its answers [steps, outputs] to x [steps, inputs], the mean and std
    that it takes away from x itself, and whose flow it runs."""
    if isinstance(against, str | os.PathLike):
        against = open_source(against, flow=flow)
    elif hasattr(against, "state_dict") or isinstance(against, Mapping):
        from streamlstm.importers import pytorch  # noqa: PLC0415  (only when it is wanted)

        against = pytorch.source_of(against, flow=flow)
    elif flow is not None:
        raise UnsupportedModelError("flow is of a file or a module; leave it out here")
    elif not hasattr(against, "answers"):
        if not callable(against):
            raise UnsupportedModelError(
                "verify compares with a source file, a torch module, a Source or a function; "
                f"got {type(against).__name__}"
            )
        if select is not None:
            raise UnsupportedModelError("a function has no layers to select; leave out select")
        return getattr(against, "__name__", type(against).__name__), against, (0.0, 1.0), "source"
    source: Source = against
    if not source.framework:
        raise UnsupportedModelError(no_framework(source))

    def answers(x: Array) -> Any:
        try:
            return source.answers(x, select)
        except (UnsupportedModelError, OSError):
            raise
        except Exception as e:  # whatever a framework makes of a file
            first = (str(e) or type(e).__name__).splitlines()[0]
            raise ModelError(f"{source.framework} failed on the network: {first}") from e

    first, _ = leading(_layers(source) if select is None else ())
    scaling = (0.0, 1.0) if first is None else (-first.shift / first.scale, 1 / first.scale)
    return source.framework, answers, scaling, source.flow_by if select is None else "source"


def _layers(source: Source) -> Sequence[Layer | Scale]:
    """A source's layers, the first ones known where the whole network can't be imported: a live
    module can be asked all the same."""
    try:
        return source.network()
    except UnsupportedModelError:
        known = (part.layer for part in getattr(source, "parts", ()))
        return list(takewhile(lambda layer: layer is not None, known))
