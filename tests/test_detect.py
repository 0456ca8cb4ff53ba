"""`streamlstm detect` on a real series with holes, from model files: no training here."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from heads import FLOW, HOUR_S, headed, holed, water
from networks import lstm
from streamlstm import Dense, Head, Model, cli
from streamlstm.head import ALERT, COUNTERS

HEAD = Head(FLOW, time="time", step_s=HOUR_S, horizon=3)
COLUMNS = [
    *("line", "time", "value", "low", "median", "high"),
    *("score", "alert", "reason", "status", "warming"),
]


def last_value(head: Head) -> Model:
    """A model that says: as it is now, and 0.1 std less or more."""
    rng = np.random.default_rng(0)
    band = np.tile(np.linspace(-0.1, 0.1, len(head.quantiles)), head.horizon)
    layers = [lstm(rng, head.network_inputs, 4), Dense(np.zeros((len(band), 4)), band)]
    return Model(layers, head=head, dtype="float32")


def in_a_and_units(head: Head, a: float) -> float:
    return head.target.mean + head.target.std * math.sinh(a)


def text(readings: np.ndarray, *more: list[str]) -> str:
    """Readings [time, flow] as a CSV file's text; more: (name, cells...) of further columns."""
    lines = [",".join(["time", "flow", *(column[0] for column in more)])]
    for k, (time, value) in enumerate(readings.tolist()):
        value_text = "" if math.isnan(value) else repr(value)
        lines.append(",".join([repr(time), value_text, *(column[1 + k] for column in more)]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in tmp_path, where flow.safetensors and flow.csv (with holes) lie."""
    monkeypatch.chdir(tmp_path)
    last_value(HEAD).save("flow.safetensors")
    Path("flow.csv").write_text(text(holed()))

    def run(*argv):
        try:
            code = cli.main(["detect", *map(str, argv)])
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capsys.readouterr())

    return run


def scores(path: str = "scores.csv") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def fact(shown: str, name: str) -> str:
    [line] = [line for line in shown.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).strip()


def counters(shown: str) -> dict[str, int]:
    pairs = (pair.rsplit(" ", 1) for pair in fact(shown, "counters").split(", "))
    return {name: int(count.replace(",", "")) for name, count in pairs}


# --- what comes out -------------------------------------------------------------------------------


def test_every_row_is_scored_once_in_order_by_one_session(run):
    code, shown, complaints = run("flow.csv", "--model", "flow.safetensors")
    assert (code, complaints) == (0, "")
    rows, readings = scores(), holed()
    assert list(rows[0]) == COLUMNS
    assert [int(row["line"]) for row in rows] == list(range(2, 2 + len(readings)))
    with sl.Engine(sl.load("flow.safetensors")) as engine:
        y = engine.open("flow").run(readings)
        for row, reading, numbers in zip(rows, readings, y, strict=True):
            said = HEAD.report(numbers.tolist())
            assert row["time"] == repr(reading[0].item())
            assert (row["value"] == "") == np.isnan(reading[1])
            assert float(row["score"]) == pytest.approx(said.score, rel=1e-6)
            assert (row["status"], row["reason"]) == (said.status, said.reason)
            assert (row["alert"], row["warming"]) == (str(int(said.alert)), str(int(said.warming)))
        expected = engine.counters()
    assert counters(shown) == expected | {"refused": 0}
    alerts = sum(int(row["alert"]) for row in rows)
    assert alerts
    assert fact(shown, "rows") == f"{len(rows)}"
    assert fact(shown, "alerts") == f"{alerts}"
    warming = sum(int(row["warming"]) for row in rows)
    assert fact(shown, "warming up") == f"{warming} rows, which can't alert"
    assert fact(shown, "scores") == "scores.csv"


def test_what_was_forecast_for_a_row_is_written_beside_it(run):
    """Of a model that says "as it is now": the last value, also over missing hours."""
    run("flow.csv", "--model", "flow.safetensors")
    a, last, steps = math.nan, math.nan, 0
    for row in scores():
        late = row["status"] in ("late", "repeated", "early")
        if late or not steps:
            assert row["median"] == row["low"] == row["high"] == ""
        else:
            assert float(row["median"]) == pytest.approx(last, rel=1e-6)
            low, high = (in_a_and_units(HEAD, a + side) for side in (-0.1, 0.1))
            ahead = (float(row["low"]), float(row["high"]))
            assert ahead[0] <= low * (1 + 1e-6)
            assert ahead[1] >= high * (1 - 1e-6)
        if row["status"] == "stepped":
            last, steps = float(row["value"]), steps + 1
            a = math.asinh((last - FLOW.mean) / FLOW.std)
    assert steps > 300


def test_a_forecast_over_a_gap_is_that_of_the_step_the_row_is_of(run):
    """Not that of the next step: a random network's differ."""
    headed(HEAD).save("flow.safetensors")
    readings = np.column_stack(water())[:20]
    readings = np.delete(readings, [10, 11, 12, 13], axis=0)
    Path("flow.csv").write_text(text(readings))
    run("flow.csv", "--model", "flow.safetensors")
    with sl.Engine(sl.load("flow.safetensors")) as engine:
        session = engine.open("flow")
        session.run(readings[:10])
        five = session.forecast(5)[-1]
    row = scores()[10]
    got = [float(row[name]) for name in ("low", "median", "high")]
    np.testing.assert_allclose(got, five, rtol=1e-6)


def test_a_held_row_and_one_taken_late_are_steps_that_forecast(run):
    headed(replace(HEAD, late="step")).save("flow.safetensors")
    readings = np.column_stack(water())[:30]
    readings[10, 1] = np.nan
    readings[20, 0] = readings[19, 0]
    Path("flow.csv").write_text(text(readings))
    run("flow.csv", "--model", "flow.safetensors")
    with sl.Engine(sl.load("flow.safetensors")) as engine:
        y = engine.open("flow").run(readings)
    rows = scores()
    assert [rows[k]["status"] for k in (10, 11, 20)] == ["held", "stepped", "stepped"]
    for k in (10, 11, 20):
        got = [float(rows[k][name]) for name in ("low", "median", "high")]
        np.testing.assert_allclose(got, y[k - 1, :3], rtol=1e-6)


def test_json_lines_hold_the_same(run):
    run("flow.csv", "--model", "flow.safetensors")
    code, shown, _ = run("flow.csv", "--model", "flow.safetensors", "--json")
    assert code == 0
    assert fact(shown, "scores") == "scores.jsonl"
    lines = Path("scores.jsonl").read_text().splitlines()
    assert "NaN" not in lines[0]
    for line, row in zip(map(json.loads, lines), scores(), strict=True):
        assert list(line) == COLUMNS
        assert line["alert"] is (row["alert"] == "1")
        for name in ("value", "low", "median", "high", "score"):
            assert line[name] == (None if row[name] == "" else float(row[name]))


def test_an_alert_is_one_line_in_plain_words(run):
    times, flows = water()
    flows = flows[:300].copy()
    flows[250] += 40
    Path("flow.csv").write_text(text(np.column_stack([times[:300], flows])))
    _, shown, _ = run("flow.csv", "--model", "flow.safetensors")
    [row] = [row for row in scores() if row["line"] == "252"]
    assert row["reason"] == "value above"
    assert float(row["score"]) >= ALERT
    [line] = [line for line in shown.splitlines() if line.startswith(row["time"])]
    low, high = float(row["low"]), float(row["high"])
    assert line == (
        f"{row['time']}  flow  {flows[250]:.2f} l/s (expected {low:.2f} to {high:.2f}, "
        f"score {float(row['score']):.2f}): higher than the range it kept to"
    )


def test_scores_to_stdout_leave_the_words_to_stderr(run):
    run("flow.csv", "--model", "flow.safetensors")
    code, shown, told = run("flow.csv", "--model", "flow.safetensors", "-o", "-")
    assert code == 0
    assert shown == Path("scores.csv").read_text()
    assert fact(told, "rows") == str(len(holed()))
    assert "scores" not in told.split("counters")[1]


def test_the_forecasts_are_judged_beside_the_last_value(run):
    """Of a model that says "as it is now" they are equally far off."""
    _, shown, _ = run("flow.csv", "--model", "flow.safetensors")
    misses, inside, last = [], [], math.nan
    for row in scores():
        if row["status"] == "stepped":
            value = float(row["value"])
            if row["low"]:
                misses.append(abs(value - last))
                inside.append(float(row["low"]) <= value <= float(row["high"]))
            last = value
    off = f"{np.mean(misses):.3g}"
    assert fact(shown, "forecasts") == (
        f"off by {off} on average (the last value: {off}), "
        f"{np.mean(inside):.0%} of the values between low and high"
    )


# --- policies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["skip", "hold", "predict"])
@pytest.mark.parametrize("late", ["drop", "step"])
@pytest.mark.parametrize("spacing", ["grid", "gap"])
def test_every_policy_takes_a_series_with_holes(run, missing, late, spacing):
    headed(replace(HEAD, missing=missing, late=late, spacing=spacing)).save("flow.safetensors")
    code, shown, complaints = run("flow.csv", "--model", "flow.safetensors")
    assert (code, complaints) == (0, "")
    counted, rows = counters(shown), scores()
    lacking = np.isnan(holed()[:, 1]).sum()
    dropped = sum(counted[name] for name in ("late", "repeated", "early"))
    assert len(rows) == len(holed())
    assert 0 < counted["missing"] <= lacking
    assert dropped
    assert counted["gaps"]
    of_missing = {"skip": "skipped", "hold": "held", "predict": "predicted"}[missing]
    assert counted[of_missing] >= counted["missing"]
    statuses = [row["status"] for row in rows]
    assert statuses.count(of_missing) == counted["missing"]
    assert (dropped == sum(s in ("late", "repeated", "early") for s in statuses)) == (
        late == "drop"
    )
    for row in rows:
        assert all(row[name] == "" or math.isfinite(float(row[name])) for name in COLUMNS[2:7])


def test_refused_rows_are_scored_as_such_and_end_in_exit_code_1(run):
    headed(replace(HEAD, missing="reject", late="reject")).save("flow.safetensors")
    code, shown, complaints = run("flow.csv", "--model", "flow.safetensors")
    assert code == 1
    rows = scores()
    assert len(rows) == len(holed())
    refused = [row for row in rows if row["status"] == "refused"]
    assert counters(shown)["refused"] == len(refused) > np.isnan(holed()[:, 1]).sum()
    assert complaints.startswith(
        f"streamlstm: {len(refused)} rows were refused, the first in flow.csv, "
        f"line {refused[0]['line']}: the row"
    )
    assert complaints.count("\n") == 1
    assert all(row["score"] == "0.0" and row["alert"] == "0" for row in refused)


def test_a_row_that_can_not_be_read_does_not_end_the_watch(run):
    lines = Path("flow.csv").read_text().splitlines()
    lines[300:300] = [
        "time,flow",
        "1e9,abc",
        "never,3",
    ]  # a header again, as of a log that began anew
    Path("flow.csv").write_text("\n".join(lines))
    code, shown, complaints = run("flow.csv", "--model", "flow.safetensors")
    assert code == 1
    assert len(scores()) == len(holed())
    assert counters(shown)["refused"] == 3
    assert complaints.startswith("streamlstm: 3 rows were refused, the first in flow.csv, line 301")


def test_a_file_that_does_not_fit_the_model_is_said(run):
    fast = [[k * 60.0, 100 + 5 * np.sin(k)] for k in range(600)]
    Path("flow.csv").write_text(text(np.array(fast)))
    code, shown, _ = run("flow.csv", "--model", "flow.safetensors")
    assert code == 0
    dropped = counters(shown)["early"]
    assert dropped > 500
    assert f"\nnote         {dropped} rows were dropped: are they in the order of time" in shown
    wrong = Head(replace(FLOW, mean=1e4), time="time", step_s=HOUR_S, warm_up=20)
    bias = sl.Dense(np.zeros((3, 4)), np.full(3, 2.0))
    model = last_value(wrong)
    sl.Model([*model.layers[:-1], bias], head=wrong, dtype="f4").save("flow.safetensors")
    Path("flow.csv").write_text(text(holed()))
    shown = run("flow.csv", "--model", "flow.safetensors")[1]
    assert "\nnote         the forecasts are worse than the last value" in shown


def test_without_times_each_row_is_a_step(run):
    headed(Head(FLOW)).save("flow.safetensors")
    readings = holed()
    Path("flow.csv").write_text(text(readings))
    code, shown, _ = run("flow.csv", "--model", "flow.safetensors")
    assert code == 0
    assert "time" not in scores()[0]
    assert counters(shown)["held"] == np.isnan(readings[:, 1]).sum()


def test_each_series_has_a_session_of_its_own(run):
    """Interleaved as they come; the scores are those of each alone."""
    times, flows = water()
    one, two = np.column_stack([times, flows])[:200], np.column_stack([times, flows + 3])[300:450]
    order = np.random.default_rng(0).permutation([0] * len(one) + [1] * len(two))
    feeds = [iter(one), iter(two)]
    both = np.array([next(feeds[k]) for k in order])
    Path("both.csv").write_text(text(both, ["pump", *(f"pump-{k}" for k in order)]))
    code, shown, _ = run("both.csv", "--model", "flow.safetensors", "--series", "pump")
    assert code == 0
    assert fact(shown, "rows") == "350 of 2 series"
    rows = scores()
    assert list(rows[0]) == ["series", *COLUMNS]
    for k, readings in enumerate((one, two)):
        Path("flow.csv").write_text(text(readings))
        run("flow.csv", "--model", "flow.safetensors", "-o", "alone.csv")
        own = [row for row in rows if row["series"] == f"pump-{k}"]
        for got, alone in zip(own, scores("alone.csv"), strict=True):
            assert {name: got[name] for name in COLUMNS[1:]} == {
                name: alone[name] for name in COLUMNS[1:]
            }


def test_other_columns_are_found_by_name(run):
    head = replace(HEAD, others=(sl.Feature("rain", "mm", 1.0, 2.0),))
    headed(head).save("flow.safetensors")
    readings = np.column_stack(water())[:50]
    rain = [str(k % 5) for k in range(50)]
    Path("flow.csv").write_text(text(readings, ["note", *["x"] * 50], ["rain", *rain]))
    assert run("flow.csv", "--model", "flow.safetensors")[0] == 0
    with sl.Engine(sl.load("flow.safetensors")) as engine:
        y = engine.open("flow").run(np.column_stack([readings, np.array(rain, float)]))
    assert float(scores()[-1]["median"]) == pytest.approx(y[-2, 1], rel=1e-6)


# --- streams --------------------------------------------------------------------------------------


def process(folder: Path, *options: str, **pipes) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-m", "streamlstm", "detect", *options],
        **{"cwd": folder, "env": env, "text": True, "stdout": subprocess.PIPE, **pipes},
    )


def test_a_row_from_stdin_is_answered_as_soon_as_it_is_there(run, tmp_path):
    run("flow.csv", "--model", "flow.safetensors")
    options = ("-", "--model", "flow.safetensors", "-o", "-")
    with process(
        tmp_path, *options, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=1
    ) as live:
        assert live.stdin
        assert live.stdout
        lines = Path("flow.csv").read_text().splitlines()
        answers = Path("scores.csv").read_text().splitlines()
        live.stdin.write(f"{lines[0]}\n")
        assert live.stdout.readline().strip() == answers[0]
        for line, answer in zip(lines[1:60], answers[1:60], strict=True):
            live.stdin.write(f"{line}\n")
            assert live.stdout.readline().strip() == answer
        live.stdin.close()
        assert live.wait() == 0


def test_ctrl_c_ends_a_stream_whose_scores_are_in_the_file(run, tmp_path):
    run("flow.csv", "--model", "flow.safetensors", "-o", "whole.csv")
    options = ("-", "--model", "flow.safetensors", "-o", "-")
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with process(tmp_path, *options, bufsize=1, **pipes) as live:
        assert live.stdin
        assert live.stdout
        live.stdin.write("\n".join(Path("flow.csv").read_text().splitlines()[:3]) + "\n")
        got = [live.stdout.readline() for _ in range(3)]
        live.send_signal(signal.SIGINT)
        assert live.wait() == 130
        assert "rows         2\n" in live.stderr.read()  # the summary, as at the end of a file
    assert got == Path("whole.csv").read_text().splitlines(keepends=True)[:3]


def test_a_reader_that_has_enough_of_the_alerts_does_not_end_the_scores(run, tmp_path):
    run("flow.csv", "--model", "flow.safetensors", "-o", "whole.csv")
    options = ("flow.csv", "--model", "flow.safetensors", "--json", "-o", "scores.jsonl")
    with process(tmp_path, *options, stderr=subprocess.PIPE) as live:
        assert live.stdout
        assert live.stderr
        live.stdout.close()
        assert live.wait() == 0
        assert live.stderr.read() == ""
    lines = len(Path("scores.jsonl").read_text().splitlines())
    assert lines == len(scores("whole.csv"))


def test_a_reader_that_has_enough_of_the_scores_ends_the_command(run, tmp_path):  # noqa: ARG001
    options = ("flow.csv", "--model", "flow.safetensors", "-o", "-")
    with process(tmp_path, *options, stderr=subprocess.PIPE) as live:
        assert live.stdout
        assert live.stderr
        live.stdout.close()
        assert live.wait() == 0
        assert "Traceback" not in live.stderr.read()


# --- plot -----------------------------------------------------------------------------------------


def test_the_plot_shows_readings_band_score_and_alerts(run):
    pytest.importorskip("matplotlib")
    code, shown, _ = run("flow.csv", "--model", "flow.safetensors", "--plot", "flow.svg")
    assert code == 0
    assert fact(shown, "plot") == "flow.svg"
    drawn = Path("flow.svg").read_text()
    assert drawn.rstrip().endswith("</svg>")
    lines = ("reading", "range of the forecast", "expected", "alert", "to come", "score")
    for words in (*lines, "warming up: can't alert"):
        assert f"<!-- {words} -->" in drawn
    again = Path("flow.svg").read_bytes()
    run("flow.csv", "--model", "flow.safetensors", "--plot", "flow.svg")
    assert Path("flow.svg").read_bytes() == again


def test_the_end_of_a_long_series_is_drawn_again_from_near(run, monkeypatch):
    plot = pytest.importorskip("streamlstm.plot", exc_type=ImportError)
    for long, pictures in ((1000, 1), (100, 2)):
        monkeypatch.setattr(plot, "LONG", long)
        run("flow.csv", "--model", "flow.safetensors", "--plot", "flow.svg")
        drawn = Path("flow.svg").read_text()
        assert drawn.count("<!-- score -->") == pictures
        assert (f"its last {plot.CLOSE_UP} rows" in drawn) == (pictures == 2)


@pytest.mark.parametrize("head", [Head(FLOW), replace(HEAD, late="step"), HEAD])
def test_the_plot_takes_few_rows_and_rows_out_of_order(run, head):
    pytest.importorskip("matplotlib")
    headed(head).save("flow.safetensors")
    for rows in (1, 2, 100):
        Path("flow.csv").write_text(text(holed()[:rows]))
        assert run("flow.csv", "--model", "flow.safetensors", "--plot", "flow.svg")[0] == 0
    assert Path("flow.svg").read_text().rstrip().endswith("</svg>")


def test_the_plot_of_many_series_shows_the_first_ones(run):
    plot = pytest.importorskip("streamlstm.plot", exc_type=ImportError)
    readings = np.column_stack(water())[:60]
    names = [f"pump-{k % 10}" for k in range(60)]
    Path("many.csv").write_text(text(readings, ["pump", *names]))
    options = ("--model", "flow.safetensors", "--series", "pump", "--plot", "many.svg")
    assert run("many.csv", *options)[0] == 0
    drawn = Path("many.svg").read_text()
    assert f"the first {plot.SERIES_MOST} of 10 series" in drawn
    assert "pump-7 -->" in drawn
    assert "pump-8 -->" not in drawn
    assert "its last" not in drawn  # they are short


def test_a_reading_without_neighbours_is_a_dot():
    plot = pytest.importorskip("streamlstm.plot", exc_type=ImportError)
    axes = plot.Figure().subplots()
    value = np.array([1, np.nan, 2, 3, np.nan, 4])
    plot.readings(axes, np.arange(6.0), value, np.full((6, 3), np.nan))
    [dots] = (line for line in axes.lines if line.get_marker() == ".")
    np.testing.assert_array_equal(dots.get_xdata(), [0, 5])


def test_lines_break_in_long_gaps_only():
    plot = pytest.importorskip("streamlstm.plot", exc_type=ImportError)
    at, values = plot.broken(np.array([0.0, 1, 2, 4, 8, 9]), np.arange(6.0))
    np.testing.assert_array_equal(at, [0, 1, 2, 4, 4, 8, 9])
    np.testing.assert_array_equal(values, [0, 1, 2, 3, np.nan, 4, 5])


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["flow.csv"], "say with --target which column to watch"),
        (["-", "--target", "flow"], "stdin needs a --model; training reads its file twice"),
        (["flow.csv", "--model", "m", "--missing", "skip"], "--missing is of training"),
        (["flow.csv", "--model", "m", "--spacing", "grid"], "--spacing is of training"),
        (["flow.csv", "--model", "m", "--late", "drop"], "--late is of training"),
        (["flow.csv", "--model", "m", "--with", "rain"], "--with is of training"),
        (["flow.csv", "--model", "m", "--train-rows", "5"], "--train-rows is of training"),
        (["flow.csv", "--model", "m", "--save-model", "n"], "--save-model is of training"),
        (["flow.csv", "--model", "m", "--horizon", "2"], "--horizon is of training"),
        (["flow.csv", "--model", "m", "--plot", "a.jpg"], "draws .svg, .png, .pdf; got a.jpg"),
        (["flow.csv", "--model", "m", "-o", "flow.csv"], "two of its files are the same"),
        (["flow.csv", "--target", "f", "--save-model", "./flow.csv"], "two of its files"),
        (["scores.csv", "--model", "m"], "two of its files are the same"),
    ],
)
def test_wrong_usage_is_one_sentence(run, options, sentence):
    before = Path("flow.csv").read_bytes()
    code, shown, complaints = run(*options)
    assert (code, shown, complaints.count("\n")) == (2, "", 1)
    assert sentence in complaints
    assert Path("flow.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("time,flow\n1e9,1\n1000003600,abc\n", "flow.csv, line 3: column flow holds 'abc'"),
        ("time,flow\nyesterday,1\n", "flow.csv, line 2: column time holds 'yesterday'"),
        ("time,level\n1e9,1\n", "flow.csv: the header lacks the model's input flow"),
        ("time,flow\n", "flow.csv holds no rows"),
        ("", "flow.csv holds no rows"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_sentence(run, content, sentence):
    Path("flow.csv").write_text(content)
    code, _, complaints = run("flow.csv", "--model", "flow.safetensors")
    assert (code, complaints.count("\n")) == (1, 1)
    assert sentence in complaints


def test_a_row_without_its_series_is_refused(run):
    Path("flow.csv").write_text("time,flow,pump\n1e9,1,a\n1e9,1,\n")
    code, _, complaints = run("flow.csv", "--model", "flow.safetensors", "--series", "pump")
    assert code == 1
    assert "flow.csv, line 3: column pump is empty" in complaints


def test_a_model_without_a_head_is_refused(run):
    rng = np.random.default_rng(0)
    Model([lstm(rng, 1, 4)], inputs=["flow"]).save("bare.safetensors")
    code, _, complaints = run("flow.csv", "--model", "bare.safetensors")
    assert (code, complaints.count("\n")) == (1, 1)
    assert "bare.safetensors has no head" in complaints
    assert not Path("scores.csv").exists()


def test_scores_outlive_an_input_that_is_gone(run):
    command = ("flow.csv", "--model", "flow.safetensors")
    assert run(*command)[0] == 0
    before = Path("scores.csv").read_text()
    Path("flow.csv").rename("moved.csv")
    assert run(*command)[::2] == (
        1,
        "streamlstm: flow.csv can't be read: there is no such file\n",
    )
    assert Path("scores.csv").read_text() == before


def test_what_ended_by_an_error_may_be_started_again(run):
    rows = Path("flow.csv").read_text()
    Path("flow.csv").write_text(rows.replace("flow", "level", 1))
    command = ("flow.csv", "--model", "flow.safetensors")
    assert run(*command)[0] == 1
    Path("flow.csv").write_text(rows)
    assert run(*command)[0] == 0


@pytest.mark.parametrize("option", ["-o", "--plot", "--save-model"])
def test_a_folder_that_is_not_there_is_said_before_the_work(run, option):
    file = "nowhere/x.svg"
    code, _, complaints = run("flow.csv", "--target", "flow", option, file)
    assert code == 1
    assert complaints.startswith(f"streamlstm: {file} can't be written: there is no folder ")


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("torch", ["--target", "flow"], "train"),
        ("matplotlib", ["--model", "flow.safetensors", "--plot", "flow.svg"], "plot"),
    ],
)
def test_what_is_not_installed_is_said_with_the_way_to_it(run, monkeypatch, module, options, extra):
    for name in [n for n in sys.modules if n.split(".")[0] == module] + [
        *("streamlstm.training", "streamlstm.training.network", "streamlstm.plot")
    ]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("training", "plot"):
        monkeypatch.delattr(sl, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, complaints = run("flow.csv", *options)
    assert (code, complaints.count("\n")) == (1, 1)
    assert (
        f"needs {module}, which is not installed: pip install 'streamlstm[{extra}]'" in complaints
    )


def test_counters_are_named_as_the_head_names_them(run):
    _, shown, _ = run("flow.csv", "--model", "flow.safetensors")
    assert set(counters(shown)) == {*COUNTERS, "refused"} - {"unchanged"}
