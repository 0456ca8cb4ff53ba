"""Words that several sentences share."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """How many of what: "1 input", "2 inputs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
