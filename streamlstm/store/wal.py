"""Damage in a SQLite write-ahead log, found before SQLite opens it.

SQLite reads a log up to its first invalid frame and ignores the rest without a word. That
is right for the last transaction, which a power cut may have torn. When whole transactions
follow, committed data was damaged, and to go on would be to go back in time. It is as wrong
when the torn transaction stands in the main file already (a checkpoint had copied it): the
log's older pages would then be mixed with the newer ones of the file.

A log is a header of 32 bytes and frames, a page each behind a header of 24 bytes; all
numbers are big-endian (https://www.sqlite.org/fileformat2.html#walformat):

    header   magic, version, page size, checkpoint, salt 1, salt 2, checksum 1, checksum 2
    frame    page, pages after commit (0: no commit), salt 1, salt 2, checksum 1, checksum 2

A frame is valid if its salts are the header's and its checksum goes on from that of the
frame before. As that one is stored, each frame can be judged on its own, also behind an
invalid one. Frames with other salts are left from before the log was last begun anew.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
VERSION: Final = 3007000
# The magic number's last bit says in which byte order the checksums take their words.
MAGIC: Final = {0x377F0682: "<u4", 0x377F0683: ">u4"}
# Frames judged at a time, so that a large log needs little memory.
CHUNK_FRAMES: Final = 1024


@dataclass(frozen=True)
class WalDamage:
    """frame: the first invalid one, from 1; 0 is the log's header. commits: how many the log
    holds from there on that were whole once. copied: the main file has them, in part or all.
    """

    frame: int
    commits: int
    copied: bool = False

    def __str__(self) -> str:
        where = f"at frame {self.frame}" if self.frame else "in its header"
        if self.copied:
            return f"{where}, in a commit that the database has already"
        return f"{where}, and {self.commits} commits from there on can't be read"


@dataclass(frozen=True)
class _Frames:
    """All frames of a log: headers [frames, 6], as numbers; ours: of this log, not left from
    an earlier one; valid: by salts and checksum."""

    headers: Words
    ours: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def find_damage(database: Path) -> WalDamage | None:
    """What SQLite would pass over in the log of `database`, if that is more than a torn end.

    Only for a database that no process has open. Raises OSError.
    """
    wal = Path(f"{database}-wal")
    if not wal.exists() or wal.stat().st_size <= HEADER_BYTES:
        return None
    with wal.open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), ">u4").astype(np.uint32)
    order, page_bytes = MAGIC.get(int(header[0]), ""), int(header[2])
    sound = order != "" and header[1] == VERSION and 512 <= page_bytes <= 65536
    if sound:
        sums = _sums(header[:6].astype(">u4").view(order)[None], np.zeros((1, 2), np.uint32))
        sound = bool((sums[0] == header[6:8]).all())
    if not sound:
        return _damage_without_header(database, wal)
    data = np.memmap(wal, np.uint8, "r", HEADER_BYTES)
    frames = _read_frames(data, page_bytes, order, header[4:6], header[6:8])
    invalid = np.flatnonzero(~frames.valid)
    if not invalid.size:
        return None
    first = int(invalid[0])
    commits = frames.ours & (frames.headers[:, 1] != 0)
    rest = int(commits[first:].sum())
    # The first commit from here on ends the torn transaction itself.
    if rest > 1:
        return WalDamage(first + 1, rest)
    if _was_copied(database, data, page_bytes, frames, first):
        return WalDamage(first + 1, max(rest, 1), copied=True)
    return None


def _damage_without_header(database: Path, wal: Path) -> WalDamage | None:
    """No frame counts without a sound header; were there commits?"""
    with database.open("rb") as file:
        page_bytes = int.from_bytes(file.read(18)[16:18], "big")
    if page_bytes == 1:
        page_bytes = 65536
    data = np.memmap(wal, np.uint8, "r", HEADER_BYTES)
    headers = _headers(data, page_bytes) if page_bytes >= 512 else np.zeros((0, 6), np.uint32)
    if not len(headers):
        return None
    ours = (headers[:, 2:4] == headers[0, 2:4]).all(1)
    commits = int((ours & (headers[:, 1] != 0)).sum())
    return WalDamage(0, commits) if commits else None


def _read_frames(data: Any, page_bytes: int, order: str, salts: Words, seed: Words) -> _Frames:
    headers = _headers(data, page_bytes)
    ours = (headers[:, 2:4] == salts).all(1) & (headers[:, 0] != 0)
    valid = ours.copy()
    seeds = np.concatenate([seed[None], headers[:-1, 4:6]])
    size = FRAME_HEADER_BYTES + page_bytes
    for start in range(0, len(headers), CHUNK_FRAMES):
        part = slice(start, min(start + CHUNK_FRAMES, len(headers)))
        block = np.array(data[part.start * size : part.stop * size]).reshape(-1, size)
        words = np.concatenate([block[:, :8], block[:, FRAME_HEADER_BYTES:]], axis=1).view(order)
        valid[part] &= (_sums(words, seeds[part]) == headers[part, 4:6]).all(1)
    return _Frames(headers, ours, valid)


def _headers(data: Any, page_bytes: int) -> Words:
    """The headers [frames, 6] of all frames that are there in full."""
    size = FRAME_HEADER_BYTES + page_bytes
    frames = data[: len(data) // size * size].reshape(-1, size)
    headers: Words = np.ascontiguousarray(frames[:, :FRAME_HEADER_BYTES]).view(">u4")
    return headers.astype(np.uint32)


def _sums(words: NDArray[Any], seeds: Words) -> Words:
    """SQLite's checksums [n, 2] of n rows of words [n, even], each from its seed [n, 2].

    By definition, for each pair x0, x1 of words:  s0 += x0 + s1;  s1 += x1 + s0  (mod 2^32),
    which is  s = M s + M' x  with the matrices below: one product for all words at once.
    """
    pairs = words.shape[1] // 2
    step = np.array([[1, 1], [1, 2]], np.uint32)
    power = np.eye(2, dtype=np.uint32)
    weights = np.empty((pairs, 2, 2), np.uint32)  # of x0 and x1 in s0 and s1
    for k in reversed(range(pairs)):
        weights[k] = (power @ np.array([[1, 0], [1, 1]], np.uint32)).T
        power = power @ step
    return words.astype(np.uint32) @ weights.reshape(-1, 2) + seeds @ power.T


def _was_copied(database: Path, data: Any, page_bytes: int, frames: _Frames, first: int) -> bool:
    """Whether a checkpoint copied the torn transaction, which begins before or at `first`.

    Then the main file's pages are those of its whole frames. A page that the valid part holds
    just so is no evidence.
    """
    size = FRAME_HEADER_BYTES + page_bytes
    commits = np.flatnonzero(frames.valid[:first] & (frames.headers[:first, 1] != 0))
    end = int(commits[-1]) + 1 if commits.size else 0

    def page(k: int) -> bytes:
        return bytes(data[k * size + FRAME_HEADER_BYTES : (k + 1) * size])

    torn = {int(frames.headers[k, 0]): int(k) for k in np.flatnonzero(frames.ours) if k >= end}
    before = {int(frames.headers[k, 0]): k for k in range(end)}
    with database.open("rb") as file:
        for number, k in torn.items():
            if not frames.valid[k]:
                continue
            content = page(k)
            if number in before and page(before[number]) == content:
                continue
            if os.pread(file.fileno(), page_bytes, (number - 1) * page_bytes) == content:
                return True
    return False
