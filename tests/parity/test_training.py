"""Training: what is learned, what is looked at, and that the engine says what PyTorch says."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import streamlstm as sl
from streamlstm import cli, readings, training
from streamlstm.commands import written
from streamlstm.errors import InputError, ModelError
from streamlstm.readings import Series
from streamlstm.training import evaluation, network
from streamlstm.training.history import History

WATER_FLOW = Path(sl.__file__).parent / "demo/data/water_flow.csv"
DAY_S, HOUR_S = 86_400.0, 3600.0
QUANTILES = (0.1, 0.5, 0.9)


def wave(rows: int, *, noise: float = 0.05, seed: int = 0, others: int = 0) -> Series:
    """An hourly series that repeats each day, from 10 to 14."""
    rng = np.random.default_rng(seed)
    hours = np.arange(rows)
    values = 12 + 2 * np.sin(2 * np.pi * hours / 24) + noise * rng.standard_normal(rows)
    columns = np.column_stack([values, rng.standard_normal((rows, others))])
    return Series("wave", HOUR_S * hours, columns, hours + 2, "time")


@pytest.fixture
def quick(monkeypatch):
    """Training in a few updates, where it does not matter what is learned."""
    monkeypatch.setattr(network, "EPOCHS", 3)


@pytest.fixture
def brief(monkeypatch):
    """Training for as long as these few rows need."""
    monkeypatch.setattr(network, "EPOCHS", 80)


@pytest.fixture
def networks(monkeypatch) -> list[network.Network]:
    """PyTorch's networks, as they were trained."""
    seen, train = [], network.train
    monkeypatch.setattr(network, "train", lambda *a, **k: seen.append(train(*a, **k)) or seen[-1])
    return seen


def same_weights(a: sl.Model, b: sl.Model) -> bool:
    pairs = zip(a.layers, b.layers, strict=True)
    return all(
        np.array_equal(left, right)
        for x, y in pairs
        for left, right in zip(x.tensors().values(), y.tensors().values(), strict=True)
    )


# --- what is learned ------------------------------------------------------------------------------


def test_a_wave_is_learned():
    trained = training.train([wave(500)], training.head_for([wave(500)], "level", horizon=6))
    for errors in trained.errors:
        assert errors.rows > 50
        assert errors.model < 0.5 * errors.rivals["last value"]
        assert errors.model < 0.15
        assert 0.5 < errors.residual.coverage <= 1
    head = trained.model.head
    assert (head.step_s, head.calendar, head.horizon, head.time) == (HOUR_S, ("day",), 6, "time")
    assert head.residuals == tuple(errors.residual for errors in trained.errors)


@pytest.mark.usefixtures("brief")
def test_the_bands_hold_what_they_promise():
    """Independent noise around 0, of which a tenth is below the first quantile, and so on."""
    noise = Series("n", None, np.random.default_rng(1).standard_normal((2000, 1)), np.arange(2000))
    model = training.fit([noise], target="n", hidden=4)
    with sl.Engine(model) as engine:
        y = engine.open("n").run(noise.values)[500:, :3]
    np.testing.assert_allclose(np.median(y, axis=0), [-1.28, 0, 1.28], atol=0.25)
    assert 0.7 < model.head.residuals[0].coverage < 0.9


@pytest.mark.parametrize("q", QUANTILES)
def test_the_pinball_loss_is_least_at_the_quantile(q):
    y = torch.arange(101.0)[:, None]
    losses = [
        float(network._pinball(torch.full((101, 1, 1), o), y, torch.tensor([q])))
        for o in np.arange(101.0)
    ]
    assert np.argmin(losses) == round(100 * q)
    worst = float(network._pinball(torch.zeros(101, 1, 1), y, torch.tensor([q])))
    assert worst == pytest.approx(50 * q)  # q times the mean of 0 to 100


@pytest.mark.usefixtures("brief")
def test_an_exogenous_column_is_used():
    rng = np.random.default_rng(0)
    valve = rng.standard_normal(800)
    flow = np.append(0.0, valve[:-1]) + 0.05 * rng.standard_normal(800)
    series = [Series("pipe", None, np.column_stack([flow, valve]), np.arange(800))]
    blind = [Series("pipe", None, flow[:, None], np.arange(800))]
    seeing = training.fit(series, target="flow", others=["valve"]).head.residuals[0].mae
    assert seeing < 0.3 * training.fit(blind, target="flow").head.residuals[0].mae


