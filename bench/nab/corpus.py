"""Reading a NAB folder: data/CATEGORY/FILE.csv, labels/combined_windows.json, config/profiles.json.

Layout and files: https://github.com/numenta/NAB (MIT), or any part of it.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nab.scorer import Profile

Array = NDArray[Any]

LABELS = Path("labels/combined_windows.json")
PROFILES = Path("config/profiles.json")


@dataclass(frozen=True)
class Series:
    """A data file. name: "CATEGORY/FILE.csv". timestamps: as written, one a row; they may repeat
    and go back. values: float64 [rows]. windows: first and last row of each labelled window,
    both inclusive, integers [windows, 2]."""

    name: str
    timestamps: list[str]
    values: Array
    windows: Array


def read(folder: Path) -> list[Series]:
    """The data files in `folder`, by name. Labels of files that it doesn't have are left alone.

    Raises ValueError, naming the file, for a data file without labels (it would silently count
    as one without anomalies), a row that isn't a timestamp and a finite number, or a window
    whose first or last timestamp the file doesn't have.
    """
    labels = json.loads((folder / LABELS).read_text())
    data = folder / "data"
    return [
        _series(path, path.relative_to(data).as_posix(), labels)
        for path in sorted(data.glob("*/*.csv"))
    ]


def read_profiles(folder: Path) -> dict[str, Profile]:
    """The weights of each profile in the folder's config/profiles.json."""
    profiles = json.loads((folder / PROFILES).read_text())
    costs = {name: profile["CostMatrix"] for name, profile in profiles.items()}
    return {n: Profile(c["tpWeight"], c["fnWeight"], c["fpWeight"]) for n, c in costs.items()}


def _series(path: Path, name: str, labels: dict[str, list[list[str]]]) -> Series:
    if name not in labels:
        raise ValueError(f"{name} is not in {LABELS}")
    timestamps, values = [], []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                timestamps.append(row["timestamp"])
                values.append(float(row["value"]))
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{name}: {row} is not a timestamp and a number") from None
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} has a value that is not finite")
    windows = [_rows(name, timestamps, *window) for window in labels[name]]
    return Series(name, timestamps, np.array(values), np.reshape(windows, (-1, 2)).astype(int))


def _rows(name: str, timestamps: list[str], start: str, end: str) -> tuple[int, int]:
    """First and last row of a window. By the written timestamp: comparing times would take in
    rows from elsewhere in a file that goes back in time (a clock change)."""
    # The labels write microseconds, which the data files leave out.
    start, end = start.removesuffix(".000000"), end.removesuffix(".000000")
    try:
        first = timestamps.index(start)
        last = len(timestamps) - 1 - timestamps[::-1].index(end)
    except ValueError:
        raise ValueError(f"{name} has no row at {start} or at {end}: a window of its") from None
    return first, last
