"""What a .tflite file holds: its operators, and the tensors that are constants.

A .tflite file is a FlatBuffer of TensorFlow Lite's schema (tensorflow/lite/schema/schema.fbs);
ai-edge-litert has the classes that are generated from it. All numbers in a file are taken for
lies until they fit each other.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError

Array = NDArray[Any]
Dims = tuple[int, ...]  # -1 where only the run tells

IDENTIFIER = b"TFL3"
MOST_OPERATORS = 10_000  # what is beyond would take long to follow
DTYPES = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT8": "<i1", "INT32": "<i4", "INT64": "<i8"}


@dataclass(frozen=True)
class Operator:
    """One operator: its place and name, numbers of its tensors (-1: none), its options."""

    place: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any

    def __str__(self) -> str:
        return f"op {self.place} ({self.name})"

    def option(self, name: str) -> Any:
        """One of its options. Raises UnsupportedModelError where the file has none."""
        if not hasattr(self.options, name):
            raise UnsupportedModelError(f"{self} has no {name}; is the file damaged?")
        return getattr(self.options, name)


def schema() -> Any:
    """The generated classes. Raises UnsupportedModelError where the extra is missing."""
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as e:
        raise UnsupportedModelError(
            "reading a .tflite file needs ai-edge-litert: pip install 'streamlstm[tflite]'"
        ) from e


def parse(content: bytes, path: Path) -> Any:
    """The schema's ModelT. Raises UnsupportedModelError."""
    classes = schema()
    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError(f"it lacks the mark {IDENTIFIER.decode()}")
        _count(classes, classes.Model.GetRootAs(content), [2 * len(content)])
        model = classes.ModelT.InitFromPackedBuf(content, 0)
        if model.version != 3 or not model.subgraphs:
            raise ValueError(f"its version is {model.version}, and 3 is known")
        operators = sum(len(graph.operators or ()) for graph in model.subgraphs)
        if operators > MOST_OPERATORS:
            raise ValueError(f"its {operators:,} operators are more than {MOST_OPERATORS:,}")
    except Exception as e:  # the generated code checks nothing: any kind comes out of it
        raise UnsupportedModelError(f"{path} can't be read as a .tflite file: {e}") from e
    return model


def _count(classes: Any, table: Any, left: list[int]) -> None:
    """Take from left[0] the bytes, at least, of what `table` and those below it unpack to.

    In a FlatBuffer many places may point to one table, vector or string, and so a small file
    to no end of them; converters write each once. Raises ValueError when none are left.
    """
    left[0] -= 8
    vectors, fields = _fields(table.__class__)
    parts = [getattr(table, name)() for name in fields]
    for name in vectors:
        length = getattr(table, f"{name}Length")()
        left[0] -= length
        if left[0] >= 0 and length and not isinstance(getattr(table, name)(0), int | float):
            parts += [getattr(table, name)(k) for k in range(length)]
    for name, part in zip(fields, tuple(parts), strict=False):
        if hasattr(part, "Pos") and hasattr(classes, name):  # a union, whose type stands beside
            kind = _names(getattr(classes, name)).get(getattr(table, f"{name}Type")(), "")
            if hasattr(classes, kind):
                parts.append(getattr(classes, kind)())
                parts[-1].Init(part.Bytes, part.Pos)
    left[0] -= sum(len(part) for part in parts if isinstance(part, bytes))
    if left[0] < 0:
        raise ValueError("its parts stand for more than its size")
    for part in parts:
        if hasattr(part, "_tab"):
            _count(classes, part, left)


@cache
def _fields(table: Any) -> tuple[list[str], list[str]]:
    """Names of a generated class's vectors, and of its other fields."""
    readers = {name: f for name, f in vars(table).items() if isinstance(f, FunctionType)}
    vectors = [name for name in readers if f"{name}Length" in readers]
    about = {name + end for name in vectors for end in ("Length", "AsNumpy", "IsNone")}
    return vectors, [name for name in readers if name not in {*vectors, *about, "Init"}]


def _names(constants: Any) -> dict[int, str]:
    return {v: k for k, v in vars(constants).items() if isinstance(v, int)}


