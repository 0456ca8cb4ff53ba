"""The decoder's limits: every one is met exactly at its bound, and before anything is built."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest

from streamlstm.service.operations import STEP
from streamlstm.service.wire import BadMessageError, Decoder, Limits

LIMITS = Limits(frame_bytes=5000, items=100, depth=4, str_bytes=20, id_bytes=8, name_bytes=10)


def pack(*items: object) -> bytes:
    return msgpack.packb(items)


def request(*frames: bytes) -> tuple[object, ...]:
    return Decoder(LIMITS).request(frames)


def refusal(*frames: bytes) -> str:
    with pytest.raises(BadMessageError) as caught:
        request(*frames)
    return str(caught.value)


def step(x: object) -> bytes:
    return pack(1, "step", 7, 1, 1, None, None, x)


def test_frame_bytes_are_checked_before_decoding() -> None:
    fits = LIMITS.frame_bytes - len(step(b"")) - 1  # bin 16: one more byte of header
    assert request(step(bytes(fits)))[0] is STEP
    assert "5000 bytes" in refusal(step(bytes(fits + 1)))
    assert "5000 bytes" in refusal(b"\xc1" * 5001)  # not even msgpack


@pytest.mark.parametrize("count", [0, 2, 100])
def test_frame_count(count: int) -> None:
    assert f"has {count}" in refusal(*[pack(1, "stats", 7)] * count)


def test_items_of_plain_lists() -> None:
    around = 9  # the message and its eight items
    assert request(step([0.5] * (LIMITS.items - around)))
    assert "100 items" in refusal(step([0.5] * (LIMITS.items - around + 1)))


def test_items_are_counted_over_all_lists() -> None:
    rows = pack(1, "run", 7, 1, 1, None, None, [[1.0] * 9] * 10)
    assert "100 items" in refusal(rows)


def test_depth() -> None:
    assert request(step([[[1]]]))
    assert "4 levels" in refusal(step([[[[1]]]]))


def test_text() -> None:
    assert request(pack(1, "open", 7, "n" * 10, None, False, None, None))
    assert "10 bytes" in refusal(pack(1, "open", 7, "n" * 11, None, False, None, None))
    assert "10 bytes" in refusal(
        pack(1, "open", 7, "é" * 6, None, False, None, None)
    )  # bytes, not letters
    assert "max_str_len" in refusal(pack(1, "open", 7, "n" * 21, None, False, None, None))


def test_id_bytes() -> None:
    for ident in ("i" * 8, b"i" * 8, 2**64 - 1, -(2**63)):
        assert request(pack(1, "stats", ident))[1] == ident
    for bad in ("i" * 9, b"i" * 9, "é" * 5, None, True, 1.5, [1], {}):
        assert "id must be" in refusal(pack(1, "stats", bad))


@pytest.mark.parametrize(
    "head",
    [
        b"\xdd\xff\xff\xff\xff",  # array of 4 G items
        b"\xdc\xff\xff",
        b"\xdf\xff\xff\xff\xff",  # map
        b"\xc6\xff\xff\xff\xff",  # bin of 4 GB
        b"\xdb\xff\xff\xff\xff",  # text
        b"\x98\x01\xa4step\x07\xc6\xff\xff\xff\xff",
    ],
)
def test_giant_lengths(head: bytes) -> None:
    assert refusal(head)
    assert refusal(head + bytes(100))


@pytest.mark.parametrize("head", [b"\x91", b"\x81", b"\xdc\x00\x5a", b"\xdd\x00\x00\x00\x5a"])
def test_nested_headers_claim_no_memory(head: bytes) -> None:
    """msgpack allocates an array at its header: nested, 5 kB could claim gigabytes."""
    frame = (head * LIMITS.frame_bytes)[: LIMITS.frame_bytes]
    tracemalloc.start()
    try:
        refusal(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_many_small_arrays_are_items_too() -> None:
    assert request(step([[]] * 90))
    assert "100 items" in refusal(step([[]] * 4000))


@pytest.mark.parametrize("ext", [b"\xd4\x05a", b"\xd6\xff\0\0\0\1", b"\xc7\0\5", b"\xc1"])
def test_extension_types(ext: bytes) -> None:
    assert refusal(b"\x93\x01\xa5stats" + ext)
    assert "not used here" in refusal(b"\x92\x90" + ext)


@pytest.mark.parametrize("cut", range(1, len(step(b"12345678")), 3))
def test_truncated(cut: int) -> None:
    assert refusal(step(b"12345678")[:-cut])


def test_trailing_bytes() -> None:
    assert "follow the message" in refusal(step(b"1234") + b"\x01")


def test_text_that_is_not_utf8() -> None:
    assert "can't be decoded" in refusal(b"\x96\x01\xa4open\x07\xa2\xff\xfe\xc0\xc2")
