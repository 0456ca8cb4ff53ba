"""`streamlstm serve`: models behind a socket."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamlstm.commands.arguments import (
    BIND,
    add_command,
    address,
    positive_float,
    positive_int,
    wrong_usage,
)


def add(commands: Any) -> None:
    serve = add_command(
        commands,
        "serve",
        run,
        "serve models to clients over ZeroMQ",
        "Logs are JSON lines on stderr; the one with event 'listening' has the actual address. "
        "SIGTERM and Ctrl-C answer what has arrived, then end.",
    )
    serve.add_argument("models", nargs="+", metavar="MODEL", help="model file(s) to serve")
    serve.add_argument(
        "--bind",
        type=address,
        default=BIND,
        metavar="ADDRESS",
        help="tcp://HOST:PORT (port 0 picks a free one) or ipc://PATH (default: %(default)s)",
    )
    serve.add_argument(
        "--max-sessions",
        type=positive_int,
        default=1_000_000,
        metavar="N",
        help="sessions of each model at most (default: %(default)s)",
    )
    serve.add_argument(
        "--threads",
        type=positive_int,
        default=1,
        metavar="N",
        help="threads that share a large micro-batch of a model (default: %(default)s)",
    )
    serve.add_argument(
        "--ttl",
        type=positive_float,
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
        type=positive_int,
        metavar="N",
        help="sessions of each model in memory; idle ones beyond are in --state only "
        "(default: all)",
    )


def run(args: argparse.Namespace) -> int:
    for option in ("durability", "max_resident"):
        if args.state is None and getattr(args, option) is not None:
            return wrong_usage(f"serve: --{option.replace('_', '-')} needs --state DIR")
    from streamlstm import Engine, State, __version__, blas_threads, load  # noqa: PLC0415
    from streamlstm.service.server import process  # noqa: PLC0415

    blas_threads.use_one_thread()
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                Engine(load(path), max_sessions=args.max_sessions, threads=args.threads)
            )
            for path in args.models
        ]
        return process.serve(
            engines,
            State.from_bytes,
            args.bind,
            state=None if args.state is None else Path(args.state),
            durability=args.durability or "async",
            max_resident=args.max_resident,
            ttl_s=args.ttl,
            server=f"streamlstm {__version__}",
        )
