"""NAB's rule on cases small enough for a pencil, and against a slow sweep written separately."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nab import corpus, scorer

SCORE = Path(__file__).parents[1] / "bench" / "nab" / "score.py"


def s(y):
    """S(y) as the paper writes it."""
    return -1.0 if y > 3 else 2 / (1 + math.exp(5 * y)) - 1


def windows(*rows):
    return np.reshape(rows, (-1, 2)).astype(int)


def final(scores, *rows, profile="standard"):
    return scorer.evaluate([(np.asarray(scores, float), windows(*rows))])[profile]


def at(rows, *hits):
    scores = np.zeros(rows)
    scores[list(hits)] = 1
    return scores


# The position function


@pytest.mark.parametrize(
    ("y", "value"),
    [(-1, 0.98661430), (-0.5, 0.84828364), (0, 0), (1, -0.98661430), (3, -1 + 6.1e-7), (3.001, -1)],
)
def test_sigmoid(y, value):
    assert scorer.sigmoid(np.array([y]))[0] == pytest.approx(value, abs=1e-8)


def test_sigmoid_does_not_overflow():
    assert scorer.sigmoid(np.array([-1e9, 1e9, np.inf])).tolist() == [1, -1, -1]


def test_row_values():
    value, window = scorer.row_values(16, windows((2, 5)))
    assert window.tolist() == [-1, -1, 0, 0, 0, 0] + [-1] * 10
    assert value[:2].tolist() == [-1, -1]  # before the first window
    # y is -4/4, -3/4, -2/4, -1/4: both edges are inside.
    assert value[2:6] == pytest.approx([s(y / 4) / s(-1) for y in (-4, -3, -2, -1)])
    assert value[2] == 1
    # Then 1/3, 2/3, ... of width - 1, and all of it beyond 3 of them.
    assert value[6:15] == pytest.approx([s(k / 3) for k in range(1, 10)])
    assert value[15] == -1


def test_row_values_count_from_the_window_that_ended_last():
    value, window = scorer.row_values(12, windows((1, 3), (5, 9)))
    assert window.tolist() == [-1, 0, 0, 0, -1, 1, 1, 1, 1, 1, -1, -1]
    assert value[4] == pytest.approx(s(1 / 2))
    assert value[10:] == pytest.approx([s(1 / 4), s(2 / 4)])


def test_a_window_of_one_row():
    value, _ = scorer.row_values(3, windows((1, 1)))
    assert value.tolist() == [-1, 1, -1]


def test_no_windows():
    value, window = scorer.row_values(3, windows())
    assert value.tolist() == [-1, -1, -1]
    assert window.tolist() == [-1, -1, -1]


# Probation


@pytest.mark.parametrize(
    ("rows", "unscored"), [(0, 0), (6, 0), (7, 1), (20, 3), (4032, 604), (5000, 750), (22695, 750)]
)
def test_probation(rows, unscored):
    assert scorer.probation(rows) == unscored


def test_probation_is_not_scored():
    """200 rows, 30 of probation: no detection there costs or wins anything."""
    assert final(at(200, 0, 15, 29, 100), (100, 103)).final == 100
    assert final(at(200, 29), (29, 32)).final == 0
    assert final(at(200, 30), (29, 32)).raw == pytest.approx(s(-3 / 4) / s(-1))


# What detections are worth


def test_perfect_and_null():
    perfect = final(at(40, 10, 30), (10, 13), (30, 35))
    assert (perfect.final, perfect.raw, perfect.threshold) == (100, 2, 1)
    null = final(np.zeros(400), (100, 103), (300, 305))
    assert (null.final, null.raw, null.threshold) == (0, -2, math.inf)


def test_a_window_is_worth_its_best_detection():
    assert final(at(40, 12, 13), (10, 13)).raw == pytest.approx(s(-2 / 4) / s(-1))
    assert final(at(40, 10, 11, 12, 13), (10, 13)).final == 100


def test_every_false_positive_counts():
    """Before the first window -0.11 each; after a window by how far."""
    found = final(at(40, 7, 8, 10, 14, 15), (10, 13))
    assert found.raw == pytest.approx(1 - 0.11 * 2 + 0.11 * (s(1 / 3) + s(2 / 3)))
    assert found.final == pytest.approx(100 * (found.raw + 1) / 2)


def test_profiles():
    scores = at(
        80, 20, 50
    )  # of the windows at 20 and 60: one found, one missed, one detection far off
    values = {
        n: scorer.evaluate([(scores, windows((20, 23), (60, 63)))])[n] for n in scorer.PROFILES
    }
    assert values["standard"].raw == pytest.approx(1 - 1 - 0.11)
    assert values["reward_low_FP_rate"].raw == pytest.approx(1 - 1 - 0.22)
    assert values["reward_low_FN_rate"].raw == pytest.approx(1 - 2 - 0.11)
    assert values["reward_low_FN_rate"].final == pytest.approx(100 * (2 - 1.11 + 2) / 6)


def test_one_threshold_for_all_files():
    """The second file's false positives, above its window's score, cost more than the window."""
    one = (np.where(at(40, 10) > 0, 0.9, 0), windows((10, 13)))
    noisy = np.full(200, 0.5)
    noisy[150] = 0.4
    result = scorer.evaluate([one, (noisy, windows((150, 153)))])["standard"]
    assert (result.raw, result.threshold) == (0, 0.9)


def test_refusals():
    for bad in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="a score is not in"):
            final(np.full(40, bad), (10, 13))
    with pytest.raises(ValueError, match="there are no windows"):
        final(np.zeros(40))


# The sweep


def total_at(files, threshold, profile):
    """The rule at one threshold, row by row."""
    total = 0.0
    for scores, rows in files:
        found = [-profile.fn] * len(rows)
        for i in range(scorer.probation(len(scores)), len(scores)):
            if scores[i] < threshold:
                continue
            inside = [k for k, (first, last) in enumerate(rows) if first <= i <= last]
            ended = [(first, last) for first, last in rows if last < i]
            if inside:
                first, last = rows[inside[0]]
                y = -(last - i + 1) / (last - first + 1)
                found[inside[0]] = max(found[inside[0]], profile.tp * s(y) / s(-1))
            elif ended:
                first, last = ended[-1]
                total += profile.fp * (s((i - last) / (last - first)) if last > first else -1)
            else:
                total -= profile.fp
        total += sum(found)
    return total


@st.composite
def scored_files(draw):
    files = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(4, 60))
        edges = sorted(draw(st.sets(st.integers(0, rows - 1), max_size=6)))
        pairs = list(zip(edges[::2], edges[1::2], strict=False))
        # Few levels, so that many rows share a score, in windows and outside.
        levels = draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows))
        files.append((np.array(levels) / 6, windows(*pairs)))
    if not any(len(w) for _, w in files):
        files.append((np.linspace(0, 1, 20), windows((5, 9))))
    return files


@pytest.mark.untraced
@settings(max_examples=200, deadline=None)
@given(scored_files(), st.sampled_from(sorted(scorer.PROFILES)))
def test_the_sweep_is_exact(files, name):
    profile = scorer.PROFILES[name]
    result = scorer.evaluate(files)[name]
    thresholds = [math.inf, *sorted({x for scores, _ in files for x in scores}, reverse=True)]
    totals = [total_at(files, t, profile) for t in thresholds]
    assert result.raw == pytest.approx(max(totals), abs=1e-9)
    assert total_at(files, result.threshold, profile) == pytest.approx(result.raw, abs=1e-9)
    count = sum(len(w) for _, w in files)
    share = (result.raw + count * profile.fn) / (count * (profile.tp + profile.fn))
    assert result.final == pytest.approx(100 * share)


# The corpus and the command


def write_folder(folder, timestamps, values, labels, name="real/a.csv"):
    for path in (folder / "data" / name, folder / corpus.LABELS, folder / corpus.PROFILES):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{t},{v}\n" for t, v in zip(timestamps, values, strict=True)]
    (folder / "data" / name).write_text("timestamp,value\n" + "".join(rows))
    (folder / corpus.LABELS).write_text(json.dumps(labels))
    weights = {
        n: {"CostMatrix": {"tpWeight": p.tp, "fnWeight": p.fn, "fpWeight": p.fp, "tnWeight": 1.0}}
        for n, p in scorer.PROFILES.items()
    }
    (folder / corpus.PROFILES).write_text(json.dumps(weights))
    return folder


def hours(*numbers):
    return [f"2014-04-10 {n:02}:00:00" for n in numbers]


def label(first, last):
    return [f"{t}.000000" for t in hours(first, last)]


def test_corpus(tmp_path):
    """The hour 3 comes twice, and the clock goes back from 6 to 2: windows go by row."""
    times = hours(1, 3, 3, 4, 6, 2, 7)
    write_folder(tmp_path, times, [1, 2.5, 1e9, -3, 0, 0, 0], {"real/a.csv": [label(3, 4)]})
    (series,) = corpus.read(tmp_path)
    assert (series.name, series.timestamps) == ("real/a.csv", times)
    assert series.values.dtype == np.float64
    assert series.values[:4].tolist() == [1, 2.5, 1e9, -3]
    assert series.windows.tolist() == [[1, 3]]
    assert corpus.read_profiles(tmp_path) == scorer.PROFILES


def test_corpus_without_windows_and_with_labels_of_other_files(tmp_path):
    labels = {"real/a.csv": [], "real/elsewhere.csv": [label(1, 2)]}
    (series,) = corpus.read(write_folder(tmp_path, hours(1, 2), [1, 2], labels))
    assert series.windows.shape == (0, 2)
    assert series.windows.dtype == int


@pytest.mark.parametrize(
    ("values", "labels", "refusal"),
    [
        ([1, 2], {}, "real/a.csv is not in labels/combined_windows.json"),
        ([1, "x"], {"real/a.csv": []}, "real/a.csv: .* is not a timestamp and a number"),
        ([1, "nan"], {"real/a.csv": []}, "real/a.csv has a value that is not finite"),
        ([1, 2], {"real/a.csv": [label(1, 9)]}, "real/a.csv has no row at .*01:.* or at .*09:"),
    ],
)
def test_corpus_refusals(tmp_path, values, labels, refusal):
    with pytest.raises(ValueError, match=refusal):
        corpus.read(write_folder(tmp_path, hours(1, 2), values, labels))


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCORE), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_score_command(tmp_path):
    write_folder(tmp_path, hours(*range(20)), range(20), {"real/a.csv": [label(10, 13)]})
    np.savez(tmp_path / "good.npz", **{"real/a.csv": at(20, 10)})
    np.savez(tmp_path / "late.npz", **{"real/a.csv": at(20, 12) / 2})
    done = run(tmp_path, tmp_path / "good.npz", tmp_path / "late.npz")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 2 * len(scorer.PROFILES)
    assert "| good | standard | 100.0000 | 1.0000 | 1 |" in lines
    raw = s(-2 / 4) / s(-1)
    assert f"| late | standard | {50 * (raw + 1):.4f} | {raw:.4f} | 0.5 |" in lines


def test_score_command_refusals(tmp_path):
    write_folder(tmp_path, hours(*range(20)), range(20), {"real/a.csv": [label(10, 13)]})
    np.savez(tmp_path / "short.npz", **{"real/a.csv": np.zeros(19)})
    done = run(tmp_path, tmp_path / "short.npz")
    assert done.returncode == 1
    assert done.stderr.endswith("short.npz does not have 20 scores of real/a.csv\n")
    assert run(tmp_path).returncode == 2
