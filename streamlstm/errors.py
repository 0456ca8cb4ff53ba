"""Everything streamlstm raises on purpose.

    StreamLSTMError
    ├── ModelError                  a model can't be used
    │   ├── ModelFileError            not our file, damaged, or of an unknown version
    │   └── UnsupportedModelError     a foreign network with a part we don't have
    ├── InputError (ValueError)     an event was refused; no state changed
    │   ├── ShapeError
    │   ├── DtypeError (TypeError)
    │   ├── NonFiniteError
    │   ├── MissingInputError         a named input is missing or unknown
    │   ├── RepeatedSessionError      one session twice in one step
    │   └── StateMismatchError        a state of another model, dtype or size
    ├── SessionError                a session can't be used
    │   ├── SessionExistsError
    │   ├── SessionUnknownError (KeyError)
    │   ├── SessionClosedError
    │   ├── SessionEvictedError       idle longer than the server's time-to-live
    │   ├── SessionFencedError        opened again elsewhere: this handle lost it
    │   ├── SequenceError             an event's seq is not the next one
    │   ├── AnswerGoneError           an event sent again; applied long ago, its answer is not kept
    │   └── SessionQuarantinedError   an event made the state non-finite
    ├── EngineError                 the whole engine can't be used
    │   ├── EngineClosedError
    │   ├── ForkedProcessError        used in a child after os.fork
    │   └── CapacityError             max_sessions reached
    ├── StoreError                  a state directory can't be used
    │   ├── StoreDamagedError         it does not hold what was written
    │   └── StoreMismatchError        written by another model or arithmetic class
    └── ServiceError                between client and server
        ├── ProtocolError             a message that breaks docs/protocol.md
        ├── ServerBusyError           refused unstepped; try again later
        ├── DeadlineError (TimeoutError)  refused unstepped; its deadline had passed
        ├── ServerStoppingError       the server is draining
        ├── ServerTimeoutError (TimeoutError)
        └── ServerInternalError       the server failed at its own fault

An error that can cross the wire carries its name there as ``code``
(docs/protocol.md lists them), so that a client raises the class an
embedded engine would have raised.
"""

from __future__ import annotations


class StreamLSTMError(Exception):
    """Base of all errors of this package.

    command_line: the same sentence in the command line's words, where those are others.
    """

    code = "INTERNAL"

    def __init__(self, *args: object, command_line: str = "") -> None:
        super().__init__(*args)
        self.command_line = command_line or str(self)

    def __str__(self) -> str:
        # KeyError would show its message in quotes.
        return Exception.__str__(self)


class ModelError(StreamLSTMError):
    """A model can't be used."""

    code = "MODEL"


class ModelFileError(ModelError):
    """Not a streamlstm file, damaged, or written in an unknown format version."""


class UnsupportedModelError(ModelError):
    """A foreign network holds a part that streamlstm does not have."""


class InputError(StreamLSTMError, ValueError):
    """An event was refused; no state has changed."""

    code = "INPUT"


class ShapeError(InputError):
    """An array has another shape than the model needs."""

    code = "SHAPE"


class DtypeError(InputError, TypeError):
    """An array's dtype can't be used, or is not exactly the one asked for."""

    code = "DTYPE"


class NonFiniteError(InputError):
    """An event holds NaN, infinity or a number that would make the state so."""

    code = "NON_FINITE"


class MissingInputError(InputError):
    """An event given by names lacks an input of the model or has one too many."""

    code = "MISSING_INPUT"


class RepeatedSessionError(InputError):
    """The same session stands twice in one step."""

    code = "REPEATED_SESSION"


class StateMismatchError(InputError):
    """A saved state belongs to another model, dtype or size."""

    code = "STATE_MISMATCH"


class SessionError(StreamLSTMError):
    """A session can't be used."""

    code = "SESSION"


class SessionExistsError(SessionError):
    """A session of this name is open already."""

    code = "SESSION_EXISTS"


class SessionUnknownError(SessionError, KeyError):
    """No session of this name or handle is open."""

    code = "SESSION_UNKNOWN"


class SessionClosedError(SessionError):
    """The session was closed."""

    code = "SESSION_CLOSED"


class SessionEvictedError(SessionError):
    """The session was idle longer than the server's time-to-live."""

    code = "EVICTED"


class SessionFencedError(SessionError):
    """The session was opened again elsewhere; this handle no longer owns it."""

    code = "FENCED"


class SequenceError(SessionError):
    """An event's seq is not the next one of its session."""

    code = "SEQUENCE"


class AnswerGoneError(SessionError):
    """The event was applied, but so long ago that its answer is no longer kept."""

    code = "ANSWER_GONE"


class SessionQuarantinedError(SessionError):
    """An event made the session's state non-finite; it waits for a reset or restore."""

    code = "QUARANTINED"


class EngineError(StreamLSTMError):
    """The whole engine can't be used."""

    code = "ENGINE"


class EngineClosedError(EngineError):
    """The engine was closed."""


class ForkedProcessError(EngineError):
    """The engine was created before os.fork and is used in the child."""


class CapacityError(EngineError):
    """All ``max_sessions`` sessions are open."""

    code = "CAPACITY"


class StoreError(StreamLSTMError):
    """A state directory can't be used."""

    code = "STORE"


class StoreDamagedError(StoreError):
    """A state directory does not hold what was written to it."""


class StoreMismatchError(StoreError):
    """A state directory was written by another model or arithmetic class."""


class ServiceError(StreamLSTMError):
    """Something between client and server failed."""

    code = "SERVICE"


class ProtocolError(ServiceError):
    """A message breaks the protocol (docs/protocol.md)."""

    code = "PROTOCOL"


class ServerBusyError(ServiceError):
    """The server refused the event unstepped because it is overloaded."""

    code = "BUSY"


class DeadlineError(ServiceError, TimeoutError):
    """The event's deadline had passed before its turn came; it was not stepped."""

    code = "DEADLINE"


class ServerStoppingError(ServiceError):
    """The server is draining and takes no new work."""

    code = "STOPPING"


class ServerTimeoutError(ServiceError, TimeoutError):
    """No answer within the time-out."""


class ServerInternalError(ServiceError):
    """The server failed at its own fault; its log has the traceback."""

    code = "INTERNAL"
