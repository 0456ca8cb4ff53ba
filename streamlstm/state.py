"""A session's state, copied out of its engine: to be kept, sent, and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import DtypeError, NonFiniteError, ShapeError, StateMismatchError
from streamlstm.layers import SATURATION, Sizes
from streamlstm.model import Model

Array = NDArray[Any]

SEQ_MAX: Final = 2**62
"""A stream that goes on from here does not come to 2**63, where its number would be none."""

LAYERS_MAX: Final = 1024
"""Layers of a saved state that from_bytes takes."""


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """A session's state, copied: all layers' numbers, with what they belong to.

    fingerprint: the model's. seq: the session's when it was taken. sizes: numbers of h and of c
    of each recurrent layer, of a GRU just of h. numbers: h then c of each layer, [state_size],
    the engine's dtype. arithmetic: the class of the engine that computed them (see kernels), ""
    where unknown; any class may go on from them.
    """

    fingerprint: str
    seq: int
    sizes: tuple[Sizes, ...]
    numbers: Array
    arithmetic: str = ""

    @classmethod
    def of(cls, model: Model, *, h: Any, c: Any = None, seq: int = 0) -> State:
        """A state from what another runtime kept of a stream.

        h: of all recurrent layers, the lowest first: [layers, H] or, as PyTorch and ONNX have it,
        with an axis of 1 for the batch or the direction anywhere; or a list with an array for each
        layer. c: the same of the LSTM layers; of a GRU none, or an empty one.
        seq: number of the last event that went into it.
        Raises StateMismatchError, ShapeError, DtypeError, NonFiniteError.
        """
        if model.head is not None:
            raise StateMismatchError(
                f"model {model.name!r} has a head, which remembers more than h and c: restore a "
                "State of this model"
            )
        if not isinstance(seq, Integral) or not 0 <= seq <= SEQ_MAX:
            raise StateMismatchError(
                f"seq is {seq}; expected the number of the last event, a whole one from 0 to 2**62"
            )
        sizes = model.state_sizes
        hs = _per_layer("h", h, [layer[0] for layer in sizes])
        cs = iter(_per_layer("c", c, [layer[1] for layer in sizes if len(layer) > 1]))
        parts = [[hs[k], *(next(cs) for _ in layer[1:])] for k, layer in enumerate(sizes)]
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            numbers = np.concatenate(sum(parts, [np.zeros(0)])).astype(model.event_dtype)
        state = cls(model.fingerprint, int(seq), sizes, numbers)
        state.check(model)
        return state

    def check(self, model: Model) -> None:
        """Raise StateMismatchError, NonFiniteError unless a session of `model` can go on so."""
        if self.fingerprint != model.fingerprint:
            raise StateMismatchError(
                f"the state belongs to model {self.fingerprint[:12]}, this session to "
                f"{model.fingerprint[:12]}; restore it under its own model"
            )
        expected = model.event_dtype
        if self.numbers.shape != (model.state_size,) or self.numbers.dtype != expected:
            raise StateMismatchError(
                f"the state holds {self.numbers.dtype} {self.numbers.shape}; "
                f"expected {expected} ({model.state_size},)"
            )
        if not np.isfinite(self.numbers).all():
            raise NonFiniteError("the state holds NaN or infinity; restore an earlier one")
        if self.numbers.size and np.abs(self.numbers).max() > SATURATION:
            raise NonFiniteError(
                f"the state holds a number beyond {SATURATION:.0e}, which no cell reaches"
            )

    def h(self, layer: int) -> Array:
        """h of a recurrent layer (0 is the lowest), [units], or [P] where it is projected."""
        return self._part(layer, 0)

    def c(self, layer: int) -> Array:
        """c of an LSTM layer (0 is the lowest), [units]; of a GRU, which has none, [0]."""
        return self._part(layer, 1)

    def _part(self, layer: int, part: int) -> Array:
        sizes = self.sizes[layer]
        start = sum(map(sum, self.sizes[:layer])) + sum(sizes[:part])
        return self.numbers[start : start + sum(sizes[part : part + 1])].copy()

    def to_bytes(self) -> bytes:
        """The state as bytes for a file or the wire; from_bytes reads them."""
        numbers = self.numbers.astype(self.numbers.dtype.newbyteorder("<"))
        data = (numbers.dtype.str, numbers.tobytes())
        packed: bytes = msgpack.packb(
            [1, self.fingerprint, self.seq, self.sizes, *data, self.arithmetic]
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Read what to_bytes wrote. Raises StateMismatchError when it is anything else."""
        try:
            # A header of a few bytes can claim gigabytes: nothing larger than a layer list.
            version, fingerprint, seq, sizes, dtype, numbers, arithmetic = msgpack.unpackb(
                data, max_array_len=LAYERS_MAX, max_map_len=0, max_ext_len=0
            )
            if version != 1 or dtype not in ("<f4", "<f8"):
                raise ValueError(f"version {version!r}, dtype {dtype!r}")
            if not isinstance(fingerprint, str) or not isinstance(arithmetic, str):
                raise ValueError("fingerprint and arithmetic class must be text")
            array = np.frombuffer(numbers, dtype).astype(np.dtype(dtype).newbyteorder("="))
            sizes = tuple(map(tuple, sizes))
            whole = (seq, *(n for layer in sizes for n in layer))
            if not all(type(n) is int and 0 <= n < 2**63 for n in whole):
                raise ValueError(f"seq {seq!r} and sizes {sizes} must be whole numbers")
            if not all(len(layer) in (1, 2) for layer in sizes):
                raise ValueError(f"sizes {sizes}; expected those of h and c, or of h, a layer")
            if sum(map(sum, sizes)) != array.size or min(map(min, sizes), default=0) < 1:
                raise ValueError(f"{array.size} numbers for layers of {sizes}")
            return cls(fingerprint, seq, sizes, array, arithmetic)
        except Exception as e:  # whatever hostile bytes make msgpack or NumPy raise
            raise StateMismatchError(
                f"these bytes are not a saved state ({e}); give what State.to_bytes wrote"
            ) from e

    def __repr__(self) -> str:
        parts = ", ".join("+".join(map(str, layer)) for layer in self.sizes)
        return f"<State of model {self.fingerprint[:12]} at seq {self.seq}: {parts} numbers>"


