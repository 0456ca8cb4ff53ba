"""`streamlstm stream`: a CSV file or stdin, row by row, through a session here or on a server."""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from streamlstm import csv_events
from streamlstm.commands.arguments import add_command, wrong_usage
from streamlstm.errors import InputError, SessionError, StreamLSTMError

PROGRESS_AFTER_S: Final = 1.0


PROGRESS_EVERY_S: Final = 0.2


def add(commands: Any) -> None:
    stream = add_command(
        commands,
        "stream",
        run,
        "step a CSV file or stdin row by row through a model",
        "A header row maps columns to the model's inputs by name, other columns are ignored; "
        "without a header the columns are the inputs in order. "
        "A trained model's times may be text (2014-02-14 14:30), and empty cells are missing. "
        "Outputs go to stdout as CSV, one line for each row as soon as it is there: "
        "tail -f -n +1 sensor.csv | streamlstm stream model.safetensors",
    )
    stream.add_argument("model", metavar="MODEL", help="model file; with --connect a model's name")
    stream.add_argument("csv", nargs="?", default="-", metavar="CSV", help="default: - for stdin")
    stream.add_argument("--connect", metavar="ADDRESS", help="step on a server, not in here")
    stream.add_argument(
        "--session", default="stream", metavar="NAME", help="session's name (default: %(default)s)"
    )
    stream.add_argument(
        "--resume",
        action="store_true",
        help="with --connect: go on with the session of that name if there is one, and "
        "leave it open at the end (default: it is new, and closed at the end)",
    )
    stream.add_argument(
        "--skip-bad", action="store_true", help="name bad rows and go on, instead of stopping"
    )


def run(args: argparse.Namespace) -> int:
    if args.resume and not args.connect:
        return wrong_usage("stream: --resume needs --connect ADDRESS")
    try:
        return _stream_rows(args)
    except SessionError as error:
        told = re.sub(r"with resume(=True)?", "with --resume", str(error))
        raise type(error)(str(error), command_line=told) from error


def _stream_rows(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        session, columns, outputs = stack.enter_context(_stream_session(args))
        source = stack.enter_context(csv_events.open_csv(args.csv))
        progress = _Progress()
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(outputs)
        bad = 0
        for line, row in csv_events.rows(source, columns):
            try:
                y = session.step(csv_events.event(row, columns))
            except InputError as error:
                sentence = f"line {line}: {error}"
                if not args.skip_bad:
                    raise InputError(f"{sentence}; --skip-bad would go on") from None
                print(f"streamlstm: {sentence}; row skipped", file=sys.stderr)
                bad += 1
                continue
            out.writerow(y.tolist())
            if args.csv == "-":
                sys.stdout.flush()
            progress.count()
        sys.stdout.flush()
        progress.done()
        return 1 if bad else 0


@contextmanager
def _stream_session(
    args: argparse.Namespace,
) -> Iterator[tuple[Any, csv_events.Columns, list[str]]]:
    """The session to step, its columns, and the names of its outputs."""
    if args.connect:
        from streamlstm.service.client.client import Client  # noqa: PLC0415

        with Client(args.connect) as client:
            session = client.open(args.session, Path(args.model).stem, resume=args.resume)
            inputs = [name for name, _ in session.model.inputs]
            head = session.model.head
            time = None if head is None else head.time
            columns = csv_events.Columns(inputs, time, gaps=head is not None)
            try:
                yield session, columns, [name for name, _ in session.model.outputs]
            finally:
                if not args.resume:  # else it is to be gone on with again
                    with suppress(StreamLSTMError):  # the error that ended the stream says more
                        session.close()
    else:
        from streamlstm import Engine, load  # noqa: PLC0415

        model = load(args.model)
        with Engine(model, max_sessions=1) as engine:
            time = None if model.head is None else model.head.time
            inputs = [feature.name for feature in model.inputs]
            columns = csv_events.Columns(inputs, time, gaps=model.head is not None)
            yield engine.open(args.session), columns, [feature.name for feature in model.outputs]


class _Progress:
    """Rows so far on stderr, when it is a terminal and the work is long."""

    def __init__(self) -> None:
        self._rows = 0
        self._started_s = time.monotonic()
        self._next_s = self._started_s + PROGRESS_AFTER_S
        self._shown = False
        # Both on one terminal would be a mess.
        self._wanted = sys.stderr.isatty() and not sys.stdout.isatty()

    def count(self) -> None:
        self._rows += 1
        if self._wanted and time.monotonic() >= self._next_s:
            now_s = time.monotonic()
            rate = self._rows / (now_s - self._started_s)
            print(f"\r{self._rows:,} rows, {rate:,.0f}/s ", end="", file=sys.stderr, flush=True)
            self._next_s = now_s + PROGRESS_EVERY_S
            self._shown = True

    def done(self) -> None:
        if self._shown:
            print(f"\r{self._rows:,} rows done      ", file=sys.stderr)
