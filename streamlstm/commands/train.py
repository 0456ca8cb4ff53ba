"""`streamlstm train`: a CSV file to a model file, and what its forecasts are worth."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streamlstm import proof, readings
from streamlstm.head import Head

if TYPE_CHECKING:
    from streamlstm.training import Errors, Trained
from streamlstm.commands.arguments import (
    add_command,
    add_policies,
    names,
    numbers,
    positive_int,
    seed,
    wrong_usage,
)
from streamlstm.commands.described import say_compared
from streamlstm.commands.lines import print_table, say
from streamlstm.commands.training import ProgressLine, training_of_torch
from streamlstm.commands.written import check_writable, made_by, remember, same_file

SMALL: Final = 1e-3  # of an error, as a share of the target's std


COUNTED: Final = {
    "missing": "without a value",
    "skipped": "skipped",
    "repeated": "repeated",
    "late": "late",
    "early": "early",
    "gaps": "after a gap",
    "refused": "refused",
}


def add(commands: Any) -> None:
    train = add_command(
        commands,
        "train",
        run,
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
        type=positive_int,
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
        type=names,
        default=[],
        metavar="A,B",
        help="other columns that help to forecast",
    )
    train.add_argument(
        "--quantiles",
        type=numbers,
        default=[0.1, 0.5, 0.9],
        metavar="P,..",
        help="of the forecast, 0.5 in their middle (default: 0.1,0.5,0.9)",
    )
    add_policies(train)
    train.add_argument(
        "--hidden",
        type=positive_int,
        default=32,
        metavar="N",
        help="units of the LSTM (default: %(default)s)",
    )
    train.add_argument("--seed", type=seed, default=0, metavar="N", help="(default: %(default)s)")
    train.add_argument("--name", metavar="NAME", help="the model's name (default: MODEL's)")
    train.add_argument(
        "--force", action="store_true", help="write over a MODEL that something else made"
    )


def run(args: argparse.Namespace) -> int:
    """Train a model of a file's series and write it. Raises StreamLSTMError, OSError."""
    if args.out in ("", "-"):
        return wrong_usage("train: -o needs the name of a file to write the model to")
    if same_file(args.out, args.csv):
        return wrong_usage("train: -o is CSV itself; write the model elsewhere")
    by = made_by(f"train {args.target}", args.csv)
    check_writable(args.out, by, args.force)
    training = training_of_torch()
    series = readings.read(
        args.csv, args.target, time=args.time, others=args.others, series=args.series
    )
    head = training.head_for(
        series,
        args.target,
        others=args.others,
        horizon=args.horizon,
        quantiles=args.quantiles,
        spacing=args.spacing,
        missing=args.missing,
        late=args.late,
    )
    progress = ProgressLine()
    try:
        trained = training.train(
            series,
            head,
            hidden=args.hidden,
            seed=args.seed,
            name=args.name or Path(args.out).stem,
            progress=progress,
        )
    finally:
        progress.end()
    proof.save(trained.model, args.out, compared=trained.compared)
    remember(args.out, by)
    _show(trained, len(series), head)
    say("written", args.out)
    return 0


def _show(trained: Trained, series: int, head: Head) -> None:
    of_series = "" if series == 1 else f" of {series:,} series"
    say("rows", f"{trained.rows:,}{of_series}, {trained.steps:,} steps{_every(head)}")
    found = [f"{trained.counted[what]:,} {text}" for what, text in COUNTED.items()]
    found = [text for text in found if not text.startswith("0 ")]
    if found:
        say("of these", ", ".join(found))
    if trained.empty:
        some = ", ".join(trained.empty[:5]) + (", ..." if len(trained.empty) > 5 else "")
        say("left out", f"{len(trained.empty):,} series without a value: {some}")
    say("calendar", ", ".join(head.calendar) or "none")
    unseen = f"{trained.unseen:,} rows that training has not seen"
    shown = _some(trained.errors)
    if any(e.rows for e in shown):
        say("forecasts", f"mean absolute errors in {unseen}")
        _table(shown, head)
    else:
        say("forecasts", f"not tried: nothing is known to compare with in {unseen}")
    for rival, steps in _better(shown, head).items():
        at = f"{', '.join(map(str, steps))} step{'s' if steps[-1] > 1 else ''}"
        shorter = ", or a shorter horizon" if head.horizon > 1 else ""
        say("note", f"at {at} it is worse than the {rival}: use more data{shorter}")
    say_compared(trained.compared)


def _every(head: Head) -> str:
    if head.time is None:
        return ""
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if head.step_s >= seconds and head.step_s % seconds == 0:
            return f", one every {head.step_s / seconds:g} {unit}"
    return f", one every {head.step_s:g} s"


def _some(errors: tuple[Errors, ...]) -> list[Errors]:
    """A few of many: the first, the last, and between them."""
    last = len(errors)
    if last <= 6:
        return list(errors)
    return [errors[k - 1] for k in sorted({1, *(max(1, last // part) for part in (8, 4, 2)), last})]


def _better(errors: Sequence[Errors], head: Head) -> dict[str, list[int]]:
    """The rivals that forecast better than the model, and how many steps ahead they do."""
    better: dict[str, list[int]] = {}
    for e in errors:
        for name, error in e.rivals.items():
            if e.model > max(error, SMALL * head.target.std):
                better.setdefault(name, []).append(e.steps)
    return better


def _table(errors: Sequence[Errors], head: Head) -> None:
    rivals = list(dict.fromkeys(name for e in errors for name in e.rivals))
    low, high = (f"{100 * q:g}" for q in (head.quantiles[0], head.quantiles[-1]))
    table = [["steps ahead", "rows", "model", *rivals, f"within p{low} to p{high}"]]
    for e in errors:
        others = [_number(e.rivals.get(name, math.nan)) for name in rivals]
        coverage = f"{e.residual.coverage:.0%}" if e.rows else "-"
        table.append([str(e.steps), f"{e.rows:,}", _number(e.model), *others, coverage])
    print_table(table)


def _number(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.4g}"
