"""The order of a state dict's layers: its keys', or what names and sizes tell in .safetensors.

torch.save keeps the order in which a module made its layers, .safetensors does not. Either may be
another than the one in which they run, which Source.assumed says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np

from streamlstm.importers.fold import Scale
from streamlstm.importers.pytorch.layers import Part, leaf, parts_of
from streamlstm.layers import Dense

# Blocks of layers whose order is tried out, where a file keeps none: 6! orders.
_MOST_BLOCKS = 6
_DEEPEST = 32  # of the prefixes that are looked at in a name


def in_key_order(tensors: Mapping[str, Any]) -> list[Part]:
    """The layers of a state dict that keeps their order."""
    return _unlike(tensors, _with_embedding(parts_of(tensors)))


def in_found_order(tensors: Mapping[str, Any], path: Path) -> list[Part]:
    """The layers of a file that does not keep their order."""
    return _unlike(tensors, _ordered(parts_of(tensors), path))


def first_width(parts: Sequence[Part]) -> int:
    """Numbers that the first of these takes whose size is known; 0 for none."""
    for part in parts:
        if isinstance(part.layer, Scale):
            return len(part.layer.shift)
        if part.layer is not None:
            return part.layer.input_size
    return 0


def _with_embedding(parts: Sequence[Part]) -> list[Part]:
    """parts, the first one an Embedding where it can be no Linear layer.

    Both have just a matrix `weight` where the Linear layer has no bias: [O, I] of a Linear
    layer, [vocabulary, O] of an Embedding. O must be what the next layer takes; where that
    fits both, a name with "emb" in it leaves it open, and any other is a Linear layer's.
    """
    if not any(map(_is_bare_matrix, parts[:1])):
        return list(parts)
    first, width = parts[0], first_width(parts[1:])
    rows, columns = first.tensors["weight"].shape
    if rows == columns == width and "emb" in first.where.lower():
        sentence = (
            f"tensor '{first.where}.weight' [{rows}, {columns}] can be an Embedding's or a Linear "
            "layer's without bias; import the live module"
        )
        return [replace(first, layer=None, refusal=sentence), *parts[1:]]
    if columns != width or rows == width:
        return list(parts)
    prefix = first.where and f"{first.where}."
    return [leaf("Embedding", prefix, first.tensors), *parts[1:]]


def _is_bare_matrix(part: Part) -> bool:
    return isinstance(part.layer, Dense) and "bias" not in part.tensors


def _unlike(tensors: Mapping[str, Any], parts: list[Part]) -> list[Part]:
    """parts, refused where tensors hold a network twice, as with a moving average of it.

    That is, under two prefixes of different names, the same tensors with a recurrent layer's
    among them; those that differ by a number follow it.
    """
    trees: dict[str, set[Any]] = {}
    for key, a in tensors.items():
        path = key.split(".")[:_DEEPEST]
        for k in range(1, len(path)):
            trees.setdefault(".".join(path[:k]), set()).add((*path[k:], np.shape(a)))
    first: dict[Any, str] = {}
    for prefix, tree in trees.items():
        if any(name[-2].startswith("weight_ih") for name in tree):
            above = prefix.rpartition(".")[0]
            other = first.setdefault((above, frozenset(tree)), prefix)
            if _unnumbered(other) != _unnumbered(prefix):
                sentence = (
                    f"{other!r} and {prefix!r} hold the same layers, and a file does not tell "
                    "whether both run; keep one of them, or select a recurrent layer alone"
                )
                return [Part("", "order", {}, None, sentence), *parts]
    return parts


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _ordered(parts: Sequence[Part], path: Path) -> list[Part]:
    """The parts as their names and sizes tell it.

    LSTM layers follow their numbers, and with the Linear ones their sizes: LSTM layers first,
    where they may be. What is called "emb..." and can be no Linear layer stands before. Where
    that leaves several orders for the same events and outputs, guessing would give plausible
    garbage.
    """

    def natural(part: Part) -> list[tuple[int, str]]:
        found = re.findall(r"(\d*)(\D*)", part.module)
        return [(int(n[:9] or 0), text) for n, text in found]

    recurrent = sorted((p for p in parts if p.recurrent), key=natural)
    others = [p for p in parts if not p.recurrent]
    if any(p.refusal for p in parts) or not recurrent:
        return [*recurrent, *others]
    inputs = first_width(recurrent)
    first = [p for p in others if "emb" in p.where.lower() and _is_bare_matrix(p)]
    first = [p for p in first if p.tensors["weight"].shape[1] == inputs][:1]
    blocks = [recurrent, *([p] for p in others if p not in first)]
    numbered = len({_unnumbered(p.module) for p in recurrent}) == 1
    orders: list[Sequence[Sequence[Part]]] = []
    if numbered and len(blocks) <= _MOST_BLOCKS and all(isinstance(p.layer, Dense) for p in others):
        orders = [order for order in permutations(blocks) if _chained(order)]
    orders = [o for o in orders if o[0] is recurrent or not first]
    led = [order for order in orders if order[0] is recurrent] or orders
    if len(led) != 1 or [_ends(order) for order in orders].count(_ends(led[0])) != 1:
        names = sorted({part.module or part.where for part in parts})
        sentence = (
            f"{path} does not tell the order of {', '.join(names)}; "
            "import the .pt file or the live module instead"
        )
        return [Part("", "order", {}, None, sentence), *recurrent, *others]
    return _with_embedding([*first, *(part for block in led[0] for part in block)])


def _chained(order: Sequence[Sequence[Part]]) -> bool:
    return all(_ends([a])[1] == _ends([b])[0] for a, b in pairwise(order))


def _ends(order: Sequence[Sequence[Part]]) -> tuple[int, int]:
    """Numbers that these blocks of layers take and give."""
    return order[0][0].layer.input_size, order[-1][-1].layer.output_size  # type: ignore[union-attr]
