"""Heads: readings to forecasts and scores, through the engine, beside the definition in Python."""

from __future__ import annotations

import math
import re
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamlstm as sl
from heads import FLOW, HOUR_S, headed, heads, holed, readings, water
from streamlstm import errors, reference
from streamlstm import head as constants
from streamlstm.cli import main
from streamlstm.core.head import unroll
from streamlstm.head import COUNTERS, FILL_MAX, LATE_MAX, Head, Residual
from streamlstm.reference_head import Stream

HOURLY = Head(FLOW, time="time", step_s=HOUR_S, calendar=("day", "week"), horizon=3)
POLICIES = [
    replace(HOURLY, missing=missing, late=late, spacing=spacing)
    for missing in ("skip", "hold", "predict")
    for late in ("drop", "step")
    for spacing in ("grid", "gap")
]
SCALE = np.array([FLOW.std])
Q = 3


def ids(head):
    return f"{head.missing}-{head.late}-{head.spacing}"


def streamed(model, x):
    """Outputs, counters and a forecast of the reference."""
    stream = reference.stream(model)
    y = np.array([stream.read(reading) for reading in x])
    return y, dict(stream.counts), stream.forecast(7)


# -- parity with the definition --------------------------------------------------------------------


@pytest.mark.blas
@settings(max_examples=60, deadline=None)
@given(heads(), st.integers(0, 2**32), st.integers(1, 60))
def test_engine_is_the_reference(head, seed, rows):
    model = headed(head, seed, dtype="float64")
    x = readings(head, seed, rows)
    expected, counts, ahead = streamed(model, x)
    q = len(head.quantiles)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        got = session.run(x)
        # In a-space: values to 1e12 times the mean are among the readings.
        assert np.abs(scaled(got[:, :q]) - scaled(expected[:, :q])).max() < 1e-9
        assert np.abs(got[:, q] - expected[:, q]).max() < 1e-6
        assert (got[:, q + 2 :] == expected[:, q + 2 :]).all()
        assert session.counters() == counts
        assert np.abs(scaled(session.forecast(7)) - scaled(ahead)).max() < 1e-9


def scaled(values):
    return np.arcsinh((values - FLOW.mean) / FLOW.std)


@pytest.mark.parametrize("head", POLICIES, ids=ids)
def test_real_series_with_holes(head):
    """Each policy on a real series: as the reference has it, and no NaN gets anywhere."""
    x = holed()
    model = headed(head)
    expected, counts, ahead = streamed(model, x)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        for k, reading in enumerate(x):
            y = session.step(reading)
            assert np.isfinite(y).all()
            assert np.isfinite(session.state().numbers).all()
            assert np.abs(y[:Q] - expected[k, :Q]).max() < 1e-5 * FLOW.std
            assert abs(y[Q] - expected[k, Q]) < 1e-3
            assert 0 <= y[Q] <= 1
            assert (y[Q + 1 :] == expected[k, Q + 1 :]).all()
        assert session.counters() == counts
        told = {name: counts[name] for name in COUNTERS[:-1]}
        assert engine.counters() == told | {"refused": 0}
        assert np.abs(session.forecast(7) - ahead).max() < 1e-4 * FLOW.std
    assert counts["missing"] > 30
    assert counts["gaps"] > 5
    assert counts["repeated"] == 2
    assert counts["late"] == 2
    assert counts["early"] == (head.spacing == "grid")
    assert counts["skipped"] == (counts["missing"] if head.missing == "skip" else 0)
    filled = counts["held"] + counts["predicted"]
    assert (filled > 90) == (head.missing != "skip" and head.spacing == "grid")


