"""Pickles as data: what is in one, with nothing called and nothing imported.

A pickle is a program for a stack machine (Python's Lib/pickletools.py documents each opcode).
Of the steps that would import a name or call it, this machine keeps a note, Named or Made,
instead. So the worst that a hostile file can do here is to be refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

# Only these may be keys: the hash of a deeply nested tuple would overflow C's stack.
_KEYS = (str, bytes, int, float, bool, type(None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
# A number, text or bytes that stands behind the opcode.
_LITERALS = {
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg
    and not opcode.stack_before
    and opcode.stack_after not in ([], [pickletools.anyobject])
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}


@dataclass(frozen=True, eq=False)
class Named:
    """A name to be imported, such as "torch.FloatStorage"; it is not."""

    name: str


@dataclass(eq=False)
class Made:
    """What calling `name` with `args` would have made, then given `state`; it is not called."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def parsed(stream: IO[bytes], outside: Callable[[Any], Any] = lambda _: None) -> Any:
    """The one value that the pickle at stream's position holds; the position is behind it then.

    Dicts (ordered ones too), lists, tuples, numbers and texts come as themselves, all else as
    Named and Made; outside(id) is put where the pickle refers to something by an id of its
    format's own. Raises Exception of any class for what is no pickle.
    """
    machine = _Machine(outside)
    for opcode, argument, _ in pickletools.genops(stream):
        machine.run(opcode, argument)
    (value,) = machine.stack
    return value


class _Machine:
    def __init__(self, outside: Callable[[Any], Any]) -> None:
        self.outside = outside
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if step := getattr(self, f"do_{name.lower()}", None):
            step()
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(items[::-1]))
        elif name == "GLOBAL":
            self.stack.append(Named(argument.replace(" ", ".")))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "PERSID":
            self.stack.append(self.outside(argument))
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name not in _IGNORED:
            raise ValueError(f"a pickle's opcode {name} is not known")

    def do_mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def push(self, value: Any) -> None:  # self.stack is looked up after since_mark
        self.stack.append(value)

    def do_pop(self) -> None:
        self.stack.pop()

    def do_pop_mark(self) -> None:
        self.since_mark()

    def do_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_tuple(self) -> None:
        self.push(tuple(self.since_mark()))

    def do_list(self) -> None:
        self.push(self.since_mark())

    def do_dict(self) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.fill(items)

    def do_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    def do_setitems(self) -> None:
        self.fill(self.since_mark())

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            # What a dict of another class makes of its items is its code's affair.
            if isinstance(target, dict) and isinstance(key, _KEYS):
                target[key] = value

    def do_append(self) -> None:
        self.extend([self.stack.pop()])

    def do_appends(self) -> None:
        self.extend(self.since_mark())

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def do_empty_set(self) -> None:
        self.stack.append(Made("builtins.set", ()))

    def do_additems(self) -> None:
        self.since_mark()

    def do_frozenset(self) -> None:
        self.push(Made("builtins.frozenset", tuple(self.since_mark())))

    def do_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Named(f"{module}.{name}"))

    def do_binpersid(self) -> None:
        self.stack.append(self.outside(self.stack.pop()))

    def do_reduce(self) -> None:
        args, made_by = self.stack.pop(), self.stack.pop()
        name = made_by.name if isinstance(made_by, Named) else f"{made_by.name}()"
        ordered = name == "collections.OrderedDict" and not args
        self.stack.append({} if ordered else Made(name, tuple(args)))

    do_newobj = do_reduce

    def do_newobj_ex(self) -> None:
        self.stack.pop()
        self.do_reduce()

    def do_obj(self) -> None:
        made_by, *args = self.since_mark()
        self.stack += [made_by, tuple(args)]
        self.do_reduce()

    def do_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):  # an OrderedDict's attributes are no items
            self.stack[-1].state = state
