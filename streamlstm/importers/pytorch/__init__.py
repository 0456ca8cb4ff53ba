"""PyTorch: a state dict or a TorchScript file, or a live module or state dict.

    file -> files -> tensors -> layers, state_dicts -> parts in flow order
                  -> modules -> layers, modules     ->

What a file does not keep is taken to be torch's default: BatchNorm1d's eps 1e-5, no max_norm of
an Embedding (TorchScript has them in its code, which is not read). Nor does it tell the flow: the
layers are taken in order, with nothing after a lone Linear one. `assumed` says so each time. What
stands between several Linear layers `activations` must say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.pytorch import run
from streamlstm.importers.pytorch.files import contents, safetensors
from streamlstm.importers.pytorch.layers import Part, is_tensor
from streamlstm.importers.pytorch.modules import in_flow_order, live, scripted, unwrapped
from streamlstm.importers.pytorch.pickles import Made
from streamlstm.importers.pytorch.state_dicts import first_width, in_found_order, in_key_order
from streamlstm.importers.source import Found, Source
from streamlstm.layers import Activation, Dense, Function, Layer

Array = NDArray[Any]


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
        return PyTorchSource(in_found_order(safetensors(path), path), activations)
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
        module = unwrapped(module)
        return PyTorchSource(in_flow_order(live(module)), activations, "a module", module)
    if not isinstance(module, Mapping):
        raise UnsupportedModelError(
            f"a {type(module).__name__} is no torch.nn.Module and no state dict; pass one of them"
        )
    for key, a in module.items():
        if not is_tensor(a):
            raise UnsupportedModelError(
                f"{key!r} holds a {type(a).__name__} and no tensor; pass just the state dict"
            )
    parts = in_key_order({str(key): a for key, a in module.items()})
    return PyTorchSource(parts, activations)


def _state_dict_in(loaded: Any, path: Path) -> Mapping[str, Any]:
    """The state dict that `loaded` is, or the only one with a recurrent layer in its dicts."""
    inner = loaded if isinstance(loaded, Mapping) else {"the whole file": loaded}
    found: list[tuple[Any, Mapping[str, Any]]] = []
    held: list[tuple[Any, Any]] = [("the whole file", loaded)]
    seen = set()
    for key, d in held:  # which grows
        if not isinstance(d, Mapping) or id(d) in seen:
            continue
        seen.add(id(d))
        if d and all(map(is_tensor, d.values())):
            found.append((key, d))
        else:
            held += d.items()
    found = [each for each in found if any("weight_ih" in str(k) for k in each[1])] or found
    if not found:
        for key, d in inner.items():
            if isinstance(d, Made) and not is_tensor(d):
                quantized = d.name == "torch.ScriptObject"
                whose = "the unquantised model's " if quantized else "model."
                raise UnsupportedModelError(
                    f"{path} holds a pickled {d.name} ({key}), and code from a file is never "
                    f"run; save {whose}state_dict() instead"
                )
    if len(found) != 1:
        names = [str(key) for key in ([key for key, _ in found] or inner)][:8]
        raise UnsupportedModelError(
            f"{path} holds {len(found)} state dicts ({', '.join(names)}); "
            "save just model.state_dict()"
        )
    return found[0][1]


@dataclass(frozen=True, eq=False)
class PyTorchSource(Source):
    """A network of PyTorch's; see source.Source.

    parts: in flow order. told_by: what they come from, in a sentence. module: the live one.
    """

    parts: Sequence[Part]
    activations: Sequence[Function] | None = None
    told_by: str = "a state dict"
    module: Any = None
    _assumed: list[str] = field(default_factory=list)

    format = "PyTorch"

    def recurrent(self) -> list[Found]:
        return [part.found() for part in self.parts if part.recurrent]

    def network(self) -> list[Layer | Scale]:
        layers = [part.layer for part in self._flow() if part.layer is not None]
        own = (m.tensors().values() for m in layers if not isinstance(m, Scale))
        if len(dtypes := {a.dtype.name for tensors in own for a in tensors}) > 1:
            raise UnsupportedModelError(
                f"{self.told_by} has layers of {' and '.join(sorted(dtypes))}; make them one with "
                "model.float()"
            )
        self._assumed[:] = self._assumptions()
        return layers

    @property
    def assumed(self) -> Sequence[str]:
        return self._assumed

    def _assumptions(self) -> list[str]:
        """What is not told of the flow and of options, a clause each."""
        clauses = [part.assumed for part in self.parts if part.assumed]
        if not all(part.told for part in self.parts[:-1]):
            names = dict.fromkeys(part.module for part in self.parts if part.layer is not None)
            clauses.append(
                "the layers follow each other in the order read, with nothing else between them: "
                + ", ".join(names)
            )
        for k, part in enumerate(self.parts):
            told = self.activations is not None or _told_after(self.parts, k) is not None
            if isinstance(part.layer, Dense) and not told:
                clauses.append(
                    f"nothing follows {part.where!r} (pass activations= if something does)"
                )
        return clauses

    @cached_property
    def _way(self) -> run.Way | None:
        return run.way_to_ask(self.parts, self.module)

    @property
    def framework(self) -> str:
        return run.framework(self.parts, self._way)

    def answers(self, x: Array, select: str | None) -> Array:
        if select is not None:
            return run.in_turn([p for p in self.parts if p.where == select], x)
        return self._way.asked(x) if self._way else run.in_turn(list(self._flow()), x)

    def _flow(self) -> Iterator[Part]:
        """The parts that are layers, with those activations that only the caller can tell."""
        for part in self.parts:
            if part.refusal:
                raise UnsupportedModelError(part.refusal)
        given = iter(self._given())
        width = first_width(self.parts)
        for k, part in enumerate(self.parts):
            if part.function and part.placed:
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
        unseen = self._unseen()
        scales = [k for k, part in enumerate(self.parts) if isinstance(part.layer, Scale)]
        normed = [k for k, known in zip(dense, told, strict=True) if not known and k + 1 in scales]
        if self.activations is None:
            if unseen or told.count(None) > 1 or normed:
                raise UnsupportedModelError(_wanted(self.told_by, len(dense), unseen))
            return [function or "linear" for function in told]
        if len(self.activations) != len(dense):
            raise UnsupportedModelError(
                f"{len(self.activations)} activations were given for {len(dense)} Linear layers; "
                "give one each"
            )
        for part in unseen:
            if part.function not in (None, *self.activations):
                raise UnsupportedModelError(
                    f"module {part.where!r} is a {part.kind}, but activations= has no "
                    f"{part.function!r}; give it for the Linear layer that it follows"
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

    def _unseen(self) -> list[Part]:
        """Modules of which only activations= can tell where they run. Raises where it can't."""
        unseen = []
        below = None
        for part in self.parts:
            if part.layer is not None:
                below = part.layer
            elif not part.placed:
                unseen.append(part)
                if not isinstance(below, Dense):
                    raise UnsupportedModelError(
                        f"module {part.where!r} is a {part.kind} made behind no Linear layer, and "
                        f"{self.told_by} does not tell where it runs; make its place known with "
                        "an nn.Sequential of torch's modules, or select a recurrent layer alone"
                    )
        return unseen


def _told_after(parts: Sequence[Part], k: int) -> Function | None:
    """The activation that is known to follow part k, "linear" for none; None: not known."""
    following = next((p.function for p in parts[k + 1 : k + 2] if p.placed), None)
    return following or ("linear" if parts[k].told else None)


def _wanted(told_by: str, count: int, unseen: Sequence[Part]) -> str:
    names = f"pass activations= with {count} names, such as ['relu', 'linear']"
    names += " (for sl.verify: to open_source)"
    if unseen:
        part = unseen[0]
        return (
            f"module {part.where!r} is a {part.kind}, and {told_by} does not tell after which "
            f"layer it runs; {names}"
        )
    return f"{told_by} does not tell what stands between its {count} Linear layers; {names}"
