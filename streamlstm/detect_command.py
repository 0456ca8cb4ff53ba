"""`streamlstm detect`: a CSV file through train, forecast and score, row by row, in one go.

Each series has a session of one model. Every row is stepped once, in the order of the file, and
what was forecast for it is written down before it comes.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from streamlstm import csv_events, readings, train_command
from streamlstm.engine import Engine, Session
from streamlstm.errors import InputError, StreamLSTMError
from streamlstm.head import AHEAD_MAX, Head, Report
from streamlstm.model import Model
from streamlstm.model_file import load

REFUSED: Final = Report((), 0.0, False, "", "refused", False)
NOTHING: Final = (math.nan, math.nan, math.nan)
PLAIN: Final = {
    "value above": "higher than the range it kept to",
    "value below": "lower than the range it kept to",
    "level above": "its recent average is higher than the range it kept to",
    "level below": "its recent average is lower than the range it kept to",
    "forecast above": "it stays further above its forecast than it used to",
    "forecast below": "it stays further below its forecast than it used to",
}


@dataclass(frozen=True)
class Row:
    """One row, and what was said of it.

    time: as the file has it, "" where there is none. reading: [time?, target, others...].
    expected: lowest quantile, median and highest of what was forecast for it before it came.
    """

    series: str
    line: int
    time: str
    reading: list[float]
    value: float
    expected: tuple[float, float, float] = NOTHING
    report: Report = REFUSED

    def cells(self, columns: Sequence[str]) -> dict[str, Any]:
        """The columns of the file of scores; None where there is no number."""
        low, median, high = map(_number, self.expected)
        report = self.report
        cells = {
            "series": self.series,
            "line": self.line,
            "time": self.time,
            "value": None if math.isnan(self.value) else self.value,
            "low": low,
            "median": median,
            "high": high,
            "score": _number(report.score),
            "alert": report.alert,
            "reason": report.reason,
            "status": report.status,
            "warming": report.warming,
        }
        return {column: cells[column] for column in columns}


@dataclass
class Watched:
    """One series: its session, its last step and value, and its rows where they are wanted."""

    session: Session
    head: Head
    last_s: float = math.nan
    last: float = math.nan
    begun: bool = False
    next: tuple[float, float, float] = NOTHING
    rows: list[Row] = field(default_factory=list)

    def step(self, row: Row) -> Row:
        """The row, with what was forecast for it and what came of it. Raises InputError."""
        expected = self._expected(row.reading)
        report = self.head.report(self.session.step(row.reading).tolist())
        if report.status in ("stepped", "held", "predicted"):
            self.begun, self.last_s = True, row.reading[0]
            self.next = _band(report.forecast)
        if report.status == "stepped":
            self.last = row.value
        return replace(row, expected=expected, report=report)

    def _expected(self, reading: list[float]) -> tuple[float, float, float]:
        """What the session forecasts for the step that a reading is of."""
        steps = 1
        if self.head.time is not None and self.head.spacing == "grid" and self.begun:
            steps = math.floor((reading[0] - self.last_s) / self.head.step_s + 0.5)
            if steps < 1 and self.head.late == "step":
                steps = 1
        if not self.begun or not 1 <= steps <= AHEAD_MAX:
            return NOTHING
        return self.next if steps == 1 else _band(self.session.forecast(steps)[-1].tolist())


def _band(quantiles: Sequence[float]) -> tuple[float, float, float]:
    return float(quantiles[0]), float(quantiles[len(quantiles) // 2]), float(quantiles[-1])


def _number(x: float) -> float | None:
    """Seven digits of it: forecasts and scores have no more."""
    return None if math.isnan(x) else float(f"{x:.7g}")


def run(args: argparse.Namespace) -> int:
    """Score a file; the exit code: 0, or 1 where rows were refused.

    Raises StreamLSTMError, OSError.
    """
    out = args.out
    for path in (out, args.plot, args.save_model):
        if path is not None and not (folder := Path(path).absolute().parent).is_dir():
            raise FileNotFoundError(f"{path} can't be written: there is no folder {folder}")
    if args.save_model is not None:
        train_command.check_writable(args.save_model)
    plot = None if args.plot is None else _plot()
    trained: dict[str, int] = {}
    model = load(args.model) if args.model is not None else _train(args, trained)
    if model.head is None:
        raise StreamLSTMError(
            f"{args.model} has no head, which makes forecasts and scores; train a model with "
            "`streamlstm train`"
        )
    if args.save_model is not None:
        model.save(args.save_model)
    tell = _Teller(sys.stderr if out == "-" else sys.stdout)
    with Engine(model) as engine:
        counted = Counted(trained, keep=plot is not None)
        with _scores_file(out, args, model.head) as write:
            _score(args, engine, counted, write, tell)
        counted.tell(tell, engine)
        if plot is not None:
            plot.detection([_track(w, trained) for w in counted.watched.values()], args.plot)
    written = {"scores": None if out == "-" else out, "plot": args.plot, "model": args.save_model}
    for what, path in written.items():
        if path is not None:
            tell.fact(what, path)
    refused = counted.rows["refused"]
    if refused:
        first = f"{_source(args)}, {counted.refusal}"
        print(f"streamlstm: {refused:,} row(s) were refused, the first in {first}", file=sys.stderr)
    return 1 if refused else 0


@dataclass
class Judged:
    """Forecasts of the next row, of rows that training has not seen."""

    rows: int = 0
    off: float = 0.0
    last_off: float = 0.0
    inside: int = 0

    def judge(self, row: Row, last: float) -> None:
        """last: the value before the row."""
        low, median, high = row.expected
        self.rows += 1
        self.off += abs(row.value - median)
        self.last_off += abs(row.value - last)
        self.inside += low <= row.value <= high

    def __str__(self) -> str:
        off, last_off = self.off / self.rows, self.last_off / self.rows
        return (
            f"off by {off:.3g} on average (the last value: {last_off:.3g}), "
            f"{self.inside / self.rows:.0%} of the values between low and high"
        )


@dataclass
class Counted:
    """All series, and what happened to their rows. trained: of each, the last line trained on."""

    trained: dict[str, int]
    keep: bool
    watched: dict[str, Watched] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    judged: Judged = field(default_factory=Judged)
    refusal: str = ""

    def count(self, row: Row, last: float) -> None:
        """last: the value before the row."""
        seen = row.line <= self.trained.get(row.series, 0)
        self.rows["all"] += 1
        self.rows["trained"] += seen
        self.rows["warming"] += row.report.warming
        self.rows["alerts"] += row.report.alert
        self.rows["alerts in training"] += row.report.alert and seen
        if row.report.status == "stepped" and not seen and not math.isnan(row.expected[0]):
            self.judged.judge(row, last)
        if self.keep:
            self.watched[row.series].rows.append(row)

    def refuse(self, row: Row, why: InputError) -> None:
        self.leave_out(row.line, why)
        self.count(row, math.nan)

    def leave_out(self, line: int, why: InputError) -> None:
        # A model's sentence begins with the number of a reading, which is always 0 here.
        self.refusal = self.refusal or f"line {line}: {str(why).replace('reading 0', 'the row')}"
        self.rows["refused"] += 1

    def tell(self, tell: _Teller, engine: Engine) -> None:
        rows, series = self.rows, len(self.watched)
        of = "" if series == 1 else f" of {series:,} series"
        trained = f"; the model was trained on {rows['trained']:,} of them" if self.trained else ""
        alerts = f"; {rows['alerts in training']:,} in rows trained on" if self.trained else ""
        where = ", in rows not trained on" if self.trained else ""
        tell.fact("rows", f"{rows['all']:,}{of}{trained}")
        if self.judged.rows:
            tell.fact("forecasts", f"{self.judged}{where}")
        tell.fact("alerts", f"{rows['alerts']:,}{alerts}")
        tell.fact("warming up", f"{rows['warming']:,} rows, which can't alert")
        counters = engine.counters() | {"refused": rows["refused"]}
        tell.fact("counters", ", ".join(f"{name} {n:,}" for name, n in counters.items()))
        for note in self._notes(counters, engine):
            tell.fact("note", note)

    def _notes(self, counters: dict[str, int], engine: Engine) -> Iterator[str]:
        """What speaks against the model or the file."""
        head = engine.model.head
        assert head is not None
        dropped = sum(counters[name] for name in ("repeated", "late", "early"))
        if head.late == "drop" and dropped > 0.2 * self.rows["all"]:
            every = f", one step every {head.step_s:g} s" if head.spacing == "grid" else ""
            yield (
                f"{dropped:,} rows were dropped: are they in the order of time, of one sensor "
                f"(else name its column: --series), and as far apart as the model's{every}?"
            )
        if self.judged.rows and self.judged.off > 1.5 * self.judged.last_off:
            yield "the forecasts are worse than the last value: is the model of such a sensor?"


class _Teller:
    """Lines for a human. A reader who has enough of them does not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def fact(self, what: str, text: str) -> None:
        self(f"{what:12} {text}")


