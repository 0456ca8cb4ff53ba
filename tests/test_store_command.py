"""`streamlstm sessions`: what a user does with a state directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamlstm as sl
from networks import stacked
from streamlstm import cli
from streamlstm.store import SessionRow, Store, open_store

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return stacked(3, 8, layers=2)


@pytest.fixture(scope="module")
def state(model: sl.Model) -> sl.State:
    with sl.Engine(model) as engine:
        session = engine.open("twin")
        session.run(np.random.default_rng(1).standard_normal((7, 3)))
        return session.state()


@pytest.fixture
def directory(tmp_path: Path, model: sl.Model, state: sl.State) -> Path:
    """Two models, four sessions, no server."""
    path = tmp_path / "state"
    with closing(open_store(path, "async")) as store:
        for fingerprint in (model.fingerprint, "e" * 64):
            store.model(
                "pump", fingerprint, state.numbers.dtype.name, model.state_size, state.sizes
            )
        numbers = state.numbers.astype(state.numbers.dtype.newbyteorder("<")).tobytes()
        row = SessionRow(1, 1, "pump-1", 4, 99, 7, numbers, b"answers", False)
        store.put([
            row,
            replace(row, id=2, name="pump-2", quarantined=True),
            replace(row, id=3, name="valve\x1b[2J"),
            replace(row, id=4, model=2, name="pump-2", seq=8),
        ])  # fmt: skip
        store.commit()
    return path


@pytest.fixture
def server(directory: Path) -> Iterator[Store]:
    """What a running server holds: the lock, and three records that no row has yet."""
    with closing(open_store(directory, "async")) as store:
        for _ in range(3):
            store.append(b"record")
        store.commit()
        yield store


def sessions(capsys: Capture, *argv: Any) -> tuple[int, str, str]:
    code = cli.main(["sessions", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: Capture, *argv: Any) -> str:
    """The one sentence."""
    code, out, err = sessions(capsys, *argv)
    assert (code, out) == (1, "")
    assert err.startswith("streamlstm: ")
    assert err.count("\n") == 1
    return err


def test_list(directory: Path, capsys: Capture) -> None:
    code, out, err = sessions(capsys, directory)
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["MODEL", "SEQ", "EPOCH", "BYTES", "NAME"]
    assert lines[0].split() == ["pump", "7", "4", "135", "pump-1"]
    assert lines[1].split() == ["pump", "7", "4", "135", "pump-2", "(quarantined)"]
    assert lines[2].endswith(r"'valve\x1b[2J'")
    assert len(lines) == 4


def test_list_some(directory: Path, model: sl.Model, capsys: Capture) -> None:
    def names(*argv: str) -> list[tuple[str, int]]:
        code, out, _ = sessions(capsys, directory, "--json", *argv)
        assert code == 0
        return [(row["name"], row["seq"]) for row in map(json.loads, out.splitlines())]

    assert len(names()) == 4
    assert names("--name", "pump-*") == [("pump-1", 7), ("pump-2", 7), ("pump-2", 8)]
    assert names("--name", "pump-?", "--model", "eee") == [("pump-2", 8)]
    assert names("--model", model.fingerprint[:12], "--name", "*2") == [("pump-2", 7)]
    assert names("--name", "x") == []
    assert "no model valve; the directory has pump (" in refused(
        capsys, directory, "--model", "valve"
    )


def test_show(directory: Path, model: sl.Model, state: sl.State, capsys: Capture) -> None:
    code, out, err = sessions(capsys, directory, "pump-1")
    assert (code, err) == (0, "")
    for word in (model.fingerprint, "float32", "h[0]", "c[1]", "seq          7", "8 units"):
        assert word in out
    code, out, _ = sessions(capsys, directory, "pump-1", "--json")
    shown = json.loads(out)
    parts = {part["part"]: part for part in shown["state"]}
    assert list(parts) == ["h[0]", "c[0]", "h[1]", "c[1]"]
    assert parts["c[1]"]["max"] == state.c(1).max()
    assert parts["h[0]"]["norm"] == pytest.approx(float(np.linalg.norm(state.h(0))))
    assert (shown["epoch"], shown["quarantined"]) == (4, False)


def test_export(
    directory: Path, model: sl.Model, state: sl.State, tmp_path: Path, capsys: Capture
) -> None:
    """A session goes on from an exported state as if nothing had happened."""
    file = tmp_path / "pump-1.state"
    code, out, _ = sessions(capsys, directory, "pump-1", "--export", file)
    assert (code, out) == (0, f"{file}: state of pump-1 at seq 7\n")
    with sl.Engine(model) as engine:
        session, twin = engine.open("a"), engine.open("b")
        session.restore(sl.State.from_bytes(file.read_bytes()))
        twin.restore(state)
        assert session.step([1, 2, 3]).tobytes() == twin.step([1, 2, 3]).tobytes()
    assert sl.State.from_bytes(file.read_bytes()).seq == 7
    assert "there is no folder" in refused(
        capsys, directory, "pump-1", "--export", tmp_path / "nowhere" / "x"
    )


def test_an_export_goes_over_its_own_file_only(
    directory: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "a.state"
    for _ in range(2):
        assert sessions(capsys, directory, "pump-1", "--export", file)[0] == 0
    kept = file.read_bytes()
    # Of another session; and of nobody's.
    assert "is there, and is not" in refused(
        capsys, directory, "pump-2", "--model", "eee", "--export", file
    )
    assert file.read_bytes() == kept
    file.write_text("mine")
    assert "is there, and is not" in refused(capsys, directory, "pump-1", "--export", file)
    assert file.read_text() == "mine"
    assert sessions(capsys, directory, "pump-1", "--export", file, "--force")[0] == 0
    assert file.read_bytes() == kept


def test_names_do_not_move_the_cursor(directory: Path, tmp_path: Path, capsys: Capture) -> None:
    name = "valve\x1b[2J"
    for argv in ([], [name], [name, "--export", tmp_path / "x"], [name, "--remove"], [name]):
        _, out, err = sessions(capsys, directory, *argv)
        assert "\x1b" not in out + err
        assert "valve\\x1b[2J" in out + err


def test_one_is_no_plural(directory: Path, capsys: Capture) -> None:
    with closing(open_store(directory, "async")) as store:
        store.delete([2, 3, 4])
        store.append(b"record")
        store.commit()
    _, out, err = sessions(capsys, directory, "--check")
    assert out == "1 session and 1 journal record, all whole\n"
    assert err == "streamlstm: the journal has 1 record behind the rows\n"
    assert "has 1 record to be replayed" in refused(capsys, directory, "pump-1", "--remove")


def test_which_session(directory: Path, capsys: Capture) -> None:
    assert "no session 'pump-9' is stored; list without" in refused(capsys, directory, "pump-9")
    assert "several models have a session 'pump-2'" in refused(capsys, directory, "pump-2")
    assert "no session 'pump-1' of model eee" in refused(
        capsys, directory, "pump-1", "--model", "eee"
    )
    assert "no model x" in refused(capsys, directory, "pump-1", "--model", "x")
    assert sessions(capsys, directory, "pump-2", "--model", "eee")[0] == 0


@pytest.mark.usefixtures("server")
def test_beside_a_server(directory: Path, capsys: Capture) -> None:
    for argv in ([], ["pump-1"], ["--check"], ["pump-1", "--json"]):
        code, out, err = sessions(capsys, directory, *argv)
        assert code == 0
        assert out
        assert "rows are as of its last checkpoint; the journal has 3 records behind" in err
    assert "(it may be in the journal still)" in refused(capsys, directory, "pump-9")
    for argv in (["pump-1", "--remove"], ["--accept-loss"]):
        assert "is in use by process" in refused(capsys, directory, *argv)


def test_remove(directory: Path, server: Store, capsys: Capture) -> None:
    server.close()
    assert "has 3 records to be replayed" in refused(capsys, directory, "pump-1", "--remove")
    with closing(open_store(directory, "async")) as store:
        store.trim(3)
        store.commit()
    code, out, _ = sessions(capsys, directory, "pump-1", "--remove")
    assert (code, out) == (0, "removed pump-1 of model pump, seq 7\n")
    assert "no session 'pump-1'" in refused(capsys, directory, "pump-1", "--remove")
    assert len(sessions(capsys, directory, "--json")[1].splitlines()) == 3


def test_check_and_accept_loss(directory: Path, capsys: Capture) -> None:
    assert sessions(capsys, directory, "--check")[1] == (
        "4 sessions and 0 journal records, all whole\n"
    )
    assert "nothing in" in sessions(capsys, directory, "--accept-loss")[1]
    database = directory / "sessions.db"
    data = database.read_bytes()
    at = data.index(b"answers", data.index(b"pump-1"))
    database.write_bytes(data[:at] + b"A" + data[at + 1 :])
    code, out, err = sessions(capsys, directory, "--check")
    assert code == 1
    assert out.count("\n") == err.count("\n") == 1
    assert "is damaged: its checksum does not hold" in out
    assert "1 problem in" in err
    code, out, _ = sessions(capsys, directory, "--accept-loss")
    assert code == 0
    assert out.startswith("lost: ")
    assert f"the damaged files are in {directory}/damaged-1" in out
    assert sessions(capsys, directory, "--check")[1].startswith("3 sessions")


def test_no_directory(tmp_path: Path, capsys: Capture) -> None:
    for argv in ([], ["a"], ["--check"], ["a", "--remove"], ["--accept-loss"]):
        assert "is no state directory" in refused(capsys, tmp_path / "x", *argv)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["d", "--export", "f"],
        ["d", "--remove"],
        ["d", "a", "--check"],
        ["d", "a", "--accept-loss"],
        ["d", "a", "--name", "b"],
    ],
)
def test_wrong_usage(argv: list[str], capsys: Capture) -> None:
    assert sessions(capsys, *argv)[0] == 2
