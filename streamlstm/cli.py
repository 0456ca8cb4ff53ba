"""The command line: train, detect, serve, sessions, stream, import, inspect, stats, demo.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage or, of the demo, can't
run as asked, 130 and 143 ended by Ctrl-C and SIGTERM, of the demo also 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from streamlstm import csv_events
from streamlstm.errors import InputError, ServiceError, StreamLSTMError

BIND: Final = "tcp://127.0.0.1:5555"
PROGRESS_AFTER_S: Final = 1.0
PROGRESS_EVERY_S: Final = 0.2

_EXIT_CODES: Final = (
    "exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage, "
    "130 and 143 ended by Ctrl-C and SIGTERM (the demo also 129, by SIGHUP)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except StreamLSTMError as error:
        print(f"streamlstm: {error.command_line}", file=sys.stderr)
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"streamlstm: {what}", file=sys.stderr)
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
    for add in (
        *(_add_train, _add_detect, _add_serve, _add_sessions, _add_stream, _add_import),
        *(_add_inspect, _add_stats, _add_demo),
    ):
        add(commands)
    return parser


def _add(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    more: str = "",
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}", epilog=_EXIT_CODES
    )
    command.set_defaults(command=run)
    return command


def _add_train(commands: Any) -> None:
    train = _add(
        commands,
        "train",
        _train,
        "make a forecasting model of a CSV file, and try it",
        "The file has a header and rows in the order of time; an empty cell is a missing value. "
        "The model is tried on the last rows, which training has not seen, beside forecasts that "
        "need no model. Needs PyTorch: pip install 'streamlstm[train]'.",
    )
    train.add_argument("csv", metavar="CSV", help="the readings; - for stdin")
    train.add_argument("--target", required=True, metavar="COL", help="the column to forecast")
    train.add_argument(
        "-o", dest="out", required=True, metavar="MODEL", help="the model file to write"
    )
    train.add_argument(
        "--horizon",
        type=_positive_int,
        default=1,
        metavar="N",
        help="steps ahead to forecast (default: %(default)s)",
    )
    train.add_argument(
        "--time",
        metavar="COL",
        help="times, as ISO 8601 or seconds since 1970 (default: a column called timestamp, time, "
        "datetime or date, or a first column of times; else each row is a step)",
    )
    train.add_argument(
        "--series",
        metavar="COL",
        help="which sensor a row is of, to train one model of many of a kind",
    )
    train.add_argument(
        "--with",
        dest="others",
        type=_names,
        default=[],
        metavar="A,B",
        help="other columns that help to forecast",
    )
    train.add_argument(
        "--quantiles",
        type=_numbers,
        default=[0.1, 0.5, 0.9],
        metavar="P,..",
        help="of the forecast, 0.5 in their middle (default: 0.1,0.5,0.9)",
    )
    _add_policies(train)
    train.add_argument(
        "--hidden",
        type=_positive_int,
        default=32,
        metavar="N",
        help="units of the LSTM (default: %(default)s)",
    )
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="(default: %(default)s)")
    train.add_argument("--name", metavar="NAME", help="the model's name (default: MODEL's)")


def _add_policies(command: argparse.ArgumentParser) -> None:
    """What a model with a head does with rows that are missing, late or at odd times."""
    command.add_argument(
        "--spacing",
        choices=("grid", "gap"),
        default="grid",
        help="put rows on a grid of their usual distance, or take each as a step and tell the "
        "network how far apart they are (default: grid)",
    )
    command.add_argument(
        "--missing",
        choices=("reject", "skip", "hold", "predict"),
        default="hold",
        help="a missing value: refuse the row, skip its step, hold the last value, or go on with "
        "the forecast (default: hold)",
    )
    command.add_argument(
        "--late",
        choices=("drop", "reject", "step"),
        default="drop",
        help="a row that comes late or twice: drop it, refuse it, or take it as the next step "
        "(default: drop)",
    )


def _add_detect(commands: Any) -> None:
    detect = _add(
        commands,
        "detect",
        _detect,
        "find what is unusual in a CSV file, row by row",
        "Trains a model on the first half of the rows, then streams all of them: what was forecast "
        "for each row before it came, how unusual it is, and an alert where that is much. Alerts "
        "go to stdout, the scores of all rows to a file. Training needs PyTorch: "
        "pip install 'streamlstm[train]'. With --model nothing is trained: "
        "tail -f -n +1 sensor.csv | streamlstm detect - --model flow.safetensors",
    )
    detect.add_argument("csv", metavar="CSV", help="the readings; with --model also - for stdin")
    detect.add_argument("--target", metavar="COL", help="the column to watch; --model knows it")
    detect.add_argument(
        "--model", metavar="MODEL", help="a model file of `train` or --save-model, to train none"
    )
    detect.add_argument(
        "-o",
        dest="out",
        metavar="FILE",
        help="where the scores go (default: scores.csv); - for stdout, alerts then go to stderr",
    )
    detect.add_argument(
        "--json",
        action="store_true",
        help="scores as JSON, one row a line (default FILE: scores.jsonl)",
    )
    detect.add_argument("--plot", metavar="SVG", help="draw readings, forecasts and alerts")
    detect.add_argument(
        "--train-rows",
        type=_positive_int,
        metavar="N",
        help="train on the first N rows of each series (default: on the first half)",
    )
    detect.add_argument("--save-model", metavar="MODEL", help="keep the trained model in this file")
    detect.add_argument(
        "--horizon",
        type=_positive_int,
        metavar="N",
        help="steps ahead that the model learns to forecast (default: 1)",
    )
    detect.add_argument(
        "--time",
        metavar="COL",
        help="times, as ISO 8601 or seconds since 1970 (default: as in train)",
    )
    detect.add_argument(
        "--series", metavar="COL", help="which sensor a row is of; each is watched on its own"
    )
    detect.add_argument(
        "--with",
        dest="others",
        type=_names,
        metavar="A,B",
        help="other columns that help to forecast",
    )
    _add_policies(detect)
    detect.set_defaults(spacing=None, missing=None, late=None)  # --model has its own


def _add_serve(commands: Any) -> None:
    serve = _add(
        commands,
        "serve",
        _serve,
        "serve models to clients over ZeroMQ",
        "Logs are JSON lines on stderr; the one with event 'listening' has the actual address. "
        "SIGTERM and Ctrl-C answer what has arrived, then end.",
    )
    serve.add_argument("models", nargs="+", metavar="MODEL", help="model file(s) to serve")
    serve.add_argument(
        "--bind",
        type=_address,
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
        "--threads",
        type=_positive_int,
        default=1,
        metavar="N",
        help="threads that share a large micro-batch of a model (default: %(default)s)",
    )
    serve.add_argument(
        "--ttl",
        type=_positive_float,
        metavar="SECONDS",
        help="end sessions that nobody used for so long, and delete their state, also the stored "
        "one (default: never)",
    )
    serve.add_argument(
        "--state",
        metavar="DIR",
        help="keep sessions in this directory, created when absent (default: in memory only)",
    )
    serve.add_argument(
        "--durability",
        choices=("async", "sync"),
        help="what a reply promises: async survives the server's end, sync a power cut, at an "
        "fsync each (default with --state: async)",
    )
    serve.add_argument(
        "--max-resident",
        type=_positive_int,
        metavar="N",
        help="sessions of each model in memory; idle ones beyond are in --state only "
        "(default: all)",
    )


def _add_sessions(commands: Any) -> None:
    sessions = _add(
        commands,
        "sessions",
        _sessions,
        "list, inspect and export what a server keeps in --state",
        "Works beside a running server, except for --remove and --accept-loss.",
    )
    sessions.add_argument("directory", metavar="DIR", help="the server's --state")
    sessions.add_argument("session", nargs="?", metavar="NAME", help="this session only")
    sessions.add_argument(
        "--model", metavar="MODEL", help="name, or first characters of a fingerprint"
    )
    sessions.add_argument("--name", metavar="PATTERN", help="list names like this: 'pump-*'")
    sessions.add_argument("--json", action="store_true", help="as JSON; of a list, one a line")
    action = sessions.add_mutually_exclusive_group()
    action.add_argument("--export", metavar="FILE", help="write NAME's state: State.from_bytes")
    action.add_argument("--remove", action="store_true", help="remove NAME from the store")
    action.add_argument("--check", action="store_true", help="read all, and verify every checksum")
    action.add_argument(
        "--accept-loss",
        action="store_true",
        help="go on from what is whole in a damaged directory, and say what is lost",
    )


def _add_stream(commands: Any) -> None:
    stream = _add(
        commands,
        "stream",
        _stream,
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


def _add_import(commands: Any) -> None:
    command = _add(
        commands,
        "import",
        _import,
        "make a model file of a foreign network, and prove it",
        "The network runs in its own framework, where that is installed, and here on the same "
        "events, step by step; the largest difference is shown, and the framework's answers go "
        "into the file as its test vector. docs/importing.md has the formats.",
    )
    command.add_argument("file", metavar="FILE", help="PyTorch, Keras, ONNX, TFLite, NAM, RTNeural")
    command.add_argument("-o", dest="out", metavar="MODEL", help="the model file to write")
    command.add_argument("--list", action="store_true", help="list FILE's recurrent layers only")
    command.add_argument("--select", metavar="PATH", help="take this recurrent layer alone")
    _add_flow(command)
    command.add_argument("--name", metavar="NAME", help="the model's name (default: FILE's)")
    command.add_argument("--inputs", type=_names, metavar="A,B", help="names of the inputs")
    command.add_argument("--outputs", type=_names, metavar="A,B", help="names of the outputs")
    command.add_argument(
        "--data",
        metavar="CSV",
        help="compare on these events (rows as in stream, numbers as the network takes them), "
        "not on random ones",
    )
    command.add_argument(
        "--steps",
        type=_positive_int,
        metavar="N",
        help="events to compare on; of --data at most (default: 500)",
    )
    command.add_argument("--seed", type=_natural, metavar="N", help="of random events (default: 0)")


def _add_inspect(commands: Any) -> None:
    inspect = _add(commands, "inspect", _inspect, "show what a model file, or a foreign one, holds")
    inspect.add_argument("file", metavar="FILE", help="model file, or what `import` takes")
    _add_flow(inspect)


def _add_flow(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--flow",
        type=_names,
        metavar="A,B",
        help="how the network runs, where FILE holds weights alone: its layers' keys and functions "
        "in order, such as lstm,relu,fc",
    )


def _add_stats(commands: Any) -> None:
    stats = _add(commands, "stats", _stats, "show a server's counters; fails if it is not healthy")
    stats.add_argument("--connect", default=BIND, metavar="ADDRESS", help="(default: %(default)s)")
    stats.add_argument("--json", action="store_true", help="as JSON")
    stats.add_argument(
        "--timeout", type=_positive_float, default=5.0, metavar="SECONDS", help="(default: 5)"
    )


def _add_demo(commands: Any) -> None:
    text = "stream real sensor series through a broker, with a live table"
    demo = _add(commands, "demo", _demo, text)
    demo.add_argument("--plot", metavar="PATH", help="where to write the SVG plot")
    demo.add_argument("--rows", type=_positive_int, metavar="N", help="rows of each series at most")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if all(names):
        return names
    raise argparse.ArgumentTypeError(f"must be names with commas between them, got {text!r}")


def _numbers(text: str) -> list[float]:
    with suppress(ValueError):
        return [float(number) for number in text.split(",")]
    raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}")


def _address(text: str) -> str:
    port = text.rpartition(":")[2]
    if text.startswith("tcp://") and port.isdecimal() and int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"must have a port of 65535 at most, got {text}")
    return text


def _positive_int(text: str) -> int:
    with suppress(ValueError):
        value = int(text)
        if value >= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text}")


def _natural(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text}")


def _seed(text: str) -> int:
    """PyTorch's seeds."""
    if _natural(text) < 2**64:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be below 2**64, got {text}")


