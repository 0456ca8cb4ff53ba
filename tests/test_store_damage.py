"""Damaged files: an error, or what was committed before the damage; never anything else."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from streamlstm.errors import StoreDamagedError, StoreError
from streamlstm.store import SessionRow, Store, open_store, read_store
from streamlstm.store import directory as store_directory
from streamlstm.store.salvage import accept_loss
from streamlstm.store.wal import FRAME_HEADER_BYTES, HEADER_BYTES, find_damage

FRAME = FRAME_HEADER_BYTES + store_directory.PAGE_BYTES
COMMITS = 15


def a_row(id: int, seq: int) -> SessionRow:
    return SessionRow(id, 1, f"s-{id}", 1, id, seq, bytes([id, seq]) * 400, b"", False)


def commit(store: Store, k: int) -> None:
    """Commit number k: a record, sometimes a large one, and at times a checkpoint of rows."""
    last = store.append(bytes([k]) * (9000 if k % 3 else 60))
    if k % 5 == 4:
        store.put(a_row(id, k) for id in range(1, 9))
        store.trim(last - 2)
    store.commit()


def content(store: Store) -> Any:
    """All that is in a store, everything checked."""
    rows = [store.get(id) for id, _ in store.names(1)] if store.models else []
    assert all(row and store.find(1, row.name) == row for row in rows)
    return store.trimmed, rows, list(store.journal())


class Recorded:
    """A directory after COMMITS commits, its log never begun anew, and what each left.

    ends: the log's size after each commit. contents: what was there then.
    """

    def __init__(self, directory: Path) -> None:
        self.ends: list[int] = []
        self.contents: list[Any] = []
        with closing(open_store(directory / "live", "sync")) as store:
            store._connection.execute("PRAGMA wal_autocheckpoint=0")
            store.model("pump", "f" * 64, "float32", 200, ((100, 100),))
            store.commit()
            # What is in the main file can't be damaged by damage of the log.
            store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.contents.append(content(store))
            self.ends.append(0)
            for k in range(COMMITS):
                commit(store, k)
                self.ends.append((directory / "live" / "sessions.db-wal").stat().st_size)
                self.contents.append(content(store))
            self.database = (directory / "live" / "sessions.db").read_bytes()
            self.log = (directory / "live" / "sessions.db-wal").read_bytes()
            store._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self.database_after_checkpoint = (directory / "live" / "sessions.db").read_bytes()
        self.directory = directory / "reopened"

    def reopened(self, log: bytes, database: bytes | None = None) -> Any:
        """What a directory with this log holds. Raises StoreDamagedError."""
        self.lay(log, database)
        with closing(read_store(self.directory)) as store:  # open_store takes many fsyncs
            return content(store)

    def lay(self, log: bytes, database: bytes | None = None) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        (self.directory / "sessions.db").write_bytes(database or self.database)
        (self.directory / "sessions.db-wal").write_bytes(log)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded"))


def flipped(data: bytes, at: int, bit: int = 2) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def frames(recorded: Recorded) -> range:
    """Where the log's frames begin."""
    return range(HEADER_BYTES, len(recorded.log), FRAME)


@pytest.mark.untraced
def test_a_log_that_is_cut(recorded: Recorded) -> None:
    """At each frame's boundary, and in between: every whole commit is there, nothing else."""
    cuts = {0, 1, HEADER_BYTES - 1, HEADER_BYTES, len(recorded.log)}
    for start in frames(recorded):
        cuts |= {start - 1, start, start + 1, start + 20, start + FRAME_HEADER_BYTES, start + 3000}
    for cut in sorted(cuts):
        whole = sum(end <= cut for end in recorded.ends)
        assert recorded.reopened(recorded.log[:cut]) == recorded.contents[whole - 1], cut


