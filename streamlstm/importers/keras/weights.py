"""Weights without an architecture: which layers they are, as far as names and shapes tell."""

from __future__ import annotations

import re
from collections.abc import Iterator

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.keras.files import KerasFile, Place, role_of
from streamlstm.importers.keras.flow import Config, Part
from streamlstm.importers.source import Found


def weight_parts(file: KerasFile) -> dict[str, Part | Found]:
    """Each layer that has weights, or why it can't be imported, by its name; text is "" where it
    is no recurrent one.

    Names are the layers' own where the file tells them, else their paths in it.
    """
    places = dict(_named_places(file) if file.by_name else _counted_places(file))
    return {name: _part(name, place, file) for name, place in places.items()}


def gate_function(file: KerasFile) -> str:
    """Keras' default recurrent_activation when the file was written; "" where it is not clear.

    Keras 2.3 made hard_sigmoid a sigmoid (its release notes). TensorFlow 2.0, with sigmoid, and 1.x
    both called theirs 2.2.4-tf. The Keras 3 layout is younger than that.
    """
    if not file.by_name:
        return "sigmoid"
    version = re.match(r"(\d+)\.(\d+)", file.version)
    if version is None or file.version == "2.2.4-tf":
        return ""
    return "hard_sigmoid" if (int(version[1]), int(version[2])) < (2, 3) else "sigmoid"


def _named_places(file: KerasFile) -> Iterator[tuple[str, Place]]:
    """In the HDF5 layout: by layer, and where it holds several, by path in it."""
    paths: dict[str, list[str]] = {}
    for group, name in file.weights:
        if role_of(name) and (path := name.rpartition("/")[0]) not in paths.setdefault(group, []):
            paths[group].append(path)
    for group, inside in paths.items():
        for path in inside:
            if len(inside) == 1:
                yield group, Place("", (group,))
            else:
                yield f"{group}/{path}", Place("", (group, *path.split("/")))


def _counted_places(file: KerasFile) -> Iterator[tuple[str, Place]]:
    """In the Keras 3 layout."""
    below = "/cell"
    groups = list(dict.fromkeys(g for (g, _), a in file.weights.items() if a.dtype.kind == "f"))
    layers = [group.removesuffix(below) for group in groups]
    owners = [file.owners.get(layer, "") for layer in layers]
    told = all(owners) and len(set(owners)) == len(owners)
    for group, layer, owner in zip(groups, layers, owners, strict=True):
        name = owner if told else re.sub(r"(^|/)layers/", r"\1", layer)
        yield name, Place(layer, (owner or name,), below if group != layer else "")


def _part(name: str, place: Place, file: KerasFile) -> Part | Found:
    def refused(kind: str, sentence: str) -> Found:
        return Found(name, kind, None, f"layer {name!r} {sentence}")

    path = "/".join((place.path, *place.names))
    if re.search(r"(^|/)(forward|backward)_", path):
        return refused(
            "Bidirectional",
            "is one direction of a Bidirectional layer, which needs the end of the sequence "
            "before its start; train a forward layer",
        )
    try:
        shapes = _shapes(place, file)
    except UnsupportedModelError as e:
        return Found(name, "", None, str(e))
    use_bias = "bias" in shapes
    config: Config = {"name": name, "use_bias": use_bias, "return_sequences": True}
    if shapes.keys() - {"bias"} == {"kernel", "recurrent_kernel"}:
        kind = _cell_kind(shapes)
        if kind == "GRU":
            if not use_bias:
                return refused(
                    "GRU",
                    "is a GRU without bias, whose weights don't tell its reset_after; save the "
                    "whole model (model.save)",
                )
            config["reset_after"] = len(shapes["bias"]) == 2
        if kind:
            if kind.startswith("CuDNN"):
                return Part(name, kind, {"name": name, "return_sequences": True}, place)
            if not (gate := gate_function(file)):
                return refused(
                    kind,
                    f"is of Keras {file.version or 'without a version'}, so that its default "
                    "functions are not clear; save the whole model (model.save)",
                )
            config |= {"activation": "tanh", "recurrent_activation": gate}
            bare = not file.by_name and not place.below
            return Part(name, f"{kind}Cell" if bare else kind, config, place)
    if shapes.keys() - {"bias"} == {"kernel"} and len(shapes["kernel"]) == 2:
        return Part(name, "Dense", config, place)
    if shapes.keys() == {"embeddings"}:
        return Part(name, "Embedding", {"name": name}, place)
    listed = ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
    return refused(
        "SimpleRNN" if "recurrent_kernel" in shapes else "",
        f"has the weights {listed}, by which only LSTM, GRU, Dense and Embedding can be told; "
        "save the whole model (model.save)",
    )


def _cell_kind(shapes: dict[str, tuple[int, ...]]) -> str:
    """The kind of recurrent layer with such weights; "" for others."""
    kernel, recurrent, bias = (shapes.get(r, ()) for r in ("kernel", "recurrent_kernel", "bias"))
    if len(kernel) != 2 or len(recurrent) != 2 or kernel[1] != recurrent[1]:
        return ""
    units, columns = recurrent
    kind = {4 * units: "LSTM", 3 * units: "GRU"}.get(columns, "")
    return f"CuDNN{kind}" if kind and bias == (2 * columns,) else kind


def _shapes(place: Place, file: KerasFile) -> dict[str, tuple[int, ...]]:
    """Shape of each weight by role."""
    if file.by_name:
        return {role: a.shape for role, a in file.roles(place).items()}
    shapes = [a.shape for _, a in sorted(file.counted(place).items())]
    matrices = sum(len(shape) == 2 for shape in shapes[:2])
    if matrices == 2:
        roles = ["kernel", "recurrent_kernel", "bias"]
    elif len(shapes) == 1 and re.search(r"(^|/)embedding(_\d+)?$", place.path):
        roles = ["embeddings"]
    elif len(shapes) == 2 or re.search(r"(^|/)dense(_\d+)?$", place.path):
        roles = ["kernel", "bias"]
    else:
        roles = []
    named = len(shapes) <= len(roles)
    return {roles[k] if named else str(k): shape for k, shape in enumerate(shapes)}