def _positive_float(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 < value < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")


# --- serve ----------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace) -> int:
    for option in ("durability", "max_resident"):
        if args.state is None and getattr(args, option) is not None:
            return _wrong_usage(f"serve: --{option.replace('_', '-')} needs --state DIR")
    from streamlstm import Engine, State, __version__, blas_threads, load  # noqa: PLC0415
    from streamlstm.serving import broker  # noqa: PLC0415

    blas_threads.use_one_thread()
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                Engine(load(path), max_sessions=args.max_sessions, threads=args.threads)
            )
            for path in args.models
        ]
        return broker.serve(
            engines,
            State.from_bytes,
            args.bind,
            state=None if args.state is None else Path(args.state),
            durability=args.durability or "async",
            max_resident=args.max_resident,
            ttl_s=args.ttl,
            server=f"streamlstm {__version__}",
        )


# --- sessions -------------------------------------------------------------------------------------


def _sessions(args: argparse.Namespace) -> int:
    if args.session is None and (args.export or args.remove):
        return _wrong_usage("sessions: --export and --remove need a NAME")
    if args.session is not None and (args.name or args.check or args.accept_loss):
        return _wrong_usage("sessions: --name, --check and --accept-loss take no NAME")
    from streamlstm import sessions_command  # noqa: PLC0415

    return sessions_command.run(args)