@pytest.mark.usefixtures("quick")
def test_one_model_of_many_series():
    series = [wave(300), wave(120, seed=1), wave(5), wave(1)]
    head = training.head_for(series, "level")
    trained = training.train(series, head)
    assert trained.rows == 426
    assert trained.errors[0].rows > 40  # of the first two
    assert trained.empty == ()


@pytest.mark.usefixtures("quick")
def test_a_dead_sensor_is_left_out():
    dead = replace(wave(300), name="dead", values=np.full((300, 1), np.nan))
    head = training.head_for([wave(300), dead], "level")
    trained = training.train([wave(300), dead], head)
    assert trained.empty == ("dead",)
    assert same_weights(trained.model, training.train([wave(300)], head).model)


def test_training_ends_when_held_out_rows_are_forecast_worse():
    """And the weights kept are those of before: the forecast is "as it is now", nearly 0."""
    x = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    y = np.where(np.arange(400) < 300, 1.0, -1.0).astype(np.float32)[:, None]
    seen: list[training.Progress] = []
    trained = network.train(
        [network.Steps(x, y, 300)], hidden=32, quantiles=QUANTILES, seed=0, progress=seen.append
    )
    looks = [p.done for p in seen]
    assert len(looks) == network.PATIENCE
    assert looks[-1] < seen[-1].updates / 2
    assert all(p.best == 1 < p.now for p in seen)
    assert np.abs(trained.run(x)).max() < 0.05


# --- what is looked at ----------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_unseen_rows_teach_nothing():
    series = wave(400)
    other = wave(400)
    other.values[340:] = 1e6
    first = training.fit([series], target="level", horizon=3)
    assert same_weights(first, training.fit([other], target="level", horizon=3))
    assert not same_weights(first, training.fit([other], target="level", horizon=3, unseen=0.1))


def test_targets_end_with_their_part():
    series = wave(100)
    head = training.head_for([series], "level", horizon=3)
    history = History.of(head, series, unseen=0.2)
    assert (history.held_out, history.unseen) == (60, 80)
    known = np.isfinite(history.targets(3))
    assert known.shape == (80, 3)
    want = np.ones((80, 3), bool)
    for end in (60, 80):
        want[end - 3 : end] = [[True, True, False], [True, False, False], [False] * 3]
    np.testing.assert_array_equal(known, want)
    a = np.arcsinh((series.values[:, 0] - head.target.mean) / head.target.std)
    np.testing.assert_allclose(history.targets(3)[10], a[11:14] - a[10], atol=1e-6)


def test_targets_know_gaps_and_missing_values():
    series = wave(100)
    series.values[20] = np.nan
    rows = np.delete(np.arange(100), [30, 31])
    series = Series("wave", series.times[rows], series.values[rows], rows, "time")
    for missing in ("hold", "skip"):
        head = training.head_for([series], "level", horizon=2, missing=missing)
        history = History.of(head, series, unseen=0.0)
        y = history.targets(2)
        steps = dict(zip(history.position.tolist(), y, strict=True))
        unknown = {
            (p, k) for p, row in steps.items() for k in (0, 1) if np.isnan(row[k]) and p < 70
        }
        gone = {(p - k - 1, k) for p in (20, 30, 31) for k in (0, 1)}
        if missing == "skip":  # no step is made there; the places stay
            gone = {(p, k) for p, k in gone if p in steps}
            assert not {30, 31} & steps.keys()
        assert unknown == gone


def test_scaling_is_of_the_seen_rows_and_constants_have_some():
    series = wave(200, others=1)
    series.values[:, 1] = 7.0
    series.values[0, 1] = np.nan
    head = training.head_for([series], "level", others=["set"], units="m", unseen=0.25)
    assert (head.target.name, head.target.unit, head.others[0].unit) == ("level", "m", "")
    assert head.target.mean == pytest.approx(series.values[:150, 0].mean())
    assert head.target.std == pytest.approx(series.values[:150, 0].std())
    assert (head.others[0].mean, head.others[0].std) == (7.0, pytest.approx(7e-3))


