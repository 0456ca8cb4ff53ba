"""The demo, run as a user runs it: by its command, from any folder, interrupted anywhere."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from streamlstm import cli
from streamlstm.demo.feeds import HORIZONS_H, SENSORS, WATER_FLOW, read
from streamlstm.demo.main import PLOT, place
from streamlstm.demo.scores import alert_score

ROOT = Path(__file__).parent.parent


def demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    # -P, as the installed command: the folder it is called in is not searched for modules.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "streamlstm", "demo", *options],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_picture_of_another_kind_is_refused_before_any_work(capsys):
    assert cli.main(["demo", "--plot", "demo.jpg"]) == 2
    assert "--plot draws .svg, .png, .pdf; got demo.jpg" in capsys.readouterr().err


def test_a_picture_of_somebody_else_is_not_written_over(tmp_path, capsys):
    theirs = tmp_path / "theirs.svg"
    theirs.write_text("theirs")
    assert cli.main(["demo", "--plot", str(theirs)]) == 1
    assert "or over it with --force" in capsys.readouterr().err
    assert cli.main(["demo", "--plot", str(theirs / "none.svg")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert theirs.read_text() == "theirs"


def test_the_picture_goes_to_a_new_folder_where_this_one_cant_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert place() == PLOT
    monkeypatch.setattr("os.access", lambda *_: False)
    assert Path(place()).parent.parent == tmp_path
    assert place() != place()  # nobody's file is written over


@pytest.mark.parametrize("folder", ["elsewhere", "source"])
def test_the_demo_runs_to_its_summary_and_plot(folder, tmp_path):
    plot = tmp_path / "demo.svg"
    run = demo(ROOT if folder == "source" else tmp_path, "--rows", "400", "--plot", str(plot))
    shown, complaints = run.communicate(timeout=100)
    assert run.returncode == 0, complaints
    assert "800 events" in shown
    assert "p50" in shown
    assert "p99" in shown
    assert "known events found" in shown
    assert plot.read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_no_server(number, tmp_path):
    run = demo(tmp_path)
    server = 0
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("It is process "):
            server = int(line.split()[3])
        if "%" in line:  # streaming
            break
    run.send_signal(number)
    run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert server
    assert not Path(f"/proc/{server}").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda s: s.name)
def test_the_shipped_model_forecasts_better_than_every_rival_hours_ahead(sensor):
    """On rows that it was not trained on, at 6, 12 and 24 hours; state carried all the way."""
    series = read(sensor)
    readings = np.column_stack([3600.0 * series.hours, series.values])
    unseen = np.arange(len(readings)) >= series.row_of(sensor.unseen_from)
    said = np.full((len(readings), HORIZONS_H[-1]), np.nan)
    with sl.Engine(sl.load(sensor.model_path)) as engine:
        session = engine.open(sensor.name)
        for row, reading in enumerate(readings):
            session.step(reading)
            if unseen[row]:
                said[row] = session.forecast(HORIZONS_H[-1])[:, 1]
    for hours in (6, 12, 24):
        truth = series.at(hours)
        rivals = {"last value": series.values}
        rivals |= {f"{ago} h before": series.at(hours - ago) for ago in (24, 168)}
        rows = unseen & np.isfinite(truth)
        for rival in rivals.values():
            rows &= np.isfinite(rival)
        ours = np.abs(said[:, hours - 1] - truth)[rows].mean()
        for name, rival in rivals.items():
            assert ours < np.abs(rival - truth)[rows].mean(), f"{hours} h: {name}"


def test_the_shipped_model_finds_the_known_events_and_little_else():
    series = read(WATER_FLOW)
    with sl.Engine(sl.load(WATER_FLOW.model_path)) as engine:
        head = engine.model.head
        y = engine.open("water").run(np.column_stack([3600.0 * series.hours, series.values]))
    alerted = np.array([head.report(numbers.tolist()).alert for numbers in y])
    score = alert_score(series, alerted, WATER_FLOW.events)
    assert all(score.found)
    assert score.false_alerts <= 1


def test_alerts_count_for_the_events_they_stand_in():
    series = read(WATER_FLOW)
    first = series.row_of(WATER_FLOW.events[0].first)
    alerted = np.zeros(len(series.values), bool)
    alerted[[first - 1, first, first + 1]] = True
    score = alert_score(series, alerted, WATER_FLOW.events)
    assert score.found == (True, False, False, False)
    assert score.false_alerts == 1
