"""What a reader of a foreign format gives: the layers that it found, and their framework's word.

A reader turns a file (or a live module) into a Source. Its way from there is the same for all:
network() or select() -> fold.folded() -> Model; answers() -> verify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.layers import Layer, Recurrent
from streamlstm.model_file import FlowBy

Array = NDArray[Any]


@dataclass(frozen=True)
class Found:
    """One recurrent layer of a file.

    where: its path there (module path, layer or node name), what `select` takes.
    text: kind and sizes, such as "LSTM 32 -> 128". layer: None where it can't be imported;
    refusal then says why and what to do.
    """

    where: str
    text: str
    layer: Recurrent | None
    refusal: str = ""


class Source(Protocol):
    """A foreign network. Readers derive from it, for what most leave as it is here."""

    @property
    def format(self) -> str:
        """The format's name, such as "ONNX"."""

    @property
    def framework(self) -> str:
        """What answers() runs, such as "onnxruntime 1.20"; "" where nothing can run it here."""

    @property
    def assumed(self) -> Sequence[str]:
        """What the file does not tell and was taken to be, a clause each; neither does a proof
        tell, where the framework runs what was read. Looked at after network() or select."""
        return ()

    @property
    def flow_by(self) -> FlowBy:
        """Whose flow answers() runs, as in Proof."""
        return "source"

    @property
    def quantizes(self) -> bool:
        """Whether the framework rounds to 8 bits on its way, which we don't."""
        return False

    def recurrent(self) -> Sequence[Found]:
        """Every recurrent layer in the file, also those that can't be imported."""

    def network(self) -> Sequence[Layer | Scale]:
        """All layers in flow order. Raises UnsupportedModelError naming what we lack."""

    def answers(self, x: Array, select: str | None) -> Array:
        """The framework's own outputs [steps, outputs] for x [steps, inputs], from the initial
        state; select: of that recurrent layer alone. Only where framework is not ""."""


def selected(source: Source, where: str) -> Recurrent:
    """The recurrent layer that `where` names. Raises UnsupportedModelError."""
    found = source.recurrent()
    for each in found:
        if each.where == where:
            if each.layer is None:
                raise UnsupportedModelError(each.refusal)
            return each.layer
    names = ", ".join(repr(each.where) for each in found) or "none"
    raise UnsupportedModelError(f"no recurrent layer {where!r} was found; there are: {names}")
