"""Layers as data: weights, options and sizes. They run nothing; reference.py has the equations.

Canonical layout, the one every importer converts to: weights [gates * H, inputs] as in
PyTorch, gates as blocks of rows in a fixed order, one bias for each sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Sizes = tuple[int, ...]
Function = Literal["linear", "tanh", "sigmoid", "relu", "hard_sigmoid", "hard_sigmoid6", "softmax"]
# hard_sigmoid is min(max(0.2 z + 0.5, 0), 1) (ONNX, Keras 2), hard_sigmoid6 the same with z / 6
# (PyTorch's Hardsigmoid, Keras 3). softmax needs all of a layer's numbers: no gate has it.
CELL_FUNCTIONS: tuple[Function, ...] = (
    *("linear", "tanh", "sigmoid", "relu"),
    *("hard_sigmoid", "hard_sigmoid6"),
)
FUNCTIONS: tuple[Function, ...] = (*CELL_FUNCTIONS, "softmax")
UNBOUNDED: tuple[Function, ...] = ("linear", "relu")
# Where what has no bound of its own stops: no trained cell gets there, and float32 can multiply
# two such numbers and add up the products.
SATURATION = 1e15


@dataclass(frozen=True, eq=False, repr=False)
class Layer(ABC):
    """What all kinds share. Fields are tensors (arrays, or None) and options (all others)."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Numbers that it takes in a step."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Numbers that it gives in a step."""

    @property
    def units(self) -> int:
        """H of a recurrent layer; of any other its outputs."""
        return self.output_size

    @property
    def state_sizes(self) -> Sizes:
        """Numbers of h and of c that a session keeps for it; of a GRU just h; () for none."""
        return ()

    @abstractmethod
    def shapes(self) -> dict[str, Sizes]:
        """What each tensor's shape must be, given this layer's sizes."""

    def tensors(self) -> dict[str, Array]:
        """The tensors that it has, by name."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self) if is_tensor(f))
        return {name: a for name, a in named if a is not None}

    def options(self) -> dict[str, Any]:
        """All but the tensors that differs from the default, as JSON's types."""
        named = ((f, getattr(self, f.name)) for f in fields(self) if not is_tensor(f))
        return {f.name: value for f, value in named if value != f.default}

    def __repr__(self) -> str:
        parts = [name for name in self.tensors() if name not in ("w", "w_x", "w_h", "b")]
        options = [f"{name}={value!r}" for name, value in self.options().items()]
        more = "".join(f", {part}" for part in (*parts, *options))
        return f"<{type(self).__name__} {self.input_size} -> {self.output_size}{more}>"

    def problem(self) -> str:
        """What is wrong with the options, as the end of a sentence; "" when nothing is."""
        return ""

    @abstractmethod
    def reach(self) -> tuple[float, float]:
        """(rows, more): its sums are at most rows * (largest input) + more."""

    @abstractmethod
    def bound(self) -> float | None:
        """The largest magnitude of what it gives, whatever it is given; None: there is none."""

    def _largest(self, *names: str) -> float:
        """Of tensors together: the sum of magnitudes that meet in one number of each."""
        found = 0.0
        for name in names:
            a = np.abs(np.asarray(self.tensors().get(name, 0.0), float))
            found += float((a.sum(axis=1) if a.ndim == 2 else a).max())
        return found


def is_tensor(field: Field[Any]) -> bool:
    return str(field.type).startswith("Array")


def _rows(a: Any, share: int) -> int:
    """H of a matrix of `share` blocks of H rows; what does not divide shows in its shape."""
    return int(np.shape(a)[0]) // share


def _clip_problem(**clips: float | None) -> str:
    for name, clip in clips.items():
        if clip is not None and not 0 < clip < np.inf:
            return f"{name} is {clip}; expected a number above 0, or None"
    return ""


def _function_problem(**functions: str) -> str:
    for name, function in functions.items():
        if function not in CELL_FUNCTIONS:
            return f"{name} is {function!r}; known are {', '.join(CELL_FUNCTIONS)}"
    return ""


