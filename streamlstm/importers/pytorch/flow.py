"""In which order a PyTorch network's layers run, as far as that is told, and as a user says it.

No state dict tells it: keys stand in the order in which __init__ made the layers, .safetensors has
them in that of the alphabet, a function between two layers leaves no trace, and an
nn.ModuleList of layers has the same keys as an nn.Sequential. So it is taken for known only of one
recurrent stack with nothing beside it, and of the modules in a live nn.Sequential or one of
TorchScript.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import get_args

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers import flow as said
from streamlstm.importers.fold import Scale
from streamlstm.importers.pytorch.layers import MATRIX, Part, leaf
from streamlstm.layers import Activation, Function
from streamlstm.wording import counted

FUNCTION = "FUNCTION"  # in a likely flow: what is known to stand there, but not what it does


def keyed(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """The layers and functions by what a flow calls them, in the order read: the path of their
    module, the kind where that is bare; those known to follow each other as the container's."""
    runs: list[list[Part]] = []
    following = False
    for part in parts:
        if part.layer is not None or part.function:
            if not following:
                runs.append([])
            runs[-1].append(part)
        following = part.told and bool(runs)
    keys: dict[str, list[Part]] = {}
    for run in runs:
        path = _container(run) if len({part.module for part in run}) > 1 else ""
        inside = [part for part in parts if path and part.module.startswith(f"{path}.")]
        for part in run:
            own = part.module or part.kind.lower()
            keys.setdefault(path if len(inside) == len(run) else own, []).append(part)
    return keys


def _container(run: Sequence[Part]) -> str:
    """The path of the innermost module that holds all of these."""
    paths = [part.module.split(".") for part in run]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in shared)


def is_one_stack(parts: Sequence[Part]) -> bool:
    """Whether there is one recurrent module and nothing else."""
    return all(part.recurrent for part in parts) and len({part.module for part in parts}) == 1


def is_told(parts: Sequence[Part]) -> bool:
    """Whether each part is known to follow the one before it, and nothing the last one."""
    return all(part.told and (part.layer is not None or part.placed) for part in parts)


def as_said(parts: Sequence[Part], flow: said.Flow) -> list[Part]:
    """The parts that a user's flow names. Raises UnsupportedModelError."""
    keys = keyed(parts)
    for key, run in list(keys.items()):
        if key not in flow and all(part.function in flow for part in run):
            del keys[key]  # said by what it does
    said.check_said(flow, keys)
    chain: list[Part] = []
    for item in flow:
        chain += keys[item] if item in keys else [_function(item)]
    return _with_embedding(chain)


def _function(name: str) -> Part:
    function = next(f for f in get_args(Function) if f == name)
    return Part(name, name, {}, None, function=function)


def sized(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts with layers for the functions among them; those that do nothing are left out.

    Raises UnsupportedModelError where one does not take what comes to it.
    """
    width = _first_width(parts)
    for part in parts:
        layer = Activation(part.function, width) if part.function else part.layer
        if isinstance(layer, Scale) and layer.input_size != width:
            raise UnsupportedModelError(
                f"module {part.where!r} normalises {counted(layer.input_size, 'number')}, and is "
                f"given {width}"
            )
        if layer is None:
            continue
        if layer.input_size != width:
            raise UnsupportedModelError(
                f"{part.where!r} takes {counted(layer.input_size, 'number')} a step, and is given "
                f"{width}: the layers run in another order, or with something between them"
            )
        yield replace(part, layer=layer)
        width = layer.output_size


def _first_width(parts: Sequence[Part]) -> int:
    """Numbers that the first of these takes whose size is known; 0 for none."""
    return next((part.layer.input_size for part in parts if part.layer is not None), 0)


def _with_embedding(parts: Sequence[Part]) -> list[Part]:
    """parts, the first one an Embedding where it is a matrix that can be no Linear layer.

    Of a Linear layer without bias it is [O, I], of an Embedding [vocabulary, O]; O must be what the
    next layer takes.
    """
    first, width = parts[0] if parts else None, _first_width(parts[1:])
    if first is None or first.kind != MATRIX or first.layer is None:
        return list(parts)
    rows, columns = first.tensors["weight"].shape
    if rows == columns == width:
        raise UnsupportedModelError(
            f"tensor '{first.where}.weight' [{rows}, {columns}] can be an Embedding's or a Linear "
            "layer's without bias; import the live module"
        )
    if columns != width or rows == width:
        return list(parts)
    prefix = first.where and f"{first.where}."
    return [leaf("Embedding", prefix, first.tensors), *parts[1:]]


# -- what may be meant -------------------------------------------------------------------


def untold(parts: Sequence[Part], told_by: str) -> UnsupportedModelError:
    """The refusal of a network whose flow is not known, with the flow that is likely."""
    keys = list(keyed(parts))
    chain = next(likely(parts), None)
    flow = keys if chain is None else _with_gaps(list(keyed(chain)))
    how = " in the order in which they run" if chain is None else ""
    if own := [p.where for p in parts if p.layer is None and not p.function]:
        how += f", with what {', '.join(own)} does as a function"
    if FUNCTION in flow:
        how += f", {FUNCTION} being what has no tensors there"
    ways = "import the live module (sl.from_torch) or an ONNX file"
    if told_by == "a module":
        ways = "give it a forward() that takes a whole sequence, export it to ONNX"
    return said.in_both_words(
        lambda says: (
            f"{told_by} does not tell how its layers run ({', '.join(keys)}); {ways}, or, where "
            f"they run one after the other, say so: {says(flow)}{how}, with relu, tanh ... where "
            "such a function runs"
        )
    )


def likely(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The flows that sizes allow: in the order read, and recurrent layers first."""

    def natural(part: Part) -> list[tuple[int, str]]:
        found = re.findall(r"(\d*)(\D*)", part.module)
        return [(int(n[:9] or 0), text) for n, text in found]

    recurrent = sorted((p for p in parts if p.recurrent), key=natural)
    others = sorted((p for p in parts if not p.recurrent), key=natural)
    embedding = [p for p in others if "emb" in p.where.lower()][:1]
    others = [p for p in others if p not in embedding]
    for order in (parts, [*embedding, *recurrent, *others]):
        with suppress(UnsupportedModelError):
            yield list(sized(_with_embedding(order)))


def _with_gaps(keys: Sequence[str]) -> list[str]:
    """keys, with FUNCTION where the numbers of a container leave one out."""
    flow = list(keys[:1])
    for below, key in pairwise(keys):
        places = [re.fullmatch(r"(|.*\.)(\d{1,9})", name) for name in (below, key)]
        here = places[1]
        if here is not None:
            same = places[0] is not None and places[0][1] == here[1]
            before = int(places[0][2]) if same and places[0] is not None else -1
            if int(here[2]) > before + 1:
                flow.append(FUNCTION)
        flow.append(key)
    return flow
