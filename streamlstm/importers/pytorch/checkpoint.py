"""The state dict in what torch.save wrote: training keeps more beside it.

One that stands alone is taken. Where there are several, or weights beside it, the network is more
than the one has, and nothing in the file tells how they are connected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.pytorch.layers import is_tensor
from streamlstm.importers.pytorch.pickles import Made

# Names of options by which forward() adds its input, or a layer's, to what comes behind it.
_SKIP = re.compile(r"(use_|with_)?(skip|residual)s?(_connections?)?", re.IGNORECASE)


def state_dict(loaded: Any, path: Path) -> Mapping[str, Any]:
    """The state dict that `loaded` is, or the only one in its dicts and lists.

    Raises UnsupportedModelError where there is none, where there are more, and where other tensors
    or a skip stand beside it.
    """
    found: dict[str, Mapping[str, Any]] = {}
    beside: list[str] = []
    for name, value in _held(loaded):
        if not isinstance(value, Mapping):
            if _is_weight(value) or is_skip(name, value):
                beside.append(name)
        elif any(map(_is_weight, value.values())):
            found[name] = value
    if not found:
        raise _without(loaded, path)
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{path} holds {len(found)} state dicts ({_listed(found)}), and does not tell which "
            "run and how they are connected; save just model.state_dict() of the whole network"
        )
    if beside:
        raise UnsupportedModelError(
            f"{path} holds {_listed(beside)} beside the state dict, and does not tell whether "
            "that changes the outputs; save just model.state_dict()"
        )
    return next(iter(found.values()))


def is_skip(name: str, value: Any) -> bool:
    """Whether an option says that something is added around layers."""
    return bool(_SKIP.fullmatch(name)) and isinstance(value, bool | int | float) and bool(value)


def _held(loaded: Any) -> Iterator[tuple[str, Any]]:
    """What `loaded` holds by its key, dicts of tensors whole, and without optimizers' states."""
    held: list[tuple[str, Any]] = [("the whole file", loaded)]
    seen = set()
    for name, value in held:  # which grows
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
        items = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if not isinstance(items, Mapping) or (items and all(map(is_tensor, items.values()))):
            yield name, items
        elif "param_groups" not in items:
            held += [(str(key), each) for key, each in items.items()]


def _is_weight(a: Any) -> bool:
    """Whether it is a tensor of floats, other than one number such as a loss."""
    if not is_tensor(a) or isinstance(a, Made):
        return is_tensor(a)
    return bool(a.shape) and "float" in str(a.dtype)


def _without(loaded: Any, path: Path) -> UnsupportedModelError:
    """The refusal of a file that holds no state dict."""
    inner = loaded if isinstance(loaded, Mapping) else {"the whole file": loaded}
    for key, d in inner.items():
        if isinstance(d, Made) and not is_tensor(d):
            quantized = d.name == "torch.ScriptObject"
            whose = "the unquantised model's " if quantized else "model."
            return UnsupportedModelError(
                f"{path} holds a pickled {d.name} ({key}), and code from a file is never "
                f"run; save {whose}state_dict() instead"
            )
    return UnsupportedModelError(
        f"{path} holds no state dict ({_listed(inner)}); save just model.state_dict()"
    )


def _listed(names: Any) -> str:
    names = [name if name.isprintable() else repr(name) for name in map(str, names)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