@pytest.mark.blas
def test_filled_in_by_hand():
    """A step of each policy, worked out here."""
    zeros = np.zeros
    model = sl.Model(  # h is 0 always: the forecast is a + the dense layer's bias
        [
            sl.LSTM(zeros((4, 2)), zeros((4, 1)), zeros(4)),
            sl.Dense(zeros((6, 1)), np.array([-0.1, 0.2, 0.3, -0.2, 0.5, 0.4])),
        ],
        head=Head(FLOW, time="t", step_s=10.0, horizon=2, missing="predict", warm_up=0),
    )
    with sl.Engine(model) as engine:
        s = engine.open("a")
        y = s.step([0.0, 100.0])
        assert y.tolist() == pytest.approx(
            [*(100 + 5 * np.sinh([-0.1, 0.2, 0.3])), 0, 0, 0, 0, 0], rel=1e-7
        )
        # Sorted: the second step's quantiles cross.
        assert s.forecast(2)[1].tolist() == pytest.approx(
            (100 + 5 * np.sinh([-0.2, 0.4, 0.5])).tolist(), rel=1e-7
        )
        y = s.step([10.0, math.nan])  # 100 + 5 sinh(0.2) was forecast, and is fed
        assert y[:3].tolist() == pytest.approx((100 + 5 * np.sinh([0.1, 0.4, 0.5])).tolist())
        assert model.head.report(y).status == "predicted"
        # The fork is fed the medians at 1 and 2 steps; beyond, squared errors add.
        a = 0.2 + np.array([0.2, 0.4, 0.4 + 0.2])
        third = [a[0] + 0.4 - np.hypot(0.6, 0.3), a[0] + 0.4, a[0] + 0.4 + np.hypot(0.1, 0.1)]
        assert s.forecast(3)[2].tolist() == pytest.approx((100 + 5 * np.sinh(third)).tolist())
        y = s.step([40.0, 100.0])  # two steps are missing: predicted, to a = 0.2 + 2 * 0.2
        assert s.counters() == dict.fromkeys(COUNTERS, 0) | {
            "missing": 1,
            "predicted": 3,
            "gaps": 1,
            "unchanged": 1,
        }
        assert s.state().numbers[-Head.state_size.fget(model.head)] == 5  # steps


@pytest.mark.blas
def test_a_network_of_zeros_forecasts_the_last_value():
    head = replace(HOURLY, horizon=2)
    n = head.network_inputs
    layers = [sl.LSTM(np.zeros((4, n)), np.zeros((4, 1)), np.zeros(4)), sl.Dense(*last_value(head))]
    with sl.Engine(sl.Model(layers, head=head)) as engine:
        session = engine.open("a")
        for reading in holed():
            y = session.step(reading)
            if y[Q + 3] == 0:
                assert y[:Q] == pytest.approx([reading[1]] * Q, rel=1e-12)
        assert session.forecast(5) == pytest.approx(np.full((5, Q), y[0]), rel=1e-12)


def last_value(head):
    return np.zeros((head.network_outputs, 1)), np.zeros(head.network_outputs)


# -- one session, many doors -----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(heads(), st.integers(0, 2**32), st.data())
def test_same_bits_by_every_door(head, seed, data):
    """step, run in pieces, in a batch at any place, through a fork and a saved state."""
    model = headed(head, seed)
    x = readings(head, seed, 30)
    cut = data.draw(st.integers(0, 30))
    others = np.stack([readings(head, seed + k, 30) for k in range(1, 4)])
    with sl.Engine(model, threads=2) as engine:
        whole = engine.open("whole").run(x)
        pieces = engine.open("pieces")
        parts = [pieces.run(x[:cut])]
        saved = sl.State.from_bytes(pieces.state().to_bytes())
        twin = pieces.fork("twin")
        resumed = engine.open("resumed")
        resumed.restore(saved)
        many = [engine.open(f"s{k}") for k in range(3)]
        group = engine.group([many[0], twin, many[1], many[2], resumed])
        parts.append(pieces.run(x[cut:]))
        assert np.concatenate(parts).tobytes() == whole.tobytes()
        for t in range(cut, 30):
            batch = np.stack([others[0, t], x[t], others[1, t], others[2, t], x[t]])
            y = group.step(batch)
            assert y[1].tobytes() == y[4].tobytes() == whole[t].tobytes()
        numbers = pieces.state().numbers
        assert twin.state().numbers.tobytes() == numbers.tobytes()
        ahead = pieces.forecast(9)
        assert group.forecast(9)[1].tobytes() == ahead.tobytes()
        assert pieces.state().numbers.tobytes() == numbers.tobytes()
        pieces.reset()
        assert pieces.run(x).tobytes() == whole.tobytes()