@dataclass(frozen=True, eq=False, repr=False)
class LSTM(Layer):
    """An LSTM layer (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    H units, P numbers of h (P = H without projection), G blocks of H rows: gates i, f, g, o,
    of which a coupled one is left out.
    w_x [GH, inputs], w_h [GH, P], b [GH].
    peep [(G - 1) H]: diagonal peepholes of all gates but g, in their order; i and f look at the
    old c, o at the new one (Gers & Schmidhuber 2000).
    norm [GH]: scale of a layer normalisation of each gate's sum, before b (Ba et al. 2016).
    w_p [P, H], b_p [P]: projection of h (Sak et al. 2014).
    h0 [P], c0 [H]: the state a session starts with (zeros by default).
    coupled: "i" where i = 1 - f, "f" where f = 1 - i, "" for neither (Greff et al. 2015).
    gate_function, candidate_function, output_function: of i, f, o; of g; of c on its way to h.
    clip_gates, clip_cell, clip_projection: bounds of the gates' sums, of c, of the projected h.
    """

    w_x: Array
    w_h: Array
    b: Array
    h0: Array | None = None
    c0: Array | None = None
    peep: Array | None = None
    norm: Array | None = None
    w_p: Array | None = None
    b_p: Array | None = None
    coupled: Literal["", "i", "f"] = ""
    gate_function: Function = "sigmoid"
    candidate_function: Function = "tanh"
    output_function: Function = "tanh"
    clip_gates: float | None = None
    clip_cell: float | None = None
    clip_projection: float | None = None

    kind = "lstm"

    @property
    def gates(self) -> str:
        """The gates that have weights, in their order."""
        return "ifgo".replace(self.coupled, "") if self.coupled else "ifgo"

    @property
    def units(self) -> int:
        """H."""
        return _rows(self.w_h, len(self.gates))

    @property
    def input_size(self) -> int:
        return int(self.w_x.shape[1])

    @property
    def output_size(self) -> int:
        return int(self.w_h.shape[1])

    @property
    def state_sizes(self) -> Sizes:
        return self.output_size, self.units

    @property
    def plain(self) -> bool:
        """Whether the cell is the textbook's: no option but a projection."""
        return not (
            self.options().keys() - {"clip_projection"}
            or self.peep is not None
            or self.norm is not None
        )

    def shapes(self) -> dict[str, Sizes]:
        h = self.units
        p = h if self.w_p is None else self.output_size
        rows = len(self.gates) * h
        return {
            "w_x": (rows, self.input_size),
            "w_h": (rows, p),
            "b": (rows,),
            "h0": (p,),
            "c0": (h,),
            "peep": (rows - h,),
            "norm": (rows,),
            "w_p": (p, h),
            "b_p": (p,),
        }

    def problem(self) -> str:
        if self.coupled not in ("", "i", "f"):
            return f"coupled is {self.coupled!r}; expected 'i', 'f' or ''"
        if self.w_p is None and not (self.b_p is None and self.clip_projection is None):
            return "b_p and clip_projection belong to a projection; give w_p too"
        clips = ("clip_gates", "clip_cell", "clip_projection")
        functions = ("gate_function", "candidate_function", "output_function")
        return _clip_problem(**{name: getattr(self, name) for name in clips}) or _function_problem(
            **{name: getattr(self, name) for name in functions}
        )

    def reach(self) -> tuple[float, float]:
        return self._largest("w_x"), _state_reach(self)

    def bound(self) -> float | None:
        functions = {self.gate_function, self.output_function}
        return 1.0 if self.w_p is None and functions.isdisjoint(UNBOUNDED) else SATURATION