@pytest.mark.parametrize(("offset", "size"), [(1e9, 1.0), (0.0, 1e-12), (-1e5, 1e-5)], ids=str)
def test_a_small_spread_is_no_constant(offset, size):
    values = offset + size * np.sin(np.arange(500.0))
    series = Series("x", None, values[:, None], np.arange(500))
    head = training.head_for([series], "x", unseen=0.0)
    assert head.target.mean == pytest.approx(offset, abs=0.01 * size)
    assert head.target.std == pytest.approx(size / np.sqrt(2), rel=0.01)


def test_a_constant_that_was_computed_is_one():
    values = 0.1 + np.where(np.arange(500) % 2, 1e-17, 3e-17)
    series = Series("x", None, values[:, None], np.arange(500))
    assert training.head_for([series], "x").target.std == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("step_s", "rows", "calendar"),
    [
        (HOUR_S, 47, ()),
        (HOUR_S, 49, ("day",)),
        (HOUR_S, 7 * 7 * 24, ("day",)),
        (HOUR_S, 8 * 7 * 24 + 1, ("day", "week")),
        (7 * HOUR_S, 1000, ("week",)),
        (DAY_S, 1100, ("week", "year")),
        (30 * DAY_S, 60, ("year",)),
    ],
)
def test_the_calendar_is_what_the_rows_can_teach(step_s, rows, calendar):
    series = Series("x", step_s * np.arange(rows), np.ones((rows, 1)), np.arange(rows), "time")
    assert training.head_for([series], "x", unseen=0.0).calendar == calendar


