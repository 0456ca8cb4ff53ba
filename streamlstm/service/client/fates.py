"""What can become of a client's session, and the sentence that says it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from streamlstm.errors import (
    SequenceError,
    SessionClosedError,
    SessionError,
    SessionEvictedError,
    SessionFencedError,
    SessionQuarantinedError,
    SessionUnknownError,
)
from streamlstm.service import operations


class Fate(IntEnum):
    """OPEN goes on; all others are said to whoever asks for something."""

    OPEN = 0
    CLOSED = 1
    EVICTED = 2
    FENCED = 3
    UNKNOWN_FATE = 4  # nobody knows whether the last event was stepped
    LOST = 5
    ROLLED_BACK = 6
    QUARANTINED = 7


ENDED: Final = (Fate.CLOSED, Fate.EVICTED, Fate.FENCED, Fate.LOST)
NOTICES: Final = {
    "evicted": Fate.EVICTED,
    "fenced": Fate.FENCED,
    "quarantined": Fate.QUARANTINED,
}
LOOKS: Final = frozenset({operations.STATE, operations.FORECAST, operations.COUNTERS})
"""Operations that change nothing."""

IN_QUARANTINE: Final = LOOKS | {operations.RESET, operations.RESTORE, operations.CLOSE}
_WHY: Final[dict[Fate, tuple[type[SessionError], str]]] = {
    Fate.CLOSED: (SessionClosedError, "session {name!r} is closed: open it again"),
    Fate.EVICTED: (
        SessionEvictedError,
        "session {name!r} was idle longer than the server's time-to-live and its state is gone: "
        "open it again",
    ),
    Fate.FENCED: (
        SessionFencedError,
        "session {name!r} was opened elsewhere: open it with resume=True to take it back",
    ),
    Fate.UNKNOWN_FATE: (
        SequenceError,
        "session {name!r}: no answer came for the last request after event {seq}, so it may or "
        "may not have been applied: open it again with resume=True and compare seq",
    ),
    Fate.LOST: (
        SessionUnknownError,
        "session {name!r}: the server does not know it any more; this client had event {seq} "
        "acknowledged{more}: open it again and feed it from the start, or restore a saved state",
    ),
    Fate.ROLLED_BACK: (
        SequenceError,
        "session {name!r}: event {seq} was acknowledged, but the server lost it{more}: open it "
        "again with resume=True and feed it again from seq + 1",
    ),
    Fate.QUARANTINED: (
        SessionQuarantinedError,
        "session {name!r} is quarantined: event {seq} made its state non-finite; "
        "reset it or restore a state",
    ),
}


def error_of(fate: int, name: str, seq: int, more: str) -> SessionError:
    """Why a session can't go on. more: what the sentence adds."""
    cls, sentence = _WHY[Fate(fate)]
    return cls(sentence.format(name=name, seq=seq, more=more))
