"""`streamlstm detect`: a CSV file through train, forecast and score, row by row, in one go."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from streamlstm import csv_events, proof, readings
from streamlstm.commands.arguments import (
    add_command,
    add_policies,
    names,
    positive_int,
    wrong_usage,
)
from streamlstm.commands.kept import SAVE_S, Kept
from streamlstm.commands.lines import Teller, complain, wrapped
from streamlstm.commands.scores import scores_file
from streamlstm.commands.stops import Stops
from streamlstm.commands.summary import Counted
from streamlstm.commands.training import ProgressLine, training_of_torch
from streamlstm.commands.written import PLOTS, check_writable, made_by, remember
from streamlstm.detection import Row, Watched, band
from streamlstm.engine import Engine
from streamlstm.errors import InputError, StreamLSTMError
from streamlstm.head import Head
from streamlstm.model import Model
from streamlstm.model_file import Comparison

PLAIN: Final = {
    "value above": "higher than the range it kept to",
    "value below": "lower than the range it kept to",
    "level above": "its recent average is higher than the range it kept to",
    "level below": "its recent average is lower than the range it kept to",
    "forecast above": "it stays further above its forecast than it used to",
    "forecast below": "it stays further below its forecast than it used to",
}


def add(commands: Any) -> None:
    detect = add_command(
        commands,
        "detect",
        run,
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
    detect.add_argument(
        "--plot", metavar="FILE", help="draw readings, forecasts and alerts: .svg, .png or .pdf"
    )
    detect.add_argument(
        "--state",
        metavar="DIR",
        help="with --model: keep what the sessions remember in this directory, and go on from it: "
        "rows that were seen before are left out, and new scores are added to FILE",
    )
    detect.add_argument(
        "--force", action="store_true", help="write over files that something else made"
    )
    detect.add_argument(
        "--train-rows",
        type=positive_int,
        metavar="N",
        help="train on the first N rows of each series (default: on the first half)",
    )
    detect.add_argument("--save-model", metavar="MODEL", help="keep the trained model in this file")
    detect.add_argument(
        "--horizon",
        type=positive_int,
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
        type=names,
        metavar="A,B",
        help="other columns that help to forecast",
    )
    add_policies(detect)
    detect.set_defaults(spacing=None, missing=None, late=None)  # --model has its own


def run(args: argparse.Namespace) -> int:
    """Raises StreamLSTMError, OSError."""
    training = ("target", "train_rows", "save_model", "horizon", "time", "others")
    for option in (*training, "spacing", "missing", "late"):
        if args.model is not None and getattr(args, option) is not None:
            name = "with" if option == "others" else option.replace("_", "-")
            return wrong_usage(f"detect: --{name} is of training; --model has its own")
    if args.model is None and args.target is None:
        return wrong_usage("detect: say with --target which column to watch")
    if args.model is None and args.csv == "-":
        return wrong_usage("detect: stdin needs a --model; training reads its file twice")
    if args.state is not None and args.model is None:
        return wrong_usage("detect: --state goes with --model, whose sessions it keeps")
    if args.plot is not None and Path(args.plot).suffix not in PLOTS:
        return wrong_usage(f"detect: --plot draws {', '.join(PLOTS)}; got {args.plot}")
    args.out = args.out or ("scores.jsonl" if args.json else "scores.csv")
    files = [args.csv, args.model, args.out, args.plot, args.save_model]
    files = [Path(file).resolve() for file in files if file not in (None, "-")]
    if len(set(files)) < len(files):
        return wrong_usage("detect: two of its files are the same; write each to its own")
    # Scores of sessions that begin now are not added to those of others.
    args.goes_on = args.state is not None and any(Path(args.state).glob("*"))
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Score a file; the exit code: 0, or 1 where rows were refused.

    Raises StreamLSTMError, OSError.
    """
    out, by = args.out, made_by("detect", args.csv)
    for path in (out, args.plot, args.save_model):
        if path not in (None, "-"):
            check_writable(path, by, args.force or (path == out and args.goes_on))
    plot = None if args.plot is None else _plot()
    trained = _Trained()
    model = proof.load(args.model) if args.model is not None else _train(args, trained)
    if model.head is None:
        raise StreamLSTMError(
            f"{args.model} has no head, which makes forecasts and scores; train a model with "
            "`streamlstm train`"
        )
    if args.save_model is not None:
        proof.save(model, args.save_model, compared=trained.compared)
        remember(args.save_model, by)
    tell = Teller(sys.stderr if out == "-" else sys.stdout)
    with Stops() as stops, Engine(model) as engine, Kept(engine, args.state) as kept:
        counted = Counted(trained.last, keep=plot is not None)
        with (
            csv_events.open_csv(args.csv) as source,  # before the scores there are let go
            scores_file(out, args, model.head) as write,
        ):
            rows = _rows(args, source, model.head, counted)
            _score(stops.rows(rows), kept, counted, write, tell)
        if not counted.watched and not stops.code:
            why = f", {counted.refusal}" if counted.refusal else " holds no rows"
            raise InputError(f"{_source(args)}{why}")
        counted.tell(tell, engine)
        if plot is not None and counted.watched:
            plot.detection([_track(w, trained.last) for w in counted.watched.values()], args.plot)
            remember(args.plot, by)
    written = {"scores": None if out == "-" else out, "plot": args.plot, "model": args.save_model}
    for what, path in written.items():
        if path is not None and Path(path).exists():
            tell.fact(what, path)
    refused = counted.rows["refused"]
    if refused:
        first = f"{_source(args)}, {counted.refusal}"
        were = "row was" if refused == 1 else "rows were"
        complain(f"{refused:,} {were} refused, the first in {first}")
    return stops.code or (1 if refused else 0)


