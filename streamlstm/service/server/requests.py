"""A message on its way through the server, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy.typing as npt

from streamlstm.errors import StreamLSTMError
from streamlstm.service.contract import GroupLike
from streamlstm.service.operations import Operation
from streamlstm.service.server.connections import Peer
from streamlstm.service.server.sessions import Sessions
from streamlstm.service.wire import Ident

Array = npt.NDArray[Any]

MESSAGE_WORK: Final = 50_000
"""To decode, check, commit and answer a message: some 25 us."""


@dataclass(slots=True, eq=False)
class Bulk:
    """The sessions of a steps message, found and checked; good while the table's version is."""

    sessions: Sessions
    version: int
    epochs_given: object
    seats: Array
    epochs: Array
    group: GroupLike | None = None


@dataclass(slots=True, eq=False)
class Request:
    """A message that was decoded; `fields` are those of its operation."""

    peer: Peer
    op: Operation
    ident: Ident
    fields: Any
    size: int
    work: int = MESSAGE_WORK
    sessions: Any = None  # Sessions, of all but hello and stats
    seat: int = 0
    bulk: Bulk | None = None


Entry: TypeAlias = tuple[str, int, int, int]
"""A session as notices tell it: name, handle, epoch, seq."""


class Done(NamedTuple):
    address: bytes
    ident: Ident
    values: tuple[object, ...]


class Refused(NamedTuple):
    address: bytes
    ident: Ident
    error: StreamLSTMError


class Notice(NamedTuple):
    address: bytes
    kind: str
    entries: list[Entry]


Outcome: TypeAlias = Done | Refused | Notice


def entry(sessions: Sessions, seat: int) -> Entry:
    table = sessions.table
    return table.names[seat], table.handle(seat), table.row_epochs[seat], table.row_seqs[seat]
