"""Files that a command writes: never over what is not its own, and said before the work is done.

A command may write again what the same command wrote of the same input, as long as nobody changed
it since. That is remembered in the user's cache ($XDG_CACHE_HOME, else ~/.cache), a small file for
each output; where it can't be, --force is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

PLOTS: Final = (".svg", ".png", ".pdf")


def check_writable(path: str, made_by: str, force: bool = False) -> None:
    """Raise OSError where a file can't be written, or is there and not by `made_by`."""
    file = Path(path).absolute()
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {file.parent}")
    if file.exists() and not file.is_file():
        raise FileExistsError(f"{path} can't be written: it is there, and no file; name a file")
    if file.exists() and not force and _remembered(file) != _told(file, made_by):
        raise FileExistsError(
            f"{path} is there, and is not what this command wrote of this input: write to another "
            "file, or over it with --force"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise type(error)(f"{path} can't be written: {error.strerror}") from None


def remember(path: str, made_by: str) -> None:
    """That a file was written by `made_by`; a cache that can't be written is no failure."""
    file = Path(path).absolute()
    with suppress(OSError):
        note = _note(file)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(_told(file, made_by)))


def made_by(command: str, source: str) -> str:
    """What a command and its input are known by."""
    return f"{command} {'-' if source == '-' else Path(source).absolute()}"


def same_file(one: str, other: str) -> bool:
    """Whether two names are of one file, be it there or not."""
    with suppress(OSError):
        return Path(one).samefile(other)
    return Path(one).resolve() == Path(other).resolve()


def _told(file: Path, by: str) -> dict[str, Any]:
    stat = file.stat()
    return {"file": str(file), "by": by, "bytes": stat.st_size, "changed_ns": stat.st_mtime_ns}


def _remembered(file: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(_note(file).read_text())
    return None


def _note(file: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "streamlstm" / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:32]}.json"
