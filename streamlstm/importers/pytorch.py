"""PyTorch: a module, a state dict, or a file that holds one.

Keys carry any prefix. nn.LSTM writes weight_ih_l{k} [4H, in], weight_hh_l{k} [4H, H] and
two biases to be added; nn.LSTMCell the same without "_l{k}"; nn.Linear weight [O, I] and
bias [O]. Layers are taken in the order of their keys, which is the order in which the
module's __init__ made them. What a state dict can't tell is what stands between the
layers: `activations` says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.gate_orders import canonical
from streamlstm.model import LSTM, Activation, Dense, Feature, Layer, Model

Array = NDArray[Any]

RECURRENT_KEY = re.compile(
    r"^(?P<prefix>.*?)(?P<kind>weight|bias)_(?P<which>ih|hh|hr)(_l(?P<layer>\d+))?(?P<reverse>_reverse)?$"
)
# Linear layers whose order is tried out, where a file keeps none: 5! orders.
MAX_CHAINED = 5
# Modules without tensors that leave numbers as they are when a network is only run.
TRANSPARENT = {"Dropout", "Identity", "Sequential", "ModuleList", "ModuleDict"}
KNOWN = {"LSTM", "LSTMCell", "Linear"} | TRANSPARENT
# These leave no trace in a state dict; `activations` says where they stand.
ACTIVATION_MODULES = {"Tanh", "Sigmoid", "ReLU"}


def from_torch(
    source: Any,
    *,
    inputs: Sequence[Feature | Mapping[str, Any] | str] | None = None,
    outputs: Sequence[Feature | Mapping[str, Any] | str] | None = None,
    activations: Sequence[Activation] | None = None,
    name: str = "model",
) -> Model:
    """A Model from a torch.nn.Module, or from a state dict of tensors or arrays.

    activations: one for each Linear layer, in order; needed when there are several, or
    when the module holds activation modules; a lone Linear layer is "linear" by default.
    Without a Linear layer the outputs are the top LSTM layer's h. inputs and outputs as in
    Model. Half precision becomes float32. Raises UnsupportedModelError naming the key or
    module that we do not have, ModelError when sizes don't fit each other.
    """
    if hasattr(source, "state_dict"):
        _check_modules(source, activations)
        source = source.state_dict()
    tensors = {key: _array(key, a) for key, a in source.items()}
    layers = _layers(tensors)
    dense = sum(isinstance(layer, Dense) for layer in layers)
    if activations is None:
        if dense > 1:
            raise UnsupportedModelError(
                f"a state dict does not tell what stands between its {dense} Linear layers; "
                f"pass activations= with {dense} names, such as ['relu', 'linear']"
            )
        activations = ["linear"] * dense
    if len(activations) != dense:
        raise UnsupportedModelError(
            f"{len(activations)} activations were given for {dense} Linear layers; give one each"
        )
    names = iter(activations)
    layers = [Dense(m.w, m.b, next(names)) if isinstance(m, Dense) else m for m in layers]
    return Model(layers, inputs=inputs, outputs=outputs, name=name)


def read_state_dict(path: Path) -> Mapping[str, Any]:
    """The tensors of a .safetensors, .pt or .pth file. Never runs code from it."""
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch  # noqa: PLC0415  (an extra)
    except ImportError as e:
        raise UnsupportedModelError(
            f"reading {path} needs PyTorch: pip install 'streamlstm[torch]', "
            "or save the state dict as .safetensors"
        ) from e
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise UnsupportedModelError(
            f"{path} is not a plain state dict ({str(e).splitlines()[0]}); pickled modules are "
            "never run: save model.state_dict() instead"
        ) from e
    return _state_dict_in(loaded, path)


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        with safe_open(path, framework="numpy") as f:
            if "streamlstm" in (f.metadata() or {}):
                raise UnsupportedModelError(f"{path} is our own model file; read it with load")
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as e:
        raise UnsupportedModelError(f"{path} can't be read as safetensors: {e}") from e
    return _in_flow_order(tensors, path)


def _state_dict_in(loaded: Any, path: Path) -> Mapping[str, Any]:
    """The state dict that `loaded` is, or the only one that it holds."""

    def is_state_dict(d: Any) -> bool:
        return isinstance(d, Mapping) and bool(d) and all(hasattr(a, "shape") for a in d.values())

    if is_state_dict(loaded):
        return dict(loaded)
    inner = loaded if isinstance(loaded, Mapping) else {}
    found = [key for key, d in inner.items() if is_state_dict(d)]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{path} holds {len(found)} state dicts among the keys {list(inner)}; "
            "save just model.state_dict()"
        )
    return dict(inner[found[0]])


def _check_modules(module: Any, activations: Sequence[Activation] | None) -> None:
    for path, part in module.named_modules():
        kind = type(part).__name__
        is_torch = type(part).__module__.startswith("torch.nn.")
        if not is_torch or kind in KNOWN:
            continue
        if kind not in ACTIVATION_MODULES:
            raise UnsupportedModelError(
                f"module {path or kind!r} is a {kind}; only LSTM, LSTMCell and Linear layers "
                f"and the activations {', '.join(sorted(ACTIVATION_MODULES))} can be imported"
            )
        if activations is None:
            raise UnsupportedModelError(
                f"module {path or kind!r} is a {kind}, and a module does not tell after which "
                "layer it stands; pass activations= with one name for each Linear layer"
            )


def _array(key: str, a: Any) -> Array:
    if hasattr(a, "detach"):
        a = a.detach().cpu()
        half = a.is_floating_point() and a.element_size() < 4  # NumPy has no bfloat16
        a = (a.float() if half else a).numpy()
    array = np.asarray(a)
    if array.dtype.kind != "f":
        raise UnsupportedModelError(f"tensor {key!r} has dtype {array.dtype}; expected floats")
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _layers(tensors: dict[str, Array]) -> list[Layer]:
    """Layers in the order of their first keys; every tensor must belong to one."""
    layers: dict[str, Layer] = {}
    for key in tensors:  # before anything else: the shapes of the others follow from these
        if match := RECURRENT_KEY.match(key):
            _check_streamable(key, match)
    for key, a in tensors.items():
        if match := RECURRENT_KEY.match(key):
            suffix = "" if match["layer"] is None else f"_l{match['layer']}"
            name = f"{match['prefix']}*{suffix}"
            if name not in layers:
                layers[name] = _lstm(tensors, match["prefix"], suffix)
        elif _is_dense(key, a):
            bias = tensors.get(key.removesuffix("weight") + "bias", np.zeros(len(a), a.dtype))
            layers[key] = Dense(a, bias)
        elif not (key.endswith("bias") and key.removesuffix("bias") + "weight" in tensors):
            raise UnsupportedModelError(
                f"tensor {key!r} {list(a.shape)} belongs to no LSTM or Linear layer; "
                "only these can be imported from a state dict"
            )
    return list(layers.values())


def _is_dense(key: str, a: Array) -> bool:
    return (key == "weight" or key.endswith(".weight")) and a.ndim == 2


def _check_streamable(key: str, match: re.Match[str]) -> None:
    if match["reverse"]:
        raise UnsupportedModelError(
            f"tensor {key!r} belongs to a reverse direction, which needs the future and "
            "can't be streamed; train with bidirectional=False"
        )
    if match["which"] == "hr":
        raise UnsupportedModelError(
            f"tensor {key!r} is a projection, which is not supported yet; train with proj_size=0"
        )


def _lstm(tensors: dict[str, Array], prefix: str, suffix: str) -> LSTM:
    def named(kind: str, which: str) -> str:
        return f"{prefix}{kind}_{which}{suffix}"

    for key in (named("weight", "ih"), named("weight", "hh")):
        if key not in tensors:
            raise UnsupportedModelError(f"the state dict lacks {key!r}")
    w_x, w_h = tensors[named("weight", "ih")], tensors[named("weight", "hh")]
    if w_h.ndim != 2 or w_h.shape[0] != 4 * w_h.shape[1]:
        gates = "a GRU" if w_h.ndim == 2 and w_h.shape[0] == 3 * w_h.shape[1] else "no LSTM"
        raise UnsupportedModelError(
            f"tensor {named('weight', 'hh')!r} {list(w_h.shape)} belongs to {gates}; "
            "an LSTM's has [4H, H]"
        )
    no_bias = np.zeros(len(w_h), w_h.dtype)
    b_x, b_h = (tensors.get(named("bias", which), no_bias) for which in ("ih", "hh"))
    if w_x.ndim != 2 or not len(w_x) == len(w_h) == b_x.size == b_h.size:
        raise UnsupportedModelError(
            f"the tensors of {named('weight', 'ih')!r} and its companions don't fit each other: "
            f"{', '.join(str(list(a.shape)) for a in (w_x, w_h, b_x, b_h))}"
        )
    b = b_x + b_h
    return LSTM(*(canonical(a, "pytorch") for a in (w_x, w_h, b)))


def _could_stand_before(
    recurrent: list[str], dense: Sequence[str], tensors: dict[str, Array]
) -> bool:
    """Whether some of the Linear layers might as well come before the LSTM layers.

    Only where events and outputs would keep their sizes: otherwise a wrong order shows at
    the first event.
    """
    if not recurrent or not dense:
        return False
    inputs = next((tensors[k].shape[1] for k in recurrent if "weight_ih" in k), 0)
    units = [tensors[k].shape[-1] for k in recurrent if "weight_hh" in k][-1:]
    blocks = [(tensors[k].shape[1], tensors[k].shape[0]) for k in dense]
    lstm = (inputs, units[0] if units else 0)
    ends = (lstm[0], blocks[-1][1])
    for cut in range(1, len(blocks) + 1):
        flow = [*blocks[:cut], lstm, *blocks[cut:]]
        chained = all(a[1] == b[0] for a, b in pairwise(flow))
        if chained and (flow[0][0], flow[-1][1]) == ends:
            return True
    return False


def _in_flow_order(tensors: dict[str, Array], path: Path) -> dict[str, Array]:
    """Keys of a file that does not keep their order: LSTM layers first, then Linear ones.

    LSTM layers follow their numbers; Linear ones are chained by their sizes. Where neither
    tells the order, guessing would give plausible garbage.
    """

    def natural(key: str) -> list[tuple[int, str]]:
        return [(int(n or 0), text) for n, text in re.findall(r"(\d*)(\D*)", key)]

    recurrent = sorted((k for k in tensors if RECURRENT_KEY.match(k)), key=natural)
    dense = [k for k in tensors if k not in recurrent and _is_dense(k, tensors[k])]
    chains = [
        order
        for order in permutations(dense[:MAX_CHAINED])
        if all(tensors[b].shape[1] == tensors[a].shape[0] for a, b in pairwise(order))
    ]
    unclear = dense if len(dense) > MAX_CHAINED or len(chains) != 1 else []
    if not unclear and _could_stand_before(recurrent, chains[0], tensors):
        unclear = [*recurrent, *dense]
    prefixes = sorted({k[: RECURRENT_KEY.match(k).start("kind")] for k in recurrent})  # type: ignore[union-attr]
    if len({re.sub(r"\d+", "", prefix) for prefix in prefixes}) > 1:
        unclear = prefixes
    if unclear:
        raise UnsupportedModelError(
            f"{path} does not tell the order of {', '.join(unclear)}; "
            "import the .pt file or the live module instead"
        )
    others = [k for k in tensors if k not in recurrent and k not in dense]
    return {k: tensors[k] for k in (*recurrent, *chains[0], *others)}
