"""Watching that goes on: `detect --state` after its end, Ctrl-C, SIGTERM and kill -9."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streamlstm as sl
from heads import holed
from streamlstm import cli, saved_sessions
from test_detect import HEAD, last_value, text

ROWS = 400
MODEL = ("--model", "flow.safetensors")


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """The header and the rows of a series with holes; flow.safetensors lies beside."""
    monkeypatch.chdir(tmp_path)
    last_value(HEAD).save("flow.safetensors")
    return text(holed(ROWS)).splitlines()


def live(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streamlstm", "detect", "-", *MODEL, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def feed(process: subprocess.Popen[str], lines: list[str]) -> list[str]:
    """Give it lines, a header first, and take an answer to each."""
    got = []
    for line in lines:
        process.stdin.write(line + "\n")
        got.append(process.stdout.readline().rstrip("\n"))
    return got


def whole(lines: list[str]) -> list[str]:
    """The scores of a watch that was never interrupted."""
    Path("whole.csv").write_text("\n".join(lines) + "\n")
    assert cli.main(["detect", "whole.csv", *MODEL, "-o", "whole.scores"]) == 0
    return Path("whole.scores").read_text().splitlines()


def alerts(scores: list[str]) -> list[str]:
    return [
        row["time"] for row in csv.DictReader(io.StringIO("\n".join(scores))) if row["alert"] == "1"
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_goes_on_where_it_was(lines, number, code):
    wanted = whole(lines)
    assert alerts(wanted)
    for first, last in ((1, 90), (90, 170), (170, len(lines))):
        with live("-o", "-", "--state", "state") as process:
            assert process.stdout.readline().rstrip("\n") == wanted[0]
            process.stdin.write(lines[0] + "\n")
            # `tail -n +1`: all that was there before comes again, and is not answered.
            process.stdin.writelines(line + "\n" for line in lines[1:first])
            got = feed(process, lines[first:last])
            assert got == wanted[first:last]
            os.kill(process.pid, number)
            assert process.wait(30) == code
            said = process.stderr.read()
        before = f"; {first - 1:,} more were seen before" if first > 1 else ""
        assert f"rows         {last - first:,}{before}\n" in said
        assert "counters     missing" in said


def test_a_kill_costs_a_second_at_most(lines):
    """What was stepped since the last saving is stepped again: the same bits, no other row."""
    wanted = whole(lines)
    with live("-o", "-", "--state", "state") as process:
        process.stdout.readline()
        process.stdin.write(lines[0] + "\n")
        assert feed(process, lines[1:200]) == wanted[1:200]
        process.kill()
        process.wait()
    with sl.Engine(sl.load("flow.safetensors"), state="state") as engine:
        kept = engine["flow"].seq
    assert kept <= 199
    with live("-o", "-", "--state", "state") as process:
        process.stdout.readline()
        process.stdin.writelines(line + "\n" for line in lines)
        process.stdin.close()
        got = process.stdout.read().splitlines()
        assert process.wait(30) == 0
    assert got == wanted[len(wanted) - len(got) :]
    # A row that made no step, such as a late one, is not remembered, and may be answered again.
    assert len(wanted) - 1 - len(got) <= kept


def test_what_is_remembered_has_its_scores_in_the_file(lines, monkeypatch):
    """So that a kill at any moment loses none."""
    Path("flow.csv").write_text("\n".join(lines) + "\n")
    write, seen = saved_sessions.write, []

    def watched(engine, store):
        write(engine, store)
        seen.append((engine["flow"].seq, Path("scores.csv").read_text().count("\n") - 1))

    monkeypatch.setattr(saved_sessions, "write", watched)
    monkeypatch.setattr("streamlstm.commands.detect.SAVE_S", 0.0)
    assert cli.main(["detect", "flow.csv", *MODEL, "--state", "state"]) == 0
    assert len(seen) > 2
    assert all(rows >= steps for steps, rows in seen)


def test_scores_are_added_to_those_that_are_there(lines, capsys):
    wanted = whole(lines)
    for last in (120, len(lines)):
        Path("flow.csv").write_text("\n".join(lines[:last]) + "\n")
        assert cli.main(["detect", "flow.csv", *MODEL, "--state", "state"]) == 0
    assert Path("scores.csv").read_text().splitlines() == wanted
    assert cli.main(["detect", "flow.csv", *MODEL, "--state", "state"]) == 0  # nothing is new
    assert Path("scores.csv").read_text().splitlines() == wanted
    Path("scores.csv").write_text("my,notes\n")
    capsys.readouterr()
    assert cli.main(["detect", "flow.csv", *MODEL, "--state", "state"]) == 1
    assert "scores.csv holds no scores of such a model" in capsys.readouterr().err
    assert Path("scores.csv").read_text() == "my,notes\n"


def test_sessions_that_begin_add_nothing_to_the_scores_of_others(lines, capsys):
    Path("theirs.csv").write_text("\n".join(lines) + "\n")
    assert cli.main(["detect", "theirs.csv", *MODEL]) == 0
    theirs = Path("scores.csv").read_text()
    Path("flow.csv").write_text("\n".join(lines) + "\n")
    assert cli.main(["detect", "flow.csv", *MODEL, "--state", "state"]) == 1
    assert "scores.csv is there, and is not what this command wrote" in capsys.readouterr().err
    assert Path("scores.csv").read_text() == theirs


def test_two_can_not_keep_their_sessions_in_one_directory(lines, capsys):
    with live("-o", "-", "--state", "state") as process:
        process.stdout.readline()
        Path("flow.csv").write_text("\n".join(lines) + "\n")
        assert cli.main(["detect", "flow.csv", *MODEL, "--state", "state"]) == 1
        assert f"is in use by process {process.pid}" in capsys.readouterr().err
        process.stdin.close()
        assert process.wait(30) == 1  # no rows came


def test_state_needs_a_model(lines, capsys):  # noqa: ARG001
    assert cli.main(["detect", "flow.csv", "--target", "flow", "--state", "state"]) == 2
    assert "--state goes with --model" in capsys.readouterr().err
