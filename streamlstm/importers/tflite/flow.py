"""TensorFlow Lite's operators in flow order, as our layers.

The network is the chain of operators from the graph's output back to its input. A tensor on it
holds rows of numbers, one row a step, in order: tensors are dense and row-major, so a reshape
leaves the rows alone whatever shape it gives them, and every operator that works on rows must
be shown to work on whole ones. The batch is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.tflite.cell import lstm
from streamlstm.importers.tflite.file import Dims, Graph, Operator
from streamlstm.layers import Activation, Dense, Embedding, Function, Layer
from streamlstm.wording import counted

Array = NDArray[Any]

LOOP = (
    "is a loop, which is how a recurrent layer that is not fused is written; "
    "import the file that it was converted from"
)
CELLS = ("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM")
MOST_FEATURES = 1 << 24  # a number beyond is damage
FUNCTION: dict[str, Function] = {"LOGISTIC": "sigmoid", "TANH": "tanh", "RELU": "relu"}


class Flow:
    """What the operators so far give.

    layers: they as ours. width: numbers in a row. dims: the tensor's shape, None where only
    the run tells. last: whether only the last step's row is left. time: the axis of steps in
    the first LSTM's input.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        (start,) = graph.inputs
        self.layers: list[Layer | Scale] = []
        self.dims: Dims | None = graph.dims(start)
        self.last = False
        self.time: int | None = None
        whole = graph.type_of(start) in ("INT32", "INT64")  # rows of an embedding, one a step
        self.width = 1 if whole or not self.dims else self.dims[-1]
        if not 0 < self.width < MOST_FEATURES:
            raise UnsupportedModelError(
                f"the graph's input has {counted(self.width, 'number')} a step; convert the "
                "network with a fixed number of features"
            )

    def take(self, op: Operator, data: int) -> None:
        """One more operator, of whose inputs number `data` is what came so far."""
        kinds = {self._graph.type_of(t) for t in (op.inputs[data], *op.outputs)}
        if op.name == "GATHER":
            kinds -= {"INT32", "INT64"}
        if op.name not in SHAPES and kinds != {"FLOAT32"}:
            raise _integers(op, kinds)
        TAKEN[op.name](self, op)

    def _constant(self, op: Operator, place: int) -> Array | None:
        if place >= len(op.inputs) or op.inputs[place] < 0:
            return None
        return self._graph.constant(op.inputs[place])

    def _needed(self, op: Operator, place: int) -> Array:
        a = self._constant(op, place)
        if a is None:
            raise UnsupportedModelError(f"{op} has an input {place} that is no constant")
        return a

    def _weights(self, op: Operator, place: int) -> Array:
        a = self._needed(op, place)
        if a.dtype != np.float32 or a.ndim != 2 or not a.size:
            raise UnsupportedModelError(f"{op} has an input {place} that is no matrix of weights")
        return a

    def _whole_rows(self, op: Operator) -> Dims:
        """The shape, shown to have rows as its last axis."""
        if self.dims is None or not self.dims or self.dims[-1] != self.width:
            shape = "a shape that only the run tells" if self.dims is None else f"shape {self.dims}"
            raise UnsupportedModelError(
                f"{op} works on a tensor of {shape}; expected {counted(self.width, 'number')} on "
                "the last axis"
            )
        return self.dims

    def _fused(self, op: Operator) -> None:
        function = self._graph.function(op)
        if function not in ("NONE", "RELU"):
            raise UnsupportedModelError(
                f"{op} has activation {function}; NONE and RELU can be imported"
            )
        if function == "RELU":
            self.layers.append(Activation("relu", self.width))

    def lstm(self, op: Operator) -> None:
        layer = lstm(self._graph, op)
        dims = self._whole_rows(op)
        sequence = op.name != "LSTM"
        time = int(not op.option("timeMajor")) if sequence else None
        batch = 0 if time is None else 1 - time
        if len(dims) != 2 + sequence or dims[batch] != 1:
            raise UnsupportedModelError(
                f"{op} runs over a tensor of shape {dims}; expected {2 + sequence} axes and a "
                "batch of 1: convert the network with that"
            )
        if self.last:
            raise UnsupportedModelError(
                f"{op} stands behind the last step of another layer, which can't be streamed"
            )
        if layer.input_size != self.width:
            raise UnsupportedModelError(
                f"{op} takes {counted(layer.input_size, 'number')}, and is given {self.width}"
            )
        self.layers.append(layer)
        self.time = time if self.time is None else self.time
        self.width, self.dims = layer.output_size, (*dims[:-1], layer.output_size)

    def fully_connected(self, op: Operator) -> None:
        w, b = self._weights(op, 1), self._constant(op, 2)
        if w.shape[1] != self.width or op.option("weightsFormat") != 0:
            raise UnsupportedModelError(
                f"{op} has weights of shape {w.shape}; expected plain ones of [outputs, "
                f"{self.width}]: it must work on the numbers of one step"
            )
        if b is None and len(op.inputs) > 2 and op.inputs[2] >= 0:
            raise UnsupportedModelError(f"{op} has an input 2 that is no constant")
        outputs = w.shape[0]
        b = np.zeros(outputs, np.float32) if b is None else b
        if b.shape != (outputs,) or b.dtype != np.float32:
            raise UnsupportedModelError(
                f"{op} has a bias of shape {b.shape} for {counted(outputs, 'output')}"
            )
        rows: Dims = (-1,)
        if op.option("keepNumDims"):
            rows = self._whole_rows(op)[:-1]
        elif self.dims is not None and -1 not in self.dims:
            rows = (math.prod(self.dims) // self.width,)
        self.layers.append(Dense(w, b))
        self.width, self.dims = outputs, (*rows, outputs)
        self._fused(op)

    def function(self, op: Operator) -> None:
        self.layers.append(Activation(FUNCTION[op.name], self.width))

    def softmax(self, op: Operator) -> None:
        self._whole_rows(op)
        if op.option("beta") != 1:
            raise UnsupportedModelError(f"{op} has beta {op.option('beta')}; expected 1")
        self.layers.append(Activation("softmax", self.width))

    def scaled(self, op: Operator) -> None:
        """ADD, SUB or MUL of a constant for each feature, or of one for all."""
        a, b = (self._constant(op, place) for place in range(2))
        constant = b if a is None else a
        if constant is None or (op.name == "SUB" and b is None):
            raise UnsupportedModelError(f"{op} needs a constant as its second input")
        if constant.size != 1 and (
            constant.size != constant.shape[-1]
            or constant.size != self.width
            or constant.ndim > len(self._whole_rows(op))
        ):
            raise UnsupportedModelError(
                f"{op} has a constant of shape {constant.shape}; expected one number for each "
                f"of {counted(self.width, 'feature')}, or one for all"
            )
        if self.dims is not None and constant.ndim > len(self.dims):
            self.dims = None
        numbers = np.broadcast_to(constant.reshape(-1), self.width)
        one, zero = np.ones(self.width), np.zeros(self.width)
        self.layers.append(
            {"MUL": Scale(numbers, zero), "ADD": Scale(one, numbers), "SUB": Scale(one, -numbers)}[
                op.name
            ]
        )
        self._fused(op)

    def gather(self, op: Operator) -> None:
        """Rows of a table: an embedding of the graph's input."""
        table = self._weights(op, 0)
        if (
            self.layers
            or self.dims is None
            or self._graph.type_of(op.inputs[1]) not in ("INT32", "INT64")
            or op.option("axis") != 0
            or op.option("batchDims") != 0
        ):
            raise UnsupportedModelError(
                f"{op} is no embedding of the graph's whole-number input in a table of rows"
            )
        self.layers.append(Embedding(table))
        self.width, self.dims = table.shape[1], (*self.dims, table.shape[1])

    def reshape(self, op: Operator) -> None:
        shape = self._constant(op, 1)
        if len(op.inputs) == 1 and op.option("newShape") is not None:
            shape = np.asarray(op.option("newShape"))
        if shape is None:
            told = self._graph.dims(op.outputs[0])
            self.dims = told if -1 in told else None  # a shape without -1 is that of one run
        else:
            self.dims = _resolved(op, shape, self.dims)

    def squeeze(self, op: Operator) -> None:
        dims, given = self.dims, op.option("squeezeDims")
        if dims is None or not dims or (given is None and -1 in dims):
            self.dims = None
            return
        axes = [k for k, n in enumerate(dims) if n == 1] if given is None else given
        gone = {int(k) % len(dims) for k in axes}
        known = all(dims[k] == 1 for k in gone)
        self.dims = tuple(n for k, n in enumerate(dims) if k not in gone) if known else None

    def expand_dims(self, op: Operator) -> None:
        axis = self._needed(op, 1)
        if self.dims is None or axis.size != 1:
            self.dims = None
            return
        dims, place = list(self.dims), int(axis.reshape(-1)[0])
        dims.insert(place + len(dims) + 1 if place < 0 else place, 1)
        self.dims = tuple(dims)

    def transpose(self, op: Operator) -> None:
        order = [int(k) for k in self._needed(op, 1).reshape(-1)]
        dims = self.dims
        if dims is None or sorted(order) != list(range(len(dims))):
            raise UnsupportedModelError(f"{op} has order {order} for a tensor of shape {dims}")
        moved = [k for k in order if dims[k] != 1]
        if moved != sorted(moved):
            raise UnsupportedModelError(
                f"{op} has order {order} for a tensor of shape {dims}, and so mixes steps or "
                "features"
            )
        self.dims = tuple(dims[k] for k in order)

    def last_step(self, op: Operator) -> None:
        """STRIDED_SLICE, where it takes all of the last step and nothing else."""
        dims = self._whole_rows(op)
        begin, end, strides = (
            [int(n) for n in self._needed(op, place).reshape(-1)] for place in (1, 2, 3)
        )
        masks = [op.option(f"{name}Mask") for name in ("begin", "end", "shrinkAxis")]
        others = [op.option(name) for name in ("ellipsisMask", "newAxisMask", "offset")]
        steps = [k for k, n in enumerate(dims[:-1]) if n != 1]
        time = steps[0] if steps else int(len(dims) == 3 and self.time == 1)
        fits = len(begin) == len(end) == len(strides) == len(dims) > 1 and set(strides) == {1}
        fits = fits and not any(others) and len(steps) < 2
        for k, n in enumerate(dims if fits else ()):
            first, final, single = (bool(mask >> k & 1) for mask in masks)
            if k == time:
                fits &= single and not first and begin[k] == -1  # in a sequence of any length
            else:
                fits &= not single and (first or begin[k] == 0) and (final or end[k] == n)
        if not fits:
            raise UnsupportedModelError(
                f"{op} takes more or less than the last step of its input; only that leaves a "
                "network that can be streamed"
            )
        self.last = True
        self.dims = tuple(n for k, n in enumerate(dims) if k != time)


SHAPES: dict[str, Callable[[Flow, Operator], None]] = {
    "RESHAPE": Flow.reshape,
    "SQUEEZE": Flow.squeeze,
    "EXPAND_DIMS": Flow.expand_dims,
    "TRANSPOSE": Flow.transpose,
}
TAKEN: dict[str, Callable[[Flow, Operator], None]] = {
    **dict.fromkeys(CELLS, Flow.lstm),
    "FULLY_CONNECTED": Flow.fully_connected,
    **dict.fromkeys(FUNCTION, Flow.function),
    "SOFTMAX": Flow.softmax,
    **dict.fromkeys(("ADD", "SUB", "MUL"), Flow.scaled),
    "GATHER": Flow.gather,
    **SHAPES,
    "STRIDED_SLICE": Flow.last_step,
}


def _integers(op: Operator, kinds: set[str]) -> UnsupportedModelError:
    kind = min(kinds - {"FLOAT32"}, default="integer")
    return UnsupportedModelError(
        f"{op} works on {kind} numbers; convert the network without full-integer quantisation"
    )


def _resolved(op: Operator, shape: Array, old: Dims | None) -> Dims:
    """The shape that a reshape gives, its -1 worked out where the old shape is known."""
    new = tuple(int(n) for n in shape.reshape(-1))
    if new.count(-1) > 1 or min(new, default=1) < -1:
        raise UnsupportedModelError(f"{op} has the shape {new}")
    if old is None or -1 in old:
        return new
    total, known = math.prod(old), math.prod(n for n in new if n != -1)
    if (-1 in new and (not known or total % known)) or (-1 not in new and total != known):
        raise UnsupportedModelError(f"{op} gives a tensor of shape {old} the shape {new}")
    return tuple(total // known if n == -1 else n for n in new)


def flow(graph: Graph) -> Flow:
    """The layers of a graph. Raises UnsupportedModelError naming the operator that we lack."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or -1 in graph.inputs + graph.outputs:
        raise UnsupportedModelError(
            f"the graph has {counted(len(graph.inputs), 'input')} and "
            f"{counted(len(graph.outputs), 'output')}; "
            "expected one of each"
        )
    chain: list[tuple[Operator, int]] = []
    t = graph.outputs[0]
    while t != graph.inputs[0]:
        op = graph.producer(t)
        if op is None or len(chain) > len(graph.operators):
            raise UnsupportedModelError("the graph's output does not come from its input")
        data = _data(graph, op)
        chain.append((op, data))
        t = op.inputs[data]
    made = Flow(graph)
    for op, data in reversed(chain):
        made.take(op, data)
    return made


def _data(graph: Graph, op: Operator) -> int:
    """Which of an operator's inputs the chain comes from."""
    if op.name == "WHILE":
        raise UnsupportedModelError(f"{op} {LOOP}")
    if op.name in ("QUANTIZE", "DEQUANTIZE"):
        raise _integers(op, {graph.type_of(t) for t in (*op.inputs, *op.outputs) if t >= 0})
    if op.name not in TAKEN:
        for each in graph.operators:  # of a bidirectional layer the joining is met first
            if each.name == "REVERSE_V2":
                raise UnsupportedModelError(
                    f"{each} reverses the sequence, which can't be streamed"
                )
        raise UnsupportedModelError(f"{op} can't be imported; known are {', '.join(TAKEN)}")
    second = op.name == "GATHER"
    if TAKEN[op.name] is Flow.scaled and op.inputs and op.inputs[0] >= 0:
        second = graph.constant(op.inputs[0]) is not None
    data = int(second)
    if len(op.inputs) <= data or op.inputs[data] < 0:
        raise UnsupportedModelError(f"{op} has no input {data}; is the file damaged?")
    return data