# --- the same seed, the same bits -----------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_reproducible_and_nobody_elses_business():
    torch.manual_seed(5)
    before = (torch.get_rng_state(), torch.get_num_threads())
    first, second = (training.fit([wave(300)], target="x", seed=1) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert not same_weights(first, training.fit([wave(300)], target="x", seed=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


@pytest.mark.usefixtures("quick")
def test_the_callers_pytorch_is_left_as_it_was():
    plain = training.fit([wave(300)], target="x")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            model = training.fit([wave(300)], target="x")
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() is torch.float64
        assert torch.empty(0).device.type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert model.fingerprint == plain.fingerprint


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policies",
    [
        {"missing": "hold"},
        {"missing": "skip"},
        {"missing": "reject"},
        {"missing": "predict"},
        {"spacing": "gap"},
        {"spacing": "gap", "late": "step", "missing": "skip"},
        {"late": "reject"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("quick")
def test_streamed_forecasts_are_pytorchs(policies, networks):
    """A real series with holes cut into it: all over, within 1e-5 of its standard deviation."""
    [series] = readings.read(str(WATER_FLOW), "flow")
    rng = np.random.default_rng(3)
    series.values[rng.random(len(series)) < 0.05] = np.nan
    rows = np.flatnonzero(rng.random(len(series)) > 0.05)
    rows[100:102] = rows[101], rows[100]  # one that comes late
    series = Series("flow", series.times[rows], series.values[rows], series.lines[rows], "time")
    head = training.head_for([series], "flow", horizon=5, **policies)
    trained = training.train([series], head, hidden=8)
    assert trained.difference <= 1e-5
    if policies.get("missing") == "predict":
        return  # PyTorch alone can't
    history = History.of(head, series, 0.15)
    o = np.sort(networks[0].run(history.x).astype(float), axis=-1)
    want = head.target.mean + head.target.std * np.sinh(history.x[:, :1, None] + o)
    compared = 0
    with sl.Engine(trained.model) as engine:
        session = engine.open("flow")
        for row, reading in enumerate(series.events()):
            try:
                session.step(reading)
            except InputError:
                assert "reject" in policies.values()
                continue
            for step in np.flatnonzero(history.row == row):
                apart = np.abs(session.forecast(5) - want[step]).max()
                assert apart <= 1e-5 * head.target.std
                compared += 1
    assert compared > 1000
    assert trained.counted["missing" if policies.get("missing") != "reject" else "refused"] > 20


@pytest.mark.usefixtures("quick")
def test_a_network_that_is_exported_wrongly_is_refused(monkeypatch):
    def swapped(state, flow):
        weights = dict(state)
        weights["lstm.weight_ih_l0"] = weights["lstm.weight_ih_l0"].flip(0)
        return sl.from_torch(weights, flow=flow)

    monkeypatch.setattr(training, "from_torch", swapped)
    with pytest.raises(ModelError, match=r"^the model forecasts otherwise here than in PyTorch"):
        training.fit([wave(200)], target="x")


# --- errors and their rivals ----------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_errors_are_counted_by_hand():
    series = wave(24 * 30, noise=1.0)
    series.values[-30] = np.nan
    head = training.head_for([series], "x", horizon=30)
    trained = training.train([series], head, hidden=4)
    v, first = series.values[:, 0], 720 - 108
    forecasts = np.empty((720, 30, 3))
    with sl.Engine(trained.model) as engine:
        session = engine.open("x")
        for row, reading in enumerate(series.events()):
            session.step(reading)
            forecasts[row] = session.forecast(30)
    for k in (1, 24, 25):
        rows = [t for t in range(first, 720 - k) if np.isfinite(v[t + k])]
        miss = np.array([forecasts[t, k - 1, 1] - v[t + k] for t in rows])
        inside = [forecasts[t, k - 1, 0] <= v[t + k] <= forecasts[t, k - 1, 2] for t in rows]
        got = trained.errors[k - 1]
        np.testing.assert_allclose(
            got.residual, [np.abs(miss).mean(), miss.std(), np.mean(inside)], rtol=1e-9
        )
        last = [v[t] if np.isfinite(v[t]) else v[t - 1] for t in range(720)]
        lags = {"same time yesterday": 24 if k <= 24 else 48, "same time last week": 168}
        fair = [t for t in rows if all(np.isfinite(v[t + k - lag]) for lag in lags.values())]
        assert (got.steps, got.rows) == (k, len(fair))
        want = {"last value": np.mean([abs(last[t] - v[t + k]) for t in fair])}
        for name, lag in lags.items():
            want[name] = np.mean([abs(v[t + k - lag] - v[t + k]) for t in fair])
        assert got.rivals == pytest.approx(want)


@pytest.mark.parametrize("policies", [{}, {"spacing": "gap"}, {"late": "step"}], ids=str)
def test_yesterday_is_told_by_the_clock(policies):
    """Jittered steps that are not a whole share of a day, and one row that comes late."""
    rng = np.random.default_rng(0)
    times = 3601.3 * np.arange(500) + rng.uniform(-600, 600, 500)
    times[250] = times[248] - 60
    values = np.arange(500.0)
    series = Series("x", times, values[:, None], np.arange(500), "time")
    head = training.head_for([series], "x", **policies)
    history = History.of(head, series, 0.15)
    rival = evaluation.rivals(head, [history])["same time yesterday"]
    now = history.value
    for steps, days in ((1, 1), (23, 1), (26, 2)):
        said, truth = rival(history, steps), history.at(steps, now)
        known = np.isfinite(said)
        assert known.mean() > 0.8
        off_s = times[truth[known].astype(int)] - times[said[known].astype(int)]
        lags = np.round(off_s / DAY_S)
        np.testing.assert_allclose(off_s, lags * DAY_S, atol=head.step_s / 2 + 1e-6)
        # Around the row that came late, 26 steps are but a day.
        assert lags.min() >= 1
        assert (lags == days).mean() > 0.9
        assert (said[known] <= now[known]).all()


def test_a_rival_that_knows_least_is_dropped_first():
    nan = np.nan
    table = np.array([[1, 0, 1, 2, 1, nan], [1, 0, 1, 2, nan, 3], [1, 0, 1, 2, nan, 4.0]])
    table = np.concatenate([table, table[:1]])[:, [0, 1, 2, 3, 4, 5]]
    got = evaluation.errors(1, np.vstack([table, [1, 0, 1, 2, nan, 3]]), ["a", "b"], 3)
    assert (got.rows, got.rivals) == (3, {"b": pytest.approx(7 / 3)})
    got = evaluation.errors(1, np.vstack([table[:3], table[:1]]), ["a", "b"], 3)
    assert (got.rows, len(got.rivals)) == (2, 1)  # as much each, and never both
    nothing = np.full((2, 6), nan)
    assert evaluation.errors(1, nothing, ["a", "b"], 3).rows == 0


@pytest.mark.usefixtures("quick")
def test_without_a_clock_the_best_period_is_the_rival():
    series = wave(400)
    series = Series("x", None, series.values, series.lines)
    trained = training.train([series], training.head_for([series], "x"))
    assert list(trained.errors[0].rivals) in (
        ["last value", f"{24 * days} steps before"] for days in range(1, 6)
    )
    walk = Series("x", None, np.cumsum(np.ones((400, 1)), axis=0), series.lines)
    trained = training.train([walk], training.head_for([walk], "x"))
    assert list(trained.errors[0].rivals) == ["last value"]


@pytest.mark.usefixtures("quick")
def test_without_unseen_rows_the_held_out_ones_count():
    series = wave(200)
    head = training.head_for([series], "x", unseen=0.0)
    trained = training.train([series], head, unseen=0.0)
    assert (trained.unseen, trained.errors[0].rows) == (50, 49)
    assert len(trained.model.head.residuals) == 1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "more", "sentence"),
    [
        (wave(46), {}, "training with a horizon of 1 needs a series of 48 rows or more"),
        (wave(100), {"horizon": 24}, "training with a horizon of 24 needs a series of 167 rows"),
        (Series("x", None, np.full((99, 1), np.nan), np.arange(99)), {}, "column x has no value"),
        (Series("x", None, np.ones((99, 1)), np.arange(99)), {"spacing": "gap"}, "no column of t"),
        (Series("x", np.zeros(99), np.ones((99, 1)), np.arange(99)), {}, "never go forward"),
    ],
)
def test_series_that_cannot_teach(series, more, sentence):
    with pytest.raises(InputError, match=sentence):
        training.fit([series], target="x", **more)


def test_an_output_that_cannot_be_written_is_found_before_training(run, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written.tempfile, "NamedTemporaryFile", full)
    path = write("a.csv", "time,x", [(k, k % 9) for k in range(200)])
    monkeypatch.setattr(training, "train", None)
    want = "streamlstm: m can't be written: No space left on device\n"
    assert run(path, "--target", "x", "-o", "m") == (1, "", want)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ([0, *range(270, 300)], r"^x is never known 1 step after a row in the rows to train"),
        (range(100), r"^x is never known 1 step after a row in the rows to hold out;"),
        ([*range(200), 226, 227], r"^x is never known 3 steps after a row in the rows to hold"),
    ],
)
def test_nothing_to_learn_is_said_before_training(known, sentence, monkeypatch):
    values = np.full((300, 1), np.nan)
    values[known, 0] = known
    series = Series("x", None, values, np.arange(300))
    monkeypatch.setattr(network, "train", None)
    with pytest.raises(InputError, match=sentence):
        training.fit([series], target="x", unseen=0.0, horizon=3)


def test_sensors_without_their_column_are_refused():
    """Two take turns; the other one has values nowhere."""
    series = wave(300)
    values = np.repeat(series.values, 2, axis=0)
    values[1::2] = np.nan
    both = Series("x", np.repeat(series.times, 2), values, np.arange(600))
    with pytest.raises(InputError, match=r"\(300 of 600 come late\); sort them, or name the col"):
        training.fit([both], target="x")


def test_rows_that_come_too_soon_are_named():
    times = np.cumsum(np.tile([10.0, 10.0, 1.0], 100))
    series = Series("x", times, np.ones((300, 1)), np.arange(300))
    with pytest.raises(InputError, match=r"^\d+ of 300 rows come less than half a step of 10 s"):
        training.fit([series], target="x")


def test_a_value_beyond_all_reason_is_named():
    series = replace(wave(200), file="a.csv")
    series.values[190] = 1e300
    with pytest.raises(
        InputError, match=r"^a\.csv, line 192 holds 1e\+300 as x, too far from the rows"
    ):
        training.fit([series], target="x")


def test_rows_that_run_backwards_are_refused():
    series = wave(300)
    upside_down = Series("x", series.times[::-1], series.values[::-1], series.lines)
    series.times[0] = -1e6  # one gap that goes forward
    upside_down = Series("x", np.append(-1e6, upside_down.times), np.ones((301, 1)), np.arange(301))
    with pytest.raises(InputError, match=r"^the rows are not in the order of time \(297 of 301"):
        training.fit([upside_down], target="x")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `streamlstm train` in tmp_path: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network, "EPOCHS", 3)

    def run(*argv):
        try:
            code = cli.main(["train", *map(str, argv)])
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capsys.readouterr())

    return run