class Graph:
    """One subgraph: .operators, .inputs and .outputs (numbers of tensors).

    Raises UnsupportedModelError where a number points outside the file.
    """

    def __init__(self, model: Any, which: int) -> None:
        classes = schema()
        self._operators, self._types = _names(classes.BuiltinOperator), _names(classes.TensorType)
        self._functions = _names(classes.ActivationFunctionType)
        self._buffers: Sequence[Any] = model.buffers or ()
        graph = model.subgraphs[which]
        self._tensors: Sequence[Any] = graph.tensors or ()
        self.inputs, self.outputs = self._numbers(graph.inputs), self._numbers(graph.outputs)
        self.operators = [
            Operator(
                place,
                self._name(op, model.operatorCodes or ()),
                self._numbers(op.inputs),
                self._numbers(op.outputs),
                op.builtinOptions,
            )
            for place, op in enumerate(graph.operators or ())
        ]
        self._producers = {t: op for op in self.operators for t in op.outputs}
        self._users = Counter(t for op in self.operators for t in op.inputs)

    def _numbers(self, numbers: Any) -> tuple[int, ...]:
        given = tuple(int(n) for n in (() if numbers is None else numbers))
        if not all(-1 <= n < len(self._tensors) for n in given):
            raise UnsupportedModelError(
                f"the file names tensors {given} of {len(self._tensors)}; is it damaged?"
            )
        return given

    def _name(self, operator: Any, codes: Sequence[Any]) -> str:
        if not 0 <= operator.opcodeIndex < len(codes):
            raise UnsupportedModelError("an operator has no code; is the file damaged?")
        code = codes[operator.opcodeIndex]
        # The old field has 8 bits; files since 2020 have both.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = self._operators.get(number, f"code {number}")
        custom = code.customCode
        return f"CUSTOM {bytes(custom).decode(errors='replace')}" if custom else name

    def type_of(self, t: int) -> str:
        """A tensor's type, such as "FLOAT32"."""
        return self._types.get(self._tensors[t].type, "unknown")

    def function(self, op: Operator) -> str:
        """An operator's fused activation function, such as "RELU"."""
        return self._functions.get(op.option("fusedActivationFunction"), "unknown")

    def dims(self, t: int) -> Dims:
        """A tensor's shape, -1 where only the run tells."""
        tensor = self._tensors[t]
        signature = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        return tuple(int(n) for n in (() if signature is None else signature))

    def producer(self, t: int) -> Operator | None:
        """The operator whose output a tensor is."""
        return self._producers.get(t)

    def users(self, t: int) -> int:
        """How often a tensor is some operator's input."""
        return self._users[t]

    def is_variable(self, t: int) -> bool:
        """Whether a tensor is kept from one run to the next."""
        return bool(self._tensors[t].isVariable)

    def constant(self, t: int) -> Array | None:
        """A tensor's numbers; None where it has none before the run.

        Half precision and quantised numbers become float32.
        """
        producer = self.producer(t)
        if producer is not None:
            source = producer.inputs[0] if producer.inputs else -1
            weights = producer.name == "DEQUANTIZE" and source >= 0
            return self._stored(source) if weights and self.producer(source) is None else None
        return self._stored(t)

    def _stored(self, t: int) -> Array | None:
        tensor, who = self._tensors[t], f"tensor {t}"
        if not 0 <= tensor.buffer < len(self._buffers):
            raise UnsupportedModelError(f"{who} has no buffer; is the file damaged?")
        buffer = self._buffers[tensor.buffer]
        if buffer.offset > 1 or tensor.externalBuffer:
            raise UnsupportedModelError(f"{who} is kept outside the FlatBuffer; convert it anew")
        if buffer.data is None or not len(buffer.data):
            return None
        if tensor.sparsity is not None:
            raise UnsupportedModelError(f"{who} is sparse; convert the network without pruning")
        kind = self.type_of(t)
        if kind not in DTYPES:
            raise UnsupportedModelError(
                f"{who} holds {kind} numbers; {', '.join(DTYPES)} can be imported"
            )
        shape = tuple(int(n) for n in (() if tensor.shape is None else tensor.shape))
        data = np.asarray(buffer.data, np.uint8).tobytes()
        if min(shape, default=1) < 0 or math.prod(shape) * np.dtype(DTYPES[kind]).itemsize != len(
            data
        ):
            raise UnsupportedModelError(
                f"{who} of shape {shape} holds {len(data)} bytes; is the file damaged?"
            )
        a = np.frombuffer(data, DTYPES[kind]).reshape(shape)
        if not np.isfinite(a).all():
            raise UnsupportedModelError(f"{who} holds numbers that are not finite")
        if kind == "INT8":
            return _dequantised(a, tensor.quantization, who)
        return a.astype(np.float32) if kind == "FLOAT16" else a


def _dequantised(a: Array, quantization: Any, who: str) -> Array:
    """scale (a - zero point), per tensor or per channel (TFLite, "8-bit quantization spec")."""
    scale, zero = (
        np.asarray([] if numbers is None else numbers)
        for numbers in (getattr(quantization, "scale", None), getattr(quantization, "zeroPoint", 0))
    )
    axis = getattr(quantization, "quantizedDimension", 0)
    channels = a.shape[axis] if 0 <= axis < a.ndim else 0
    if scale.size not in (1, channels) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise UnsupportedModelError(f"{who} has INT8 numbers without the scales to read them by")
    if zero.any():
        raise UnsupportedModelError(
            f"{who} has a zero point that is not 0, as weights never do; is the file damaged?"
        )
    if scale.size > 1:
        scale = scale.reshape([-1 if k == axis else 1 for k in range(a.ndim)])
    return np.asarray(a * scale, np.float32)
