"""What imports what: importing little brings in little, and imports point downwards only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import streamlstm
from packages import REPO

PACKAGE = Path(streamlstm.__file__).parent
COMPILED_FROM = REPO / "src_pyx" / "streamlstm"


def modules_after(statement: str, tmp_path: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split("\n"))


COMPILED = {f"streamlstm.{m.parent.name}.{m.stem.split('.')[0]}" for m in PACKAGE.glob("*/*.so")}
ENGINE = {f"streamlstm.{module}" for module in ("engine", "model", "model_file", "proof")}
ENGINE |= {"scipy"} | COMPILED


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import streamlstm", {"numpy", "zmq", "msgpack", "torch", "streamlstm.cli"} | ENGINE),
        ("import streamlstm as sl; sl.Engine; sl.load; sl.import_model", {"zmq", "torch"}),
        ("import streamlstm.service.client.client", {"torch"} | ENGINE),
        ("import streamlstm as sl; sl.Client; sl.AsyncClient", {"torch"} | ENGINE),
        ("import streamlstm.model_file", {"streamlstm.engine", "streamlstm.proof"} | COMPILED),
        ("import streamlstm.cli", {"torch", "matplotlib", "rich"}),
    ],
)
def test_importing_brings_in_no_more(statement, absent, tmp_path):
    assert not modules_after(statement, tmp_path) & absent


def test_public_names():
    for name in streamlstm.__all__:
        assert getattr(streamlstm, name).__name__ in (name, f"streamlstm.{name}")
    assert dir(streamlstm) == sorted([*streamlstm.__all__, "__version__"])
    assert streamlstm.errors.InputError is streamlstm.InputError
    with pytest.raises(AttributeError, match="module 'streamlstm' has no attribute 'nothing'"):
        streamlstm.nothing  # noqa: B018
    assert streamlstm.__version__ == version("streamlstm")


# The rooms, from the ground up. A module imports from its own floor's room or from below.
FLOORS = [
    {"errors", "log", "wording"},
    {"feature", "layers", "store"},
    {"head", "layer_checks"},
    {"kernels"},
    {"core"},
    {"blas_threads", "model", "reference_head"},
    {"bounds", "model_file", "times"},
    {"csv_events", "events", "plot", "reference"},
    {"readings"},
    {"state"},
    {"compiled", "saved_sessions"},
    {"engine"},
    {"proof"},
    {"importers"},
    {"service", "training"},
    {"detection"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# And the same inside the rooms of many modules, which import from below only.
INSIDE = {
    "commands": [
        {"", "arguments", "kept", "lines", "stops", "training", "written"},
        {"described", "scores", "summary"},
        {"train", "detect", "serve", "sessions", "stream", "import_", "inspect", "stats", "demo"},
    ],
    "kernels": [{"kernel", "products"}, {"blas"}, {"table"}, {"", "pack"}],
    "core": [
        {"", "arena", "checks", "head", "network"},
        {"threads"},
        {"head_steps"},
        {"engine"},
        {"sessions"},
    ],
    "store": [{"rows", "wal"}, {"reading"}, {"database"}, {"directory"}, {"salvage"}, {""}],
    "training": [{"history", "network"}, {"evaluation"}, {""}],
    "service": [
        {"", "client", "server"},
        {"operations", "contract", "server.meters", "server.log"},
        {"wire", "column", "server.connections", "server.answers", "server.bounds"},
        {"server.journal", "server.table"},
        {"server.changes", "client.attachment", "client.fates", "client.models"},
        {"server.last_good", "client.sessions"},
        {"server.states", "client.outbox"},
        {"server.roster", "client.lanes"},
        {"server.sessions", "client.attachments"},
        {"server.requests", "server.checkpoint", "client.refusals"},
        {"server.rounds", "server.recovery", "client.answers"},
        {"server.outcomes", "client.protocol"},
        {"server.stepping", "client.door"},
        {"server.acts", "client.aio", "client.client"},
        {"server.shard"},
        {"server.protocol", "server.port_zmq"},
        {"server.loop"},
        {"server.process"},
    ],
}


def imported(path: Path) -> set[tuple[str, ...]]:
    """Ours that a module imports, also for its types alone: (room, module, name)."""
    found: set[tuple[str, ...]] = set()

    class Imports(ast.NodeVisitor):
        def visit_Import(self, node: ast.Import) -> None:
            names = [tuple(a.name.split(".")) for a in node.names]
            found.update(n[1:] for n in names if n[0] == "streamlstm" and len(n) > 1)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: a relative import"
            parts = tuple((node.module or "").split("."))
            if parts[0] == "streamlstm":
                found.update((*parts[1:], a.name) for a in node.names)

    if path.suffix in (".pyx", ".pxd"):
        return cython_imported(path.read_text())
    Imports().visit(ast.parse(path.read_text()))
    return found


def cython_imported(source: str) -> set[tuple[str, ...]]:
    """The same of a Cython file, by import and by cimport."""
    found: set[tuple[str, ...]] = set()
    names = r"\(([^)]*)\)|([^\n(]+)"
    for module, several, some in re.findall(
        rf"^ *from +([\w.]+) +c?import +(?:{names})", source, re.MULTILINE
    ):
        assert not module.startswith("."), "a relative import"
        room, *parts = module.split(".")
        for name in re.sub("#.*", "", several or some).split(","):
            if room == "streamlstm" and name.strip():
                found.add((*parts, name.split()[0]))
    for module in re.findall(r"^ *c?import +streamlstm\.([\w.]+)", source, re.MULTILINE):
        found.add(tuple(module.split(".")))
    return found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from streamlstm.core.head cimport (\n    a, b,\n)", {("core", "head", "a")}),
        ("    from streamlstm import head as constants  # why", {("head",)}),
        ("cimport streamlstm.core.head", {("core", "head")}),
        ("from libc.math cimport exp\nimport os\n# from streamlstm.engine import Engine", set()),
    ],
)
def test_imports_of_cython_files_are_seen(line, found):
    assert found <= cython_imported(line)
    assert bool(found) == bool(cython_imported(line))


def ours_imported(path: Path) -> set[str]:
    """The rooms of what a module imports."""
    return {parts[0] for parts in imported(path)}


def room_of(path: Path) -> str:
    return within(path).parts[0].removesuffix(".py")


def within(path: Path) -> Path:
    """A file's path inside the package, wherever its source stands."""
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else COMPILED_FROM)


