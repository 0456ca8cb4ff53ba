"""What imports what: importing little brings in little, and imports point downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import streamlstm

PACKAGE = Path(streamlstm.__file__).parent


def modules_after(statement: str, tmp_path: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split("\n"))


COMPILED = {f"streamlstm.{m.stem.split('.')[0]}" for m in PACKAGE.glob("_*.so")}
ENGINE = {"scipy", "streamlstm.engine", "streamlstm.model", "streamlstm.model_file"} | COMPILED


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import streamlstm", {"numpy", "zmq", "msgpack", "torch", "streamlstm.cli"} | ENGINE),
        ("import streamlstm as sl; sl.Engine; sl.load; sl.import_model", {"zmq", "torch"}),
        ("import streamlstm.serving.client", {"torch"} | ENGINE),
        ("import streamlstm as sl; sl.Client; sl.AsyncClient", {"torch"} | ENGINE),
        ("import streamlstm.cli", {"torch", "matplotlib", "rich"}),
    ],
)
def test_importing_brings_in_no_more(statement, absent, tmp_path):
    assert not modules_after(statement, tmp_path) & absent


def test_public_names():
    for name in streamlstm.__all__:
        assert getattr(streamlstm, name).__name__ == name
        assert name in dir(streamlstm)
    with pytest.raises(AttributeError, match="module 'streamlstm' has no attribute 'nothing'"):
        streamlstm.nothing  # noqa: B018
    assert streamlstm.__version__ == version("streamlstm")


# The rooms, from the ground up. A module imports from its own floor's room or from below.
FLOORS = [
    {"errors"},
    {"_arena", "_cells_blas", "_cells_fused", "_network", "_threads", "_engine"},
    {"blas_threads", "kernels", "model"},
    {"events", "reference"},
    {"engine"},
    {"model_file"},
    {"importers"},
    {"serving"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def ours_imported(path: Path) -> set[str]:
    """Rooms of ours that a module imports when it is run (not for its types alone)."""
    rooms: set[str] = set()

    class Imports(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if ast.unparse(node.test) != "TYPE_CHECKING":
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names = [a.name.split(".") for a in node.names]
            rooms.update(n[1] for n in names if n[0] == "streamlstm" and len(n) > 1)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: a relative import"
            parts = (node.module or "").split(".")
            if parts[0] == "streamlstm":
                rooms.update(parts[1:2] or [a.name for a in node.names])

    Imports().visit(ast.parse(path.read_text()))
    return rooms


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = room_of(path)
    above = {
        other
        for other in ours_imported(path)
        # Model.save() imports its file format when called.
        if other in FLOOR
        and other != room
        and FLOOR[other] >= FLOOR[room]
        and (room, other) != ("model", "model_file")
    }
    assert not above, f"{room} imports {above}, which stand above it"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in SOURCES} <= FLOOR.keys()
    assert {name.removeprefix("streamlstm.") for name in COMPILED} <= FLOOR.keys()


def test_the_client_reaches_no_engine():
    """Not even when it is called: no import of the engine's rooms, wherever it stands."""
    for name in ("client", "wire"):
        rooms = ours_imported(PACKAGE / "serving" / f"{name}.py")
        assert rooms <= {"errors", "events", "serving", "__version__"}
