"""The command line, in processes of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamlstm as sl
from service.conftest import Server
from streamlstm import cli

X = np.random.default_rng(3).standard_normal((5, 3)).round(3)
ROWS = [",".join(map(str, x)) for x in X.tolist()]


def run(*argv: Any, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamlstm", *map(str, argv)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=60
    )


def exit_code(*argv: str) -> Any:
    """Of what ends at its arguments, without a process."""
    try:
        return cli.main(argv)
    except SystemExit as ended:
        return ended.code


@pytest.fixture
def want(model_path: Path) -> Any:
    with sl.Engine(sl.load(model_path)) as engine:
        return engine.open("twin").run(X)


def numbers(text: str) -> Any:
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["level", "leak"]
    return np.array(rows[1:], np.float64)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str) -> None:
    done = run("--print-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("detect", "--save-model", "async"):
        assert word in done.stdout
    if shell == "bash":
        asked = "source /dev/stdin; COMP_WORDS=(streamlstm stat); COMP_CWORD=1; _shtab_streamlstm"
        asked = f"{asked} streamlstm stat streamlstm; echo $COMPREPLY"
        bash = subprocess.run(
            ["bash", "-c", asked], input=done.stdout, capture_output=True, text=True, check=True
        )
        assert bash.stdout == "stats\n"
    assert exit_code("--print-completion", "fish") == 2


def test_help_names_commands_and_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    commands = ("serve", "sessions", "stream", "import", "inspect", "stats", "demo")
    for word in (*commands, "exit codes", "143"):
        assert word in done.stdout
    for command in commands:
        assert exit_code(command, "--help") == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "m.safetensors", "--bind", "tcp://127.0.0.1:99999"],
        ["stream", "m.safetensors", "--resume"],
        [],
        ["dance"],
        ["serve"],
        ["serve", "x", "--ttl", "0"],
        ["stats", "--timeout", "nan"],
        ["serve", "x", "--max-sessions", "0"],
        ["serve", "x", "--max-sessions", "many"],
        ["serve", "x", "--durability", "sync"],
        ["serve", "x", "--max-resident", "10"],
        ["serve", "x", "--state", "d", "--durability", "memory"],
        ["sessions"],
        ["import", "x"],
    ],
)
def test_wrong_usage(argv: list[str]) -> None:
    assert exit_code(*argv) == 2


def test_wrong_usage_of_a_process() -> None:
    assert run("dance").returncode == 2


def test_stream_by_position(model_path: Path, want: Any) -> None:
    done = run("stream", model_path, stdin="\n".join(ROWS) + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_allclose(numbers(done.stdout), want, rtol=1e-5)


def test_stream_by_header(model_path: Path, tmp_path: Path, want: Any) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"t{i},{x[2]},{x[0]},,{x[1]}" for i, x in enumerate(X.tolist())]
    path.write_text("\n\n".join(["time, speed ,flow,note,pressure", *lines]))
    done = run("stream", model_path, path)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_allclose(numbers(done.stdout), want, rtol=1e-5)


def test_stream_over_a_server(server: Server, want: Any) -> None:
    done = run("stream", "pump", "--connect", server.address, stdin="\n".join(ROWS))
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_allclose(numbers(done.stdout), want, rtol=1e-5)


def test_sentences_name_options(server: Server, model_path: Path, tmp_path: Path) -> None:
    """Also those of the server, of the engine, and of a file that is damaged."""
    with sl.Client(server.address) as client, client.open("taken", "pump"):
        done = run("stream", "pump", "--connect", server.address, "--session", "taken", stdin="1\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "or open it with --resume to take it over" in done.stderr
    done = run("serve", model_path, "--threads", "5000")
    assert done.stderr == "streamlstm: --threads is 5000; give 1 to 1024\n"
    done = run("serve", model_path, "--max-sessions", str(2**32))
    assert done.stderr.startswith("streamlstm: --max-sessions is 4294967296; give 1 to")
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(model_path.read_bytes())
    data[-3] ^= 0x40
    damaged.write_bytes(data)
    done = run("inspect", damaged)
    assert done.stderr.endswith("; write it again with streamlstm train or import\n")


def test_a_full_disk_is_one_sentence(model_path: Path) -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "streamlstm", "inspect", str(model_path)]
        done = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == "streamlstm: a file or stdout can't be written: no space is left\n"


def test_a_stream_that_ends_early_leaves_no_session(server: Server) -> None:
    argv = ["stream", "pump", "--connect", server.address]
    assert run(*argv, stdin=ROWS[0] + "\n1,2,x\n").returncode == 1
    with subprocess.Popen(
        [sys.executable, "-m", "streamlstm", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(ROWS[0] + "\n")
        child.stdin.flush()
        child.stdout.readline()
        child.stdout.readline()
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(timeout=20) == 130
    assert run(*argv, stdin=ROWS[0]).returncode == 0


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (b"1,2,\xff", "line 2: column speed holds '\\udcff', expected a number"),
        (b"1,2," + b"3" * 200_000, "line 2: field larger than field limit (131072)"),
    ],
)
def test_rows_that_are_no_csv(model_path: Path, tmp_path: Path, row: bytes, sentence: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROWS[0].encode() + b"\n" + row + b"\n")
    argv = [sys.executable, "-m", "streamlstm", "stream", str(model_path)]
    for more, stdin in (([str(path)], b""), ([], path.read_bytes())):
        done = subprocess.run(
            [*argv, *more], input=stdin, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert done.stderr.decode().startswith(f"streamlstm: {sentence}")
        assert done.stderr.count(b"\n") == 1


def test_stream_answers_each_line_at_once(model_path: Path) -> None:
    argv = [sys.executable, "-m", "streamlstm", "stream", str(model_path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for row in ROWS:  # a reply to each before the next is written
            child.stdin.write(row + "\n")
            while (line := child.stdout.readline()) == "level,leak\n":
                pass
            assert len(line.split(",")) == 2
        child.stdin.close()
        assert child.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("1,abc,3", "line 3: column pressure holds 'abc'"),
        ("1,2", "line 3: column speed holds ''"),
        ("1,nan,3", "line 3:"),
    ],
)
def test_bad_rows_are_named(model_path: Path, row: str, sentence: str) -> None:
    text = "\n".join(["flow,pressure,speed", ROWS[0], row, ROWS[1]])
    done = run("stream", model_path, stdin=text)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(numbers(done.stdout)) == 1
    done = run("stream", model_path, "--skip-bad", stdin=text)
    assert done.returncode == 1
    assert "row skipped" in done.stderr
    assert len(numbers(done.stdout)) == 2


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["stream", "no-such-file"], "no-such-file"),
        (["inspect", "no-such-file"], "no-such-file"),
        (["serve", "no-such-file"], "no-such-file"),
        (["stats", "--connect", "tcp://127.0.0.1:9", "--timeout", "0.1"], "no answer"),
        (["stats", "--connect", "nonsense"], "not an address"),
        (["sessions", "no-such-directory"], "no-such-directory is no state directory"),
        (["serve", "."], ". can't be read: it is a folder"),
        (["stream", "no-such-file"], "no-such-file can't be read: there is no such file"),
    ],
)
def test_failures_are_one_sentence(argv: list[str], sentence: str) -> None:
    done = run(*argv)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.startswith("streamlstm: ")
    assert done.stderr.count("\n") == 1


def test_a_header_without_an_input(model_path: Path) -> None:
    done = run("stream", model_path, stdin="flow,heat\n1,2\n")
    assert done.returncode == 1
    assert "lacks the model's input pressure, speed" in done.stderr


def test_inspect(model_path: Path) -> None:
    done = run("inspect", model_path)
    assert done.returncode == 0
    model = sl.load(model_path)
    for text in (model.fingerprint, "float32", "lstm", "dense", "flow", "[m/s]", "64 bytes"):
        assert text in done.stdout


def test_stats(server: Server) -> None:
    done = run("stats", "--connect", server.address, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "running"
    done = run("stats", "--connect", server.address)
    assert not set("{}[]") & set(done.stdout)  # words, not Python
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.returncode == 0
    assert "running for " in done.stdout


def test_a_reader_that_has_enough(model_path: Path) -> None:
    argv = [sys.executable, "-m", "streamlstm", "stream", str(model_path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(ROWS[0] + "\n")
        child.stdin.flush()
        child.stdout.readline()
        child.stdout.close()
        child.stdin.write((ROWS[0] + "\n") * 100)
        child.stdin.close()
        assert child.wait(timeout=20) == 0
        assert child.stderr.read() == ""


def test_a_reader_that_wants_nothing(model_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "streamlstm", "inspect", str(model_path)]
    done = subprocess.run(
        argv, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_a_stream(model_path: Path) -> None:
    argv = [sys.executable, "-m", "streamlstm", "stream", str(model_path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(ROWS[0] + "\n")
        child.stdin.flush()
        child.stdout.readline()
        os.kill(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=20)
        assert (child.returncode, err) == (130, "")


class TestInProcess:
    """The same functions without a process, so that coverage sees them."""

    def test_stream(
        self, model_path: Path, tmp_path: Path, want: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("\n".join(ROWS))
        assert cli.main(["stream", str(model_path), str(path)]) == 0
        np.testing.assert_allclose(numbers(capsys.readouterr().out), want, rtol=1e-5)

    def test_stats(self, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["stats", "--connect", server.address]) == 0
        assert "model pump" in capsys.readouterr().out

    def test_inspect(self, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["inspect", str(model_path)]) == 0
        assert "parameters" in capsys.readouterr().out

    def test_failure(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["inspect", "no-such-file"]) == 1
        assert capsys.readouterr().err.startswith("streamlstm: ")