def test_step_into_takes_readings():
    model = headed(HOURLY)
    with sl.Engine(model) as engine:
        a, b = engine.open("a"), engine.open("b")
        out = np.empty(model.output_size)
        for reading in holed(100):
            a.step_into(reading, out)
            assert out.tobytes() == b.step(reading).tobytes()
        assert a.step({"time": 1.7e9, "flow": math.nan}).dtype == np.float64
        with pytest.raises(errors.DtypeError, match="float64"):
            a.step_into(reading.astype("f4"), out)


# -- policies --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    heads().filter(lambda h: "reject" in (h.missing, h.late)),
    st.integers(0, 2**32),
)
def test_what_is_refused_changes_nothing(head, seed):
    """All of a run, all of a batch, or nothing; and the rest goes on as if it had not been."""
    model = headed(head, seed)
    x = readings(head, seed, 40, refusable=True)
    with sl.Engine(model) as engine:
        one, two, clean = engine.open("one"), engine.open("two"), engine.open("clean")
        pair = engine.group([one, two])
        for reading in x:
            before = one.state().numbers.tobytes(), one.seq, engine.counters()
            expected = pair.refusals([reading, reading])
            try:
                y = clean.step(reading)
            except errors.InputError:
                assert expected.keys() == {0, 1}
                for call in (one.step, lambda r: one.run([r]), lambda r: pair.step([r, r])):
                    with pytest.raises(type(expected[0]), match=re.escape(str(expected[0]))):
                        call(reading)
                assert (one.state().numbers.tobytes(), one.seq) == before[:2]
                refused = before[2]["refused"] + 4  # calls that raised; refusals() just tells
                assert engine.counters() == before[2] | {"refused": refused}
            else:
                assert expected == {}
                assert (pair.step([reading, reading]) == y).all()
        with pytest.raises(errors.InputError, match=r"reading \d+"):
            one.run(np.concatenate([x, x]))
        assert one.state().numbers.tobytes() == clean.state().numbers.tobytes()


def test_a_clock_that_was_set_back_is_believed_in_the_end():
    model = headed(HOURLY)
    times, flows = water()
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run(np.column_stack([times, flows])[:200])
        back = np.column_stack([times - 10 * 365 * 86400, flows])[: LATE_MAX + 5]
        status = session.run(back)[:, Q + 3]
        late = constants.STATUS.index("late")
        assert (status[:LATE_MAX] == late).all()
        assert (status[LATE_MAX:] == 0).all()
        assert session.counters()["late"] == LATE_MAX + 1


def test_only_late_readings_make_a_clock_believed():
    """Not early and repeated ones, however many; nor one that was skipped."""
    model = headed(replace(HOURLY, missing="skip"))
    with sl.Engine(model) as engine:
        often = engine.open("often")
        often.run([[10.0 * k, 100.0] for k in range(361 * 5)])  # every 10 s, for five hours
        assert often.state().numbers[-model.head.state_size] == 6
        same = engine.open("same")
        same.run([[0.0, 100.0]] * 500)
        assert same.counters()["repeated"] == 499
        back = engine.open("back")
        back.step([1e9, 100.0])
        back.run([[k * HOUR_S, 100.0] for k in range(LATE_MAX)])
        lacking = back.step([LATE_MAX * HOUR_S, math.nan])
        assert model.head.report(lacking).status == "skipped"
        believed = back.step([(LATE_MAX + 1) * HOUR_S, 100.0])
        assert model.head.report(believed).status == "stepped"


