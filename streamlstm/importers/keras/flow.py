"""The architecture in a Keras file: which layers there are, and in which order data takes them.

A Sequential model lists its layers; a functional one lists for each layer what it is called
with (inbound_nodes), in one form in Keras 1 and 2 and another in Keras 3 (keras/src/models/
functional.py: serialize_node and deserialize_node).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamlstm.importers.keras.files import Place, refuse

Config = dict[str, Any]

SEQUENTIAL = "Sequential"
FUNCTIONAL = ("Functional", "Model")
# The way out for a layer around the recurrent ones.
SELECT = "select one recurrent layer alone"
_DEPTH = 16  # of models in models; real ones have two


@dataclass(frozen=True)
class Part:
    """A layer of the architecture: its path of names, class, options, and weights' place."""

    where: str
    kind: str
    config: Config
    place: Place

    @property
    def who(self) -> str:
        """For sentences."""
        return f"layer {self.where!r} ({self.kind})"


def is_model(config: Config | None) -> bool:
    """Whether it tells its layers; a class of one's own does not."""
    return config is not None and config.get("class_name") in (SEQUENTIAL, *FUNCTIONAL)


def parts(model: Config) -> list[Part]:
    """All layers, also those in models in the model, in the file's order."""
    return list(_flat(model, ordered=False))


def flow(model: Config) -> list[Part]:
    """The layers in flow order. Raises UnsupportedModelError where they are not one chain."""
    return list(_flat(model, ordered=True))


def layer_of(value: Any, what: str) -> tuple[str, Config]:
    """Class and options of a layer as the file has it."""
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        refuse(f"the architecture is damaged: {what} is not a layer")
    config = value.get("config")
    if isinstance(config, list):  # a Sequential of Keras 1 and early 2
        config = {"name": value.get("name", "sequential"), "layers": config}
    if not isinstance(config, dict):
        refuse(f"the architecture is damaged: {what} ({value['class_name']}) has no config")
    return value["class_name"], config


def name_of(config: Config, what: str) -> str:
    """A layer's own name."""
    name = config.get("name")
    if not isinstance(name, str) or not name:
        refuse(f"the architecture is damaged: {what} has no name")
    return name


def counted_names(kinds: list[str]) -> list[str]:
    """Group names in the Keras 3 layout: classes in snake case, counted from the second on
    (keras/src/saving/saving_lib.py: _save_container_state)."""
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
        name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _flat(
    model: Config, *, ordered: bool, where: str = "", group: tuple[str, ...] = (), path: str = ""
) -> Iterator[Part]:
    kind, config = layer_of(model, "the model")
    if where.count("/") > _DEPTH:
        refuse(f"the architecture is damaged: {_DEPTH} models stand in each other")
    layers = config.get("layers")
    if not isinstance(layers, list):
        refuse(f"the architecture is damaged: the {kind} model has no list of layers")
    found = [layer_of(layer, f"layer {where}{k}") for k, layer in enumerate(layers)]
    names = [name_of(inner, f"layer {where}{k}") for k, (_, inner) in enumerate(found)]
    groups = counted_names([inner_kind for inner_kind, _ in found])
    in_chain = ordered and kind in FUNCTIONAL
    for k in _chain(config, layers, names) if in_chain else range(len(layers)):
        inner_kind, inner = found[k]
        here = where + names[k]
        place = Place(f"{path}layers/{groups[k]}", (*group, names[k]))
        if inner_kind in (SEQUENTIAL, *FUNCTIONAL):
            yield from _flat(
                {"class_name": inner_kind, "config": inner},
                ordered=ordered,
                where=f"{here}/",
                group=place.names[:1],
                path=f"{place.path}/",
            )
        else:
            yield Part(here, inner_kind, inner, place)


def _chain(config: Config, layers: list[Config], names: list[str]) -> list[int]:
    """Numbers of a functional model's layers from its input to its output."""
    index = {name: k for k, name in enumerate(names)}
    start = _end(config.get("input_layers"), "input")
    chain: list[int] = []
    name = _end(config.get("output_layers"), "output")
    while True:
        if name not in index or index[name] in chain:
            refuse(f"the architecture is damaged: the flow at layer {name!r} leads nowhere")
        chain.append(index[name])
        if name == start:
            return chain[::-1]
        name = _source(layers[index[name]].get("inbound_nodes"), name)


def _end(value: Any, what: str) -> str:
    """The one layer in input_layers or output_layers."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = [value]  # Keras 3 leaves the outer list out
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or len(value) != 1:
        count = len(value) if isinstance(value, list) else "no"
        refuse(
            f"the model has {count} {what}s; only a chain from one input to one output can be "
            f"streamed; {SELECT}"
        )
    return _reference(value[0], f"the model's {what}")


def _reference(value: Any, what: str) -> str:
    """The layer in [layer, node, tensor, ...]. Each layer has one node, whatever its number."""
    if not isinstance(value, list) or len(value) < 3 or not isinstance(value[0], str):
        refuse(f"the architecture is damaged: {what} refers to no layer")
    if value[2] != 0:
        refuse(f"{what} takes the state that layer {value[0]!r} returns, not its output; {SELECT}")
    return value[0]


def _source(nodes: Any, name: str) -> str:
    """The one layer that layer `name` is called with."""
    if not isinstance(nodes, list) or not nodes:
        refuse(f"the architecture is damaged: nothing leads to layer {name!r}")
    if len(nodes) > 1:
        refuse(
            f"layer {name!r} is used {len(nodes)} times; only a chain of layers can be streamed; "
            f"{SELECT}"
        )
    node = nodes[0]
    if isinstance(node, dict):
        references, options = _keras3_call(node, name)
    else:
        references, options = _keras2_call(node, name)
    for option, value in options.items():
        if value not in (None, False, []):
            refuse(f"layer {name!r} is called with {option}, which can't be streamed; {SELECT}")
    if len(references) != 1:
        refuse(
            f"layer {name!r} takes {len(references)} inputs; only a chain of layers can be "
            f"streamed; {SELECT}"
        )
    return _reference(references[0], f"layer {name!r}")


def _keras3_call(node: Config, name: str) -> tuple[list[Any], Config]:
    args, options = node.get("args"), node.get("kwargs")
    if not isinstance(args, list) or not isinstance(options, dict):
        refuse(f"the architecture is damaged: layer {name!r} has a call without args")
    tensors = args[0] if len(args) == 1 and isinstance(args[0], list) else args
    references = []
    for tensor in tensors:
        config = tensor.get("config") if isinstance(tensor, dict) else None
        if not isinstance(config, dict) or "keras_history" not in config:
            refuse(
                f"layer {name!r} is called with {str(tensor)[:40]!r}, which can't be streamed; "
                f"{SELECT}"
            )
        references.append(config["keras_history"])
    return references, options


def _keras2_call(node: Any, name: str) -> tuple[list[Any], Config]:
    if not isinstance(node, list) or not node:
        refuse(f"the architecture is damaged: layer {name!r} has an empty call")
    references = [node] if isinstance(node[0], str) else node
    options: Config = {}
    for reference in references:
        if isinstance(reference, list) and len(reference) > 3 and isinstance(reference[3], dict):
            options |= reference[3]
    return references, options
