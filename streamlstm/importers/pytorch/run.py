"""PyTorch's own answers: the module itself where it can be asked, else torch's layers in turn."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.engine import Engine
from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.pytorch.layers import Part
from streamlstm.layers import LSTM, Embedding, Function, Layer
from streamlstm.model import Model

Array = NDArray[Any]

# torch's names of what layers call, and of what looks at tensors and moves their numbers about.
_IDLE = re.compile(
    r"(lstm|gru)(_cell)?|linear|embedding|batch_norm|dropout|__(get|set)(item)?__|__(len|bool|int"
    r"|index)__|size|n?dim(ension)?|numel|stride|is_\w+|get_device|(view|expand|type)(_as)?|reshape"
    r"|(un)?(flatten|squeeze)|transpose|t|swapaxes|movedim|permute|contiguous|narrow|select|chunk"
    r"|split|unbind|repeat|stack|cat|to|float|double|cpu|clone|detach|copy_?|(new_)?zeros(_like)?"
    r"|zero_"
)
_CALLS: dict[Function | None, str] = {"hard_sigmoid6": "hardsigmoid"}

# Of the events on which a flow is tried against a module's own.
_STEPS = 20
_SCALES = (1.0, 10.0)


def framework(parts: Sequence[Part], way: Way | None) -> str:
    """What answers() would run; "" without torch, and where torch has no such layers."""
    try:
        import torch  # noqa: PLC0415  (an extra)
    except ImportError:
        return ""
    if way is None and any(map(_foreign, parts)):
        return ""
    return f"PyTorch {torch.__version__.partition('+')[0]}"


# -- layer by layer ----------------------------------------------------------------------


def in_turn(parts: Sequence[Part], x: Array) -> Array:
    """torch's own layers of these parts: outputs [steps, outputs] for x [steps, inputs]."""
    import torch  # noqa: PLC0415

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as torch's on a projection's speed
        a = torch.from_numpy(np.ascontiguousarray(x))
        for part in parts:
            a = _run(part, a)
    return np.asarray(a.numpy())


def _foreign(part: Part) -> str:
    """What of the part torch does not have."""
    if not isinstance(part.layer, LSTM):
        return ""
    if part.layer.peep is not None:
        return "peepholes"
    if part.layer.w_p is not None:
        outputs, units = np.shape(part.tensors["weight_hr"])
        if "bias_hr" in part.tensors or outputs >= units:
            return "such a projection"
    return ""


def _run(part: Part, a: Any) -> Any:
    """torch's own layer of the part over a [steps, inputs]."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    if part.function:
        return _FUNCTIONS[part.function](torch, a)
    if lacking := _foreign(part):
        raise UnsupportedModelError(f"torch has no {lacking}, so it can't run {part.where!r}")
    tensors = {name: torch.tensor(t) for name, t in part.tensors.items()}
    a = a.to(next(iter(tensors.values())).dtype)
    if part.recurrent:
        return _run_recurrent(part.kind, tensors, a)
    if part.kind == "Embedding":
        return nn.functional.embedding(a[:, 0].long(), tensors["weight"])
    layer: Any
    if part.kind == "BatchNorm1d":
        layer = nn.BatchNorm1d(a.shape[1], eps=part.epsilon, affine="weight" in tensors)
        tensors["num_batches_tracked"] = torch.tensor(0)
    else:
        outputs, inputs = tensors["weight"].shape
        layer = nn.Linear(inputs, outputs, bias="bias" in tensors)
    layer = layer.to(a.dtype).eval()
    layer.load_state_dict(tensors)
    return layer(a)


def _run_recurrent(kind: str, tensors: dict[str, Any], a: Any) -> Any:
    import torch  # noqa: PLC0415

    inputs, units = tensors["weight_ih"].shape[1], tensors["weight_hh"].shape[1]
    options: dict[str, Any] = {"bias": "bias_ih" in tensors, "dtype": a.dtype}
    if "weight_hr" in tensors:
        options["proj_size"], units = units, tensors["weight_hr"].shape[1]
    start = [tensors.pop(name, None) for name in ("h0", "c0")]
    sizes = (options.get("proj_size", units), units)
    h, c = (
        torch.zeros(size, dtype=a.dtype) if given is None else given
        for given, size in zip(start, sizes, strict=True)
    )
    layer = getattr(torch.nn, kind)(inputs, units, **options)
    cell = kind.endswith("Cell")
    layer.load_state_dict({name + ("" if cell else "_l0"): t for name, t in tensors.items()})
    if not cell:
        return layer(a, (h[None], c[None]) if kind == "LSTM" else h[None])[0]
    out = []
    for event in a:
        if kind == "LSTMCell":
            h, c = layer(event, (h, c))
        else:
            h = layer(event, h)
        out.append(h)
    return torch.stack(out)


_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda _, a: a,
    "tanh": lambda torch, a: torch.tanh(a),
    "sigmoid": lambda torch, a: torch.sigmoid(a),
    "relu": lambda torch, a: torch.relu(a),
    "hard_sigmoid": lambda torch, a: torch.clamp(0.2 * a + 0.5, 0, 1),
    "hard_sigmoid6": lambda torch, a: torch.nn.functional.hardsigmoid(a),
    "softmax": lambda torch, a: torch.softmax(a, -1),
}


# -- the module itself -------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How to ask a module for a sequence.

    shape: its input's, of [steps, inputs]: -1 is steps. last: whether it answers with the last
    step only, and so is asked for each sequence that ends earlier.
    """

    module: Any
    shape: tuple[int, ...]
    integers: bool
    last: bool = False

    def asked(self, x: Array) -> Array:
        """Its outputs [steps, outputs] for x [steps, inputs]."""
        if not self.last:
            return self.raw(x).reshape(len(x), -1)
        return np.stack([self.raw(x[: t + 1]).reshape(-1) for t in range(len(x))])

    def raw(self, x: Array, watched: AbstractContextManager[Any] | None = None) -> Array:
        """What it says, as it is shaped; watched: entered while forward() runs."""
        import torch  # noqa: PLC0415

        like = next(iter(self.module.parameters()))
        a = torch.from_numpy(np.ascontiguousarray(x)).to(like.device).reshape(self.shape)
        # A copy each time but for the parameters: what it may keep of a sequence is its own.
        kept = {id(p): p for p in self.module.parameters()}
        module = copy.deepcopy(self.module, kept).eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a = a.long() if self.integers else a.to(like.dtype)
            with watched or nullcontext():
                y = module(a)
        y = y[0] if isinstance(y, tuple | list) else y
        return np.asarray(y.cpu().numpy())


