"""An ONNX file as nodes with paths and checked attributes; nothing in it is run.

Facts: onnx.proto (attribute types, external data), ONNX's IR.md (names, scopes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError

Array = NDArray[Any]
# TensorProto.DataType of the floats that a layer's numbers can have.
FLOAT, FLOAT16, DOUBLE, BFLOAT16 = 1, 10, 11, 16
FLOATS = (FLOAT, FLOAT16, DOUBLE, BFLOAT16)
INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
EXTERNAL = 1  # TensorProto.DataLocation
# AttributeProto.AttributeType, and the field that holds such a value.
ATTRIBUTE_TYPES = {
    "float": (1, "f"),
    "int": (2, "i"),
    "string": (3, "s"),
    "tensor": (4, "t"),
    "graph": (5, "g"),
    "floats": (6, "floats"),
    "ints": (7, "ints"),
    "strings": (8, "strings"),
}
# What is beyond would take long to follow; files that people train have a few hundred nodes.
MOST_NODES = 10_000
# The newest operator set whose operators were compared with what is done here.
NEWEST_OPSET = 28


@dataclass(frozen=True, eq=False)
class Node:
    """A node. where: names from the outermost graph on; bodies: its subgraphs, by attribute."""

    proto: Any
    where: str
    opset: int
    bodies: dict[str, Graph]

    @property
    def op(self) -> str:
        """The operator, after its domain where that is not ONNX's own."""
        domain, op = self.proto.domain, self.proto.op_type
        name = op if domain in ("", "ai.onnx") else f"{domain}.{op}"
        return name if name.isprintable() else repr(name)

    def __str__(self) -> str:
        return f"node {self.where!r} ({self.op})"

    def attributes(self, **known: str) -> dict[str, Any]:
        """The attributes that it has; known: their names and types (ATTRIBUTE_TYPES).

        Raises UnsupportedModelError for one that is not known, or of another type.
        """
        given: dict[str, Any] = {}
        for a in self.proto.attribute:
            kind = known.get(a.name)
            if kind is None:
                raise UnsupportedModelError(
                    f"{self} has the attribute {a.name!r}, which is not known; export without it"
                )
            number, where = ATTRIBUTE_TYPES[kind]
            if a.type != number or a.ref_attr_name or a.name in given:
                raise UnsupportedModelError(
                    f"attribute {a.name!r} of {self} is no single {kind}; the file is damaged"
                )
            value = getattr(a, where)
            if kind in ("string", "strings"):
                value = _texts(value)
            given[a.name] = list(value) if kind in ("floats", "ints") else value
        return given


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph or subgraph: its nodes, and its constant tensors (TensorProto) by name."""

    proto: Any
    nodes: tuple[Node, ...]
    tensors: dict[str, Any]

    def everywhere(self) -> Iterator[Node]:
        """All nodes, also those of subgraphs."""
        for node in self.nodes:
            yield node
            for body in node.bodies.values():
                yield from body.everywhere()


@dataclass(frozen=True, eq=False)
class File:
    """A parsed file; size: its bytes, with those of its external data."""

    path: Path
    proto: Any
    graph: Graph
    size: int


def load(path: Path) -> File:
    """Raises OSError, UnsupportedModelError: not ONNX, damaged, or beyond what is known."""
    try:
        import onnx  # noqa: PLC0415  (an extra)
    except ImportError as e:
        raise UnsupportedModelError(
            f"reading {path} needs onnx: pip install 'streamlstm[onnx]'"
        ) from e
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as e:  # protobuf's own errors
        raise UnsupportedModelError(
            f"{path} can't be read as ONNX ({line_of(e)}); is the file complete?"
        ) from e
    if not _is_text(proto):
        raise UnsupportedModelError(f"{path} has names that are no text; the file is damaged")
    if not proto.graph.node:
        raise UnsupportedModelError(f"{path} holds no ONNX graph; is the file complete?")
    if proto.functions:
        raise UnsupportedModelError(
            f"{path} holds local functions, such as {proto.functions[0].name!r}; inline them "
            "first with onnx.inliner.inline_local_functions"
        )
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    if not 1 <= opset <= NEWEST_OPSET:
        raise UnsupportedModelError(
            f"{path} is of operator set {opset}; export with one from 1 to {NEWEST_OPSET}"
        )
    graph = _Reader(opset).graph(proto.graph, "")
    if (nodes := sum(1 for _ in graph.everywhere())) > MOST_NODES:
        raise UnsupportedModelError(
            f"{path} has {nodes:,} nodes, more than the {MOST_NODES:,} that are followed; export "
            "its recurrent layers whole, not unrolled into steps"
        )
    return File(path, proto, graph, len(content) + _load_external(path, proto))


@dataclass
class _Reader:
    opset: int
    taken: dict[str, int] = field(default_factory=dict)  # how often each path came

    def graph(self, proto: Any, path: str) -> Graph:
        nodes = tuple(self.node(node, k, path) for k, node in enumerate(proto.node))
        tensors = {t.name: t for t in proto.initializer}
        if len(tensors) != len(proto.initializer):
            raise UnsupportedModelError(
                "two initializers of the graph have the same name; the file is damaged"
            )
        return Graph(proto, nodes, tensors)

    def node(self, proto: Any, k: int, path: str) -> Node:
        where = name = path + (proto.name or f"{proto.op_type}_{k}")
        while where in self.taken:
            self.taken[name] += 1
            where = f"{name}#{self.taken[name]}"
        self.taken[where] = 1
        bodies = {
            a.name: self.graph(a.g, f"{where}/{a.name}/")
            for a in proto.attribute
            if a.type == ATTRIBUTE_TYPES["graph"][0]
        }
        return Node(proto, where, self.opset, bodies)


def tensor(proto: Any, who: str) -> Array:
    """A TensorProto's numbers; half precision as float32. Raises UnsupportedModelError."""
    from onnx import numpy_helper  # noqa: PLC0415  (an extra)

    try:
        a = np.asarray(numpy_helper.to_array(proto))
    except Exception as e:  # whatever damage makes of it
        raise UnsupportedModelError(f"{who} can't be read ({line_of(e)})") from e
    if proto.data_type in (FLOAT16, BFLOAT16):
        a = a.astype(np.float32)
    if a.dtype.kind not in "fiub":
        raise UnsupportedModelError(f"{who} holds {a.dtype}, not numbers")
    return a


