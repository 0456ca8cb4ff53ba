"""Keras files as data: the architecture's JSON and the weights by name, nothing interpreted.

Two layouts of weights are had:
- Keras 3 and .keras (keras/src/saving/saving_lib.py): a group for each layer, named after its
  class and counted, with its variables in order: layers/lstm_1/cell/vars/0.
- HDF5 (keras/src/legacy/saving/legacy_h5_format.py; Keras 1 and 2): a group for each layer by
  its own name, whose attribute weight_names lists the variables: lstm/lstm_cell/kernel:0.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError

Array = NDArray[Any]

# A tensor or member that claims more than this must really take a share of it in the file:
# zlib's best is 1,032:1, weights come nowhere near.
_CLAIM = 1 << 24
_EXPANSION = 100

# What old writers put before and behind a variable's own name: "lstm_1_W_i", "kernel_1:0".
_ROLE = re.compile(
    r"(?:^|[/_])(recurrent_kernel|kernel|bias|embeddings|gamma|beta|moving_mean|moving_variance"
    r"|mean|variance|count|[WUb]_[ifcozrh]|[Wb])(?:_\d+)?(?::\d+)?$"
)
# Variables that change nothing in a run from the initial state: random seeds, kept states.
_IDLE = re.compile(r"(seed_generator_state|rnn_state)(?:_\d+)?(?::\d+)?$")


@dataclass(frozen=True)
class Place:
    """Where a layer's variables are.

    path: in the Keras 3 layout, its group ("layers/lstm"). below: from there to the variables
    ("/cell"). names: in the HDF5 layout, the group and what else its variables' paths hold
    ("encoder", "lstm"); the last is the layer's own name.
    """

    path: str
    names: tuple[str, ...]
    below: str = ""


@dataclass(frozen=True)
class KerasFile:
    """What a file holds.

    config: the architecture as its JSON has it; None where there is none. version: of the Keras
    that wrote it, such as "2.15.0"; "" where the file does not tell. by_name: whether the
    weights are in the HDF5 layout. weights: all arrays, by group and variable:
    ("layers/lstm/cell", "0") or ("lstm", "lstm/lstm_cell/kernel:0"). owners: in the Keras 3
    layout, the layer's own name of each group that tells it.
    """

    path: Path
    config: dict[str, Any] | None
    version: str
    by_name: bool
    weights: dict[tuple[str, str], Array]
    owners: dict[str, str]

    @property
    def major(self) -> int | None:
        """1, 2 or 3; None where the file does not tell."""
        number = self.version.partition(".")[0]
        return int(number) if number.isdecimal() else None

    def variables(self, who: str, place: Place, roles: Sequence[str]) -> dict[str, Array]:
        """The arrays of the layer at `place`, as float32 or float64, by role; exactly `roles`.

        Raises UnsupportedModelError where the file has others.
        """
        if self.by_name:
            found = self.roles(place, roles)
        else:
            owner = self.owners.get(place.path, place.names[-1])
            if owner != place.names[-1]:
                refuse(f"the weights at {place.path} belong to {owner!r}, not to {who}")
            names = {str(k): role for k, role in enumerate(roles)}
            found = {names.get(k, k): a for k, a in self.counted(place).items()}
        if set(found) != set(roles):
            refuse(
                f"{who} should have the weights {', '.join(roles)}, but {self.path.name} has "
                f"{', '.join(found) or 'none'} for it; the file is damaged or not all of the model"
            )
        return {
            role: a if role == "count" else _floats(a, f"{role} of {who}")  # Normalization's
            for role, a in found.items()
        }

    def counted(self, place: Place) -> dict[str, Array]:
        """In the Keras 3 layout: the arrays at `place`, by number."""
        at = place.path + place.below
        return {k: a for (group, k), a in self.weights.items() if group == at}

    def roles(self, place: Place, roles: Sequence[str] = ()) -> dict[str, Array]:
        """In the HDF5 layout: the arrays at `place`, by role."""
        found: dict[str, Array] = {}
        outer, *inner = place.names
        for (group, name), a in self.weights.items():
            role = role_of(name)
            if group != outer or not role or not set(inner) <= set(name.split("/")):
                continue
            if role in found:
                refuse(f"'{group}/{name}' is one more {role} of layer {place.names[-1]!r}")
            found[role] = a
        return _merged(found, roles)


def refuse(sentence: str) -> NoReturn:
    raise UnsupportedModelError(sentence)


def _floats(a: Array, what: str) -> Array:
    """a as float32, or float64 where it is that. Raises UnsupportedModelError."""
    if a.dtype.kind != "f":
        refuse(f"{what} has dtype {a.dtype}; expected floats (save the model unquantised)")
    return a if a.dtype == np.float64 else a.astype(np.float32)


def role_of(name: str) -> str:
    """What a variable's name in the HDF5 layout says that it is; "" for seeds and states."""
    match = _ROLE.search(name)
    return "" if _IDLE.search(name) else match[1] if match else name


def _merged(found: dict[str, Array], roles: Sequence[str]) -> dict[str, Array]:
    """Keras 1's W_i, U_i, b_i, ... of each gate as Keras 2's kernel, recurrent_kernel, bias
    (tf_keras, saving/legacy/hdf5_format.py: preprocess_weights_for_loading)."""
    gates = "ifco" if "W_i" in found else "zrh"
    old = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}
    if set(found) == {f"{letter}_{gate}" for letter in old for gate in gates}:
        return {
            role: np.concatenate([found[f"{letter}_{gate}"] for gate in gates], axis=-1)
            for letter, role in old.items()
        }
    if "embeddings" in roles:
        old["W"] = "embeddings"
    return {old.get(role, role): a for role, a in found.items()}


