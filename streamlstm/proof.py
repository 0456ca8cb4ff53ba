"""Proof that a model is what its file says: the test vector inside, computed here again.

A file is written with one that this build's engine can follow (save), and is believed when the
engine gives the same again (load). What another framework answered (importers.verify) is the
better one. The file's format is model_file's, which needs no engine.
"""

from __future__ import annotations

import os

import numpy as np

from streamlstm import model_file, reference
from streamlstm.engine import Engine
from streamlstm.errors import InputError, ModelError, ModelFileError
from streamlstm.head import Head
from streamlstm.layers import Array
from streamlstm.model import Model
from streamlstm.model_file import Comparison, Proof

TEST_STEPS = 16
# Error allowed on the test vector, as a share of an output's std or largest value.
# A swapped gate moves outputs by tenths; float32's own error stays far below.
TEST_TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
# Frameworks answer in float32, also for a float64 model.
PROOF_TOLERANCE = TEST_TOLERANCE["float32"]


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    proof: Proof | None = None,
    compared: Comparison | None = None,
) -> None:
    """Write `model` to `path`, whole or not at all.

    proof: its events and answers become the test vector. compared: goes along, and is not looked
    at; of a model that was trained here.
    Raises OSError, and ModelError when load would find that the proof does not hold.
    """
    if proof is not None:
        _check(model, proof)
    x, y = _test_vector(model) if proof is None else (proof.x, proof.y)
    model_file.write(model, path, x, y, proof=proof, compared=compared)


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file and replay its test vector.

    Raises OSError, and ModelFileError when the file is not ours, of a version we don't
    know, damaged, or gives other numbers here than where it was written.
    """
    model, x, y, proven = model_file.read(path)
    try:
        worst = _replay(model, x, y)[-1]
    except model_file.INVALID as e:
        raise model_file.damaged(os.fspath(path), e) from e
    if not worst <= (PROOF_TOLERANCE if proven else TEST_TOLERANCE[model.dtype.name]):
        raise ModelFileError(
            f"{os.fspath(path)}: the test vector inside gives outputs that differ by {worst:.2g} "
            "of their scale here; the file is damaged or this build computes wrongly"
        )
    return model


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


def _check(model: Model, proof: Proof) -> None:
    """Raise ModelError where load would not accept a proof."""
    try:
        worst = _replay(model, proof.x, proof.y)[-1]
    except (InputError, ValueError) as e:
        raise ModelError(f"the proof is not of model {model.name!r}: {e}") from e
    if not worst <= PROOF_TOLERANCE:
        raise ModelError(
            f"model {model.name!r} and the answers of {proof.framework} differ by {worst:.2g} of "
            f"their scale, more than {PROOF_TOLERANCE:g}: they are not the same network"
        )


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
