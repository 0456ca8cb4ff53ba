"""Our detector as a stream over a slice of NAB: strictly causal, one step a row, whatever the way.

The network here says "as it is now" or is random; tests/parity/test_nab_run.py trains one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from nab import ablation, corpus, detector, figures, run, scorer
from streamlstm import head as constants
from streamlstm.feature import Feature

FOLDER = Path(__file__).parent / "data" / "nab"
SERIES = corpus.read(FOLDER)


def head_of(series):
    known = detector.probation(series).values
    return sl.Head(
        Feature("value", "", float(known.mean()), float(known.std())),
        time="timestamp",
        step_s=float(np.median(np.diff(series.times))),
        calendar=("day",),
        warm_up=len(known),
        **detector.POLICIES,
    )


def random_model(head, seed=0):
    """An LSTM(8) that has learned nothing."""
    rng = np.random.default_rng(seed)
    lstm = sl.LSTM(*(rng.normal(0, 0.3, n) for n in ((32, head.network_inputs), (32, 8), 32)))
    dense = sl.Dense(rng.normal(0, 0.3, (head.network_outputs, 8)), np.zeros(head.network_outputs))
    return sl.Model([lstm, dense], head=head, dtype="float32")


def streamed(model, events):
    with sl.Engine(model) as engine:
        session = engine.open("file")
        return detector.stream(session, events), session.counters()


@pytest.fixture(params=SERIES, ids=lambda one: Path(one.name).stem)
def series(request):
    return detector.readings(request.param)


@pytest.fixture(params=[detector.last_value, random_model])
def model(request, series):
    return request.param(head_of(series))


def test_the_slice():
    assert [len(one.values) for one in SERIES] == [700, 700]
    for one in SERIES:
        ((first, last),) = one.windows
        assert scorer.probation(700) < first < last < 700
    assert corpus.read_profiles(FOLDER) == scorer.PROFILES


def test_scores(series, model):
    scores, counted = streamed(model, series.events())
    assert scores.shape == (len(series),)
    assert scores.dtype == np.float64
    assert scores.min() == 0
    assert constants.ALERT < scores.max() < 1
    assert not any(counted[what] for what in ("missing", "held", "predicted", "skipped"))


def test_no_row_knows_a_later_one(series, model):
    """Whatever comes after a row, its score stays: bit for bit."""
    events = series.events()
    scores, _ = streamed(model, events)
    for rows in (1, 2, 150, 400, len(events) - 1):
        other = events.copy()
        other[rows:, 1] = -3 * other[rows:, 1][::-1]
        assert np.array_equal(streamed(model, other[:rows])[0], scores[:rows])
        assert np.array_equal(streamed(model, other)[0][:rows], scores[:rows])


def test_step_and_run_say_the_same(series, model):
    events = series.events()
    scores, counted = streamed(model, events)
    with sl.Engine(model) as engine:
        session = engine.open("file")
        y = np.concatenate([session.run(events[:333]), session.run(events[333:])])
        assert session.counters() == counted
    reports = [model.head.report(row) for row in y]
    assert [report.score for report in reports] == scores.tolist()
    warm = scorer.probation(len(events))
    assert [report.warming for report in reports] == [True] * warm + [False] * (len(events) - warm)
    assert any(report.alert for report in reports)
    assert all(report.alert == (report.score >= 0.5) for report in reports[warm:])


def test_rows_out_of_order_are_steps_too(series):
    """A clock that is set back, and times that come twice: every row steps and is scored."""
    events = series.events()
    events[300:, 0] -= 86_400
    events[500, 0] = events[499, 0]
    model = random_model(head_of(series))
    scores, counted = streamed(model, events)
    assert (counted["late"], counted["repeated"]) == (1, 1)
    assert len(scores) == len(events)
    calm = events.copy()
    calm[:, 1] = np.median(events[:, 1])
    calm[300, 1] = 1e6 * events[:, 1].max()
    found, _ = streamed(model, calm)
    assert found[300] > 0.99  # the row that came late


def test_last_value():
    """A network that says 0 forecasts the value that it was given."""
    series = detector.readings(SERIES[0])
    model = detector.last_value(head_of(series))
    with sl.Engine(model) as engine:
        y = engine.open("file").run(series.events())
    assert y[:, 1] == pytest.approx(series.values[:, 0], rel=1e-12)


# Variants without a part


def variant_scores(series, **changed):
    model = random_model(head_of(series))
    return ablation.stream(ablation.Variant(**changed), model, series)


def test_the_variant_with_all_of_it(series):
    assert np.array_equal(
        variant_scores(series), streamed(random_model(head_of(series)), series.events())[0]
    )


def test_a_silent_statistic_is_never_the_reason(series):
    every = (ablation.VALUE, ablation.LEVEL, ablation.FORECAST)
    assert variant_scores(series).any()
    assert not variant_scores(series, silent=every).any()
    # The drift alone is what is left; without weight it is silent too.
    left = variant_scores(series, silent=every[:2])
    assert left.any()
    assert not variant_scores(series, silent=every[:2], constants={"FORECAST_WEIGHT": 0.0}).any()


def test_constants_are_put_back(series):
    before = {name: value for name, value in vars(constants).items() if name.isupper()}
    scores = variant_scores(series)
    for name, value in (("QUIET", 0), ("SMOOTHING", 1.0), ("FORGET", 2e-3)):
        assert not np.array_equal(variant_scores(series, constants={name: value}), scores), name
    assert {name: vars(constants)[name] for name in before} == before


def test_every_variant_changes_what_exists():
    for variant in ablation.VARIANTS.values():
        assert set(variant.constants) <= set(vars(constants))
        assert hasattr(ablation.Networks, variant.network)


# Figures


def scored(*hits):
    """Scores of both files: all 0 but at (file, row, score)."""
    found = {one.name: np.zeros(700) for one in SERIES}
    for file, row, score in hits:
        found[SERIES[file].name][row] = score
    return found


def test_figures():
    """Both windows found at their first row, at scores that the halves do not agree about."""
    found = scored((0, 244, 0.9), (1, 387, 0.4), (0, 650, 0.3))
    got = figures.figures(SERIES, found, scorer.PROFILES)
    assert {got[name] for name in ("standard", "low_FP_rate", "low_FN_rate", "A", "B")} == {100.0}
    assert got["A at B's"] == 100  # at 0.4
    assert got["B at A's"] == 0  # at 0.9
    assert got["at 0.5"] == 50


def test_figures_of_a_false_positive():
    found = scored((0, 244, 0.9), (1, 387, 0.9), (1, 200, 0.9))
    got = figures.figures(SERIES, found, scorer.PROFILES)
    assert got["at 0.5"] == pytest.approx(100 * (4 - 0.11) / 4)
    assert got["low_FP_rate"] == pytest.approx(100 * (4 - 0.22) / 4)
    assert (got["A"], got["A at B's"]) == (100, 100)


def test_figures_of_a_half_without_windows():
    calm = [SERIES[0], replace(SERIES[1], windows=np.empty((0, 2), int))]
    got = figures.figures(calm, scored((0, 244, 0.9)), scorer.PROFILES)
    assert np.isnan(got["B"])
    assert (got["standard"], got["A"], got["A at B's"]) == (100, 100, 0)


def test_settings_are_chosen_on_halves():
    one, two, used = {"A": 3.0, "B": 1.0}, {"A": 2.0, "B": 5.0}, {"A": 0.0, "B": 0.0}
    rows = run.chosen({"x": one, "y": two, ablation.IN_USE: used})
    assert rows == {
        "best of A: x": one,
        "best of B: y": two,
        "median of 3": {"A": 2, "B": 1},
        f"in use: {ablation.IN_USE}": used,
    }


def test_spread_and_table():
    seeds = [{"standard": 60.0, "A": 1.0}, {"standard": 70.0, "A": 2.0}]
    rows = figures.spread(seeds)
    assert rows["mean"] == {"standard": 65, "A": 1.5}
    assert figures.table(rows).splitlines() == [
        "|  | standard | A |",
        "| --- | --: | --: |",
        "| mean | 65.0 | 1.5 |",
        "| min | 60.0 | 1.0 |",
        "| max | 70.0 | 2.0 |",
    ]


def test_the_labels_of_the_slice_are_those_of_its_files():
    labels = json.loads((FOLDER / corpus.LABELS).read_text())
    assert sorted(labels) == [one.name for one in SERIES]
