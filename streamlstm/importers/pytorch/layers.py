"""PyTorch's layers by the names of their tensors, as our canonical ones.

nn.LSTM writes weight_ih_l{k} [4H, in], weight_hh_l{k} [4H, P], bias_ih_l{k} and bias_hh_l{k}
[4H], both to be added, and with proj_size weight_hr_l{k} [P, H]; nn.GRU the same of 3H rows,
where n's bias_hh is inside the reset's product: n = tanh(.. + r (U h + b_hn)). The cells' names
lack "_l{k}". nn.Linear: weight [O, I], bias [O]. nn.BatchNorm1d: weight, bias, running_mean,
running_var, num_batches_tracked. nn.Embedding: weight [vocabulary, O].
(torch.nn, "Variables" of each class.) Names of ours for what torch lacks, beside these:
peep_i_l{k}, peep_f_l{k}, peep_o_l{k} [H], bias_hr_l{k} [P], h0_l{k} [P], c0_l{k} [H].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.gate_orders import canonical, gru_biases
from streamlstm.importers.pytorch.files import REBUILT
from streamlstm.importers.pytorch.pickles import Made
from streamlstm.importers.source import Found
from streamlstm.layers import GRU, LSTM, Dense, Embedding, Function, Layer
from streamlstm.wording import counted

Array = NDArray[Any]
Tensors = Mapping[str, Any]

EPSILON = 1e-5  # torch.nn.BatchNorm1d's default; a state dict does not keep it
_NO_OPTIONS: Mapping[str, Any] = {}
_PERMANENT = (
    "make pruning or a parametrisation permanent first (prune.remove, remove_parametrizations)"
)
RECURRENT = {4: "LSTM", 3: "GRU", 1: "RNN"}  # by blocks of H rows
_RECURRENT_KEY = re.compile(
    r"(?P<prefix>(?:.*[._])?)"
    r"(?P<name>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh|bias_hr|peep_[ifo]|h0|c0)"
    r"(?P<suffix>(?:_l\d+)?(?:_reverse)?)",
    re.DOTALL,
)
MATRIX = "Linear or Embedding"  # a kind: which of them a state dict does not tell
PEEPHOLES = ("peep_i", "peep_f", "peep_o")
# All or none of each; a Linear layer's bias may be missing.
_TOGETHER = (PEEPHOLES, ("bias_ih", "bias_hh"), ("running_mean", "running_var"))


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of a PyTorch network, or what stands in one's place.

    where: its module path; of a layer of nn.LSTM or nn.GRU with l{k} behind it. kind: torch's
    class. tensors: by torch's names without path and "_l{k}". layer: the same as ours; None for
    what is no such layer. told: whether the next part is known to follow it.
    function: of an activation; placed: whether it is known to follow the part before.
    assumed: what was not told of it, in a clause.
    """

    where: str
    kind: str
    tensors: Tensors
    layer: Layer | Scale | None
    refusal: str = ""
    told: bool = False
    function: Function | None = None
    placed: bool = True
    epsilon: float = EPSILON
    assumed: str = ""

    @property
    def recurrent(self) -> bool:
        return self.kind.removesuffix("Cell") in RECURRENT.values()

    @property
    def module(self) -> str:
        """The path of its module."""
        stacked = self.recurrent and not self.kind.endswith("Cell")
        return re.sub(r"(^|[._])l\d+$", "", self.where) if stacked else self.where

    def found(self) -> Found:
        """It as a recurrent layer found."""
        layer = self.layer if isinstance(self.layer, LSTM | GRU) else None
        text = self.kind
        if {"weight_ih", "weight_hh"} <= self.tensors.keys():
            (i,), (h,) = (np.shape(self.tensors[f"weight_{w}h"])[-1:] or (0,) for w in "ih")
            text += f" {i} -> {h}"
        if isinstance(layer, LSTM) and layer.w_p is not None:
            text += f" ({counted(layer.units, 'unit')})"
        return Found(self.where, text, layer, self.refusal)


def is_tensor(a: Any) -> bool:
    """Whether it is a tensor or an array, also one that we can't read."""
    return hasattr(a, "shape") or (isinstance(a, Made) and a.name.startswith(REBUILT))


def _made(key: str, a: Made) -> str:
    return f"tensor {key!r} is made by {a.name}; only dense tensors of floats can be imported"


