"""Outputs: never over what another command, another input or a person wrote."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from streamlstm import cli
from streamlstm.commands.written import check_writable, made_by, remember


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_its_own_may_be_written_again(here):
    by = made_by("detect", "flow.csv")
    check_writable("scores.csv", by)
    Path("scores.csv").write_text("1")
    remember("scores.csv", by)
    check_writable("scores.csv", by)
    check_writable(str(here / "scores.csv"), made_by("detect", str(here / "flow.csv")))


@pytest.mark.parametrize("change", ["command", "input", "content", "touch", "none"])
def test_what_is_not_its_own_is_refused(here, change, monkeypatch):  # noqa: ARG001
    Path("scores.csv").write_text("1")
    by = made_by("detect", "flow.csv")
    if change != "none":
        remember("scores.csv", by)
    match change:
        case "command":
            by = made_by("train", "flow.csv")
        case "input":
            by = made_by("detect", "other.csv")
        case "content":
            Path("scores.csv").write_text("12")
        case "touch":
            os.utime("scores.csv", ns=(0, 0))
    with pytest.raises(FileExistsError, match="is there, and is not what this command"):
        check_writable("scores.csv", by)
    check_writable("scores.csv", by, force=True)
    assert Path("scores.csv").read_text() in ("1", "12")


def test_where_nothing_can_be_remembered_force_is_needed(here, monkeypatch):
    (here / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    Path("scores.csv").write_text("1")
    remember("scores.csv", "x")
    with pytest.raises(FileExistsError, match="--force"):
        check_writable("scores.csv", "x")


def test_places_that_can_not_be_written(here):
    with pytest.raises(OSError, match="there is no folder"):
        check_writable("no/scores.csv", "x")
    (here / "folder").mkdir()
    with pytest.raises(OSError, match="it is there, and no file"):
        check_writable("folder", "x", force=True)


def test_facts_and_sentences_fit_80_columns(here, monkeypatch, capsys):  # noqa: ARG001
    """In the width of the terminal, which is 80 where there is none."""
    from heads import holed  # noqa: PLC0415
    from streamlstm.head import Residual  # noqa: PLC0415
    from test_detect import HEAD, last_value, text  # noqa: PLC0415

    monkeypatch.delenv("COLUMNS")
    residual = Residual(mae=12345.678, std=23456.789, coverage=0.72)
    last_value(replace(HEAD, residuals=(residual,) * HEAD.horizon)).save("flow.safetensors")
    Path("flow.csv").write_text(text(holed()))
    assert cli.main(["detect", "flow.csv", "--model", "flow.safetensors"]) == 0
    assert cli.main(["inspect", "flow.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    assert [line for line in lines if len(line) > 80] == []