def open_file(path: Path) -> KerasFile:
    """Read a .keras or HDF5 file; its first bytes tell which. Raises UnsupportedModelError."""
    try:
        import h5py  # noqa: PLC0415  (an extra)
    except ImportError:
        refuse(f"reading {path} needs h5py: pip install 'streamlstm[keras]'")
    try:
        if zipfile.is_zipfile(path):  # old tf.keras wrote HDF5 also under the name .keras
            return _read_zip(path, h5py)
        with h5py.File(path, "r") as f:
            return _read_hdf5(path, f, h5py)
    except UnsupportedModelError:
        raise
    except Exception as e:  # what zipfile, zlib, HDF5 and h5py say of damage is of many kinds
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UnsupportedModelError(f"{path} can't be read as a Keras file: {reason}") from e


def _read_zip(path: Path, h5py: Any) -> KerasFile:
    with zipfile.ZipFile(path) as z:
        members = z.namelist()
        for name in ("config.json", "model.weights.h5"):
            if name not in members:
                refuse(f"{path} lacks {name}; save it with model.save('name.keras')")
        config = _json(_member(z, "config.json"), "config.json")
        meta: dict[str, Any] = {}
        if "metadata.json" in members:
            meta = _json(_member(z, "metadata.json"), "metadata.json")
        weights = io.BytesIO(_member(z, "model.weights.h5"))
    version = meta.get("keras_version")
    with h5py.File(weights, "r") as f:
        return KerasFile(
            path, config, version if isinstance(version, str) else "", False, *_counted_in(f, h5py)
        )


def _member(z: zipfile.ZipFile, name: str) -> bytes:
    info = z.getinfo(name)
    _check_claim(name, info.file_size, info.compress_size)
    return z.read(name)


def _check_claim(name: str, claimed: int, stored: int) -> None:
    if claimed > _CLAIM and claimed > _EXPANSION * stored:
        refuse(f"{name} claims {claimed} bytes, but takes {stored} in the file; it is damaged")


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UnsupportedModelError(f"{what} is not JSON ({type(e).__name__})") from e
    if not isinstance(value, dict):
        refuse(f"{what} holds a {type(value).__name__}; expected a JSON object")
    return value


def _text(value: Any) -> str:
    return value.decode("utf8") if isinstance(value, bytes) else str(value)


def _read_hdf5(path: Path, f: Any, h5py: Any) -> KerasFile:
    stored = f.attrs.get("model_config")
    config = None if stored is None else _json(_text(stored), "the attribute model_config")
    groups, _ = _contents(f, h5py)
    root = groups.get("model_weights", f)
    if "layer_names" in root.attrs or "layer_names0" in root.attrs:
        version = _text(f.attrs.get("keras_version", root.attrs.get("keras_version", "")))
        return KerasFile(path, config, version, True, _named_in(root, h5py), {})
    if config is not None:
        refuse(f"{path} has an architecture, but not the weights (no layer_names)")
    return KerasFile(path, None, "", False, *_counted_in(f, h5py))


def _contents(root: Any, h5py: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """All groups and all datasets below. Links that may lead out of the file are not followed
    (visititems takes hard links only)."""
    groups: dict[str, Any] = {}
    datasets: dict[str, Any] = {}

    def visit(name: str, thing: Any) -> None:
        (datasets if isinstance(thing, h5py.Dataset) else groups)[name] = thing

    root.visititems(visit)
    return groups, datasets


def _array(dataset: Any, name: str) -> Array:
    if dataset.external or dataset.is_virtual:
        refuse(f"{name} is kept in another file; save the model as one file")
    if dataset.dtype.kind not in "fiu":
        dtype = "bfloat16" if dataset.dtype.str == "|V2" else dataset.dtype
        refuse(f"{name} has dtype {dtype}; expected floats (save the model in float32)")
    _check_claim(name, dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size())
    return np.asarray(dataset[()])


def _counted_in(f: Any, h5py: Any) -> tuple[dict[tuple[str, str], Array], dict[str, str]]:
    """Weights and owners in the Keras 3 layout, without the optimizer's."""
    groups, datasets = _contents(f, h5py)

    def place(name: str) -> str:
        # tf.keras 2.12 to 2.15 called the first part so.
        return name.replace("_layer_checkpoint_dependencies", "layers").removesuffix("/vars")

    weights: dict[tuple[str, str], Array] = {}
    for name, dataset in datasets.items():
        group, _, variable = name.rpartition("/")
        if group.endswith("/vars") and not name.startswith(("optimizer/", "_optimizer/")):
            weights[place(group), variable] = _array(dataset, name)
    owners = {
        place(name): _text(group.attrs["name"])
        for name, group in groups.items()
        if name.endswith("/vars") and "name" in group.attrs
    }
    return weights, owners


def _named_in(root: Any, h5py: Any) -> dict[tuple[str, str], Array]:
    """Weights in the HDF5 layout, in the order of its attributes."""
    groups, datasets = _contents(root, h5py)
    weights: dict[tuple[str, str], Array] = {}
    for layer in _names(root, "layer_names"):
        if layer not in groups:
            refuse(f"the file lists the layer {layer!r}, but lacks its group")
        for name in _names(groups[layer], "weight_names"):
            path = f"{layer}/{name}"
            if path not in datasets:
                refuse(f"the file lists the weight {path!r}, but lacks it")
            weights[layer, name] = _array(datasets[path], path)
    return weights


def _names(group: Any, attribute: str) -> list[str]:
    """A list kept as an attribute, in pieces (layer_names0, layer_names1) where it is long."""
    if attribute in group.attrs:
        return [_text(name) for name in group.attrs[attribute]]
    pieces = takewhile(group.attrs.__contains__, (f"{attribute}{k}" for k in count()))
    return [_text(name) for piece in pieces for name in group.attrs[piece]]