@dataclass
class _Trained:
    """What training leaves beside the model. last: the last line trained on, of each series."""

    last: dict[str, int] = field(default_factory=dict)
    compared: Comparison | None = None


def _train(args: argparse.Namespace, trained: _Trained) -> Model:
    """A model of the first rows of each series."""
    training = training_of_torch()
    series = readings.read(
        args.csv, args.target, time=args.time, others=args.others or (), series=args.series
    )
    series = [s.first(args.train_rows or (len(s) + 1) // 2) for s in series]
    trained.last |= {"" if args.series is None else s.name: int(s.lines[-1]) for s in series}
    policies = {name: getattr(args, name) for name in ("spacing", "missing", "late")}
    head = training.head_for(
        series,
        args.target,
        others=args.others or (),
        horizon=args.horizon or 1,
        **{name: policy for name, policy in policies.items() if policy is not None},
        unseen=0.0,
    )
    progress = ProgressLine()
    name = Path(args.save_model or args.csv).stem
    try:
        done = training.train(series, head, name=name, unseen=0.0, progress=progress)
    finally:
        progress.end()
    trained.compared = done.compared
    model: Model = done.model
    return model


def _score(
    rows: Iterable[Row],
    kept: Kept,
    counted: Counted,
    write: Callable[[Row], None],
    tell: Teller,
) -> None:
    """Every row of the file, in its order, through the session of its series."""
    head = kept.engine.model.head
    assert head is not None
    for row in rows:
        watched = counted.watched.get(row.series)
        if watched is None:
            session = kept.open(row.series or head.target.name)
            watched = counted.watched[row.series] = Watched(session, head)
        if watched.was_stepped(row):
            counted.rows["seen before"] += 1
            continue
        last = watched.last
        try:
            row = watched.step(row)  # noqa: PLW2901
        except InputError as error:
            counted.refuse(row, error)
        else:
            counted.count(row, last)
        write(row)
        if row.report.alert:
            tell(wrapped(_alert(row, head), 4))
        # An alert is told before it is remembered: told twice is better than never.
        kept.save(every_s=0.0 if row.report.alert else SAVE_S)


def _rows(args: argparse.Namespace, source: TextIO, head: Head, counted: Counted) -> Iterator[Row]:
    """The file's rows as they come; those that can't be read are counted and left out.

    Raises InputError naming the file where its header does not fit, or its rows have no cells.
    """
    inputs = [feature.name for feature in head.inputs]
    columns = csv_events.Columns(inputs, head.time, gaps=True)
    wanted = inputs if args.series is None else [args.series, *inputs]
    rows = csv_events.rows(source, replace(columns, names=wanted))
    try:
        for line, cells in rows:
            try:
                series = "" if args.series is None else cells.pop(0).strip()
                if args.series is not None and not series:
                    raise InputError(f"column {args.series} is empty; it tells the row's series")
                reading = csv_events.event(cells, columns)
            except InputError as error:
                counted.leave_out(line, error)
                continue
            time = "" if head.time is None else cells[0].strip()
            yield Row(series, line, time, reading, reading[head.time is not None])
    except InputError as error:
        raise InputError(f"{_source(args)}: {error}") from None


def _source(args: argparse.Namespace) -> str:
    return "stdin" if args.csv == "-" else str(args.csv)


def _alert(row: Row, head: Head) -> str:
    """An alert in plain words."""
    digits = max(0, 2 - math.floor(math.log10(head.target.std)))
    where = f"{row.time or f'line {row.line}'}  {row.series or head.target.name}"
    low, _, high = row.expected
    band = "" if math.isnan(low) else f"expected {low:,.{digits}f} to {high:,.{digits}f}, "
    value = f"{row.value:,.{digits}f} {head.target.unit}".strip()
    return (
        f"{where}  {value} ({band}score {row.report.score:.2f}): "
        f"{PLAIN.get(row.report.reason, row.report.reason)}"
    )


def _plot() -> Any:
    """streamlstm.plot. Raises StreamLSTMError where there is no matplotlib."""
    try:
        from streamlstm import plot  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise StreamLSTMError(
            "the plot needs matplotlib, which is not installed: pip install 'streamlstm[plot]'"
        ) from None
    return plot


def _track(watched: Watched, trained: dict[str, int]) -> Any:
    """A series as plot.detection draws it: the rows that went forward in time."""
    from streamlstm.plot import Track  # noqa: PLC0415

    head = watched.head
    rows = [row for row in watched.rows if row.report.status not in ("repeated", "late", "early")]
    last = trained.get(rows[0].series, 0) if rows else 0
    timed = head.time is not None
    ahead = watched.session.forecast(head.horizon) if watched.begun else np.empty((0, 3))
    return Track(
        name=(rows[0].series if rows else "") or head.target.name,
        unit=head.target.unit,
        step=head.step_s,
        at=np.array([row.reading[0] if timed else row.line for row in rows], np.float64),
        timed=timed,
        value=np.array([row.value for row in rows], np.float64),
        expected=np.array([row.expected for row in rows], np.float64).reshape(-1, 3),
        score=np.array([row.report.score for row in rows], np.float64),
        alert=np.array([row.report.alert for row in rows], bool),
        warming=np.array([row.report.warming for row in rows], bool),
        trained=sum(row.line <= last for row in rows),
        ahead=np.array([band(quantiles) for quantiles in ahead.tolist()]).reshape(-1, 3),
    )
