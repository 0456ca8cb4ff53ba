"""What scores of a whole corpus are worth: by profile, by half, and at a decision made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nab import scorer
from nab.corpus import Array, Series
from nab.scorer import Profile

Files = Sequence[tuple[Array, Array]]  # (scores, windows) of each

DECISION = 0.5  # the score from which on a session alerts
HALVES = {"A": slice(0, None, 2), "B": slice(1, None, 2)}  # of the files by name


def final_at(files: Files, threshold: float, profile: Profile) -> float:
    """The final figure at a threshold that was not chosen by these files. NaN without windows."""
    total, windows = 0.0, 0
    for scores, rows in files:
        scored, gains = scorer.gains(scores, rows)
        total += float((gains[scored >= threshold] @ profile).sum())
        windows += len(rows)
    return 100 * total / (windows * (profile.tp + profile.fn)) if windows else float("nan")


def figures(
    series: Sequence[Series], found: Mapping[str, Array], profiles: Mapping[str, Profile]
) -> dict[str, float]:
    """Each profile's final; then, all in the standard profile: each half's at the threshold that
    is best for it, each half's at the one that is best for the other, and all files' at DECISION.

    found: scores [rows] by file. Raises ValueError where there are no windows at all.
    """
    files = [(found[one.name], one.windows) for one in series]
    best = scorer.evaluate(files, dict(profiles))
    columns = {name.removeprefix("reward_"): result.final for name, result in best.items()}
    standard = profiles["standard"]
    halves = {name: files[half] for name, half in HALVES.items()}
    thresholds = {name: _best_threshold(half, standard) for name, half in halves.items()}
    for name, half in halves.items():
        columns[name] = final_at(half, thresholds[name], standard)
    for name, other in ("AB", "BA"):
        columns[f"{name} at {other}'s"] = final_at(halves[name], thresholds[other], standard)
    columns[f"at {DECISION}"] = final_at(files, DECISION, standard)
    return columns


def _best_threshold(files: Files, profile: Profile) -> float:
    if not any(len(windows) for _, windows in files):
        return np.inf
    return scorer.evaluate(files, {"standard": profile})["standard"].threshold


def spread(seeds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, least and largest of figures that differ by their seed."""
    columns = {column: [one[column] for one in seeds] for column in seeds[0]}
    return {
        "mean": {column: float(np.mean(values)) for column, values in columns.items()},
        "min": {column: min(values) for column, values in columns.items()},
        "max": {column: max(values) for column, values in columns.items()},
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Figures by name, as Markdown."""
    columns = next(iter(rows.values())).keys()
    lines = [["", *columns], ["---", *("--:" for _ in columns)]]
    lines += [[name, *(f"{x:.1f}" for x in row.values())] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
