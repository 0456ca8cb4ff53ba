"""Where a session stands on its way back to the server, and which ways there are.

    ATTACHED ──► DETACHED ──► PAUSED ──► LOBBY ──► ASKED ──► ATTACHED
                     │                     ▲ ▲        │
                     └─────────────────────┘ └────────┤ no answer: after another hello
                     ▲                                │
                     └────────────────────────────────┘ refused: until something is asked for

From anywhere back to ATTACHED where it was given up: the session has ended then, or will.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class Attachment(Enum):
    ATTACHED = auto()  # (handle, epoch) may be used
    DETACHED = auto()  # it must not, and nobody has asked for another
    PAUSED = auto()  # the next asking waits a moment
    LOBBY = auto()  # waits for hello, or for its place among those who ask
    ASKED = auto()  # open was sent


_WAYS: Final = {
    Attachment.ATTACHED: {Attachment.DETACHED},
    Attachment.DETACHED: {Attachment.PAUSED, Attachment.LOBBY, Attachment.ATTACHED},
    Attachment.PAUSED: {Attachment.LOBBY, Attachment.DETACHED, Attachment.ATTACHED},
    Attachment.LOBBY: {Attachment.ASKED, Attachment.ATTACHED},
    Attachment.ASKED: {Attachment.LOBBY, Attachment.DETACHED, Attachment.ATTACHED},
}


def checked(before: Attachment, after: Attachment) -> Attachment:
    """`after`, where it can follow `before`. Raises AssertionError: the client has a fault."""
    if after not in _WAYS[before]:
        raise AssertionError(f"a session that is {before.name} can't become {after.name}")
    return after
