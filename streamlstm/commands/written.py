"""Files that a command writes: whether they may be, before the work that makes them."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def check_writable(path: str) -> None:
    """Raise OSError where a model can't be written: training may take a while before it is."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {folder}")
    if Path(path).exists() and not Path(path).is_file():
        raise FileExistsError(f"{path} can't be written: it is there, and no file; name a file")
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{path} can't be written: {error.strerror}") from None


def same_file(one: str, other: str) -> bool:
    """Whether two names are of one file, be it there or not."""
    with suppress(OSError):
        return Path(one).samefile(other)
    return Path(one).resolve() == Path(other).resolve()