def test_a_cut_end_is_written_over(recorded: Recorded) -> None:
    """A server goes on after a torn commit, and is opened once more."""
    cut = recorded.ends[10] + FRAME // 2
    recorded.lay(recorded.log[:cut])
    with closing(open_store(recorded.directory, "sync")) as store:
        commit(store, 10)
        expected = content(store)
    assert expected == recorded.contents[11]
    with closing(open_store(recorded.directory, "sync")) as store:
        assert content(store) == expected


@pytest.mark.untraced
@pytest.mark.parametrize("checkpointed", [False, True], ids=["log only", "copied to the database"])
def test_a_flipped_bit_in_the_log(recorded: Recorded, checkpointed: bool) -> None:
    """In each frame's header fields and payload."""
    database = recorded.database_after_checkpoint if checkpointed else recorded.database
    refused = 0
    for start in frames(recorded):
        before = recorded.contents[sum(end <= start for end in recorded.ends) - 1]
        for at in (1, 6, 9, 13, 17, 22, FRAME - 1):
            try:
                got = recorded.reopened(flipped(recorded.log, start + at), database)
            except StoreDamagedError:
                refused += 1
            else:
                # Only of the last commits can nobody tell whether they were torn.
                assert start >= recorded.ends[-3], start
                assert got == before or (checkpointed and got == recorded.contents[-1]), start
    assert refused > 0.8 * 7 * len(frames(recorded))


def test_the_error_says_what_and_how_much(recorded: Recorded) -> None:
    log = flipped(recorded.log, recorded.ends[11] + 300)
    with pytest.raises(
        StoreDamagedError,
        match=r"sessions.db-wal is damaged at frame \d+, and 4 commits from there on can't be "
        r"read; bring back a copy .* sessions .*/reopened --accept-loss",
    ):
        recorded.reopened(log)
    with pytest.raises(StoreDamagedError, match="--accept-loss"):
        read_store(recorded.directory)
    assert (recorded.directory / "sessions.db-wal").read_bytes() == log  # nothing was changed


def test_a_last_commit_that_a_checkpoint_copied(recorded: Recorded) -> None:
    """Without it the log's older pages would be mixed with the database's newer ones."""
    log = flipped(recorded.log, recorded.ends[-2] + FRAME + 300)
    assert recorded.reopened(log) == recorded.contents[-2]
    with pytest.raises(StoreDamagedError, match="in a commit that the database has already"):
        recorded.reopened(log, recorded.database_after_checkpoint)


def test_the_header_of_the_log(recorded: Recorded) -> None:
    for at in range(HEADER_BYTES):
        with pytest.raises(StoreDamagedError, match=r"is damaged in its header, and \d+ commits"):
            recorded.reopened(flipped(recorded.log, at))