def write(path: str, header: str, rows) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def test_from_a_file_to_a_model(run, capsys):
    series = wave(600)
    values = series.values[:, 0].tolist()
    values[50] = ""
    rows = list(zip(series.times, values, ["a"] * 600, strict=True))
    rows[100], rows[101] = rows[101], rows[100]
    path = write("wave.csv", "time,level,pump", rows)
    argv = ("--target", "level", "--horizon", 24, "--series", "pump", "--hidden", 8, "--seed", 3)
    code, out, err = run(path, *argv, "-o", "wave.safetensors")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        "rows         600, 600 steps, one every 1 h",
        "of these     1 without a value, 1 late, 1 after a gap",
        "calendar     day",
        "forecasts    mean absolute errors in 90 rows that training has not seen",
    ]
    assert lines[4].split("  ")[-1] == "within p10"
    assert lines[5].split("  ")[-1].strip() == "to p90"
    want = [["1", "89"], ["3", "87"], ["6", "84"], ["12", "78"], ["24", "66"]]
    assert [line.split()[:2] for line in lines[6:11]] == want
    assert re.fullmatch(
        r"proof        PyTorch [\d.]+: 600 steps, largest difference \S+ std", lines[-2]
    )
    cli.main(["inspect", "wave.safetensors"])
    assert capsys.readouterr().out.splitlines()[-1] == lines[-2]
    assert lines[-1] == "written      wave.safetensors"
    model = sl.load("wave.safetensors")
    assert (model.name, model.head.target.name, model.head.horizon) == ("wave", "level", 24)
    assert len(model.head.residuals) == 24


