"""What commands' arguments share: kinds of values, options of several commands, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

BIND: Final = "tcp://127.0.0.1:5555"
EXIT_CODES: Final = (
    "exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage, "
    "130 and 143 ended by Ctrl-C and SIGTERM (the demo also 129, by SIGHUP)"
)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    more: str = "",
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}", epilog=EXIT_CODES
    )
    command.set_defaults(command=run)
    return command


def names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if all(names):
        return names
    raise argparse.ArgumentTypeError(f"must be names with commas between them, got {text!r}")


def numbers(text: str) -> list[float]:
    with suppress(ValueError):
        return [float(number) for number in text.split(",")]
    raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}")


def address(text: str) -> str:
    port = text.rpartition(":")[2]
    if text.startswith("tcp://") and port.isdecimal() and int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"must have a port of 65535 at most, got {text}")
    return text


def positive_int(text: str) -> int:
    with suppress(ValueError):
        value = int(text)
        if value >= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text}")


def natural(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text}")


def seed(text: str) -> int:
    """PyTorch's seeds."""
    if natural(text) < 2**64:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be below 2**64, got {text}")


def positive_float(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 < value < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")


def wrong_usage(sentence: str) -> int:
    print(f"streamlstm {sentence}", file=sys.stderr)
    return 2


def add_policies(command: argparse.ArgumentParser) -> None:
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


def add_flow(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--flow",
        type=names,
        metavar="A,B",
        help="how the network runs, where FILE holds weights alone: its layers' keys and functions "
        "in order, such as lstm,relu,fc",
    )