@pytest.mark.parametrize(
    ("period", "steps", "filled"), [(0.5, 500, 0), (0.6, 600, 0), (1.4, 1400, 400)]
)
def test_other_periods_are_resampled(period, steps, filled):
    """1,000 readings of another period: as many steps as the grid has."""
    model = headed(HOURLY)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run([[k * period * HOUR_S, 100.0] for k in range(1000)])
        made = session.state().numbers[-model.head.state_size]
        assert abs(made - steps) <= 5
        assert abs(session.counters()["held"] - filled) <= 5


@pytest.mark.parametrize(("jitter", "odd"), [(0.3, 0), (0.4, 5), (0.45, 30)])
def test_jitter_is_no_gap(jitter, odd):
    rng = np.random.default_rng(0)
    times = (np.arange(1000) + rng.uniform(-jitter, jitter, 1000)) * HOUR_S
    with sl.Engine(headed(HOURLY)) as engine:
        session = engine.open("a")
        session.run(np.column_stack([times, np.full(1000, 100.0)]))
        counts = session.counters()
        assert counts["early"] + counts["held"] <= odd


def test_a_clock_that_drifts_is_followed():
    """1 % fast for 1,000 hours: no step is left out and none is made up."""
    with sl.Engine(headed(HOURLY)) as engine:
        session = engine.open("a")
        session.run([[k * 1.01 * HOUR_S, 100.0] for k in range(1000)])
        assert session.seq == 1000
        assert not any(session.counters()[name] for name in ("early", "gaps", "held"))


def test_a_gap_is_filled_up_to_a_bound():
    model = headed(HOURLY)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.step([0.0, 100.0])
        session.step([HOUR_S * (FILL_MAX + 1), 101.0])
        assert session.counters()["held"] == FILL_MAX
        session.step([HOUR_S * (2 * FILL_MAX + 3), 102.0])
        assert session.counters()["held"] == FILL_MAX
        assert session.counters()["gaps"] == 2


def test_a_constant_series():
    """A value that stays scores nothing, however long; the first change is far outside."""
    head = Head(sl.Feature("flow", "", 3.0, 3e-3), warm_up=5)
    with sl.Engine(headed(head)) as engine:
        session = engine.open("a")
        y = session.run(np.full((300, 1), 3.0))
        assert (y[:, Q + 1] == 0).all()
        assert session.counters()["unchanged"] == 299
        report = head.report(session.step([3.5]))
        assert report.alert
        assert report.reason == "value above"
        assert session.counters()["unchanged"] == 0


@pytest.mark.parametrize(
    ("reading", "sentence"),
    [
        ([math.nan, 100.0], r"input\[0\] is nan; .* time is in seconds since 1970"),
        ([1.7e12, 100.0], r"input\[0\] is 17\d*\.0; .* time is in seconds since 1970"),
        ([1.7e9, math.inf], r"input\[1\] is inf; .* give NaN for a missing value"),
        ([1.7e9, 1e30], r"input\[1\] is 1e\+30; .* give NaN for a missing value"),
        ([1.7e9], r"events have shape \(1,\)"),
        ({"flow": 1.0}, "lacks time; the model's inputs"),
    ],
)
def test_readings_that_are_none(reading, sentence):
    with sl.Engine(headed(HOURLY)) as engine:
        session = engine.open("a")
        before = session.state().numbers.tobytes()
        with pytest.raises(errors.InputError, match=sentence):
            session.step(reading)
        assert session.state().numbers.tobytes() == before
        assert session.seq == 0


# -- scores ----------------------------------------------------------------------------------------