def _load_external(path: Path, proto: Any) -> int:
    """Bring in tensors that are kept in other files of the folder; the bytes of those files.

    Only regular files beside the model, as its exporter writes them: a model must not be able
    to read what its owner can. Raises UnsupportedModelError.
    """
    files: dict[str, int] = {}
    wanted = 0
    for each in _tensors(proto.graph):
        if each.data_location != EXTERNAL:
            continue
        entries = {e.key: e.value for e in each.external_data}
        location = entries.get("location", "")
        beside = path.parent / location
        if (
            location in ("", ".", "..")
            or any(c in location for c in "/\\\0")
            or beside.is_symlink()
            or not beside.is_file()
        ):
            raise UnsupportedModelError(
                f"tensor {each.name!r} is kept in the file {location!r}, which is not beside "
                f"{path}; put it there, or save the model as one file"
            )
        size = files[location] = beside.stat().st_size
        try:
            start = int(entries.get("offset") or 0)
            length = int(entries.get("length") or size - start)
        except ValueError:  # also for too many digits
            start = length = size
        wanted += length
        # Each byte should be wanted once: a small file must not fill the memory.
        if start < 0 or not 0 <= length <= size - start or wanted > 2 * sum(files.values()):
            raise UnsupportedModelError(
                f"tensor {each.name!r} wants more of the file {location!r} than it holds"
            )
        with beside.open("rb") as file:
            file.seek(start)
            each.raw_data = file.read(length)
        each.data_location = 0
        del each.external_data[:]
    return sum(files.values())


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for a in node.attribute:
            yield from [a.t] if a.HasField("t") else []
            yield from a.tensors
            for body in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                yield from _tensors(body)


def _is_text(message: Any) -> bool:
    """Whether all strings in it are UTF-8, which protobuf leaves to whoever reads them."""
    try:
        for about, value in message.ListFields():
            parts = [value]
            if about.type in (about.TYPE_STRING, about.TYPE_MESSAGE):
                parts = (
                    [value] if isinstance(value, str) or not hasattr(value, "__len__") else value
                )
            if about.type == about.TYPE_STRING and not all(isinstance(p, str) for p in parts):
                return False
            if about.type == about.TYPE_MESSAGE and not all(map(_is_text, parts)):
                return False
    except UnicodeDecodeError:
        return False
    return True


def _texts(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [each.decode("utf-8", "replace") for each in value]


def line_of(e: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]
