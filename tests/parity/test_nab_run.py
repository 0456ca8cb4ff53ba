"""Our detector with its training, over a slice of NAB: what it knows, and what run.py writes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import streamlstm as sl
from nab import ablation, corpus, detector, figures, scorer

REPO = Path(__file__).parents[2]
FOLDER = REPO / "tests" / "data" / "nab"
SERIES = corpus.read(FOLDER)


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(REPO / "bench" / "nab" / "run.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def networks():
    return ablation.Networks(detector.readings(SERIES[1]), seed=0)


@pytest.mark.timeout(300)
def test_run(tmp_path):
    out = tmp_path / "scores.npz"
    done = run(FOLDER, out, "--seeds", 2, "--processes", 1)
    assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as file:
        found = dict(file)
    assert sorted(found) == [one.name for one in SERIES]
    assert all(scores.shape == (700,) for scores in found.values())
    expected = figures.figures(SERIES, found, corpus.read_profiles(FOLDER))
    lines = done.stdout.splitlines()
    assert lines[2] == figures.table({"seed 0": expected}).splitlines()[2]
    assert [line.split()[1] for line in lines[3:7]] == ["seed", "mean", "min", "max"]
    assert "2 files, 1,400 rows, each stepped; 290 gaps" in lines


def test_run_refusals(tmp_path):
    done = run(tmp_path, tmp_path / "scores.npz")
    assert done.returncode == 1
    assert done.stderr.startswith("run.py: ")
    assert not list(tmp_path.iterdir())


def test_only_the_probation_rows_are_learned_from(networks):
    series = networks.series
    values = series.values.copy()
    values[scorer.probation(len(series)) :] += 1000
    other = detector.train(replace(series, values=values), seed=0)
    assert other.fingerprint == networks.lstm.fingerprint
    assert detector.train(series, seed=1).fingerprint != other.fingerprint
    assert other.head.warm_up == scorer.probation(len(series))


def test_detect(networks):
    scores, counted = detector.detect(SERIES[1], seed=0)
    whole = ablation.stream(ablation.Variant(), networks.lstm, networks.series)
    assert np.array_equal(scores, whole)
    assert counted["gaps"] == 289


def test_every_variant_streams():
    found = ablation.detect(SERIES[1], seed=0)
    assert found.keys() == ablation.VARIANTS.keys()
    assert all(scores.shape == (700,) for scores in found.values())
    whole = found.pop("all of it")
    assert [name for name, scores in found.items() if np.array_equal(scores, whole)] == []


def test_the_linear_network_forecasts(networks):
    """It was trained on z and is streamed on a small share of it: the forecasts must be of the
    right size still. That of the LSTM on asinh z is what they are compared with."""
    events = networks.series.events()[: scorer.probation(700)]
    error, moves = {}, {}
    for name in ("linear", "lstm", "last_value"):
        model = getattr(networks, name)
        with sl.Engine(model) as engine:
            median = engine.open("file").run(events)[:-1, 1]
        error[name] = np.abs(median - events[1:, 1]).mean()
        moves[name] = np.abs(median - events[:-1, 1]).mean()
    assert error["linear"] < error["last_value"]
    assert moves["linear"] > 0.3 * moves["lstm"]
    assert moves["last_value"] < 1e-9 * error["last_value"]
