"""The flow of a file that holds weights and no flow, as its user says it.

flow=["lstm", "relu", "fc"] in Python, --flow lstm,relu,fc on the command line: the file's own
keys of its layers, and functions (layers.FUNCTIONS), in the order in which they run. Where a
layer is called as a function is, the name means the layer.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from streamlstm.errors import UnsupportedModelError
from streamlstm.layers import FUNCTIONS

Flow = Sequence[str]
Says = Callable[..., str]

NO_CHAIN = (
    "a flow is a chain of layers and functions: for sums, products and branches import an ONNX "
    "file or the live module, or select one recurrent layer alone"
)


def in_both_words(sentence: Callable[[Says], str]) -> UnsupportedModelError:
    """The error whose sentence names the flow's option as Python and the command line call it.

    sentence: is given what names it, with or without the items to give.
    """
    python, command = (_printable(sentence(says)) for says in (_in_python, _in_command))
    return UnsupportedModelError(python, command_line=command)


def _printable(text: str) -> str:
    """One line that does not move a terminal's cursor, whatever a file's keys hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _in_python(items: Flow | None = None) -> str:
    return "flow=" if items is None else f"flow={list(items)}"


def _in_command(items: Flow | None = None) -> str:
    return "--flow" if items is None else f"--flow {shlex.quote(','.join(items))}"


def check_not_said(path: Path, flow: Flow | None) -> None:
    """Refuses a flow for a file that tells its own."""
    if flow is not None:
        raise in_both_words(lambda says: f"{path} tells its flow itself; leave out {says()}")


def check_said(flow: Flow, keys: Collection[str]) -> None:
    """Refuses a flow of other items than keys and functions, and one without all the keys."""
    if isinstance(flow, str):
        items = flow.split(",")
        raise in_both_words(lambda says: f"{says()} is one text; give a list: {says(items)}")
    if unknown := [item for item in flow if item not in keys and item not in FUNCTIONS]:
        chain = f"; {NO_CHAIN}" if set("+*()") & set(str(unknown[0])) else ""
        what = (
            f"has {unknown[0]!r}, which is no layer of the file and no function; the layers are "
            f"{', '.join(keys) or 'none'}, the functions {', '.join(FUNCTIONS)}{chain}"
        )
        raise in_both_words(lambda says: f"{says()} {what}")
    if left := [key for key in keys if key not in flow]:
        raise in_both_words(
            lambda says: (
                f"{says()} leaves out {', '.join(left)}; say where each of the file's layers "
                "runs, or save the weights without those that don't run"
            )
        )
