"""What the tables hold, and the checksums over it: SQLite's main file has none of its own."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

_NAME: Final = struct.Struct("<qqI")
_REST: Final = struct.Struct("<qqqqII")
INVALID: Final = (ValueError, TypeError, AttributeError, struct.error)
"""What a check of damaged columns raises: they may have other types, too."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that sessions belong to. sizes: numbers of h and c of each layer, and of the head.

    dtype: of states.
    arithmetic: the class (see kernels) under which the journal's events were computed.
    """

    id: int
    name: str
    fingerprint: str
    dtype: str
    state_size: int
    sizes: tuple[tuple[int, ...], ...]
    arithmetic: str


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as stored. state: its numbers, little-endian, in the model's dtype (ModelRow).

    answers: its last replies, opaque here. Integers are below 2**63.
    """

    id: int
    model: int
    name: str
    epoch: int
    token: int
    seq: int
    state: bytes
    answers: bytes
    quarantined: bool


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A session's row without its state; bytes: what that and the answers take."""

    id: int
    model: int
    name: str
    epoch: int
    seq: int
    quarantined: bool
    bytes: int


def checksum(*columns: object) -> int:
    """CRC-32 of numbers and texts."""
    return crc32(repr(columns).encode())


def record_checksum(id: int, record: bytes) -> int:
    """CRC-32 of a journal record."""
    return crc32(record, id & 0xFFFFFFFF)


def name_checksum(id: int, model: int, name: str) -> int:
    """CRC-32 of the columns that say which session a row is."""
    text = name.encode()
    return crc32(text, crc32(_NAME.pack(id, model, len(text))))


def columns_of(row: SessionRow) -> tuple[Any, ...]:
    """A session's row as the table has it, with its checksums."""
    key = name_checksum(row.id, row.model, row.name)
    quarantined = int(row.quarantined)
    sizes = (len(row.answers), len(row.state))
    rest = _REST.pack(row.epoch, row.token, row.seq, quarantined, *sizes)
    whole = crc32(row.state, crc32(row.answers, crc32(rest, key)))
    numbers = (row.epoch, row.token, row.seq, quarantined)
    return row.id, row.model, row.name, key, *numbers, whole, row.answers, row.state


def session_of(columns: tuple[Any, ...]) -> SessionRow:
    """Back from columns_of. Raises one of INVALID where a checksum does not hold."""
    id, model, name, _, epoch, token, seq, quarantined, _, answers, state = columns
    row = SessionRow(id, model, name, epoch, token, seq, state, answers, bool(quarantined))
    if columns_of(row) != columns:
        raise ValueError("its checksum does not hold")
    return row