def test_what_the_command_notes(run, monkeypatch):
    """Dead sensors, a model that is worse than yesterday's value, and unseen rows without any."""
    monkeypatch.setattr(network, "EPOCHS", 1)
    rows = [(3600 * k, k % 24, "a") for k in range(400)]
    path = write("a.csv", "time,x,pump", [*rows, *((3600 * k, "", "b") for k in range(9))])
    argv = ("--target", "x", "--series", "pump", "-o", "m")
    _, out, _ = run(path, *argv, "--horizon", 2)
    assert "left out     1 series without a value: b\n" in out
    note = "note         at 1, 2 steps it is worse than the same time yesterday: use more data, or"
    assert note in out
    path = write("a.csv", "time,x,pump", [(t, x if t < 3600 * 340 else "", s) for t, x, s in rows])
    code, out, _ = run(path, *argv)
    assert code == 0
    assert "not tried: nothing is known to compare with in 60 rows that training has not" in out
    assert sl.load("m").head.residuals == ()


def test_choices_of_the_command(run):
    rows = [(k, k % 7, "", k % 5) for k in range(200)]
    path = write("a.csv", "n,x,empty,y", rows)
    argv = ("--target", "x", "--with", "y", "--time", "n", "--quantiles", "0.25,0.5,0.75")
    more = ("--spacing", "gap", "--missing", "skip", "--late", "step", "--name", "sevens")
    code, out, _ = run(path, *argv, *more, "-o", "b.safetensors")
    assert code == 0
    assert "one every 1 s" in out
    assert "within p25" in out
    model = sl.load("b.safetensors")
    head = model.head
    assert (model.name, head.time, head.others[0].name) == ("sevens", "n", "y")
    assert (head.spacing, head.missing, head.late) == ("gap", "skip", "step")
    assert head.quantiles == (0.25, 0.5, 0.75)
    assert run(path, "--target", "empty", "-o", "c.safetensors")[::2] == (
        1,
        "streamlstm: column empty has no value in the rows to train on\n",
    )


