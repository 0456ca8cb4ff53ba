"""The command line: serve, stream, inspect, stats, demo.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage,
130 and 143 ended by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from streamlstm.errors import InputError, ModelError, ServiceError, StreamLSTMError

BIND: Final = "tcp://127.0.0.1:5555"
PROGRESS_AFTER_S: Final = 1.0
PROGRESS_EVERY_S: Final = 0.2

_EXIT_CODES: Final = (
    "exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage, "
    "130 and 143 ended by Ctrl-C and SIGTERM"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except (StreamLSTMError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader, say `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"streamlstm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamlstm",
        description="Stateful LSTM sessions, stepped one event at a time.",
        epilog=_EXIT_CODES,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = "") -> Any:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}", epilog=_EXIT_CODES
        )
        command.set_defaults(command=run)
        return command

    serve = add(
        "serve",
        _serve,
        "serve models to clients over ZeroMQ",
        "Logs are JSON lines on stderr; the one with event 'listening' has the actual address. "
        "SIGTERM and Ctrl-C answer what has arrived, then end.",
    )
    serve.add_argument("models", nargs="+", metavar="MODEL", help="model file(s) to serve")
    serve.add_argument(
        "--bind",
        default=BIND,
        metavar="ADDRESS",
        help="tcp://HOST:PORT (port 0 picks a free one) or ipc://PATH (default: %(default)s)",
    )
    serve.add_argument(
        "--max-sessions",
        type=_positive_int,
        default=1_000_000,
        metavar="N",
        help="sessions of each model at most (default: %(default)s)",
    )
    serve.add_argument(
        "--ttl",
        type=_positive_float,
        metavar="SECONDS",
        help="evict sessions that nobody used for so long (default: never)",
    )

    stream = add(
        "stream",
        _stream,
        "step a CSV file or stdin row by row through a model",
        "A header row maps columns to the model's inputs by name, other columns are ignored; "
        "without a header the columns are the inputs in order. "
        "Outputs go to stdout as CSV, one line for each row as soon as it is there: "
        "tail -f sensor.csv | streamlstm stream model.safetensors",
    )
    stream.add_argument("model", metavar="MODEL", help="model file; with --connect a model's name")
    stream.add_argument("csv", nargs="?", default="-", metavar="CSV", help="default: - for stdin")
    stream.add_argument("--connect", metavar="ADDRESS", help="step on a server, not in here")
    stream.add_argument(
        "--session", default="stream", metavar="NAME", help="session's name (default: %(default)s)"
    )
    stream.add_argument(
        "--resume", action="store_true", help="go on with a live session of that name (--connect)"
    )
    stream.add_argument(
        "--skip-bad", action="store_true", help="name bad rows and go on, instead of stopping"
    )

    inspect = add("inspect", _inspect, "show what a model file holds")
    inspect.add_argument("model", metavar="MODEL", help="model file")

    stats = add("stats", _stats, "show a server's counters; fails if it is not healthy")
    stats.add_argument("--connect", default=BIND, metavar="ADDRESS", help="(default: %(default)s)")
    stats.add_argument("--json", action="store_true", help="as JSON")
    stats.add_argument(
        "--timeout", type=_positive_float, default=5.0, metavar="SECONDS", help="(default: 5)"
    )

    demo = add("demo", _demo, "stream real sensor series through a broker, with a live table")
    demo.add_argument("--plot", metavar="PATH", help="where to write the SVG plot")
    demo.add_argument("--rows", type=_positive_int, metavar="N", help="rows of each series at most")
    return parser


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


# --- serve ----------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace) -> int:
    from streamlstm import Engine, State, __version__, blas_threads, load  # noqa: PLC0415
    from streamlstm.serving import broker  # noqa: PLC0415

    blas_threads.use_one_thread()
    with ExitStack() as stack:
        engines = [
            stack.enter_context(Engine(load(path), max_sessions=args.max_sessions))
            for path in args.models
        ]
        return broker.serve(
            engines,
            State.from_bytes,
            args.bind,
            ttl_s=args.ttl,
            server=f"streamlstm {__version__}",
        )


# --- stream ---------------------------------------------------------------------------------------


def _stream(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        session, inputs, outputs = stack.enter_context(_stream_session(args))
        if args.csv == "-":
            source: TextIO = sys.stdin
        else:
            source = stack.enter_context(open(args.csv, newline="", encoding="utf-8"))
        progress = _Progress()
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(outputs)
        bad = 0
        for line, row in _rows(source, inputs):
            try:
                y = session.step(_event(row, inputs))
            except InputError as error:
                sentence = f"line {line}: {error}"
                if not args.skip_bad:
                    raise InputError(f"{sentence}; --skip-bad would go on") from None
                print(f"streamlstm: {sentence}; row skipped", file=sys.stderr)
                bad += 1
                continue
            out.writerow(y.tolist())
            if source is sys.stdin:
                sys.stdout.flush()
            progress.count()
        sys.stdout.flush()
        progress.done()
        return 1 if bad else 0


@contextmanager
def _stream_session(args: argparse.Namespace) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The session to step, and the names of its inputs and outputs."""
    if args.connect:
        from streamlstm.serving.client import Client  # noqa: PLC0415

        with Client(args.connect) as client:
            session = client.open(args.session, Path(args.model).stem, resume=args.resume)
            inputs = [name for name, _ in session.model.inputs]
            yield session, inputs, [name for name, _ in session.model.outputs]
            session.close()
    else:
        from streamlstm import Engine, load  # noqa: PLC0415

        model = load(args.model)
        with Engine(model, max_sessions=1) as engine:
            inputs = [feature.name for feature in model.inputs]
            yield engine.open(args.session), inputs, [feature.name for feature in model.outputs]