def _wrong_usage(sentence: str) -> int:
    print(f"streamlstm {sentence}", file=sys.stderr)
    return 2


# --- stream ---------------------------------------------------------------------------------------


def _stream(args: argparse.Namespace) -> int:
    if args.resume and not args.connect:
        return _wrong_usage("stream: --resume needs --connect ADDRESS")
    return _while_read(_stream_rows, args)


def _while_read(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command whose reader, say `head`, may have enough."""
    try:
        code = run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


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
        from streamlstm.serving.client import Client  # noqa: PLC0415

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


# --- train, detect, import, inspect, stats, demo --------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    if args.out in ("", "-"):
        return _wrong_usage("train: -o needs the name of a file to write the model to")
    if _same(args.out, args.csv):
        return _wrong_usage("train: -o is CSV itself; write the model elsewhere")
    from streamlstm import train_command  # noqa: PLC0415

    return train_command.run(args)


def _same(one: str, other: str) -> bool:
    """Whether two names are of one file, be it there or not."""
    with suppress(OSError):
        return Path(one).samefile(other)
    return Path(one).resolve() == Path(other).resolve()


def _detect(args: argparse.Namespace) -> int:
    training = ("target", "train_rows", "save_model", "horizon", "time", "others")
    for option in (*training, "spacing", "missing", "late"):
        if args.model is not None and getattr(args, option) is not None:
            name = "with" if option == "others" else option.replace("_", "-")
            return _wrong_usage(f"detect: --{name} is of training; --model has its own")
    if args.model is None and args.target is None:
        return _wrong_usage("detect: say with --target which column to watch")
    if args.model is None and args.csv == "-":
        return _wrong_usage("detect: stdin needs a --model; training reads its file twice")
    if args.plot is not None and Path(args.plot).suffix != ".svg":
        return _wrong_usage(f"detect: --plot draws SVG; call the file {args.plot}.svg")
    args.out = args.out or ("scores.jsonl" if args.json else "scores.csv")
    files = [args.csv, args.model, args.out, args.plot, args.save_model]
    files = [Path(file).resolve() for file in files if file not in (None, "-")]
    if len(set(files)) < len(files):
        return _wrong_usage("detect: two of its files are the same; write each to its own")
    from streamlstm import detect_command  # noqa: PLC0415

    return _while_read(detect_command.run, args)


def _import(args: argparse.Namespace) -> int:
    if args.list and any(
        getattr(args, option) is not None
        for option in ["out", "select", "name", "inputs", "outputs", "data", "steps", "seed"]
    ):
        return _wrong_usage("import: --list goes with --flow only")
    if args.out is None and not args.list:
        return _wrong_usage("import: say where to write the model with -o MODEL, or --list")
    if args.data is not None and args.seed is not None:
        return _wrong_usage("import: --seed is of random events; leave it out with --data")
    if args.out is not None and Path(args.out).resolve() == Path(args.file).resolve():
        return _wrong_usage("import: -o is FILE itself; write the model elsewhere")
    from streamlstm import import_command  # noqa: PLC0415

    if args.list:
        return _while_read(import_command.run_list, args)
    return import_command.run_import(args)


def _inspect(args: argparse.Namespace) -> int:
    from streamlstm import import_command  # noqa: PLC0415

    return _while_read(import_command.run_inspect, args)


def _stats(args: argparse.Namespace) -> int:
    from streamlstm.serving.client import Client  # noqa: PLC0415

    with Client(args.connect, patience_s=args.timeout) as client:
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
    from streamlstm.demo import main as demo  # noqa: PLC0415

    return demo.run(args)
