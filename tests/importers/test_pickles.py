"""The machine that reads pickles without running them, on what Python's pickle writes."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle

import pytest

from streamlstm.importers.pytorch.pickles import Made, Named, parsed

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
shared = [1, 2]
VALUES = {
    "numbers": [0, -1, 255, 70_000, 2**40, -(2**2000), 1.5, float("inf"), True, False, None],
    "texts": ["", "a", "é" * 300, "new\nline"],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ([],)),
    "dicts": {"a": {"b": {}}, 1: [{}], None: (), b"raw": 2.0},
    "what is shared": [shared, shared, {"again": shared}],
    "ordered": {"a": collections.OrderedDict(x=1, y=2)},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", VALUES)
def test_plain_values_come_as_themselves(case, protocol):
    raw = pickle.dumps(VALUES[case], protocol)
    if case == "dicts" and protocol < 3:  # these call codecs.encode for bytes
        raw = pickle.dumps({"a": {"b": {}}, 1: [{}]}, protocol)
        assert parsed(io.BytesIO(raw)) == {"a": {"b": {}}, 1: [{}]}
        return
    assert parsed(io.BytesIO(raw)) == VALUES[case]


def test_shared_values_are_shared():
    first, second, third = parsed(io.BytesIO(pickle.dumps(VALUES["what is shared"])))
    assert first is second is third["again"]


def test_one_pickle_after_the_other():
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert (parsed(stream), parsed(stream), stream.read()) == (1, "two", b"rest")


ran = []


class Planted:
    def __reduce__(self):
        return ran.append, ("code",), {"state": 1}


OBJECTS = {
    "a path": (pathlib.PurePosixPath("a"), "pathlib.PurePosixPath"),
    "a set": ({1, 2}, "set"),
    "a frozen set": (frozenset([1]), "frozenset"),
    "an object": (Planted, "Planted"),
    "a counter": (collections.Counter("aab"), "collections.Counter"),
    "a default dict": (collections.defaultdict(list, a=[1]), "collections.defaultdict"),
    "a range": (range(3), "range"),
    "code": (Planted(), "getattr()"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", OBJECTS)
def test_calls_are_noted_and_not_made(case, protocol):
    value, name = OBJECTS[case]
    (made,) = parsed(io.BytesIO(pickle.dumps([value], protocol)))
    assert isinstance(made, Named if case == "an object" else Made)
    assert made.name.endswith(name) or made.name == "copy_reg._reconstructor"
    assert not ran


def test_ids_of_the_formats_own():
    raw = b"\x80\x02(X\x01\x00\x00\x00kK\x05tQ."
    assert parsed(io.BytesIO(raw), lambda id: ("outside", id)) == ("outside", ("k", 5))
    assert parsed(io.BytesIO(b"Pname\n."), str.upper) == "NAME"


@pytest.mark.parametrize(
    "raw",
    [b"", b".", b"NN.", b"N", b"t.", b"0.", b"h\x00.", b"K\x05)R.", b"}(Nu.", b"\xff.", b"X\xff"],
)
def test_what_is_no_pickle_raises(raw):
    with pytest.raises((ValueError, LookupError, AttributeError)):
        parsed(io.BytesIO(raw))


@pytest.mark.parametrize(
    ("raw", "value"), [(b"K\x01(K\x02K\x031.", 1), (b"(K\x012l.", [1, 1])], ids=["POP_MARK", "DUP"]
)
def test_opcodes_that_pickle_no_longer_writes(raw, value):
    assert parsed(io.BytesIO(raw)) == value


@pytest.mark.parametrize(
    "raw",
    [b"(cnet\nNet\nK\x01o.", b"cnet\nNet\nK\x01\x85}\x92."],
    ids=["OBJ", "NEWOBJ_EX"],
)
def test_objects_by_other_opcodes(raw):
    made = parsed(io.BytesIO(raw))
    assert (made.name, made.args) == ("net.Net", (1,))


@pytest.mark.parametrize(
    ("raw", "name"),
    [(b"\x82\x01.", "EXT1"), (b"\x97.", "NEXT_BUFFER")],
    ids=["EXT1", "NEXT_BUFFER"],
)
def test_opcodes_without_a_step_are_refused(raw, name):
    with pytest.raises(ValueError, match=f"^a pickle's opcode {name} is not known$"):
        parsed(io.BytesIO(raw))