def test_each_reason_is_found():
    """A spike, a shift that no single value shows, and a value that only the forecast finds odd."""
    rng = np.random.default_rng(0)
    head = Head(sl.Feature("v", "", 0.0, 1.0), warm_up=50)
    with sl.Engine(headed(head)) as engine:
        quiet = rng.uniform(-1, 1, 400)
        for name, tail, reason in (
            ("spike", [5.0], "value above"),
            ("drop", [-5.0], "value below"),
            ("shift", [0.95] * 8, "level above"),
        ):
            session = engine.open(name)
            session.run(quiet[:, None])
            reports = [head.report(y) for y in session.run(np.array(tail)[:, None])]
            assert any(r.alert and r.reason == reason for r in reports), name


def test_what_only_the_forecast_finds():
    """A wave 1, 0, -1, 0 that forgets to go below: each value and the level were seen before."""
    wave = [1.0, 0.0, -1.0, 0.0] * 60
    head = Head(sl.Feature("v", "", 0.0, 1.0), warm_up=50)
    # a(t + 1) = -a(t - 1), of the inputs a(t) and its change.
    stream = Stream(head, lambda x: np.full(3, x[1] - 2 * x[0]))
    for value in wave:
        report = head.report(stream.read([value]))
        assert not report.alert
        assert report.forecast == pytest.approx([report.forecast[0]] * 3)
    reports = [head.report(stream.read([value])) for value in [1.0, 0.0] * 8]
    found = [r.reason for r in reports if r.alert]
    assert found[:1] == ["forecast above"]
    assert set(found) == {"forecast above"}


def test_nothing_alerts_while_warming():
    head = replace(HOURLY, warm_up=100)
    with sl.Engine(headed(head)) as engine:
        session = engine.open("a")
        reports = [
            head.report(session.step([k * HOUR_S, 100 + 50 * (k % 7 == 3) * k])) for k in range(150)
        ]
        assert [r.warming for r in reports] == [True] * 100 + [False] * 50
        assert not any(r.alert for r in reports[:100])
        assert any(r.score > 0.5 for r in reports[:100])
        assert any(r.alert for r in reports[100:])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_hostile_state_stays_finite(seed):
    """restore() takes any finite numbers; nothing that follows is NaN."""
    rng = np.random.default_rng(seed)
    head = replace(HOURLY, missing="predict", late="step")
    model = headed(head, seed)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        numbers = rng.choice([0, 1, -1, 1e14, -1e14, 1e-300, 3.7, -2.5e9, 1.7e9], model.state_size)
        h = len(numbers) - head.state_size
        numbers[:h] = np.clip(numbers[:h], -1, 1)
        session.restore(sl.State(model.fingerprint, 0, model.state_sizes, numbers))
        for reading in readings(head, seed, 40):
            assert np.isfinite(session.step(reading)).all()
            state = session.state()
            assert np.isfinite(state.numbers).all()
            assert np.isfinite(session.forecast(6)).all()
            session.restore(state)


def test_the_largest_values_can_be_restored():
    """z rounds; a state that came of it must still be one that restore() takes."""
    std = 40.97448296267075
    with sl.Engine(headed(Head(sl.Feature("v", "", 0.0, std)))) as engine:
        session = engine.open("a")
        for value in (*engine.largest_event, *-engine.largest_event, 0.0):
            session.step([value])
            session.restore(session.state())


def test_forecasts_beside_steps_of_others():
    """Another thread steps another session all the time: a's forecast stays a's."""
    model = headed(Head(FLOW, horizon=2))
    before = sys.getswitchinterval()
    with sl.Engine(model) as engine:
        a, b = engine.open("a"), engine.open("b")
        a.run(np.full((5, 1), 100.0))
        expected = a.forecast(5).tobytes()
        stop = threading.Event()

        def work():
            while not stop.is_set():
                b.step([130.0])

        thread = threading.Thread(target=work)
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            assert all(a.forecast(5).tobytes() == expected for _ in range(5000))
        finally:
            sys.setswitchinterval(before)
            stop.set()
            thread.join()