@dataclass(frozen=True, eq=False, repr=False)
class GRU(Layer):
    """A gated recurrent unit (Cho et al. 2014), gates r, z, n: reset, update, candidate.

    w_x [3H, inputs], w_h [3H, H], b [3H]; h0 [H]: the h a session starts with (default: zeros).
    reset_after: whether r acts on U h + b_n (cuDNN's form; b_n [H], zeros by default) or on h
    itself (the paper's, where b_n has no place).
    gate_function, candidate_function: of r and z; of n. clip_gates: bound of all sums.
    """

    w_x: Array
    w_h: Array
    b: Array
    b_n: Array | None = None
    h0: Array | None = None
    reset_after: bool = True
    gate_function: Function = "sigmoid"
    candidate_function: Function = "tanh"
    clip_gates: float | None = None

    kind = "gru"

    @property
    def units(self) -> int:
        """H."""
        return _rows(self.w_h, 3)

    @property
    def input_size(self) -> int:
        return int(self.w_x.shape[1])

    @property
    def output_size(self) -> int:
        return self.units

    @property
    def state_sizes(self) -> Sizes:
        return (self.units,)

    def shapes(self) -> dict[str, Sizes]:
        h = self.units
        return {
            "w_x": (3 * h, self.input_size),
            "w_h": (3 * h, h),
            "b": (3 * h,),
            "b_n": (h,),
            "h0": (h,),
        }

    def problem(self) -> str:
        if self.b_n is not None and not self.reset_after:
            return "b_n has no place where reset_after is False; add it to b"
        return _clip_problem(clip_gates=self.clip_gates) or _function_problem(
            gate_function=self.gate_function, candidate_function=self.candidate_function
        )

    def reach(self) -> tuple[float, float]:
        return self._largest("w_x"), _state_reach(self)

    def bound(self) -> float | None:
        return SATURATION  # goes on from any h that was restored


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Layer):
    """A dense layer: activation(w x + b), w [outputs, inputs], b [outputs]."""

    w: Array
    b: Array
    activation: Function = "linear"

    kind = "dense"

    @property
    def input_size(self) -> int:
        return int(self.w.shape[1])

    @property
    def output_size(self) -> int:
        return int(self.w.shape[0])

    def shapes(self) -> dict[str, Sizes]:
        return {"w": (self.output_size, self.input_size), "b": (self.output_size,)}

    def options(self) -> dict[str, Any]:
        return {"activation": self.activation}

    def problem(self) -> str:
        if self.activation not in FUNCTIONS:
            return f"activation is {self.activation!r}; known are {', '.join(FUNCTIONS)}"
        return ""

    def reach(self) -> tuple[float, float]:
        return self._largest("w"), self._largest("b")

    def bound(self) -> float | None:
        return None if self.activation in UNBOUNDED else 1.0


@dataclass(frozen=True, eq=False, repr=False)
class Activation(Layer):
    """A function of each of `size` numbers, or, softmax, of all of them together."""

    function: Function
    size: int

    kind = "activation"

    @property
    def input_size(self) -> int:
        return self.size

    @property
    def output_size(self) -> int:
        return self.size

    def shapes(self) -> dict[str, Sizes]:
        return {}

    def problem(self) -> str:
        if self.function not in FUNCTIONS:
            return f"function is {self.function!r}; known are {', '.join(FUNCTIONS)}"
        return "" if self.size > 0 else f"size is {self.size}; expected 1 or more"

    def reach(self) -> tuple[float, float]:
        return 1.0, 0.0

    def bound(self) -> float | None:
        return None if self.function in UNBOUNDED else 1.0


@dataclass(frozen=True, eq=False, repr=False)
class Embedding(Layer):
    """Row k of w [vocabulary, outputs] for an event of one whole number k."""

    w: Array

    kind = "embedding"

    @property
    def vocabulary(self) -> int:
        """Rows of w: events are 0 to vocabulary - 1."""
        return int(self.w.shape[0])

    @property
    def input_size(self) -> int:
        return 1

    @property
    def output_size(self) -> int:
        return int(self.w.shape[1])

    def shapes(self) -> dict[str, Sizes]:
        return {"w": (self.vocabulary, self.output_size)}

    def reach(self) -> tuple[float, float]:
        return 0.0, float(np.abs(self.w).max())

    def bound(self) -> float | None:
        return None


Recurrent = LSTM | GRU


def _state_reach(cell: Recurrent) -> float:
    """What a cell's sums get of its state, norm and biases at most."""
    # Old h and c, and what is projected, are within SATURATION.
    state = sum(map(cell._largest, ("w_h", "peep", "w_p")))
    norm = cell._largest("norm") * float(cell.units**0.5)  # of what has variance 1
    return SATURATION * state + norm + cell._largest("b", "b_n", "b_p")


KINDS: dict[str, type[Layer]] = {k.kind: k for k in (LSTM, GRU, Dense, Activation, Embedding)}
