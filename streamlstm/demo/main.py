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

    args.plot: where the picture goes, None for PLOT in the current folder; args.rows: rows of
    each series at most, None for all. Raises ServiceError, OSError.
    """
    try:
        with StopSignals() as stop:
            return _run(stop, Path(args.plot or _place()), args.rows)
    except StoppedError as stopped:
        print(f"streamlstm: {stopped}", file=sys.stderr)
        return stopped.exit_code


def _place() -> Path:
    """The current folder, or where it can't be written that for temporary files."""
    return Path(PLOT if os.access(".", os.W_OK) else Path(tempfile.gettempdir()) / PLOT)


def _run(stop: StopSignals, svg: Path, rows: int | None) -> int:
    try:
        from rich.console import Console  # noqa: PLC0415  (an extra)

        from streamlstm.demo import plot, show  # noqa: PLC0415
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        return _refuse(
            f"the demo needs {missing}, which is not installed: pip install 'streamlstm[demo]'"
        )
    if not svg.absolute().parent.is_dir():
        return _refuse(f"can't write the plot to {svg}: its folder does not exist")
    console = Console(highlight=False)
    streams, took_s = _stream(console, stop, rows)
    show.summary(console, streams, took_s)
    plot.draw(streams, svg)
    stop.check()
    print(f"\nThe plot of all this: {svg}")
    return 0


def _refuse(why: str) -> int:
    print(f"streamlstm: {why}", file=sys.stderr)
    return 2


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