def test_a_constant_target_trains(run):
    path = write("flat.csv", "time,x", [(60 * k, 5) for k in range(100)])
    assert run(path, "--target", "x", "-o", "flat.safetensors")[0] == 0
    model = sl.load("flat.safetensors")
    with sl.Engine(model) as engine:
        y = engine.open("x").run([[60 * k, 5] for k in range(50)])
    np.testing.assert_allclose(y[:, 1], 5, atol=0.05)


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["--target", "y", "-o", "m"], 1, "streamlstm: a.csv: the header lacks column y; it has"),
        (["--target", "x", "-o", "m"], 1, "streamlstm: training with a horizon of 1 needs a s"),
        (["--target", "x", "-o", "no/m"], 1, "streamlstm: no/m can't be written: there is no f"),
        (["--target", "x", "-o", "./a.csv"], 2, "streamlstm train: -o is CSV itself"),
        (["--target", "x", "-o", "-"], 2, "streamlstm train: -o needs the name of a file"),
        (["--target", "x", "-o", ""], 2, "streamlstm train: -o needs the name of a file"),
        (["--target", "x", "-o", "."], 1, "streamlstm: . can't be written: it is there, and no"),
        (["--target", "x", "-o", "m", "--seed", str(2**64)], 2, "usage: "),
        (["--target", "x", "-o", "m", "--quantiles", "0.1,0.9"], 1, "streamlstm: quantiles are"),
        (["--target", "x", "-o", "m", "--quantiles", "a"], 2, "usage: "),
        (["--target", "x"], 2, "usage: "),
    ],
)
def test_refused_in_one_sentence(run, argv, code, sentence):
    path = write("a.csv", "time,x", [(k, k) for k in range(10)])
    got = run(path, *argv)
    assert got[:2] == (code, "")
    assert got[2].startswith(sentence)
    assert code == 2 or got[2].count("\n") == 1
    assert {p.name for p in Path().iterdir()} == {"a.csv"}


def test_a_network_beyond_all_memory_is_refused(run):
    path = write("a.csv", "time,x", [(k, k % 7) for k in range(100)])
    code, out, err = run(path, "--target", "x", "-o", "m", "--hidden", str(10**8))
    assert (code, out) == (1, "")
    assert (
        err == "streamlstm: a network of 100,000,000 units finds no memory; give fewer: --hidden\n"
    )


def test_without_torch(run, monkeypatch):
    path = write("a.csv", "time,x", [(k, k) for k in range(100)])
    for name in [n for n in sys.modules if n.startswith("streamlstm.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sl, "training")
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run(path, "--target", "x", "-o", "m")
    assert (code, out) == (1, "")
    assert err == (
        "streamlstm: training needs torch, which is not installed: "
        "pip install 'streamlstm[train]'\n"
    )


def test_a_failed_proof_writes_nothing(run, monkeypatch):
    monkeypatch.setattr(training, "DIFFERENCE", 0.0)
    monkeypatch.setattr(evaluation, "streamed", lambda _, h: (np.ones((len(h), 1, 3)), {}))
    path = write("a.csv", "time,x", [(k, k % 9) for k in range(200)])
    code, out, err = run(path, "--target", "x", "-o", "m")
    assert (code, out) == (1, "")
    assert "the model forecasts otherwise here than in PyTorch" in err
    assert not Path("m").exists()


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_is_one_line_of_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    path = write("a.csv", "time,x", [(k, k % 9) for k in range(200)])
    assert run(path, "--target", "x", "-o", "m")[0] == 0
    first, *_, last = terminal.text.split("\r")[1:]
    assert first.startswith("training: 1 of 3 updates at most, loss ")
    assert "\n" not in terminal.text
    assert last == ""


def test_ctrl_c_leaves_no_progress_line(run, monkeypatch):
    def interrupted(*_, progress, **__):
        progress(network.Progress(1, 3, 0.5, 0.5))
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(training, "train", interrupted)
    path = write("a.csv", "time,x", [(k, k % 9) for k in range(200)])
    assert run(path, "--target", "x", "-o", "m")[0] == 130
    assert terminal.text.endswith(" \r")