def way_to_ask(parts: Sequence[Part], module: Any) -> Way | None:
    """A way to ask the module that takes steps for steps; None where there is none."""
    if module is None:
        return None
    layers = [part.layer for part in parts if isinstance(part.layer, Layer)]
    dtype = str(getattr(next(iter(module.parameters()), None), "dtype", ""))
    # A module of cells takes one step: it would take steps for a batch.
    stepped = any(part.kind.endswith("Cell") for part in parts)
    if not layers or stepped or dtype not in ("torch.float32", "torch.float64"):
        return None
    sizes = {n for part in parts for a in part.tensors.values() for n in np.shape(a)}
    steps = next(n for n in range(2, len(sizes) + 3) if n not in sizes)
    x = np.random.default_rng(0).standard_normal((steps, layers[0].input_size))
    integers = isinstance(layers[0], Embedding)
    if integers:
        x = np.abs(x * 100) % layers[0].vocabulary // 1  # type: ignore[attr-defined]
    for shape in _shapes(module, () if integers else x.shape[1:]):
        way = Way(module, shape, integers)
        try:
            y = way.raw(x)
            if y.size == layers[-1].output_size:
                way = replace(way, last=True)
            elif y.size != steps * layers[-1].output_size or steps not in y.shape:
                continue
            if _remembers(way, x):
                return way
        except Exception:  # of the user's forward(), which may not be made for this
            continue
    return None


def agree(parts: Sequence[Part], way: Way) -> bool:
    """Whether torch's layers of these parts, one after the other, answer as the module does.

    On events of several scales: a function between layers may leave some of them as they are.
    """
    rng = np.random.default_rng(1)
    first = parts[0].layer
    for scale in _SCALES:
        x = scale * rng.standard_normal((_STEPS, first.input_size if first else 0))
        if isinstance(first, Embedding):
            x = rng.integers(0, first.vocabulary, x.shape).astype(float)
        y, ours = way.asked(x), _in_turn_or_ours(parts, x)
        if y.shape != ours.shape:
            return False
        allowed = 1e-3 * y.std(axis=0) + 1e-5 * np.abs(y).max(axis=0)
        if not (np.abs(y - ours) <= allowed).all():
            return False
    return True


def other_calls(parts: Sequence[Part], way: Way) -> list[str]:
    """What forward() calls beside torch's layers, these parts' functions and what moves numbers.

    Numbers alone don't show a function that leaves those that were tried as they are. Nothing is
    seen of TorchScript, and of a recurrent layer that the module computes by itself.
    """
    from torch.overrides import TorchFunctionMode  # noqa: PLC0415

    called: set[str] = set()

    class Calls(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self,
            func: Any,
            types: Any,
            args: Any = (),
            kwargs: Any = None,
        ) -> Any:
            called.add(getattr(func, "__name__", ""))
            return func(*args, **kwargs or {})

    first = parts[0].layer
    way.raw(np.zeros((_STEPS, first.input_size if first else 0)), Calls())
    if not called & {"lstm", "gru"}:
        return []
    own = {_CALLS.get(part.function, part.function) for part in parts if part.function}
    return sorted(n for n in called if not _IDLE.fullmatch(n) and n.rstrip("_") not in own)


def _in_turn_or_ours(parts: Sequence[Part], x: Array) -> Array:
    """in_turn, but with our layers where torch has none."""
    for part in parts:
        if _foreign(part) and isinstance(part.layer, Layer):
            with Engine(Model([part.layer]), max_sessions=1) as engine:
                x = engine.open("a").run(x.astype(engine.model.dtype))
        else:
            x = in_turn([part], x)
    return x


def _shapes(module: Any, event: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes that forward() may take a sequence in, the likeliest first."""
    batch_first = {m.batch_first for m in module.modules() if hasattr(m, "batch_first")}
    shapes = [(1, -1, *event)] if False not in batch_first else []
    shapes += [(-1, 1, *event)] if True not in batch_first else []
    return [*shapes, (-1, *event)]


def _remembers(way: Way, x: Array) -> bool:
    """Whether the second answer depends on the first event: otherwise steps were a batch."""
    other = x.copy()
    other[0] = x[1] if (x[0] != x[1]).any() else 0
    return bool((way.asked(x)[1] != way.asked(other)[1]).any())
