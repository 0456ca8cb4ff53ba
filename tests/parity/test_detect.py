"""`streamlstm detect` with training, in one go."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from streamlstm import cli
from streamlstm.training import network

STEPS = 260


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(network, "MOST_UPDATES", 60)
    monkeypatch.chdir(tmp_path)


def wave(rows: int, seed: int = 0) -> np.ndarray:
    """A day of 24 steps, a little noise, and a step up at the end."""
    t = np.arange(rows)
    values = 50 + 10 * np.sin(2 * np.pi * t / 24)
    values += np.random.default_rng(seed).normal(0, 0.3, rows)
    values[-20:] += 30
    return values


def write(path: str, columns: dict[str, object]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))


def times(rows: int) -> list[str]:
    hours = np.datetime64("2024-03-01T00:00") + np.arange(rows).astype("timedelta64[h]")
    return [str(hour) for hour in hours]


def scores() -> list[dict[str, str]]:
    with open("scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_is_trained_on_and_scored_in_one_go(capsys):
    pytest.importorskip("matplotlib")
    write("level.csv", {"time": times(STEPS), "level": wave(STEPS).tolist()})
    options = ["--target", "level", "--save-model", "level.safetensors", "--plot", "level.svg"]
    assert cli.main(["detect", "level.csv", *options, "--horizon", "6"]) == 0
    shown = capsys.readouterr().out
    assert f"{STEPS}; the model was trained on {STEPS // 2} of them" in shown
    rows = scores()
    alerts = [int(row["line"]) for row in rows if row["alert"] == "1"]
    there = sum(line < 2 + STEPS // 2 for line in alerts)
    assert f"{len(alerts)}; {there} in rows trained on" in shown
    assert 2 + STEPS - 20 in alerts
    assert "higher than the range it kept to" in shown
    assert "<!-- trained on -->" in Path("level.svg").read_text()
    assert "<!-- to come -->" in Path("level.svg").read_text()
    head = sl.load("level.safetensors").head
    assert head is not None
    assert (head.horizon, head.step_s) == (6, 3600)
    assert head.target.mean == pytest.approx(wave(STEPS)[: STEPS // 2].mean())
    # The model that was kept says the same.
    assert cli.main(["detect", "level.csv", "--model", "level.safetensors"]) == 0
    assert scores() == rows


def test_nothing_of_the_later_rows_reaches_the_model():
    """Other values there, the same model; their scores may differ."""
    for name, later in (("one", 0.0), ("two", 100.0)):
        values = wave(STEPS)
        values[120:] += later
        write(f"{name}.csv", {"level": values.tolist()})
        options = ["--target", "level", "--train-rows", "120", "--save-model", f"{name}.model"]
        options += ["-o", f"{name}.scores"]
        assert cli.main(["detect", f"{name}.csv", *options]) == 0
    one, two = sl.load("one.model"), sl.load("two.model")
    np.testing.assert_array_equal(one.layers[0].w_x, two.layers[0].w_x)
    assert one.head == two.head


def test_many_series_others_and_policies_are_trained_on_and_scored(capsys):
    rows = 160
    values = np.concatenate([wave(rows, seed) for seed in range(3)])
    values[values > 58] = np.nan
    order = np.argsort(np.tile(np.arange(rows), 3), kind="stable")
    columns = {
        "at": np.tile(times(rows), 3)[order],
        "level": np.where(np.isnan(values), "", values.astype(str))[order],
        "rain": np.tile(np.arange(rows) % 7, 3)[order],
        "tank": np.repeat(["a", "b", "c"], rows)[order],
    }
    write("tanks.csv", columns)
    options = ["--target", "level", "--time", "at", "--series", "tank", "--with", "rain"]
    policies = ["--missing", "skip", "--late", "step", "--spacing", "gap"]
    assert cli.main(["detect", "tanks.csv", *options, *policies, "--save-model", "t.model"]) == 0
    shown = capsys.readouterr().out
    assert f"{3 * rows} of 3 series; the model was trained on {3 * rows // 2} of them" in shown
    head = sl.load("t.model").head
    assert head is not None
    assert (head.missing, head.late, head.spacing) == ("skip", "step", "gap")
    assert [feature.name for feature in head.inputs] == ["at", "level", "rain"]
    found = scores()
    assert [row["series"] for row in found[:3]] == ["a", "b", "c"]
    assert sum(row["status"] == "skipped" for row in found) == np.isnan(values).sum()


def test_too_few_rows_are_refused_in_one_sentence(capsys):
    write("level.csv", {"level": wave(30).tolist()})
    assert cli.main(["detect", "level.csv", "--target", "level"]) == 1
    complaints = capsys.readouterr().err
    assert complaints.count("\n") == 1
    assert "needs a series of" in complaints
    assert not Path("scores.csv").exists()
