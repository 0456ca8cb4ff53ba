"""What a detector's scores are worth by NAB's rule.

python bench/nab/score.py FOLDER SCORES.npz...

FOLDER: a NAB folder (data/, labels/, config/). SCORES.npz: one detector's scores in [0, 1], an
array [rows] for every data file, its key the file ("realTweets/Twitter_volume_AAPL.csv").
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from nab import corpus, scorer


def results(
    series: list[corpus.Series], scores: Path, profiles: dict[str, scorer.Profile]
) -> dict[str, scorer.Result]:
    """The detector's result per profile. Raises ValueError, naming the data file, where `scores`
    does not have one score for each of its rows."""
    files = []
    with np.load(scores, allow_pickle=False) as found:
        for one in series:
            if one.name not in found or found[one.name].shape != one.values.shape:
                raise ValueError(f"{scores} does not have {len(one.values)} scores of {one.name}")
            files.append((found[one.name], one.windows))
    return scorer.evaluate(files, profiles)


def table(folder: Path, paths: list[Path]) -> str:
    """Final, raw and threshold per detector and profile, as Markdown."""
    series, profiles = corpus.read(folder), corpus.read_profiles(folder)
    lines = ["| detector | profile | final | raw | threshold |", "| --- | --- | --: | --: | --: |"]
    for path in paths:
        for profile, r in results(series, path, profiles).items():
            cells = f"{r.final:.4f} | {r.raw:.4f} | {r.threshold:.12g}"
            lines.append(f"| {path.stem} | {profile} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder, *paths = map(Path, arguments)
    try:
        print(table(folder, paths))
    except (OSError, ValueError) as error:
        print(f"score.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