def _per_layer(what: str, given: Any, sizes: Sequence[int]) -> list[Array]:
    """h or c as one vector a layer. Raises ShapeError."""
    # A list of numbers is one vector, as JSON has it.
    listed = isinstance(given, (list, tuple)) and not all(isinstance(a, Real) for a in given)
    arrays = [] if given is None else list(given) if listed else _stacked(given, len(sizes))
    found = [a for a in map(_without_ones, arrays) if a.size]  # a GRU's c is empty
    if [a.shape for a in found] == [() if size == 1 else (size,) for size in sizes]:
        return [a.reshape(-1) for a in found]
    wanted = f"[{len(sizes)}, {sizes[0]}]" if len(set(sizes)) == 1 else f"vectors of {[*sizes]}"
    got = "none" if given is None else [np.shape(a) for a in arrays] if listed else np.shape(given)
    raise ShapeError(f"{what} of one session is {wanted if sizes else 'none'}, got shape {got}")


def _stacked(given: Any, layers: int) -> list[Array]:
    a = _without_ones(given)
    return [a] if layers == 1 else list(a.reshape(1) if a.ndim == 0 else a)


def _without_ones(a: Any) -> Array:
    """Without the axes of length 1, which a batch or a direction has."""
    try:
        # A tensor of PyTorch's comes with the graph that made it.
        numbers = np.asarray(a.detach() if hasattr(a, "detach") else a)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"a state's {type(a).__name__} is no array: {error}") from None
    if numbers.dtype.kind not in "iuf":
        raise DtypeError(
            f"a state's numbers are arrays of real ones, got {type(a).__name__} of {numbers.dtype}"
        )
    return np.squeeze(numbers.astype(np.float64))
