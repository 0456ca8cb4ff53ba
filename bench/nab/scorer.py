"""NAB's scoring rule: what a detector's scores are worth, with one threshold for all files.

Lavin & Ahmad 2015 (arXiv:1510.03336), section II; the constants are those of NAB v1.1
(https://github.com/numenta/NAB, nab/sweeper.py and config/profiles.json).

A row is a detection when its score >= threshold. A labelled window is worth the largest value
of its detections, 1 at its first row and almost 0 at its last, or -A_FN where it has none;
every detection outside windows costs up to A_FP, little just after a window. The first rows of
a file (`probation`) are not scored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PROBATION_SHARE = 0.15
PROBATION_MAX = 750  # rows
FAR = 3.0  # widths after a window: from here on a false positive costs all of A_FP


class Profile(NamedTuple):
    """What a window found at its first row, a missed window and a false positive weigh."""

    tp: float
    fn: float
    fp: float


PROFILES = {
    "standard": Profile(1.0, 1.0, 0.11),
    "reward_low_FP_rate": Profile(1.0, 1.0, 0.22),
    "reward_low_FN_rate": Profile(1.0, 2.0, 0.11),
}


@dataclass(frozen=True)
class Result:
    """final: 0 for a detector that flags nothing, 100 for a perfect one. raw: the sum of all
    windows' and false positives' values. threshold: the best one; infinite: flag nothing."""

    final: float
    raw: float
    threshold: float


def probation(rows: int) -> int:
    """How many rows at the beginning of a file of `rows` rows are not scored."""
    return min(int(PROBATION_SHARE * rows), PROBATION_MAX)


def sigmoid(y: Array | float) -> Array:
    """S(y): almost 1 at y = -1 (a window's first row), 0 at 0, -1 beyond FAR."""
    y = np.asarray(y, float)
    # tanh(-5y / 2) is 2 / (1 + e^(5y)) - 1, and doesn't overflow.
    return np.where(y > FAR, -1.0, np.tanh(-2.5 * y))


def row_values(rows: int, windows: Array) -> tuple[Array, Array]:
    """What a detection is worth at each row, before the weights of a profile.

    windows: integers [windows, 2], first and last row, both inclusive, in order and disjoint.
    Returns (value, window), both [rows]: value is in (0, 1] in windows, in [-1, 0) outside;
    window is the index of the row's window, -1 outside.
    """
    value, window = np.full(rows, -1.0), np.full(rows, -1)
    for k, (first, last) in enumerate(np.reshape(windows, (-1, 2))):
        width = last - first + 1
        inside = np.arange(first, last + 1)
        value[inside] = sigmoid((inside - last - 1) / width) / sigmoid(-1.0)
        window[inside] = k
        after = np.arange(last + 1, rows)  # the next window overwrites its rows and those after it
        # A window of one row has no width to fall off over: FAR at once.
        value[after] = sigmoid((after - last) / (width - 1)) if width > 1 else -1.0
    return value, window


def gains(scores: Array, windows: Array) -> tuple[Array, Array]:
    """What each scored row adds to the total once the threshold has come down to its score.

    scores: [rows]. windows: as for row_values. Returns the scored rows' scores [scored] and gains
    [scored, 3] in the order of Profile: a window's value, 1 for the first detection in a window
    (it is no longer missed), and a false positive's value (negative).
    """
    start = probation(len(scores))
    value, window = row_values(len(scores), windows)
    gain = np.zeros((len(scores), 3))
    outside = window < 0
    gain[outside, 2] = value[outside]
    for k in range(len(windows)):
        rows = np.flatnonzero(window[start:] == k) + start
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        best = np.maximum.accumulate(value[rows])
        gain[rows, 0] = np.diff(best, prepend=0.0)
        gain[rows[:1], 1] = 1.0
    return scores[start:], gain[start:]


def evaluate(
    files: Iterable[tuple[Array, Array]], profiles: dict[str, Profile] = PROFILES
) -> dict[str, Result]:
    """A detector's result per profile, at the one threshold that is best for all files together.

    files: (scores [rows] in [0, 1], windows [windows, 2]) of each file. The sweep is exact: the
    total is known at every score that occurs, and "flag nothing" is a choice too. Of thresholds
    that are equally good the highest is taken. Raises ValueError for scores that are not in
    [0, 1] and when there are no windows: then there is nothing to find.
    """
    count, swept = 0, []
    for scores, windows in files:
        if not np.all((scores >= 0) & (scores <= 1)):
            raise ValueError("a score is not in [0, 1]")
        count += len(windows)
        swept.append(gains(scores, windows))
    if not count:
        raise ValueError("there are no windows, so there is nothing to find")
    scores = np.concatenate([s for s, _ in swept])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    totals = np.cumsum(np.concatenate([g for _, g in swept])[order], axis=0)
    ends = np.append(scores[1:] != scores[:-1], True)  # all rows of one score come together
    thresholds = np.append(np.inf, scores[ends])
    totals = np.vstack([np.zeros(3), totals[ends]])

    results = {}
    for name, profile in profiles.items():
        null, perfect = -count * profile.fn, count * profile.tp
        raw = null + totals @ profile
        best = int(np.argmax(raw))
        final = 100 * (raw[best] - null) / (perfect - null)
        results[name] = Result(float(final), float(raw[best]), float(thresholds[best]))
    return results