@pytest.mark.parametrize("units", [12, 200])
def test_a_signal_handler_may_use_the_engine(units):
    """Nothing of Python runs under the engine's lock, where a handler that wants it would wait."""
    model = headed(replace(HOURLY, missing="reject"), units=units)
    with sl.Engine(model) as engine:
        a, b = engine.open("a"), engine.open("b")
        a.step([0.0, 100.0])
        handled = []

        def handler(*_):
            handled.append(b.state())
            if len(handled) < 100:  # one at a time, however slow this machine is
                signal.setitimer(signal.ITIMER_REAL, 1e-3)

        old = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        try:
            while len(handled) < 100:
                a.forecast(2)
                assert engine.group([a]).refusals([[HOUR_S, math.nan]])
                with pytest.raises(errors.NonFiniteError):
                    a.run([[HOUR_S, math.nan]] * 3)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)


# -- descriptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({"quantiles": (0.1, 0.9)}, "give an odd number"),
        ({"quantiles": (0.5, 0.1, 0.9)}, "give an odd number"),
        ({"quantiles": (0.1, 0.4, 0.9)}, "give an odd number"),
        ({"horizon": 0}, "horizon is 0"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"missing": "zero"}, "missing is 'zero'; choose of reject, skip, hold, predict"),
        ({"late": "hold"}, "late is 'hold'; choose of drop, reject, step"),
        ({"spacing": "even"}, "spacing is 'even'"),
        ({"calendar": ("month",)}, "calendar is 'month'"),
        ({"calendar": ("day", "day")}, "twice"),
        ({"time": None}, "need the readings' time"),
        ({"time": None, "calendar": (), "spacing": "gap"}, "need the readings' time"),
        ({"step_s": 0.0}, "step_s is 0.0"),
        ({"step_s": math.nan}, "step_s is nan"),
        ({"target": sl.Feature("v", "", 1e300, 1.0)}, "'v' has mean 1e\\+300"),
        ({"horizon": 2.0}, "must be numbers"),
        ({"horizon": "2"}, "must be numbers"),
        ({"warm_up": 2.5}, "must be numbers"),
        ({"step_s": 10**400}, "must be numbers"),
        ({"step_s": "60"}, "must be numbers"),
        ({"quantiles": ("0.1", 0.5, 0.9)}, "must be numbers"),
        ({"time": 3}, "name of the time column"),
        ({"target": sl.Feature("v", "", 0.0, 0.0)}, "std 0.0"),
        ({"target": "flow"}, "are Features; got 'flow'"),
        ({"others": (sl.Feature("v", "", math.nan, 1.0),)}, "mean nan"),
        ({"residuals": (Residual(1, 1, 1),)}, "1 residuals came for a horizon of 3"),
        ({"residuals": (Residual(1, math.nan, 1),) * 3}, "finite"),
    ],
)
def test_heads_that_are_none(given_, sentence):
    with pytest.raises(errors.ModelError, match=sentence):
        replace(HOURLY, **given_)


def test_a_head_must_fit_its_network():
    model = headed(HOURLY)
    with pytest.raises(
        errors.ModelError, match=r"has 6 inputs and 9 outputs; its head needs 6 and"
    ):
        sl.Model(model.layers, head=replace(HOURLY, horizon=2))
    with pytest.raises(errors.ModelError, match="leave them out"):
        sl.Model(model.layers, head=HOURLY, inputs=["a"])
    with pytest.raises(errors.ModelError, match="give a Head"):
        sl.Model(model.layers, head={"target": "flow"})
    named = replace(HOURLY, target=sl.Feature("time", "", 0.0, 1.0))
    with pytest.raises(errors.ModelError, match="distinct"):
        sl.Model(model.layers, head=named)
    big = sl.LSTM(np.full((4, 6), 3e36), np.zeros((4, 1)), np.zeros(4))
    with pytest.raises(errors.ModelError, match="overflow"):
        sl.Engine(sl.Model([big, sl.Dense(np.zeros((9, 1)), np.zeros(9))], head=HOURLY, dtype="f4"))


