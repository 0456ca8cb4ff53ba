"""A client process of the kill campaign: feeds sessions until SIGTERM, and can be killed.

python tests/campaigns/feeds.py KIND ADDRESS FOLDER SEED

Change n of a session is given by seed and name alone (`Plan`), so that whoever comes back
after a kill goes on from the seq that `open` returns, and an embedded engine can do the same.
Outputs are appended to the session's tape, flushed, before the feed goes on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

import streamlstm as sl
from streamlstm.errors import ServerTimeoutError, SessionExistsError

Array = NDArray[Any]

INPUTS, OUTPUTS = 4, 2
RESET, RESTORE = 251, 389
"""Changes whose number these divide are a reset or a restore, all others are events."""

FORK: Final = 4 * RESET
"""Before these resets a session of the kind that forks is forked."""

CHILD_EVENTS: Final = 20
RUN_EVENTS: Final = 96
STREAM_EVENTS: Final = 200
SESSIONS: Final = {"singles": 4, "tasks": 16, "stream": 2, "runs": 2, "bulk": 256}
IN_FLIGHT: Final = {"singles": 1, "tasks": 1, "stream": 16, "runs": RUN_EVENTS, "bulk": 1}
"""Events of a session whose outputs a killed client can have lost."""

RESTORED: Final = "restored.state"
"""The file with what is restored."""

CLOSING: Final = -(1 << 62)
BLOCK: Final = 1024
PATIENCE_S: Final = 60.0
CONNECTS: Final = 12


def names(kind: str) -> list[str]:
    return [f"{kind}-{k}" for k in range(SESSIONS[kind])]


def is_closed(child: str) -> bool:
    """Whether a fork is closed when it was fed; half of them are."""
    return int(child.partition("@")[2]) // FORK % 2 == 1


class Plan:
    """The changes of one session, or of the `members` of a bulk; the first one has number 1."""

    def __init__(self, seed: int, name: str, *members: int) -> None:
        self._seed = (seed, crc32(name.encode()))
        self._shape = (BLOCK, *members, INPUTS)
        self._block, self._events = -1, np.empty(0)

    def x(self, n: int) -> Array:
        """Event n: [*members, inputs]."""
        block, row = divmod(n, BLOCK)
        if block != self._block:
            rng = np.random.default_rng((*self._seed, block))
            self._block = block
            self._events = rng.standard_normal(self._shape, np.float32)
        return self._events[row]

    def X(self, first: int, last: int) -> Array:  # noqa: N802
        """Events first to last: [last - first + 1, *members, inputs]."""
        X = np.empty((last + 1 - first, *self._shape[1:]), np.float32)
        for row, n in enumerate(range(first, last + 1)):
            X[row] = self.x(n)
        return X

    @staticmethod
    def kind(n: int) -> str:
        """What change n is: event, reset or restore."""
        return "reset" if n % RESET == 0 else "restore" if n % RESTORE == 0 else "event"

    @staticmethod
    def last_event(n: int) -> int:
        """The last one of the events from n on, before something else comes."""
        return min(-(-n // RESET) * RESET, -(-n // RESTORE) * RESTORE) - 1


def record_of(kind: str) -> np.dtype[Any]:
    """What tapes hold: an output y and its seq.

    seq is -1 - s where a client has opened the session at seq s, CLOSING where it closes it.
    """
    shape = (SESSIONS["bulk"], OUTPUTS) if kind == "bulk" else (OUTPUTS,)
    return np.dtype([("seq", "<i8"), ("y", "<f4", shape)])


def read_tape(path: Path, kind: str = "") -> Any:
    """The records."""
    return np.fromfile(path, record_of(kind))


class Tape:
    """Outputs with their seqs, appended to a file; one tape for a whole bulk."""

    def __init__(self, path: Path, kind: str = "") -> None:
        self._record = np.zeros(1, record_of(kind))
        self._file = path.open("ab")
        size = self._record.nbytes
        self._file.truncate(path.stat().st_size // size * size)  # the kill cut a write short

    def write(self, seq: int, y: Any = 0.0) -> None:
        self._record["seq"], self._record["y"] = seq, y
        self._file.write(self._record.tobytes())
        self._file.flush()

    def write_run(self, first: int, Y: Array) -> None:
        records = np.zeros(len(Y), self._record.dtype)
        records["seq"], records["y"] = np.arange(first, first + len(Y)), Y
        self._file.write(records.tobytes())
        self._file.flush()

    def opened(self, seq: int) -> None:
        self.write(-1 - seq)

    def close(self) -> None:
        self._file.close()


class Feed:
    """One session and its tape."""

    def __init__(self, feeder: Feeder, session: Any) -> None:
        self._feeder = feeder
        self.session = session
        self.plan = Plan(feeder.seed, session.name)
        self.tape = Tape(feeder.folder / session.name)
        self.tape.opened(session.seq)

    def step(self) -> None:
        """One change, by itself; a fork goes before its reset."""
        n = self.session.seq + 1
        kind = self.plan.kind(n)
        if kind == "event":
            self.tape.write(n, self.session.step(self.plan.x(n)))
            return
        if n % FORK == 0 and self.session.name.startswith("singles"):
            self._fork(f"{self.session.name}@{n}")
        self._feeder.change(self.session, kind)

    def _fork(self, name: str) -> None:
        """Fork, feed the fork, perhaps close it; whatever of that was done is not done again."""
        client, folder = self._feeder.client, self._feeder.folder
        if (folder / name).exists() and read_tape(folder / name)["seq"][-1] == CLOSING:
            client.open(name, resume=True).close()  # it may have come to that or not
            return
        try:
            session = self.session.fork(name)
        except SessionExistsError:
            session = client.open(name, resume=True)
        child = Feed(self._feeder, session)
        while session.seq < CHILD_EVENTS:
            child.step()
        if is_closed(name):
            child.tape.write(CLOSING)
            session.close()
        child.tape.close()

    def stream(self) -> None:
        """Pipelined events up to the next reset or restore, and that."""
        n = self.session.seq + 1
        last = min(self.plan.last_event(n), n + STREAM_EVENTS)
        if last < n:
            self.step()

        def events() -> Iterator[Array]:
            for k in range(n, last + 1):
                if self._feeder.stopping:
                    return
                yield self.plan.x(k)

        for k, y in enumerate(self.session.stream(events()), n):
            self.tape.write(k, y)

    def run(self) -> None:
        n = self.session.seq + 1
        last = min(self.plan.last_event(n), n + RUN_EVENTS - 1)
        if last < n:
            self.step()
        else:
            self.tape.write_run(n, self.session.run(self.plan.X(n, last)))


class Feeder:
    """The client process."""

    client: Any

    def __init__(self, address: str, folder: Path, seed: int) -> None:
        self.address, self.folder, self.seed = address, folder, seed
        self.state = (folder / RESTORED).read_bytes()
        self.stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def feed(self, kind: str) -> None:
        if kind == "tasks":
            asyncio.run(self._tasks())
            return
        for _ in range(CONNECTS):
            with suppress(ServerTimeoutError):  # a new client's patience is short
                self.client = sl.Client(self.address, PATIENCE_S)
                break
        if kind == "bulk":
            self._bulk()
            return
        feeds = [Feed(self, self.client.open(name, resume=True)) for name in names(kind)]
        step = {"singles": Feed.step, "stream": Feed.stream, "runs": Feed.run}[kind]
        while not self.stopping:
            for feed in feeds:
                step(feed)

    def change(self, session: Any, kind: str) -> Any:
        """A reset or restore; to be awaited where the session is asynchronous."""
        return session.reset() if kind == "reset" else session.restore(self.state)

    def _bulk(self) -> None:
        """All sessions in one message; reset and restored one by one."""
        sessions = [self.client.open(name, resume=True) for name in names("bulk")]
        plan, tape = bulk_plan(self.seed), Tape(self.folder / names("bulk")[0], "bulk")
        seqs = {session.seq for session in sessions}
        at = max(seqs)
        if len(seqs) > 1 and (min(seqs) < at - 1 or plan.kind(at) == "event"):
            raise AssertionError(f"members of one bulk are at {sorted(seqs)}")
        tape.opened(at)
        group = self.client.group(sessions)
        while True:
            kind = plan.kind(at)
            if kind != "event":
                for session in sessions:
                    if session.seq < at:
                        self.change(session, kind)
            if self.stopping:
                return
            at += 1
            if plan.kind(at) == "event":
                tape.write(at, group.step(plan.x(at)))

    async def _tasks(self) -> None:
        """Single steps of many sessions at once on one asynchronous client."""
        client = sl.AsyncClient(self.address, PATIENCE_S)
        for _ in range(CONNECTS):
            with suppress(ServerTimeoutError):
                await client.connect()
                break
            client = sl.AsyncClient(self.address, PATIENCE_S)
        async with asyncio.TaskGroup() as tasks:
            for name in names("tasks"):
                tasks.create_task(self._task(client, name))
        await client.close()

    async def _task(self, client: Any, name: str) -> None:
        feed = Feed(self, await client.open(name, resume=True))
        session, plan = feed.session, feed.plan
        while not self.stopping:
            n = session.seq + 1
            kind = plan.kind(n)
            if kind == "event":
                feed.tape.write(n, await session.step(plan.x(n)))
            else:
                await self.change(session, kind)


def bulk_plan(seed: int) -> Plan:
    return Plan(seed, "bulk", SESSIONS["bulk"])


if __name__ == "__main__":
    kind, address, folder, seed = sys.argv[1:]
    Feeder(address, Path(folder), int(seed)).feed(kind)