def test_frames_of_an_earlier_log_are_no_damage(tmp_path: Path) -> None:
    """The log begins anew after a checkpoint; what lies behind its end has other salts."""
    with closing(open_store(tmp_path / "live", "sync")) as store:
        store.model("pump", "f" * 64, "float32", 200, ((100, 100),))
        for k in range(20):
            commit(store, k)
        store._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        commit(store, 20)
        expected = content(store)
        for name in ("sessions.db", "sessions.db-wal"):
            shutil.copy(tmp_path / "live" / name, tmp_path / name)
    assert (tmp_path / "sessions.db-wal").stat().st_size > 30 * FRAME
    with closing(open_store(tmp_path, "sync")) as store:
        assert content(store) == expected


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_logs_of_any_page_size(tmp_path: Path, page_size: int) -> None:
    """All checksums are recomputed as SQLite computes them."""
    database = tmp_path / "any.db"
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in (f"page_size={page_size}", "journal_mode=WAL", "wal_autocheckpoint=0"):
            connection.execute(f"PRAGMA {statement}")
        connection.execute("CREATE TABLE t (a)")
        for k in range(1, 30):
            connection.execute("INSERT INTO t VALUES (randomblob(?))", (k * 300,))
        shutil.copy(database, copy)
        shutil.copy(f"{database}-wal", f"{copy}-wal")
    log = Path(f"{copy}-wal")
    assert find_damage(copy) is None
    data = log.read_bytes()
    log.write_bytes(flipped(data, len(data) // 2))
    damage = find_damage(copy)
    assert damage
    assert damage.frame == (len(data) // 2 - HEADER_BYTES) // (page_size + FRAME_HEADER_BYTES) + 1


# --- the main file --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("closed") / "closed"
    with closing(open_store(directory, "sync")) as store:
        store.model("pump", "f" * 64, "float32", 200, ((100, 100),))
        store.put(a_row(id, 5) for id in range(1, 201))
        for k in range(12):
            store.append(bytes([k]) * 2000)
        store.trim(3)
        store.commit()
    assert not (directory / "sessions.db-wal").exists()
    return directory


@pytest.fixture
def closed(closed_once: Path, tmp_path: Path) -> Path:
    """A directory whose log is in the main file: 200 sessions, a journal of 9 records."""
    return shutil.copytree(closed_once, tmp_path / "closed")


def edited(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "sessions.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def raises(directory: Path, use: Callable[[Store], Any], match: str) -> None:
    with pytest.raises(StoreDamagedError, match=match):  # noqa: SIM117
        with closing(open_store(directory, "sync")) as store:
            use(store)


@pytest.mark.parametrize(
    "change",
    [
        "state=zeroblob(800)",
        "state=substr(state, 2)",
        "state=NULL",
        "state='text'",
        "answers=x'00'",
        "epoch=epoch+1",
        "epoch='x'",
        "token=0",
        "seq=seq-1",
        "quarantined=1",
        "quarantined=2",
        "checksum=checksum+1",
        "name_checksum=0",
        # Content that went from one column to the next.
        "answers=substr(state, 1, 10), state=substr(state, 11)",
    ],
)
def test_every_column_of_a_row_is_checked(closed: Path, change: str) -> None:
    edited(closed, f"UPDATE sessions SET {change} WHERE id=7")
    raises(closed, lambda store: store.get(7), r"session 7 \('s-7'\) is damaged: .*--accept-loss")
    raises(closed, lambda store: store.find(1, "s-7"), "session 7 .* is damaged")
    with closing(open_store(closed, "sync")) as store:
        assert store.get(8) == a_row(8, 5)
        assert len(list(store.check())) == 1


@pytest.mark.parametrize("change", ["name='x'", "name=x'ff'", "model=2", "id=999"])
def test_rows_that_became_another_session(closed: Path, change: str) -> None:
    edited(closed, f"UPDATE sessions SET {change} WHERE id=7")
    raises(closed, lambda store: list(store.names(1)), "session (7|999) .* is damaged")
    with closing(open_store(closed, "sync")) as store:
        assert len(list(store.check())) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("UPDATE journal SET record=zeroblob(2000) WHERE id=6", "journal record 6 is damaged"),
        ("UPDATE journal SET record=NULL WHERE id=6", "journal record 6 is damaged"),
        ("UPDATE journal SET checksum='x' WHERE id=6", "journal record 6 is damaged"),
        ("UPDATE journal SET id=99 WHERE id=12", "journal record 12 is damaged: it is missing"),
        ("DELETE FROM journal WHERE id=6", "record 6 is damaged: it is missing, the next is 7"),
        ("DELETE FROM journal WHERE id<6", "record 4 is damaged: it is missing, the next is 6"),
        ("UPDATE journal_start SET trimmed=4", "the journal's start is damaged"),
        ("DELETE FROM journal_start", "the journal's start is damaged"),
        ("UPDATE models SET dtype='float64'", r"model 1 \('pump'\) is damaged"),
        ("UPDATE models SET name=NULL", "model 1 .* is damaged"),
    ],
)
def test_journal_and_models_are_checked(closed: Path, change: str, match: str) -> None:
    edited(closed, change)
    raises(closed, lambda store: list(store.journal()), match)


@pytest.mark.untraced
def test_flipped_bits_in_the_main_file(closed: Path) -> None:
    """Anywhere: what is read is right, or an error. `check` finds what is not there any more."""
    with closing(open_store(closed, "sync")) as store:
        rows, records = {r.id: r for r in content(store)[1]}, dict(store.journal())
    good = (closed / "sessions.db").read_bytes()
    draw = random.Random(1)
    found = 0
    for _ in range(400):
        at = draw.randrange(len(good))
        (closed / "sessions.db").write_bytes(flipped(good, at, draw.randrange(8)))
        got_rows, got_records, problems = {}, {}, ["it can't be opened"]
        with suppress(StoreError), closing(read_store(closed)) as store:
            problems = list(store.check())
            for id in rows:
                with suppress(StoreDamagedError):
                    if row := store.get(id):
                        got_rows[id] = row
            with suppress(StoreDamagedError):
                for id, record in store.journal():
                    got_records[id] = record
        assert got_rows.items() <= rows.items(), at
        assert got_records.items() <= records.items(), at
        if (got_rows, got_records) != (rows, records):
            assert problems, at
            found += 1
    assert found > 200


# --- the way out ----------------------------------------------------------------------------------


def test_nothing_is_done_without_damage(closed: Path, tmp_path: Path) -> None:
    before = (closed / "sessions.db").read_bytes()
    assert accept_loss(closed) is None
    assert (closed / "sessions.db").read_bytes() == before
    with pytest.raises(StoreError, match="is no state directory"):
        accept_loss(tmp_path)


def test_loss_of_rows_and_records(closed: Path) -> None:
    edited(
        closed,
        "UPDATE sessions SET state=NULL WHERE id=7",
        "UPDATE journal SET record=NULL WHERE id=9",
    )
    damaged = (closed / "sessions.db").read_bytes()
    done = accept_loss(closed)
    assert done
    kept, lost = done
    assert kept == closed / "damaged-1"
    assert (kept / "sessions.db").read_bytes() == damaged
    assert len(lost) == 2
    assert "session 7 ('s-7') is damaged" in lost[0]
    assert lost[1].startswith("4 records of the journal, from the first that is damaged")
    with closing(open_store(closed, "sync")) as store:
        assert list(store.check()) == []
        assert store.incomplete
        trimmed, rows, records = content(store)
        assert trimmed == 3
        assert rows == [a_row(id, 5) for id in range(1, 201) if id != 7]
        assert [id for id, _ in records] == [4, 5, 6, 7, 8]
        store.trim(store.append(b"next"))
        store.commit()
        assert not store.incomplete
    assert accept_loss(closed) is None
    edited(closed, "UPDATE sessions SET name='x' WHERE id=8")
    again = accept_loss(closed)
    assert again
    assert again[0] == closed / "damaged-2"


def test_loss_of_what_only_leads_to_rows(closed: Path) -> None:
    """Pages of the table that can't be gone through, a model, and the journal's start."""
    edited(
        closed, "UPDATE journal_start SET trimmed=1", "INSERT INTO models VALUES (2,1,1,1,1,1,1,1)"
    )
    with closing(sqlite3.connect(closed / "sessions.db")) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name='sessions'")
        (page,) = root.fetchone()
    data = bytearray((closed / "sessions.db").read_bytes())
    at = (page - 1) * store_directory.PAGE_BYTES
    cell = at + int.from_bytes(data[at + 12 + 40 : at + 12 + 42], "big")
    data[cell : cell + 4] = b"\xff" * 4  # the child page of a cell in the middle
    (closed / "sessions.db").write_bytes(data)
    done = accept_loss(closed)
    assert done
    text = "\n".join(done[1])
    for part in ("model 2", "the journal's start", "sessions above id", "can't be read"):
        assert part in text
    with closing(open_store(closed, "sync")) as store:
        trimmed, rows, records = content(store)
        assert trimmed == 3
        assert len(records) == 9
        ids = [row.id for row in rows]
        assert rows == [a_row(id, 5) for id in ids]
        assert 150 < len(ids) < 200
        assert {1, 200} <= set(ids)


def test_loss_of_commits(recorded: Recorded) -> None:
    recorded.lay(flipped(recorded.log, recorded.ends[3] + 200))
    done = accept_loss(recorded.directory)
    assert done
    assert len(done[1]) == 1
    assert "12 commits from there on can't be read" in done[1][0]
    assert (done[0] / "sessions.db-wal").stat().st_size == len(recorded.log)
    with closing(open_store(recorded.directory, "sync")) as store:
        assert content(store) == recorded.contents[3]


def test_accepting_loss_may_be_broken_off(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(closed, "UPDATE sessions SET state=NULL WHERE id=7")
    good = closed.with_name("again")
    for step in range(6):
        shutil.rmtree(good, ignore_errors=True)
        shutil.copytree(closed, good)
        with monkeypatch.context() as patch:
            calls = iter(range(100))

            def sync(_: Path, calls: Any = calls, step: int = step) -> None:
                if next(calls) == step:
                    raise KeyboardInterrupt

            patch.setattr("streamlstm.store.salvage.sync_directory", sync)
            with suppress(KeyboardInterrupt):
                accept_loss(good)
        if (good / "accept-loss").exists():
            with pytest.raises(StoreDamagedError, match="did not come to its end; run it again"):
                open_store(good, "sync")
        accept_loss(good)
        with closing(open_store(good, "sync")) as store:
            assert store.count(1) == 199
            assert list(store.check()) == []


def test_what_can_not_be_read_at_all(closed: Path) -> None:
    data = (closed / "sessions.db").read_bytes()
    (closed / "sessions.db").write_bytes(b"\xff" * 8192 + data[8192:])
    with pytest.raises(StoreDamagedError, match=r"nothing of .* can be read; bring back a copy"):
        accept_loss(closed)


@pytest.mark.parametrize("way", ["missing", "empty"])
def test_a_log_that_vanished_after_a_crash_is_noticed(tmp_path, way):
    directory = tmp_path / "state"
    crash = (
        "import os, sys\nfrom pathlib import Path\nfrom streamlstm.store import open_store\n"
        "store = open_store(Path(sys.argv[1]), 'async')\n"
        "store.append(b'event')\nstore.commit()\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", crash, str(directory)], check=True, cwd=tmp_path)
    log = directory / "sessions.db-wal"
    if way == "missing":
        log.unlink()
    else:
        log.write_bytes(b"")
    with pytest.raises(StoreDamagedError, match=r"last commits are gone.*--accept-loss"):
        open_store(directory, "async")
    assert accept_loss(directory) is not None
    open_store(directory, "async").close()
    assert not (directory / "running").exists()
    open_store(directory, "async").close()  # after a clean end nothing is missed


KILLED_AT = {
    "once it is open": "",
    "before it is begun": "Store.begin_log = lambda store: os._exit(0)\n",
    "in its close": "close = Reader.close\n"
    "Reader.close = lambda store: (close(store), os._exit(0))\n",
}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_whoever_commits_nothing_and_is_killed_leaves_nothing_to_be_missed(tmp_path, moment):
    directory = tmp_path / "state"
    crash = (
        "import os, sys\nfrom pathlib import Path\n"
        "from streamlstm.store import Reader, Store, open_store\n"
        f"{KILLED_AT[moment]}"
        "store = open_store(Path(sys.argv[1]), 'async')\n"
        f"{'store.close()' if moment == 'in its close' else ''}\nos._exit(0)\n"
    )
    for _ in range(2):  # and again, in the directory that a killed one left
        subprocess.run([sys.executable, "-c", crash, str(directory)], check=True, cwd=tmp_path)
    with closing(open_store(directory, "async")) as store:
        assert (directory / "sessions.db-wal").stat().st_size
        assert store.records == 0


def test_a_lock_file_of_another_program_is_left_alone(tmp_path):
    (tmp_path / "lock").write_text("precious")
    with pytest.raises(StoreError, match="lock is a file of another program: give a directory"):
        open_store(tmp_path, "async")
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    assert (tmp_path / "lock").read_text() == "precious"