@settings(max_examples=25, deadline=None)
@given(heads(), st.integers(0, 2**32), st.sampled_from(["float32", "float64"]))
def test_a_model_file_keeps_the_head(tmp_path_factory, head, seed, dtype):
    path = tmp_path_factory.mktemp("head") / "m.safetensors"
    head = replace(head, residuals=tuple(Residual(1.0, 2.5, 0.8) for _ in range(head.horizon)))
    model = headed(head, seed, dtype=dtype)
    model.save(path)
    loaded = sl.load(path)
    assert loaded.head == head
    assert loaded.fingerprint == model.fingerprint
    assert sl.Model(model.layers, head=replace(head, warm_up=7)).fingerprint != model.fingerprint


def test_without_a_head_there_is_no_forecast():
    layer = sl.LSTM(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros(4))
    with sl.Engine(sl.Model([layer])) as engine:
        session = engine.open("a")
        with pytest.raises(errors.EngineError, match="no head to forecast with"):
            session.forecast(1)
        assert session.counters() == engine.counters() == {}
        assert engine.group([session]).refusals([[1.0]]) == {}


@pytest.mark.parametrize("steps", [0, -1, 10_001, 1.5, "3", None])
def test_a_forecast_of_no_steps(steps):
    with sl.Engine(headed(HOURLY)) as engine, pytest.raises(errors.InputError, match="1 to 10,000"):
        engine.open("a").forecast(steps)


def test_forecasts_of_a_closed_session():
    with sl.Engine(headed(HOURLY)) as engine:
        session, other = engine.open("a"), engine.open("b")
        group = engine.group([session, other])
        session.close()
        with pytest.raises(errors.SessionClosedError):
            session.forecast(1)
        with pytest.raises(errors.SessionUnknownError):
            group.forecast(1)
    with pytest.raises(errors.EngineClosedError):
        other.forecast(1)


@pytest.mark.parametrize("head", POLICIES, ids=ids)
def test_unroll_is_what_the_network_was_given(head):
    """Training sees the inputs that streaming makes, step by step."""
    x = holed()
    seen = []

    def network(inputs):
        seen.append(inputs)
        return np.zeros(head.network_outputs)

    held = replace(head, missing="hold") if head.missing == "predict" else head
    stream = Stream(held, network)
    steps = []
    for k, reading in enumerate(x):
        before = stream.steps
        stream.read(reading)
        made = stream.steps - before
        steps += [-1] * (made - 1) + [k] * (made > 0)
    inputs, row, position = unroll(head, x)
    assert np.abs(inputs - np.array(seen)).max() < 1e-12
    assert row.tolist() == steps
    assert (np.diff(position) >= 1).all()
    longest = 151 if head.spacing == "grid" else 1
    assert (np.diff(position).max() > 1) == (head.spacing == "grid")
    assert np.diff(position).max() <= longest + 10


def test_inspect_tells_of_the_head(tmp_path, capsys):
    head = replace(HOURLY, horizon=2, residuals=(Residual(1, 2, 0.8), Residual(3, 4, 0.75)))
    headed(head).save(tmp_path / "m.safetensors")
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert f"state        {(12 + 12) * 4 + head.state_size * 8:,} bytes per session" in out
    assert out[out.index("\nhead\n") :].splitlines()[2:8] == [
        "  forecasts  2 steps of 3600 s ahead, quantiles 10 %, 50 %, 90 %",
        "  time       time; told day, week; grid",
        "  late       drop",
        "  missing    hold",
        "  warm-up    100 steps",
        "  step 1     off by 1 l/s (std 2) on rows not trained on; 80 % of them within the band",
    ]
