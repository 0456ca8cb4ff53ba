"""The walls of the service's house, held by reading its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamlstm.service
from streamlstm.service.operations import OPERATIONS

ROOM = Path(streamlstm.service.__file__).parent
PATHS = sorted(ROOM.rglob("*.py"))
FILE_LINES_MAX = 400
CLASS_LINES_MAX = 300


def literals(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOM)))
def test_files_and_classes_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < CLASS_LINES_MAX, node.name


def test_the_name_of_an_operation_is_a_literal_in_one_file() -> None:
    holds = {path.stem for path in PATHS if OPERATIONS.keys() & set(literals(path))}
    assert holds == {"operations"}


def test_the_contract_is_typed() -> None:
    names = {
        node.id for node in ast.walk(ast.parse((ROOM / "contract.py").read_text()))
        if isinstance(node, ast.Name)
    }  # fmt: skip
    assert "Protocol" in names
    assert "Any" not in names


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOM)))
def test_no_import_hides_from_the_floors(path: Path) -> None:
    assert "TYPE_CHECKING" not in path.read_text()