def float_array(key: str, a: Any) -> Array:
    """A tensor as an array of float32 or float64; half precision becomes float32."""
    if isinstance(a, Made):
        raise UnsupportedModelError(_made(key, a))
    if hasattr(a, "detach"):
        try:
            a = a.detach().cpu().resolve_neg()
            half = a.is_floating_point() and a.element_size() < 4  # NumPy has no bfloat16
            a = (a.float() if half else a).numpy()
        except (NotImplementedError, RuntimeError, TypeError) as e:
            raise UnsupportedModelError(
                f"tensor {key!r} has no numbers to read ({str(e).splitlines()[0][:80]}); "
                "only dense tensors of floats can be imported"
            ) from e
    array = np.asarray(a)
    if array.dtype.kind != "f":
        raise UnsupportedModelError(f"tensor {key!r} has dtype {array.dtype}; expected floats")
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def parts_of(tensors: Tensors, path: str = "") -> list[Part]:
    """The layers of a state dict in the order of their first keys, stacked ones by number.

    path: of the module whose tensors they are, such as "encoder.". Every tensor ends up in a
    part; what belongs to no layer that we know in one that is refused.
    """
    matches = {key: _RECURRENT_KEY.fullmatch(key) for key in tensors}
    cells = {m["prefix"] for m in matches.values() if m and m["name"].startswith("weight")}
    modules: dict[tuple[bool, str], dict[str, Any]] = {}
    for key, a in tensors.items():
        match = matches[key]
        recurrent = match is not None and match["prefix"] in cells
        prefix = match["prefix"] if match and recurrent else key[: key.rfind(".") + 1]
        modules.setdefault((recurrent, prefix), {})[key.removeprefix(prefix)] = a
    parts: list[Part] = []
    for (recurrent, prefix), held in modules.items():
        of_module = recurrent_parts if recurrent else _plain_parts
        parts += of_module(path + prefix, held)
    return parts


def _plain_parts(prefix: str, tensors: Tensors) -> list[Part]:
    """Which layer without state these are, as far as names and shapes tell."""
    names = tensors.keys()
    if "running_mean" in names:
        return [leaf("BatchNorm1d", prefix, tensors)]
    if {"weight"} <= names <= {"weight", "bias"} and len(np.shape(tensors["weight"])) == 2:
        return [leaf("Linear" if "bias" in names else MATRIX, prefix, tensors)]
    strange = [n for n in names if n not in ("weight", "bias")] or list(names)
    return [_stranger(prefix + strange[0], tensors[strange[0]])]


def _stranger(key: str, a: Any) -> Part:
    way_out = "leave it out if it does not change the outputs, or select a recurrent layer alone"
    if re.search(r"(^|[._])[hc]_?0$", key):
        way_out = "a learned start is called h0_l0 or c0_l0 [H] beside its layer's weight_ih_l0"
    refusal = (
        f"tensor {key!r} {list(np.shape(a))} belongs to no LSTM, GRU, Linear, Embedding or "
        f"BatchNorm1d layer; {way_out}"
    )
    return Part(key, "tensor", {}, None, _made(key, a) if isinstance(a, Made) else refusal)


def _checked(
    arrays: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], key: Callable[[str], str]
) -> None:
    """Refuses a tensor of another name or shape than expected, and half a pair of biases.

    key: a tensor's name in the file by torch's name.
    """
    for name, a in arrays.items():
        if name not in expected:
            raise UnsupportedModelError(
                f"tensor {key(name)!r} {list(a.shape)} is not known beside "
                f"{', '.join(repr(key(n)) for n in expected if n in arrays)}"
            )
        if a.shape != expected[name]:
            raise UnsupportedModelError(
                f"tensor {key(name)!r} has shape {list(a.shape)}; "
                f"expected {list(expected[name])} beside its companions"
            )
    for together in _TOGETHER:
        has = [n for n in together if n in arrays]
        lacking = [n for n in together if n in expected and n not in arrays]
        if has and lacking:
            raise UnsupportedModelError(
                f"the state dict has {key(has[0])!r} but lacks {key(lacking[0])!r}"
            )


# -- layers without state ----------------------------------------------------------------


