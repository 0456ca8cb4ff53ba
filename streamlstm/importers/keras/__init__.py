"""Keras: .keras and HDF5 files of Keras 1, 2 and 3, with an architecture or just weights.

Read as data (files): no layer of Keras is made, no code in a file is run. A stateful
layer's kept state and return_sequences do not matter: every session starts at zeros, and the
answer to each event is what Keras would have answered had the sequence ended there.

Weights without an architecture tell sizes and no more: the user says the flow, and cells are taken
to have the default functions of their Keras.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.flow import Flow, check_not_said, check_said, in_both_words
from streamlstm.importers.fold import Scale
from streamlstm.importers.keras import run
from streamlstm.importers.keras.cells import RECURRENT, cells, recurrent
from streamlstm.importers.keras.files import KerasFile, Place, open_file, refuse
from streamlstm.importers.keras.flow import Part, flow, is_model, parts
from streamlstm.importers.keras.layers import layers_of, start, unsupported, wrapped
from streamlstm.importers.keras.options import function_of
from streamlstm.importers.keras.weights import gate_function, weight_parts
from streamlstm.importers.source import Found, Source, selected
from streamlstm.layers import FUNCTIONS, Layer, Recurrent
from streamlstm.model_file import FlowBy

Array = NDArray[Any]

# Recurrent layers to list, though they can't be imported.
_ALSO_RECURRENT = ("Bidirectional", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")


def read(path: Path, *, flow: Flow | None = None) -> KerasSource:
    """The network in a .keras or HDF5 file; see open_source. Raises UnsupportedModelError."""
    file = open_file(path)
    if is_model(file.config):
        check_not_said(path, flow)
        return KerasSource(file)
    return WeightsSource(file, flow)


class KerasSource(Source):
    """A file with an architecture."""

    format = "Keras"

    def __init__(self, file: KerasFile) -> None:
        self.file = file

    def recurrent(self) -> Sequence[Found]:
        return [found for _, found in self._recurrent()]

    def _recurrent(self) -> list[tuple[Part, Found]]:
        """Each with the part that it is of."""
        assert self.file.config is not None
        return [each for part in parts(self.file.config) for each in _found(part, self.file)]

    def _flow(self) -> list[Part]:
        assert self.file.config is not None
        return flow(self.file.config)

    def network(self) -> Sequence[Layer | Scale]:
        return [layer for _, layer in self._network()]

    def _network(self) -> list[run.Pair]:
        chain = self._flow()
        if not chain:
            refuse(f"{self.file.path} has no layers")
        stream = start(chain[0])
        network: list[run.Pair] = []
        for part in chain:
            layers, stream = layers_of(part, self.file, stream)
            network += run.paired(part, layers)
        return network

    @property
    def framework(self) -> str:
        return f"{self._keras.__name__} {self._keras.__version__}" if self._keras else ""

    @cached_property
    def _keras(self) -> Any:
        """The Keras of the file's own time if it is there, else Keras 3; None without any."""
        old = self.file.major in (1, 2)
        return (run.imported("tf_keras") if old else None) or run.imported("keras")

    def answers(self, x: Array, select: str | None) -> Array:
        if select is None:
            pairs = self._network()
        else:
            layer = selected(self, select)
            cell = next(part for part, found in self._recurrent() if found.where == select)
            pairs = [(cell, layer)]
        return run.answers(self._keras, self.file, pairs, x)


class WeightsSource(KerasSource):
    """A file of weights: the architecture is in the user's code."""

    def __init__(self, file: KerasFile, flow: Flow | None) -> None:
        super().__init__(file)
        self.flow = flow
        self.found: Mapping[str, Part | Found] = weight_parts(file)

    def recurrent(self) -> Sequence[Found]:
        refused = [f for f in self.found.values() if isinstance(f, Found) and f.text]
        return [*super().recurrent(), *refused]

    def _recurrent(self) -> list[tuple[Part, Found]]:
        had = [part for part in self.found.values() if isinstance(part, Part)]
        return [each for part in had for each in _found(part, self.file)]

    @property
    def assumed(self) -> Sequence[str]:
        kinds = {part.kind for part in self.found.values() if isinstance(part, Part)}
        clauses = []
        if kinds & {*RECURRENT}:
            clauses.append("recurrent layers run forwards")
        if kinds & {"LSTM", "GRU", "LSTMCell", "GRUCell"}:
            gate = gate_function(self.file)
            clauses.append(f"LSTM and GRU have their Keras' default functions, tanh and {gate}")
        if "Embedding" in kinds:
            clauses.append("embeddings leave no step out (mask_zero)")
        return clauses

    @property
    def flow_by(self) -> FlowBy:
        return "stack" if self.flow is None else "user"

    def _flow(self) -> list[Part]:
        if self.flow is not None:
            check_said(self.flow, self.found)
        elif len(self.found) != 1 or not all(map(_may_be_recurrent, self.found.values())):
            raise self._untold()
        chain: list[Part] = []
        for name in self.flow or self.found:
            part = self.found[name] if name in self.found else self._function(name)
            if isinstance(part, Found):
                refuse(part.refusal)
            if part.kind == "Dense":
                part.config["activation"] = "linear"  # else the flow says it
            chain.append(part)
        return chain

    def _untold(self) -> UnsupportedModelError:
        what = "has weights and no architecture"
        if self.file.config is not None:
            what = "is a model of one's own class, whose flow is Python code"
        names = list(self.found)
        return in_both_words(
            lambda says: (
                f"{self.file.path} {what}; import a model that tells its layers (model.save of a "
                "Sequential or functional one) or an ONNX file, or, where they run one after the "
                f"other, say so: {says(names)} in the order in which they run, with relu, tanh ... "
                "where such a function runs"
            )
        )

    def _function(self, name: str) -> Part:
        """Keras' layer of one of our functions."""
        kept = "hard_sigmoid" if name == "hard_sigmoid6" else name
        part = Part(name, "Activation", {"activation": kept}, Place("", ()))
        if (own := function_of(part, kept, self.file, FUNCTIONS)) != name:
            refuse(f"the Keras of {self.file.path} has no {name!r}; its hard_sigmoid is {own!r}")
        return part


def _may_be_recurrent(part: Part | Found) -> bool:
    return isinstance(part, Found) or part.kind in RECURRENT


def _found(part: Part, file: KerasFile) -> Iterator[tuple[Part, Found]]:
    """The recurrent layers in one layer of Keras, each with its own part."""
    if part.kind == "TimeDistributed":
        inner = wrapped(part)
        if inner.kind in (*RECURRENT, *_ALSO_RECURRENT):
            yield part, Found(part.where, f"{part.kind} {inner.kind}", None, unsupported(part))
    elif part.kind in _ALSO_RECURRENT:
        yield part, Found(part.where, part.kind, None, unsupported(part))
    elif part.kind in RECURRENT:
        try:
            inside = cells(part)
        except UnsupportedModelError as e:
            yield part, Found(part.where, part.kind, None, str(e))
            return
        for cell in inside:
            layer, refusal = _or_refusal(cell, file)
            kind = cell.kind.removesuffix("Cell")
            sizes = f" {layer.input_size} -> {layer.output_size}" if layer else ""
            yield cell, Found(cell.where, kind + sizes, layer, refusal)


def _or_refusal(cell: Part, file: KerasFile) -> tuple[Recurrent | None, str]:
    try:
        return recurrent(cell, file), ""
    except UnsupportedModelError as e:
        return None, str(e)
