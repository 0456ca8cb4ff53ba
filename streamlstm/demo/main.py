"""`streamlstm demo`: the main job, end to end, on real data.

It starts a server process, opens one session per sensor through a client, streams each
sensor's series as events faster than real time, and ends with a summary and a plot.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlstm as sl
from streamlstm.demo.feeds import SENSORS, read
from streamlstm.demo.server import Server, StoppedError, StopSignals
from streamlstm.demo.streaming import Stream, interleaved

if TYPE_CHECKING:
    from rich.console import Console

PLOT = "streamlstm-demo.svg"


def run(args: argparse.Namespace) -> int:
    """The demo; returns the exit code: 0, 2 (can't run as asked), 129, 130 or 143 (stopped).

    args.plot: where the picture goes, None for PLOT in the current folder, or in a new one where
    that can't be written; args.rows: rows of each series at most, None for all. Raises
    ServiceError, OSError.
    """
    try:
        with StopSignals() as stop:
            return _run(stop, args)
    except StoppedError as stopped:
        print(f"streamlstm: {stopped}", file=sys.stderr)
        return stopped.exit_code


def place() -> str:
    """PLOT in the current folder, or where that can't be written in a new one."""
    return PLOT if os.access(".", os.W_OK) else str(Path(tempfile.mkdtemp(), PLOT))


def _run(stop: StopSignals, args: argparse.Namespace) -> int:
    try:
        from rich.console import Console  # noqa: PLC0415  (an extra)

        from streamlstm.demo import plot, show  # noqa: PLC0415
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        print(
            f"streamlstm: the demo needs {missing}, which is not installed: "
            "pip install 'streamlstm[demo]'",
            file=sys.stderr,
        )
        return 2
    console = Console(highlight=False)
    streams, took_s = _stream(console, stop, args.rows)
    show.summary(console, streams, took_s)
    path = args.plot or place()
    plot.draw(streams, Path(path))
    stop.check()
    print(f"\nThe plot of all this: {path}")
    return 0


def _stream(
    console: Console, stop: StopSignals, rows: int | None
) -> tuple[Sequence[Stream], float]:
    """Stream all series through a server; the streams, and the seconds it took."""
    from streamlstm.demo.show import Progress  # noqa: PLC0415

    console.print("Starting a server with one small LSTM for each sensor ...")
    with (
        Server(sensor.model_path for sensor in SENSORS) as server,
        sl.Client(server.address(stop)) as client,
    ):
        console.print(f"It is process {server.pid} and listens on {client.address}.")
        streams = []
        for sensor in SENSORS:
            series = read(sensor).first(rows)
            session = client.open(sensor.name, model=sensor.name)
            streams.append(Stream(sensor, series, session))
            console.print(
                f"  session [bold]{sensor.name}[/]: {sensor.what}; "
                f"{len(series.values):,} hourly readings in {sensor.unit}",
            )
        console.print()
        began_s = time.monotonic()
        with Progress(console, streams) as progress:
            for stream in interleaved(streams):
                stop.check()
                stream.step()
                progress.stepped(stream)
        return streams, time.monotonic() - began_s
