"""The demo, run as a user runs it: by its command, from any folder, interrupted anywhere."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from streamlstm.demo.feeds import HORIZONS_H, SENSORS, read
from streamlstm.demo.scores import Watch

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
    x = np.array([sensor.inputs(t, v) for t, v in zip(series.times, series.values, strict=True)])
    with sl.Engine(sl.load(sensor.model_path)) as engine:
        y = engine.open(sensor.name).run(x)
    unseen = np.array([t >= sensor.unseen_from for t in series.times])
    for hours in (6, 12, 24):
        truth = series.at(hours)
        rivals = {"last value": series.values}
        rivals |= {f"{ago} h before": series.at(hours - ago) for ago in (24, 168)}
        rows = unseen & np.isfinite(truth)
        for rival in rivals.values():
            rows &= np.isfinite(rival)
        ours = np.abs(y[:, HORIZONS_H.index(hours)] - truth)[rows].mean()
        for name, rival in rivals.items():
            assert ours < np.abs(rival - truth)[rows].mean(), f"{hours} h: {name}"


def test_the_flag_rule_waits_for_its_warm_up_and_forgets_nothing():
    watch = Watch()
    rng = np.random.default_rng(0)
    calm = [watch.flags(v, 0.0) for v in rng.normal(size=500)]
    assert not any(calm[:72])
    assert sum(calm) == 0
    assert watch.flags(1000.0, 0.0)