# --- train ----------------------------------------------------------------------------------------


def _train(args: argparse.Namespace, trained: dict[str, int]) -> Model:
    """A model of the first rows of each series; `trained` gets their last lines."""
    training = train_command.training_of_torch()
    series = readings.read(
        args.csv, args.target, time=args.time, others=args.others or (), series=args.series
    )
    series = [s.first(args.train_rows or (len(s) + 1) // 2) for s in series]
    trained |= {"" if args.series is None else s.name: int(s.lines[-1]) for s in series}
    policies = {name: getattr(args, name) for name in ("spacing", "missing", "late")}
    head = training.head_for(
        series,
        args.target,
        others=args.others or (),
        horizon=args.horizon or 1,
        **{name: policy for name, policy in policies.items() if policy is not None},
        unseen=0.0,
    )
    progress = train_command.ProgressLine()
    name = Path(args.save_model or args.csv).stem
    try:
        done = training.train(series, head, name=name, unseen=0.0, progress=progress)
    finally:
        progress.end()
    model: Model = done.model
    return model


# --- score ----------------------------------------------------------------------------------------


def _score(
    args: argparse.Namespace,
    engine: Engine,
    counted: Counted,
    write: Callable[[Row], None],
    tell: _Teller,
) -> None:
    """Every row of the file, in its order, through the session of its series."""
    head = engine.model.head
    assert head is not None
    with csv_events.open_csv(args.csv) as source:
        for row in _rows(args, source, head, counted):
            watched = counted.watched.get(row.series)
            if watched is None:
                session = engine.open(row.series or head.target.name)
                watched = counted.watched[row.series] = Watched(session, head)
            last = watched.last
            try:
                row = watched.step(row)  # noqa: PLW2901
            except InputError as error:
                counted.refuse(row, error)
            else:
                counted.count(row, last)
            write(row)
            if row.report.alert:
                tell(_alert(row, head))
    if not counted.watched:
        why = f", {counted.refusal}" if counted.refusal else " holds no rows"
        raise InputError(f"{_source(args)}{why}")


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


@contextmanager
def _scores_file(out: str, args: argparse.Namespace, head: Head) -> Iterator[Callable[[Row], None]]:
    """Writes rows as CSV or JSON lines; at once where they are waited for."""
    series = [] if args.series is None else ["series"]
    time = [] if head.time is None else ["time"]
    columns = [
        *(*series, "line", *time, "value", "low", "median", "high"),
        *("score", "alert", "reason", "status", "warming"),
    ]
    live = args.csv == "-"
    with ExitStack() as stack:
        file = sys.stdout
        if out != "-":
            file = stack.enter_context(open(out, "w", encoding="utf-8", newline=""))
        table = csv.writer(file, lineterminator="\n")
        if not args.json:
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


# --- plot -----------------------------------------------------------------------------------------


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
        trained=sum(row.line <= last for row in rows),
        ahead=np.array([_band(quantiles) for quantiles in ahead.tolist()]).reshape(-1, 3),
    )
