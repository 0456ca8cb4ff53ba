"""The codec: fields and their types, payloads, errors by code."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlstm import errors
from streamlstm.errors import InputError, ProtocolError, ShapeError, StreamLSTMError
from streamlstm.service import column, wire
from streamlstm.service.operations import OPERATIONS

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)
GOOD: dict[str, list[Any]] = {
    "hello": [{"client": "x", "tags": [1, 2]}],
    "open": ["pump", None, False, None, None],
    "fork": [1, 1, 5, "pump", 2**63 - 1],
    "step": [1, 1, 5, 1.5, b"1234"],
    "steps": [b"12345678", b"1234", None, 2, b"1234"],
    "run": [1, 1, None, 2.5, [[1, 2], [3, 4]]],
    "reset": [1, 1, 5],
    "state": [1, 1],
    "forecast": [1, 1, 24],
    "counters": [1, 1],
    "restore": [1, 1, None, b"blob"],
    "close": [1, 1],
    "stats": [],
}
BAD: dict[str, list[Any]] = {
    "name": ["", b"n", 1, None],
    "model": [1, b"m"],
    "resume": [None, 0, 1],
    "handle": [-1, 1.0, None, True, "1", []],
    "epoch": [-1, 1 << 32, None, 1.0],
    "seq": [-1, 1.0, "1", True, 1 << 63],
    "deadline": ["now", float("nan"), float("inf"), True],
    "token": [0, -1, 1 << 63, 1.0, "1", True],
    "payload": [None, 1.0, "1234", {}],
    "handles": [None, 1, [1.0], ["1"], [None]],
    "epochs": [None, 1, [[1]]],
    "seqs": [1, [1.5]],
    "steps": [-1, 1.0, "2", None, True],
    "state": [None, "blob", [1]],
    "client": [None, 1, []],
}


def test_operations_are_complete() -> None:
    assert GOOD.keys() == OPERATIONS.keys()
    assert {name for op in OPERATIONS.values() for name, _ in op.checks} == BAD.keys()


@pytest.mark.parametrize("op", GOOD)
def test_fields(op: str) -> None:
    decode = wire.Decoder().request
    good = GOOD[op]
    assert decode([msgpack.packb([1, op, 7, *good])])[:2] == (OPERATIONS[op], 7)
    for fields in (good[:-1], [*good, None]):
        if fields != good:
            with pytest.raises(wire.BadMessageError, match="fields after the id") as caught:
                decode([msgpack.packb([1, op, 7, *fields])])
            assert caught.value.ident == 7
    for index, (name, _) in enumerate(OPERATIONS[op].checks):
        for bad in BAD[name]:
            if (op, name, bad) == ("open", "epoch", None):
                continue  # nobody's: take it over
            message = [1, op, 7, *good[:index], bad, *good[index + 1 :]]
            with pytest.raises(wire.BadMessageError, match=f"{op}: {name} must be"):
                decode([msgpack.packb(message)])


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ([2, "stats", 7], "version 1"),
        ([True, "stats", 7], "version 1"),
        ([1.0, "stats", 7], "version 1"),
        ([1, "dance", 7], "unknown operation"),
        ([1, b"stats", 7], "unknown operation"),
        ([1, [], 7], "unknown operation"),
        ([1, "stats"], "a request is"),
        ([], "a request is"),
        ({}, "msgpack array"),
        (5, "msgpack array"),
    ],
)
def test_headers(message: Any, sentence: str) -> None:
    with pytest.raises(wire.BadMessageError, match=sentence):
        wire.Decoder().request([msgpack.packb(message)])


def test_requests_come_back_as_sent() -> None:
    for op, fields in GOOD.items():
        frame = wire.Encoder().request(op, "id", tuple(fields))
        got = wire.Decoder().request([frame])
        assert got == (OPERATIONS[op], "id", tuple(_tuples(fields)))


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def test_every_error_crosses_the_wire() -> None:
    """An error comes back as its class, or the nearest one above that has a code."""
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    classes = [c for c in classes if issubclass(c, StreamLSTMError) and c is not StreamLSTMError]
    assert len(classes) > 20
    for cls in classes:
        frame = wire.Encoder().error(3, cls("what was wrong"), expected=4)
        version, status, ident, code, sentence, details = wire.Decoder().reply(frame + b"")
        assert (version, status, ident, details) == (1, "error", 3, {"expected": 4})
        back = wire.error_from_wire(code, sentence)
        assert issubclass(cls, type(back))
        assert str(back) == "what was wrong"
    assert type(wire.error_from_wire("FROM_THE_FUTURE", "x")) is errors.ServiceError
    assert type(wire.error_from_wire([], {})) is errors.ServiceError


@pytest.mark.parametrize("dtype", [F4, F8])
def test_payloads(dtype: np.dtype[Any]) -> None:
    x = np.arange(6, dtype=dtype)
    assert column.event_bytes(x.tobytes(), dtype, 6) == x.tobytes()
    assert column.event_bytes((0, 1, 2.0, 3, 4, 5), dtype, 6) == x.tobytes()
    for X in (x.tobytes(), ((0, 1, 2), (3, 4, 5.0))):
        np.testing.assert_array_equal(column.matrix(X, dtype, 3), x.reshape(2, 3))
        assert column.matrix(X, dtype, 3).dtype == dtype


@pytest.mark.parametrize("payload", [b"123", b"1" * 12, (1.0,), (1, 2, 3)])
def test_an_event_of_another_shape(payload: Any) -> None:
    with pytest.raises(ShapeError):
        column.event_bytes(payload, F4, 2)


@pytest.mark.parametrize("payload", [b"1" * 12, (1.0, 2.0), ((1,), (1, 2)), ((1, 2), 3)])
def test_a_matrix_of_another_shape(payload: Any) -> None:
    with pytest.raises(ShapeError):
        column.matrix(payload, F4, 2)


@pytest.mark.parametrize("bad", ["1.5", None, True, (1,), b"1", {}])
def test_list_payloads_hold_numbers_only(bad: Any) -> None:
    with pytest.raises(InputError):
        column.event_bytes((1.0, bad), F4, 2)


def test_a_number_too_large_for_float32_becomes_inf() -> None:
    assert np.frombuffer(column.event_bytes((1e300, 2**64 - 1), F4, 2), F4)[0] == np.inf


def test_vectors_of_integers() -> None:
    want = np.array([1, 2**63], "<u8")
    np.testing.assert_array_equal(column.integers(want.tobytes(), "<u8", "handles"), want)
    np.testing.assert_array_equal(column.integers((1, 2**63), "<u8", "handles"), want)
    for bad in (b"1234567", (-1,), (2**64,)):
        with pytest.raises(ProtocolError):
            column.integers(bad, "<u8", "handles")


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(frame: bytes) -> None:
    for decode in (lambda b: wire.Decoder().request([b]), wire.Decoder().reply):
        with contextlib.suppress(wire.BadMessageError):
            decode(frame)
