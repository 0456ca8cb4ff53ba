"""The store: rows and journal come back as they were put in, or an error says why not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlstm.errors import StoreDamagedError, StoreError, StoreMismatchError
from streamlstm.store import SessionRow, Store, open_store, read_store
from streamlstm.store import directory as store_directory
from streamlstm.store.reading import RECORDS_AT_ONCE

PUMP = ("pump", "f" * 64, "float32", 4, ((2, 2),))


def a_row(id: int, model: int = 1, name: str = "", seq: int = 7) -> SessionRow:
    state, answers = bytes([id % 256]) * 16, b"answers" * (id % 5)
    return SessionRow(id, model, name or f"s-{id}", 3, 2**62 + id, seq, state, answers, False)


def in_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(tmp_path / "state", "async")) as opened:
        opened.model(*PUMP)
        opened.commit()
        yield opened


def test_rows_round_trip(store: Store) -> None:
    rows = [a_row(3), a_row(1), replace(a_row(2), quarantined=True, name="über\n\0'")]
    store.put(rows)
    for row in rows:  # seen before the commit
        assert store.get(row.id) == row
        assert store.find(1, row.name) == row
    store.commit()
    assert list(store.names(1)) == sorted((r.id, r.name) for r in rows)
    assert (store.count(1), store.count(2), store.last_id) == (3, 0, 3)
    later = replace(rows[0], seq=8, epoch=4, state=b"", answers=b"x" * 50_000)
    store.put([later])
    assert store.get(3) == later
    store.delete([1, 3, 99])
    assert list(store.names(1)) == [(2, rows[2].name)]
    assert store.get(1) is store.find(1, "s-1") is store.find(1, "\ud800") is None
    assert list(store.check()) == []


def test_more_rows_than_are_read_at_once(store: Store) -> None:
    store.put(a_row(id) for id in range(1, 2502))
    for id, _ in store.names(1):
        store.delete([id])  # while they are gone through
    assert store.count(1) == 0


def test_journal_round_trip(store: Store) -> None:
    records = [bytes([k]) * k for k in range(1, 41)]
    assert [store.append(r) for r in records] == list(range(1, 41))
    assert list(store.journal()) == list(enumerate(records, 1))
    store.trim(30)
    assert list(store.journal()) == list(enumerate(records, 1))[30:]
    assert (store.trimmed, store.records) == (30, 10)
    store.trim(40)
    assert list(store.journal()) == []
    assert store.append(b"next") == 41
    for through in (39, 42):
        with pytest.raises(StoreError, match=f"can't trim the journal through record {through}"):
            store.trim(through)


def test_journal_ids_go_on_after_reopening(tmp_path: Path) -> None:
    for expected in ([1, 2], [3, 4], [5, 6]):
        with closing(open_store(tmp_path, "sync")) as store:
            assert [store.append(b"a"), store.append(b"b")] == expected
            store.trim(expected[1])
            store.commit()


def test_models(tmp_path: Path) -> None:
    with closing(open_store(tmp_path, "async")) as store:
        first = store.model(*PUMP)
        assert store.model(*PUMP) == first
        second = store.model("pump", "e" * 64, "float64", 8, ((1, 1), (6,)))
        assert second != first
        assert store.arithmetic(first) == ""
        store.set_arithmetic(first, "fused-1")
        store.put([a_row(1, first, "a"), a_row(2, second, "a"), a_row(3, second, "b")])
        store.commit()
        assert store.find_other("pump", "b", first) == "e" * 64
        assert store.find_other("pump", "b", second) is None
        assert store.find_other("valve", "b", first) is None
        assert store.find(first, "a").id == 1
        with pytest.raises(StoreMismatchError, match="model pump with a state of 4 float32"):
            store.model("pump", "f" * 64, "float32", 5)
    with closing(open_store(tmp_path, "async")) as store:
        assert (store.arithmetic(first), store.arithmetic(second)) == ("fused-1", "")
        assert [m.sizes for m in store.models] == [((2, 2),), ((1, 1), (6,))]


def test_what_is_not_committed_is_not_there(tmp_path: Path) -> None:
    with closing(open_store(tmp_path, "async")) as store:
        store.commit()  # nothing to commit
        store.put([a_row(1)])
        store.append(b"a")
        store.commit()
        store.put([a_row(2)])
        store.append(b"b")
        store.trim(1)
    with closing(open_store(tmp_path, "async")) as store:
        assert store.last_id == 1
        assert list(store.journal()) == [(1, b"a")]


def test_a_connection_outlives_its_store() -> None:
    """As a simulated disk outlives a simulated server."""
    connection = in_memory()
    store = Store(connection, "async")
    store.append(b"a")
    store.commit()
    store.append(b"b")
    connection.rollback()
    store = Store(connection, "sync")
    assert list(store.journal()) == [(1, b"a")]
    assert store.append(b"c") == 2


def test_names_and_ids_are_one_to_one(store: Store) -> None:
    store.put([a_row(1, name="a"), a_row(2, name="b")])
    store.commit()
    with pytest.raises(StoreError, match="UNIQUE constraint failed"):
        store.put([a_row(3, name="a")])
    with pytest.raises(StoreError, match="no write after a failed one"):
        store.append(b"x")
    store = Store(store._connection, "async")
    with pytest.raises(StoreError, match="an id was put with another name or model"):
        store.put([a_row(2, name="c")])
    store = Store(store._connection, "async")
    store.delete([1])
    store.put([a_row(3, name="a")])


NUMBERS = st.integers(0, 2**63 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
ROWS = st.builds(
    SessionRow,
    st.integers(1, 2**40), st.just(1), NAMES, NUMBERS, NUMBERS, NUMBERS,
    st.binary(max_size=300), st.binary(max_size=300), st.booleans(),
)  # fmt: skip


@given(st.lists(ROWS, unique_by=(lambda r: r.id, lambda r: r.name)), st.lists(st.binary()))
def test_any_rows_and_records(rows: list[SessionRow], records: list[bytes]) -> None:
    connection = in_memory()
    store = Store(connection, "async")
    store.model(*PUMP)
    store.put(rows)
    for record in records:
        store.append(record)
    store.commit()
    store = Store(connection, "async")
    assert {store.get(r.id) for r in rows} == set(rows) == {store.find(1, r.name) for r in rows}
    assert list(store.names(1)) == sorted((r.id, r.name) for r in rows)
    assert [r for _, r in store.journal()] == records
    assert list(store.check()) == []
    connection.close()


class TestOpening:
    def test_private(self, tmp_path: Path) -> None:
        directory = tmp_path / "new" / "state"
        with closing(open_store(directory, "async")) as store:
            store.append(b"a")
            store.commit()
            assert directory.stat().st_mode & 0o777 == 0o700
            assert all(p.stat().st_mode & 0o077 == 0 for p in directory.iterdir())

    def test_one_process_at_a_time(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_directory, "LOCK_TRIES", 2)
        with pytest.raises(StoreError, match=f"is in use by process {os.getpid()}; stop that"):
            open_store(tmp_path / "state", "async")
        assert store_directory.server_of(tmp_path / "state") == str(os.getpid())
        store.close()
        assert store_directory.server_of(tmp_path / "state") is None
        open_store(tmp_path / "state", "async").close()

    def test_reading_beside_the_server(self, store: Store, tmp_path: Path) -> None:
        store.put([a_row(1)])
        store.commit()
        with closing(read_store(tmp_path / "state")) as reader:
            store.put([a_row(2)])
            store.commit()
            assert list(reader.names(1)) == [(1, "s-1")]  # as it was when it was opened
        with closing(read_store(tmp_path / "state")) as reader:
            assert list(reader.names(1)) == [(1, "s-1"), (2, "s-2")]

    def test_what_is_read_fits_together_whatever_the_server_does_meanwhile(
        self, store: Store, tmp_path: Path
    ) -> None:
        last = 0
        for _ in range(2 * RECORDS_AT_ONCE):
            last = store.append(b"a")
        store.commit()
        with closing(read_store(tmp_path / "state")) as reader:
            journal = reader.journal()
            read = [next(journal)]
            store.trim(last)  # the server's checkpoint, between two pages of the reader
            store.append(b"b")
            store.commit()
            assert [*read, *journal] == [(id, b"a") for id in range(1, last + 1)]
            assert list(reader.check()) == []

    def test_a_database_without_tables(self, tmp_path: Path) -> None:
        (tmp_path / "sessions.db").touch()
        with pytest.raises(StoreError, match="holds nothing yet: no server has used it"):
            read_store(tmp_path)

    def test_reading_after_a_crash(self, store: Store, tmp_path: Path) -> None:
        store.put([a_row(1)])
        store.commit()
        crashed = copied(tmp_path / "state", tmp_path / "crashed")
        with closing(read_store(crashed)) as reader:
            assert list(reader.names(1)) == [(1, "s-1")]
        assert (crashed / "sessions.db-wal").stat().st_size

    def test_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="is no state directory"):
            read_store(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="can't be used"):
            open_store(tmp_path / "file", "async")
        with pytest.raises(StoreError, match="choose async or sync"):
            open_store(tmp_path, "always")
        with pytest.raises(StoreError, match="isolation_level"):
            Store(sqlite3.connect(":memory:"), "async")

    def test_a_file_that_is_not_ours(self, tmp_path: Path) -> None:
        database = tmp_path / "sessions.db"
        with closing(sqlite3.connect(database)) as other:
            other.execute("CREATE TABLE t (a)")
        before = database.read_bytes()
        with pytest.raises(StoreError, match="is a database of another program"):
            open_store(tmp_path, "async")
        assert database.read_bytes() == before
        database.write_bytes(b"no database at all" * 100)
        with pytest.raises(StoreDamagedError, match="file is not a database"):
            open_store(tmp_path, "async")

    def test_another_format(self, tmp_path: Path) -> None:
        open_store(tmp_path, "async").close()
        with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
            connection.execute("PRAGMA user_version=2")
        with pytest.raises(StoreError, match="written in format 2, this streamlstm reads format 1"):
            open_store(tmp_path, "async")

    @pytest.mark.usefixtures("store")
    def test_a_log_without_its_database(self, tmp_path: Path) -> None:
        crashed = copied(tmp_path / "state", tmp_path / "crashed")
        (crashed / "sessions.db").unlink()
        with pytest.raises(StoreDamagedError, match="is missing or empty, but its log is there"):
            open_store(crashed, "async")

    def test_ended_while_it_was_created(self, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with closing(open_store(tmp_path, "async")) as store:
            assert store.append(b"a") == 1


def copied(directory: Path, to: Path) -> Path:
    """The files as a crash now would leave them."""
    to.mkdir()
    for name in ("sessions.db", "sessions.db-wal"):
        shutil.copy(directory / name, to / name)
    return to


class TestFullDisk:
    def test_pages(self, store: Store, tmp_path: Path) -> None:
        store.append(b"kept")
        store.commit()
        store._connection.execute("PRAGMA max_page_count=30")
        with pytest.raises(StoreError, match="database or disk is full; free disk space"):
            store.append(b"x" * 200_000)
        with pytest.raises(StoreError, match="no write after a failed one"):
            store.put([a_row(1)])
        store.close()
        with closing(open_store(tmp_path / "state", "async")) as again:
            assert list(again.journal()) == [(1, b"kept")]

    def test_file_size(self, tmp_path: Path) -> None:
        """A write that the OS refuses in the middle of a commit."""
        done = child(
            """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                while True:
                    id = store.append(b"x" * 1000)
                    store.commit()
                    print(id)
            except StoreError as error:
                print(error, file=sys.stderr)
            store.close()
            """,
            tmp_path,
        )
        assert re.search(r"can't be written: .*; free disk space", done.stderr), done.stderr
        with closing(open_store(tmp_path, "async")) as store:
            assert [id for id, _ in store.journal()] == [int(id) for id in done.stdout.split()]


def child(body: str, directory: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Runs `body` in a process of its own, with `store` open in "sync" mode."""
    lines = "\n".join(line.removeprefix(" " * 12) for line in body.splitlines())
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from streamlstm.errors import StoreError\nfrom streamlstm.store import open_store\n"
        "store = open_store(Path(sys.argv[1]), 'sync')\n" + lines
    )
    return subprocess.run(
        [*prefix, sys.executable, "-c", program, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("commits", [1, 2, 50])
def test_killed_between_commits(tmp_path: Path, commits: int) -> None:
    done = child(
        f"""
            for k in range({commits}):
                store.append(b"x" * 100 * k)
                store.commit()
            store.append(b"not committed")
            os.kill(os.getpid(), signal.SIGKILL)
            """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    with closing(open_store(tmp_path, "async")) as store:
        assert [r for _, r in store.journal()] == [b"x" * 100 * k for k in range(commits)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_sync_is_on_the_disk_before_commit_returns(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    done = child(
        """
            for k in range(5):
                store.append(b"x" * 10_000)
                store.commit()
                os.write(1, b"committed")
            store._connection.execute("PRAGMA synchronous=NORMAL")  # as "async" does
            for k in range(5):
                store.append(b"x" * 10_000)
                store.commit()
                os.write(1, b"committed")
            """,
        tmp_path / "state",
        *("strace", "-y", "-o", str(trace), "-e", "trace=pwrite64,write,fsync,fdatasync"),
    )
    assert done.stdout == "committed" * 10, done.stderr
    calls = [c for c in trace.read_text().splitlines() if "-wal>" in c or '"committed"' in c]
    kinds = "".join("S" if "sync(" in c else "C" if "committed" in c else "w" for c in calls)
    # Every commit writes frames, and in "sync" mode nothing is left to be synced after it.
    *synced, last = re.fullmatch(r"[wS]*?((?:w+SC){5})((?:w+C){5})w*S?", kinds).groups()
    assert synced
    assert "S" not in last


def test_the_log_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [s for s in store_directory._SETTINGS if "autocheckpoint" not in s]
    monkeypatch.setattr(store_directory, "_SETTINGS", (*settings, "wal_autocheckpoint=100"))
    wal, sizes = tmp_path / "sessions.db-wal", []
    with closing(open_store(tmp_path, "async")) as store:
        for _ in range(2000):
            id = store.append(b"x" * 5000)
            if id % 50 == 0:
                store.trim(id - 5)
            store.commit()
            sizes.append(wal.stat().st_size)
    assert max(sizes) < 200 * 4200
    assert (tmp_path / "sessions.db").stat().st_size < 200 * 4096
