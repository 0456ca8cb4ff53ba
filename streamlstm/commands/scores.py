"""The file of scores that `detect` writes: every row, as CSV or JSON lines."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from streamlstm.commands.written import made_by, remember
from streamlstm.detection import Row
from streamlstm.head import Head


@contextmanager
def scores_file(out: str, args: argparse.Namespace, head: Head) -> Iterator[Callable[[Row], None]]:
    """Writes rows as CSV or JSON lines.

    At once where they are waited for; and with --state, which may remember them before a kill.
    """
    series = [] if args.series is None else ["series"]
    time = [] if head.time is None else ["time"]
    columns = [
        *(*series, "line", *time, "value", "low", "median", "high"),
        *("score", "alert", "reason", "status", "warming"),
    ]
    live = args.csv == "-" or args.state is not None
    with ExitStack() as stack:
        file = sys.stdout
        if out != "-":
            added = args.goes_on and Path(out).exists()
            if added:
                _refuse_other_scores(out, args, columns)
            # Also where the work ends by an error, so that the next start may write it again.
            stack.callback(remember, out, made_by("detect", args.csv))
            file = stack.enter_context(
                open(out, "a" if added else "w", encoding="utf-8", newline="")
            )
        table = csv.writer(file, lineterminator="\n")
        if not args.json and not (out != "-" and file.tell()):
            table.writerow(columns)

        if live:
            file.flush()

        def write(row: Row) -> None:
            cells = row.cells(columns)
            if args.json:
                print(json.dumps(cells, ensure_ascii=False), file=file)
            else:
                table.writerow(int(c) if isinstance(c, bool) else c for c in cells.values())
            if live:
                file.flush()

        yield write
        file.flush()


def _refuse_other_scores(out: str, args: argparse.Namespace, columns: Sequence[str]) -> None:
    """Raise FileExistsError where scores can't be added to a file, for it holds something else."""
    with open(out, encoding="utf-8", errors="replace") as file:
        first = file.readline().rstrip("\n")
    try:
        there = list(json.loads(first)) if args.json and first else first.split(",")
    except ValueError:
        there = [first]
    if first and there != list(columns):
        raise FileExistsError(
            f"{out} holds no scores of such a model, to which more could be added: write to "
            "another file with -o"
        )