def sources(room: str = "") -> list[Path]:
    """Files of one of the package's rooms, or of all; those of compiled modules too."""
    found = [p for kind in ("*.py", "*.pyi") for p in (PACKAGE / room).rglob(kind)]
    found += [p for kind in ("*.pyx", "*.pxd") for p in (COMPILED_FROM / room).rglob(kind)]
    return sorted(p for p in found if len(within(p).parts) > 1 or p.stem != "__init__")


SOURCES = sources()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(within(p)))
def test_imports_point_downwards(path):
    room = room_of(path)
    above = {
        other
        for other in ours_imported(path)
        if other in FLOOR and other != room and FLOOR[other] >= FLOOR[room]
    }
    assert not above, f"{room} imports {above}, which stand above it"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in SOURCES} <= FLOOR.keys()
    assert {name.split(".")[1] for name in COMPILED} <= FLOOR.keys()


def module_of(path: Path, room: str) -> str:
    """A module's dotted name inside its room; "" for the room itself."""
    parts = within(path).relative_to(room).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("room", INSIDE)
def test_imports_inside_a_room_point_downwards(room):
    floor = {module: n for n, modules in enumerate(INSIDE[room]) for module in modules}
    paths = sources(room)
    assert {module_of(path, room) for path in paths} == floor.keys()
    for path in paths:
        module = module_of(path, room)
        ours = [names[1:] for names in imported(path) if names[0] == room]
        # A module, or what is in one.
        others = {".".join(names if ".".join(names) in floor else names[:-1]) for names in ours}
        above = {other for other in others if floor.get(other, -1) >= floor[module]}
        assert not above, f"{path.name} imports {above}, which stand above it"


def test_the_client_reaches_no_engine():
    """Not even when it is called: no import of the engine's rooms, wherever it stands."""
    for path in [
        *(PACKAGE / "service").glob("*.py"),
        *(PACKAGE / "service" / "client").glob("*.py"),
    ]:
        assert ours_imported(path) <= {"errors", "events", "head", "log", "service", "__version__"}
        inside = {names[1] for names in imported(path) if names[0] == "service"}
        assert inside <= {"client", "operations", "wire"}
