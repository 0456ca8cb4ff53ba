"""PyTorch: a state dict or a TorchScript file, or a live module or state dict.

    file -> files -> checkpoint -> tensors -> layers -> parts -> flow
                                -> modules -> layers ->

What a file does not keep is taken to be torch's default: BatchNorm1d's eps 1e-5, no max_norm of
an Embedding (TorchScript has them in its code, which is not read). `assumed` says so each time.
The flow is never guessed: it is told, said by the user, or, of a live module, tried against its
own forward().
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.flow import Flow, in_both_words
from streamlstm.importers.fold import Scale
from streamlstm.importers.pytorch import checkpoint, flow, run
from streamlstm.importers.pytorch.files import contents, safetensors
from streamlstm.importers.pytorch.layers import Part, is_tensor, parts_of
from streamlstm.importers.pytorch.modules import in_flow_order, live, scripted, unwrapped
from streamlstm.importers.pytorch.pickles import Made
from streamlstm.importers.source import Found, Source
from streamlstm.layers import Layer
from streamlstm.model_file import FlowBy

Array = NDArray[Any]


def read(path: Path, *, flow: Flow | None = None) -> PyTorchSource:
    """What a .pt, .pth or .safetensors file holds. Never runs code from it.

    Raises OSError, UnsupportedModelError.
    """
    if path.suffix.lower() == ".safetensors":
        return source_of(safetensors(path), flow=flow)
    value, is_script = contents(path)
    if not is_script:
        return source_of(checkpoint.state_dict(value, path), flow=flow)
    if not isinstance(value, Made) or not value.name.startswith("__torch__."):
        raise UnsupportedModelError(f"{path} is TorchScript, but holds no module")
    parts = in_flow_order(scripted(value))
    if not any(part.tensors or part.refusal for part in parts):
        raise UnsupportedModelError(
            f"{path} is TorchScript without parameters, as torch.jit.freeze leaves it; "
            "save the module unfrozen, or its state_dict()"
        )
    return PyTorchSource(parts, flow, "a TorchScript file")


def source_of(module: Any, *, flow: Flow | None = None, told: bool = False) -> PyTorchSource:
    """What a live torch.nn.Module, or a state dict of tensors or arrays, holds.

    told: whether the flow is what the file itself tells, not the user.
    """
    if hasattr(module, "state_dict") and hasattr(module, "_modules"):
        module = unwrapped(module)
        return PyTorchSource(in_flow_order(live(module)), flow, "a module", module)
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
    return PyTorchSource(parts, flow, told=told)


@dataclass(frozen=True, eq=False)
class PyTorchSource(Source):
    """A network of PyTorch's; see source.Source.

    parts: in the order read. flow: as the user says it, or, where told, the file. told_by: what
    they come from, in a sentence. module: the live one.
    """

    parts: Sequence[Part]
    flow: Flow | None = None
    told_by: str = "a state dict"
    module: Any = None
    told: bool = False
    _assumed: list[str] = field(default_factory=list)

    format = "PyTorch"

    def recurrent(self) -> list[Found]:
        return [part.found() for part in self.parts if part.recurrent]

    def network(self) -> list[Layer | Scale]:
        chain = self._chain
        layers = [part.layer for part in chain if part.layer is not None]
        own = (m.tensors().values() for m in layers if not isinstance(m, Scale))
        if len(dtypes := {a.dtype.name for tensors in own for a in tensors}) > 1:
            raise UnsupportedModelError(
                f"{self.told_by} has layers of {' and '.join(sorted(dtypes))}; make them one with "
                "model.float()"
            )
        self._assumed[:] = [part.assumed for part in chain if part.assumed]
        return layers

    @property
    def assumed(self) -> Sequence[str]:
        return self._assumed

    @property
    def flow_by(self) -> FlowBy:
        if self._way is not None:
            return "source"
        if self.flow is not None:
            return "file" if self.told else "user"
        return "file" if flow.is_told(self.parts) else "stack"

    @cached_property
    def _way(self) -> run.Way | None:
        return run.way_to_ask(self.parts, self.module)

    @property
    def framework(self) -> str:
        return run.framework(self.parts, self._way)

    def answers(self, x: Array, select: str | None) -> Array:
        if select is not None:
            return run.in_turn([p for p in self.parts if p.where == select], x)
        return self._way.asked(x) if self._way else run.in_turn(self._chain, x)

    @cached_property
    def _chain(self) -> list[Part]:
        """The parts in flow order. Raises UnsupportedModelError where that is not known."""
        for part in self.parts:
            if part.refusal:
                raise UnsupportedModelError(part.refusal)
        if self.flow is not None:
            if self.parts and flow.is_told(self.parts):
                raise in_both_words(
                    lambda says: f"{self.told_by} tells its flow itself; leave out {says()}"
                )
            chain = list(flow.sized(flow.as_said(self.parts, self.flow)))
        elif self._way is not None:
            return self._tried()
        elif flow.is_told(self.parts) or flow.is_one_stack(self.parts):
            return list(flow.sized(self.parts))
        else:
            raise flow.untold(self.parts, self.told_by)
        if self._way is not None and not run.agree(chain, self._way):
            raise in_both_words(
                lambda says: (
                    f"the module's forward() answers other than {says(self.flow)}; say the flow "
                    "as forward() has it, or export the module to ONNX"
                )
            )
        return chain

    def _tried(self) -> list[Part]:
        """The parts in a likely order, where the module's own forward() answers the same."""
        assert self._way is not None
        more = "does more than run its layers one after the other"
        for chain in flow.likely(self.parts):
            if chain and run.agree(chain, self._way):
                if not (others := run.other_calls(chain, self._way)):
                    return chain
                more = f"also calls {', '.join(others)}"
        names = ", ".join(flow.keyed(self.parts))
        raise in_both_words(
            lambda says: (
                f"the module's forward() {more} (its layers: {names}); say the flow, functions "
                f"too, such as {says(['lstm', 'relu', 'fc'])}, or export the module to ONNX"
            )
        )
