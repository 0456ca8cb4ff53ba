"""PyTorch: a state dict or a TorchScript file, or a live module or state dict.

    file -> files -> tensors or modules -> modules, layers -> parts in flow order

What a file does not keep is taken to be torch's default: BatchNorm1d's eps 1e-5, no max_norm of
an Embedding (TorchScript has them in its code, which is not read). What stands between Linear
layers a state dict can't tell either, and `activations` says it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.pytorch import run
from streamlstm.importers.pytorch.files import contents, safetensors
from streamlstm.importers.pytorch.layers import Part, is_tensor, leaf, parts_of
from streamlstm.importers.pytorch.modules import in_flow_order, live, scripted
from streamlstm.importers.pytorch.pickles import Made
from streamlstm.importers.source import Found
from streamlstm.layers import Activation, Dense, Function, Layer

Array = NDArray[Any]

# Linear layers whose order is tried out, where a file keeps none: 5! orders.
_MAX_CHAINED = 5


def read(
    path: Path,
    *,
    activations: Sequence[Function] | None = None,
    layers: Sequence[str] | None = None,
) -> PyTorchSource:
    """What a .pt, .pth or .safetensors file holds. Never runs code from it.

    Raises OSError, UnsupportedModelError.
    """
    if layers is not None:
        raise UnsupportedModelError(
            f"{path} names its layers itself; layers= is for weights-only HDF5 files"
        )
    if path.suffix.lower() == ".safetensors":
        return PyTorchSource(_ordered(parts_of(safetensors(path)), path), activations)
    value, is_script = contents(path)
    if not is_script:
        return source_of(_state_dict_in(value, path), activations=activations)
    if not isinstance(value, Made) or not value.name.startswith("__torch__."):
        raise UnsupportedModelError(f"{path} is TorchScript, but holds no module")
    parts = in_flow_order(scripted(value))
    if not any(part.tensors or part.refusal for part in parts):
        raise UnsupportedModelError(
            f"{path} is TorchScript without parameters, as torch.jit.freeze leaves it; "
            "save the module unfrozen, or its state_dict()"
        )
    return PyTorchSource(parts, activations, "a TorchScript file")


def source_of(module: Any, *, activations: Sequence[Function] | None = None) -> PyTorchSource:
    """What a live torch.nn.Module, or a state dict of tensors or arrays, holds."""
    if hasattr(module, "state_dict") and hasattr(module, "_modules"):
        parts = in_flow_order(live(module))
        return PyTorchSource(parts, activations, "a module", module)
    if not isinstance(module, Mapping):
        raise UnsupportedModelError(
            f"a {type(module).__name__} is no torch.nn.Module and no state dict; pass one of them"
        )
    for key, a in module.items():
        if not is_tensor(a):
            raise UnsupportedModelError(
                f"{key!r} holds a {type(a).__name__} and no tensor; pass just the state dict"
            )
    parts = parts_of({str(key): a for key, a in module.items()})
    return PyTorchSource(_with_embedding(parts), activations)


def _state_dict_in(loaded: Any, path: Path) -> Mapping[str, Any]:
    """The state dict that `loaded` is, or the only one that it holds."""

    def is_state_dict(d: Any) -> bool:
        return isinstance(d, Mapping) and bool(d) and all(map(is_tensor, d.values()))

    if is_state_dict(loaded):
        return dict(loaded)
    inner = loaded if isinstance(loaded, Mapping) else {"the whole file": loaded}
    found = [key for key, d in inner.items() if is_state_dict(d)]
    if not found:
        for key, d in inner.items():
            if isinstance(d, Made) and not is_tensor(d):
                raise UnsupportedModelError(
                    f"{path} holds a pickled {d.name} ({key}), and code from a file is never "
                    "run; save model.state_dict() instead"
                )
    if len(found) != 1:
        names = [str(key) for key in (found or inner)][:8]
        raise UnsupportedModelError(
            f"{path} holds {len(found)} state dicts ({', '.join(names)}); "
            "save just model.state_dict()"
        )
    return dict(inner[found[0]])


@dataclass(frozen=True, eq=False)
class PyTorchSource:
    """A network of PyTorch's; see source.Source.

    parts: in flow order. told_by: what they come from, in a sentence. module: the live one.
    """

    parts: Sequence[Part]
    activations: Sequence[Function] | None = None
    told_by: str = "a state dict"
    module: Any = None

    format = "PyTorch"

    def recurrent(self) -> list[Found]:
        return [part.found() for part in self.parts if part.recurrent]

    def network(self) -> list[Layer | Scale]:
        return [part.layer for part in self._flow() if part.layer is not None]

    @property
    def framework(self) -> str:
        return run.framework(self.parts, self.module)

    def answers(self, x: Array, select: str | None) -> Array:
        if select is not None:
            return run.in_turn([p for p in self.parts if p.where == select], x)
        way = run.way_to_ask(self.parts, self.module)
        return way.asked(x) if way else run.in_turn(list(self._flow()), x)

    def _flow(self) -> Iterator[Part]:
        """The parts that are layers, with those activations that only the caller can tell."""
        for part in self.parts:
            if part.refusal:
                raise UnsupportedModelError(part.refusal)
        given = iter(self._given())
        width = _first_width(self.parts)
        for k, part in enumerate(self.parts):
            if part.function:
                yield replace(part, layer=Activation(part.function, width))
            elif isinstance(part.layer, Scale):
                if len(part.layer.shift) != width:
                    raise UnsupportedModelError(
                        f"module {part.where!r} normalises {len(part.layer.shift)} numbers, but "
                        f"there are {width} where it stands"
                    )
                yield part
            elif part.layer is not None:
                width = part.layer.output_size
                yield part
                function = next(given) if isinstance(part.layer, Dense) else "linear"
                if function not in ("linear", _told_after(self.parts, k)):
                    layer = Activation(function, width)
                    yield Part(part.where, function, {}, layer, function=function)

    def _given(self) -> Sequence[Function]:
        """The activation of each Linear layer. Raises where it is neither told nor given."""
        dense = [k for k, part in enumerate(self.parts) if isinstance(part.layer, Dense)]
        told = [_told_after(self.parts, k) for k in dense]
        unseen = [p for p in self.parts if p.layer is None and not p.function]
        normed = [k for k in dense if _told_after(self.parts, k) is None and self._normed(k)]
        if self.activations is None:
            if unseen or told.count(None) > 1 or normed:
                raise UnsupportedModelError(_wanted(self.told_by, len(dense), unseen))
            return [function or "linear" for function in told]
        if len(self.activations) != len(dense):
            raise UnsupportedModelError(
                f"{len(self.activations)} activations were given for {len(dense)} Linear layers; "
                "give one each"
            )
        for k, known, function in zip(dense, told, self.activations, strict=True):
            where = self.parts[k].where
            if known not in (None, function):
                raise UnsupportedModelError(
                    f"activations= says {function!r} for module {where!r}, but {known!r} "
                    "follows it in its Sequential; give that, or leave activations= out"
                )
            if k in normed and function != "linear":
                raise UnsupportedModelError(
                    f"{self.told_by} does not tell whether {function!r} stands before or after "
                    f"the BatchNorm1d behind {where!r}; import an nn.Sequential of them"
                )
        return self.activations

    def _normed(self, k: int) -> bool:
        return any(isinstance(part.layer, Scale) for part in self.parts[k + 1 : k + 2])


def _told_after(parts: Sequence[Part], k: int) -> Function | None:
    """The activation that is known to follow part k, "linear" for none; None: not known."""
    following = parts[k + 1].function if k + 1 < len(parts) else None
    return following or ("linear" if parts[k].told else None)


def _wanted(told_by: str, count: int, unseen: Sequence[Part]) -> str:
    names = f"pass activations= with {count} names, such as ['relu', 'linear']"
    if unseen:
        part = unseen[0]
        return (
            f"module {part.where!r} is a {part.kind}, and {told_by} does not tell after which "
            f"layer it runs; {names}"
        )
    return f"{told_by} does not tell what stands between its {count} Linear layers; {names}"


def _first_width(parts: Sequence[Part]) -> int:
    """Numbers that the first of these takes whose size is known; 0 for none."""
    for part in parts:
        if isinstance(part.layer, Scale):
            return len(part.layer.shift)
        if part.layer is not None:
            return part.layer.input_size
    return 0


# -- what a state dict leaves open ---------------------------------------------------------


def _with_embedding(parts: Sequence[Part]) -> list[Part]:
    """parts, the first one an Embedding where it can be no Linear layer.

    Both have just a matrix `weight` where the Linear layer has no bias: [O, I] of a Linear
    layer, [vocabulary, O] of an Embedding. O must be what the next layer takes; where that
    fits both, a name with "emb" in it leaves it open, and any other is a Linear layer's.
    """
    if not _is_bare_matrix(parts[:1]):
        return list(parts)
    first, width = parts[0], _first_width(parts[1:])
    rows, columns = first.tensors["weight"].shape
    if rows == columns == width and "emb" in first.where.lower():
        sentence = (
            f"tensor '{first.where}.weight' [{rows}, {columns}] can be an Embedding's or a Linear "
            "layer's without bias; import the live module"
        )
        return [replace(first, layer=None, refusal=sentence), *parts[1:]]
    return [_embedding(first), *parts[1:]] if columns == width != rows else list(parts)


def _is_bare_matrix(parts: Sequence[Part]) -> bool:
    return any(isinstance(p.layer, Dense) and "bias" not in p.tensors for p in parts)


def _embedding(part: Part) -> Part:
    return leaf("Embedding", part.where and f"{part.where}.", part.tensors)


def _ordered(parts: Sequence[Part], path: Path) -> list[Part]:
    """The parts of a file that does not keep their order: LSTM layers first, then Linear ones.

    LSTM layers follow their numbers; Linear ones are chained by their sizes; what is called
    "emb..." and can be no Linear layer stands first. Where that does not tell the order,
    guessing would give plausible garbage.
    """

    def natural(part: Part) -> list[tuple[int, str]]:
        return [(int(n[:9] or 0), text) for n, text in re.findall(r"(\d*)(\D*)", part.where)]

    recurrent = sorted((p for p in parts if p.recurrent), key=natural)
    others = [p for p in parts if not p.recurrent]
    if any(p.refusal for p in parts) or not recurrent:
        return [*recurrent, *others]
    inputs = _first_width(recurrent)
    first = [p for p in others if "emb" in p.where.lower() and _is_bare_matrix([p])]
    first = [p for p in first if p.tensors["weight"].shape[1] == inputs][:1]
    dense = [p for p in others if isinstance(p.layer, Dense) and p not in first]
    chains = [order for order in permutations(dense[:_MAX_CHAINED]) if _chained(order)]
    unclear = dense if len(dense) > _MAX_CHAINED or len(chains) != 1 else []
    if not unclear and _could_stand_before(recurrent, chains[0]):
        unclear = [*recurrent, *dense]
    if any(isinstance(p.layer, Scale) for p in others):
        unclear = [p for p in others if isinstance(p.layer, Scale)]
    # lstm1 and lstm2 follow their numbers, encoder and decoder would not.
    modules = {re.sub(r"\d+", "", _module_of(p)): p for p in recurrent}
    if len(modules) > 1:
        unclear = list(modules.values())
    if unclear:
        sentence = (
            f"{path} does not tell the order of {', '.join(sorted(p.where for p in unclear))}; "
            "import the .pt file or the live module instead"
        )
        return [Part("", "order", {}, None, sentence), *recurrent, *others]
    return _with_embedding([*first, *recurrent, *chains[0]])


def _module_of(part: Part) -> str:
    """The path of the nn.LSTM, nn.GRU or cell of a recurrent part."""
    stacked = not part.kind.endswith("Cell")
    return re.sub(r"(^|[._])l\d+$", "", part.where) if stacked else part.where


def _chained(order: Sequence[Part]) -> bool:
    return all(a.layer.output_size == b.layer.input_size for a, b in pairwise(order))  # type: ignore[union-attr]


def _could_stand_before(recurrent: Sequence[Part], dense: Sequence[Part]) -> bool:
    """Whether some of the Linear layers might as well come before the LSTM layers.

    Only where events and outputs would keep their sizes: otherwise a wrong order shows at
    the first event.
    """
    if not dense:
        return False
    lstm = (_first_width(recurrent), recurrent[-1].layer.output_size)  # type: ignore[union-attr]
    blocks = [(p.layer.input_size, p.layer.output_size) for p in dense]  # type: ignore[union-attr]
    ends = (lstm[0], blocks[-1][1])
    for cut in range(1, len(blocks) + 1):
        flow = [*blocks[:cut], lstm, *blocks[cut:]]
        if all(a[1] == b[0] for a, b in pairwise(flow)) and (flow[0][0], flow[-1][1]) == ends:
            return True
    return False
