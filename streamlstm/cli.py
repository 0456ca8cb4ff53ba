"""The command line: `streamlstm COMMAND`, each of which is a file in commands/.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage or, of the demo, can't
run as asked, 130 and 143 ended by Ctrl-C and SIGTERM, of the demo also 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from streamlstm import __version__
from streamlstm.commands.arguments import EXIT_CODES
from streamlstm.commands.lines import complain
from streamlstm.errors import StreamLSTMError
from streamlstm.wording import refusal

COMMANDS: Final = {
    "train": "train",
    "detect": "detect",
    "serve": "serve",
    "sessions": "sessions",
    "stream": "stream",
    "import": "import_",
    "inspect": "inspect",
    "stats": "stats",
    "demo": "demo",
}
"""Each command's file in commands/, in the order that --help has them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # One command's file brings in no other's.
    args = parser(argv[:1] if argv[:1] and argv[0] in COMMANDS else COMMANDS).parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        code = command(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads, say `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StreamLSTMError as error:
        complain(error.command_line)
        return 1
    except OSError as error:
        complain(refusal(error))
        return 1
    except KeyboardInterrupt:
        return 130


class _Completion(argparse.Action):
    def __call__(self, whole: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> None:
        import shtab  # noqa: PLC0415  (for this alone)

        (commands,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
        for command in commands.choices.values():
            for action in command._actions:
                if action.metavar in ("CSV", "FILE", "MODEL"):
                    action.complete = shtab.FILE
                elif action.metavar == "DIR":
                    action.complete = shtab.DIRECTORY
        print(shtab.complete(whole, shell))
        whole.exit()


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of some commands."""
    whole = argparse.ArgumentParser(
        prog="streamlstm",
        description="Stateful LSTM sessions, stepped one event at a time.",
        epilog=EXIT_CODES,
    )
    whole.add_argument("--version", action="version", version=f"streamlstm {__version__}")
    whole.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help="print what makes a shell complete commands, options and files",
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in names:
        importlib.import_module(f"streamlstm.commands.{COMMANDS[name]}").add(commands)
    return whole