def leaf(
    kind: str, prefix: str, tensors: Tensors, options: Mapping[str, Any] = _NO_OPTIONS
) -> Part:
    """The Linear, Embedding or BatchNorm1d layer of these tensors; prefix: "head." of "head".

    options: what its class was made with, as far as that is known.
    """
    where, assumed = prefix[:-1], ""
    if kind == "BatchNorm1d" and "eps" not in options:
        assumed = f"the eps of BatchNorm1d {where!r} is {EPSILON:g}, torch's default"
    if kind == "Embedding" and "max_norm" not in options:
        assumed = f"Embedding {where!r} has no max_norm"
    epsilon = options.get("eps", EPSILON)

    def key(name: str) -> str:
        return prefix + name

    arrays: dict[str, Array] = {}
    try:
        for name, a in tensors.items():
            if name != "num_batches_tracked":
                arrays[name] = float_array(key(name), a)
        layer: Layer | Scale
        if kind == "BatchNorm1d":
            layer = _batch_norm(arrays, key, epsilon)
        else:
            layer = _matrix_layer(kind, arrays, key)
    except UnsupportedModelError as e:
        return Part(where, kind, {}, None, str(e))
    return Part(where, kind, arrays, layer, epsilon=epsilon, assumed=assumed)


def _matrix_layer(kind: str, arrays: dict[str, Array], key: Callable[[str], str]) -> Layer:
    w = arrays.get("weight")
    if w is None or w.ndim != 2:
        raise UnsupportedModelError(
            f"{key('weight')!r} of a {kind} is missing or is no matrix; {_PERMANENT}"
        )
    if kind == "Embedding":
        _checked(arrays, {"weight": w.shape}, key)
        return Embedding(w)
    _checked(arrays, {"weight": w.shape, "bias": w.shape[:1]}, key)
    return Dense(w, arrays.get("bias", np.zeros(len(w), w.dtype)))


def _batch_norm(arrays: dict[str, Array], key: Callable[[str], str], epsilon: float) -> Scale:
    if "running_mean" not in arrays:
        raise UnsupportedModelError(
            f"{key('running_mean')!r} is missing: a BatchNorm1d without running statistics needs "
            "a whole batch; train with track_running_stats=True"
        )
    size = (arrays["running_mean"].size,)
    names = ("running_mean", "running_var", "weight", "bias")
    _checked(arrays, dict.fromkeys(names, size), key)
    if ("weight" in arrays) != ("bias" in arrays):
        raise UnsupportedModelError(f"{key('weight')!r} and {key('bias')!r} come only together")
    variance = arrays["running_var"]
    if not (variance >= 0).all():
        raise UnsupportedModelError(f"{key('running_var')!r} holds negative numbers or NaN")
    affine = arrays.get("weight", 1), arrays.get("bias", 0)
    return Scale.batch_norm(arrays["running_mean"], variance, *affine, epsilon)


# -- recurrent layers --------------------------------------------------------------------


def recurrent_parts(prefix: str, tensors: Tensors) -> list[Part]:
    """The layers of an nn.LSTM, nn.GRU or cell; prefix: "lstm." of the module "lstm"."""
    layers: dict[str, dict[str, Any]] = {}
    strange: list[Part] = []
    for key, a in tensors.items():
        match = _RECURRENT_KEY.fullmatch(key)
        if match is None or match["prefix"]:
            strange.append(_stranger(prefix + key, a))
        else:
            layers.setdefault(match["suffix"], {})[match["name"]] = a
    order = sorted(layers, key=lambda suffix: (_number(suffix), suffix))
    parts = [_recurrent(prefix, suffix, layers[suffix]) for suffix in order]
    for k, suffix in enumerate(s for s in order if not s.endswith("_reverse")):
        if suffix and _number(suffix) != k:
            strange.append(
                Part(prefix, "tensor", {}, None, f"the state dict lacks '{prefix}weight_ih_l{k}'")
            )
            break
    return [replace(part, told=True) for part in parts[:-1]] + parts[-1:] + strange


def _number(suffix: str) -> int:
    digits = re.search(r"\d+", suffix)
    return int(digits[0][:9]) if digits else 0