def _rows(source: Iterable[str], inputs: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, the inputs' cells) of each row that is not empty; finds out about a header."""
    reader = csv.reader(source)
    columns: list[int] | None = None
    for row in reader:
        if not row:
            continue
        if columns is None:
            header = not all(_is_number(cell) for cell in row)
            columns = _columns(row, inputs) if header else list(range(len(inputs)))
            if header:
                continue
        yield reader.line_num, [row[i] if i < len(row) else "" for i in columns]


def _columns(header: list[str], inputs: list[str]) -> list[int]:
    names = [cell.strip() for cell in header]
    missing = [name for name in inputs if name not in names]
    if missing:
        raise InputError(
            f"the header lacks the model's input(s) {', '.join(missing)}; it has {', '.join(names)}"
        )
    return [names.index(name) for name in inputs]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _event(cells: list[str], inputs: list[str]) -> list[float]:
    event = []
    for cell, name in zip(cells, inputs, strict=True):
        if not _is_number(cell):
            raise InputError(f"column {name} holds {cell!r}, expected a number")
        event.append(float(cell))
    return event


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


# --- inspect, stats, demo -------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> int:
    from streamlstm import load  # noqa: PLC0415

    model = load(args.model)
    numbers = sum(a.size for layer in model.layers for a in layer.tensors().values())
    print(f"model        {model.name}")
    print(f"fingerprint  {model.fingerprint}")
    print(f"dtype        {model.dtype.name}")
    print(f"parameters   {numbers:,}")
    print(f"state        {model.state_size * model.dtype.itemsize:,} bytes per session")
    print("layers")
    for layer in model.layers:
        detail = getattr(layer, "activation", "")
        print(f"  {layer.kind:6} {layer.input_size:5} -> {layer.units:<5} {detail}".rstrip())
    for title, features in (("inputs", model.inputs), ("outputs", model.outputs)):
        print(title)
        for feature in features:
            unit = f"[{feature.unit}]" if feature.unit else ""
            print(f"  {feature.name:20} {unit:12} mean {feature.mean:.6g}  std {feature.std:.6g}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    from streamlstm.serving.client import Client  # noqa: PLC0415

    with Client(args.connect, timeout_s=args.timeout) as client:
        stats = client.stats()
    if args.json:
        print(json.dumps(stats, indent=2))
    else:
        for key, value in stats.items():
            if key != "models":
                text = ", ".join(f"{k} {v}" for k, v in value.items()) if key == "errors" else value
                print(f"{key:14} {text if text != '' else '-'}")
        for name, model in stats["models"].items():
            print(f"model {name}")
            for key, value in model.items():
                print(f"  {key:14} {value}")
    if stats["state"] != "running":
        raise ServiceError(f"the server at {args.connect} is {stats['state']}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    try:
        from streamlstm.demo import main as demo  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the demo needs {error.name}: install it with pip install 'streamlstm[demo]'"
        ) from None
    return int(demo.run(args))
