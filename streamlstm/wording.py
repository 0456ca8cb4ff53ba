"""Words that several sentences share."""

from __future__ import annotations

import errno
from typing import Final

_DONE: Final = {
    errno.ENOENT: ("read", "there is no such file"),
    errno.EISDIR: ("read", "it is a folder"),
    errno.ENOTDIR: ("read", "a part of its path is a file, and no folder"),
    errno.ENOSPC: ("written", "no space is left"),
    errno.EDQUOT: ("written", "the quota is used up"),
    errno.EFBIG: ("written", "it would be larger than files may be"),
}


def counted(count: int, noun: str) -> str:
    """How many of what: "1 input", "2 inputs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def reason(error: Exception) -> str:
    """Why the system refused something, without the number of its error and the file's name."""
    return getattr(error, "strerror", None) or str(error)


def refusal(error: OSError) -> str:
    """What the system refused, in a sentence; one of ours as it stands."""
    if error.errno is None:
        return str(error)
    done, why = _DONE.get(error.errno, ("used", reason(error)))
    return f"{error.filename or 'a file or stdout'} can't be {done}: {why}"


def sized(count: int) -> str:
    """Bytes for a person: "640 bytes", "1.2 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return counted(count, "byte")


def lasting(seconds: float) -> str:
    """A time for a person, in its two largest units: "3 h 20 min", "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for (unit, size), (lesser, less) in (
        (("d", 86_400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // less} {lesser}"
    raise AssertionError(seconds)