def _recurrent(prefix: str, suffix: str, tensors: Tensors) -> Part:
    """One layer: prefix "lstm.", suffix "_l0"."""

    def key(name: str) -> str:
        return f"{prefix}{name}{suffix}"

    cell = "" if "_l" in suffix else "Cell"
    where = (prefix + suffix[1:]).rstrip("._") or "cell"
    kind = "LSTM"
    try:
        for name in ("weight_ih", "weight_hh"):
            if name not in tensors:
                raise UnsupportedModelError(f"the state dict lacks {key(name)!r}; {_PERMANENT}")
        arrays = {name: float_array(key(name), a) for name, a in tensors.items()}
        kind = _kind(arrays, key)
        if suffix.endswith("_reverse"):
            raise UnsupportedModelError(
                f"tensor {key('weight_ih')!r} belongs to a reverse direction, which needs the "
                "future and can't be streamed; train with bidirectional=False"
            )
        if kind == "RNN":
            raise UnsupportedModelError(
                f"tensor {key('weight_hh')!r} {list(arrays['weight_hh'].shape)} belongs to a "
                "plain RNN, which can't be imported; train an LSTM or a GRU"
            )
        layer = _lstm(arrays, key) if kind == "LSTM" else _gru(arrays, key)
    except UnsupportedModelError as e:
        return Part(where, kind + cell, tensors, None, str(e))
    return Part(where, kind + cell, arrays, layer)


def _kind(arrays: dict[str, Array], key: Callable[[str], str]) -> str:
    """LSTM, GRU or RNN, by the blocks of H rows in weight_hh."""
    shape = arrays["weight_hh"].shape
    of_units = arrays.get("weight_hr", arrays["weight_hh"])  # [P, H] or [4H, H]
    units = of_units.shape[1] if of_units.ndim == len(shape) == 2 else 0
    blocks = shape[0] / units if units else 0
    if blocks not in RECURRENT or (blocks != 4 and "weight_hr" in arrays):
        raise UnsupportedModelError(
            f"tensor {key('weight_hh')!r} {list(shape)} belongs to no LSTM and no GRU; theirs "
            "have [4H, H] and [3H, H], with a weight_hr [P, H] [4H, P]"
        )
    return RECURRENT[int(blocks)]


def _biases(arrays: dict[str, Array]) -> tuple[Array, Array]:
    w = arrays["weight_hh"]
    none = np.zeros(len(w), w.dtype)
    return arrays.get("bias_ih", none), arrays.get("bias_hh", none)


def _rows(arrays: dict[str, Array], rows: int, width: int) -> dict[str, tuple[int, ...]]:
    inputs = arrays["weight_ih"].shape[-1] if arrays["weight_ih"].ndim else 0
    shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, width)}
    return shapes | {"bias_ih": (rows,), "bias_hh": (rows,)}


def _lstm(arrays: dict[str, Array], key: Callable[[str], str]) -> LSTM:
    units = len(arrays["weight_hh"]) // 4
    width = arrays["weight_hh"].shape[1]
    expected = _rows(arrays, 4 * units, width) | dict.fromkeys((*PEEPHOLES, "c0"), (units,))
    expected["h0"] = (width,)
    if "weight_hr" in arrays:
        expected |= {"weight_hr": (width, units), "bias_hr": (width,)}
    _checked(arrays, expected, key)
    with np.errstate(over="ignore", invalid="ignore"):  # Model refuses what is not finite
        b = np.add(*_biases(arrays))
    w_x, w_h, b = (
        canonical(a, "pytorch", "lstm") for a in (arrays["weight_ih"], arrays["weight_hh"], b)
    )
    has_peepholes = PEEPHOLES[0] in arrays
    return LSTM(
        w_x,
        w_h,
        b,
        h0=arrays.get("h0"),
        c0=arrays.get("c0"),
        peep=np.concatenate([arrays[name] for name in PEEPHOLES]) if has_peepholes else None,
        w_p=arrays.get("weight_hr"),
        b_p=arrays.get("bias_hr"),
    )


def _gru(arrays: dict[str, Array], key: Callable[[str], str]) -> GRU:
    units = arrays["weight_hh"].shape[1]
    _checked(arrays, _rows(arrays, 3 * units, units) | {"h0": (units,)}, key)
    w_x, w_h, b_x, b_h = (
        canonical(a, "pytorch", "gru")
        for a in (arrays["weight_ih"], arrays["weight_hh"], *_biases(arrays))
    )
    b, b_n = gru_biases(b_x, b_h)
    return GRU(w_x, w_h, b, b_n if "bias_hh" in arrays else None, arrays.get("h0"))
