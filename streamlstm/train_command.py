"""`streamlstm train`: a CSV file to a model file, and what its forecasts are worth."""

from __future__ import annotations

import argparse
import importlib
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streamlstm import readings
from streamlstm.errors import StreamLSTMError
from streamlstm.head import Head
from streamlstm.wording import counted

if TYPE_CHECKING:
    from streamlstm.training import Errors, Progress, Trained

SMALL: Final = 1e-3  # of an error, as a share of the target's std
EVERY_S: Final = 10.0  # between lines of progress that nobody overwrites
COUNTED: Final = {
    "missing": "without a value",
    "skipped": "skipped",
    "repeated": "repeated",
    "late": "late",
    "early": "early",
    "gaps": "after a gap",
    "refused": "refused",
}


def run(args: argparse.Namespace) -> int:
    """Train a model of a file's series and write it. Raises StreamLSTMError, OSError."""
    check_writable(args.out)
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
    trained.model.save(args.out)
    _show(trained, len(series), head)
    _say("written", args.out)
    return 0


def check_writable(path: str) -> None:
    """Raise OSError where a model can't be written: training may take a while before it is."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {folder}")
    if Path(path).exists() and not Path(path).is_file():
        raise FileExistsError(f"{path} can't be written: it is there, and no file; name a file")
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{path} can't be written: {error.strerror}") from None


class ProgressLine:
    """How far training is, on stderr: one line in place on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._next_s = time.monotonic() + (0 if self._in_place else EVERY_S)
        self._width = 0

    def __call__(self, at: Progress) -> None:
        text = (
            f"training: {at.done:,} of at most {at.updates:,} updates, "
            f"held-out loss {at.now:.1%} of the last value's, best {at.best:.1%}"
        )
        if self._in_place:
            print(f"\r{text:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
        elif time.monotonic() >= self._next_s:
            print(text, file=sys.stderr, flush=True)
            self._next_s = time.monotonic() + EVERY_S

    def end(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)


def training_of_torch() -> Any:
    """streamlstm.training. Raises StreamLSTMError where there is no torch."""
    try:
        with _interrupted_later():
            from streamlstm import training  # noqa: PLC0415  (an extra)

            importlib.import_module("torch._dynamo")  # else the first optimizer does it
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise StreamLSTMError(
            "training needs torch, which is not installed: pip install 'streamlstm[train]'"
        ) from None
    return training


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C takes effect at the end: within imports it becomes whatever they make of it."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def _say(what: str, text: object) -> None:
    print(f"{what:12} {text}")


def _show(trained: Trained, series: int, head: Head) -> None:
    of_series = "" if series == 1 else f" of {series:,} series"
    _say("rows", f"{trained.rows:,}{of_series}, {trained.steps:,} steps{_every(head)}")
    found = [f"{trained.counted[what]:,} {text}" for what, text in COUNTED.items()]
    found = [text for text in found if not text.startswith("0 ")]
    if found:
        _say("of these", ", ".join(found))
    if trained.empty:
        some = ", ".join(trained.empty[:5]) + (", ..." if len(trained.empty) > 5 else "")
        _say("left out", f"{len(trained.empty):,} series without a value: {some}")
    _say("calendar", ", ".join(head.calendar) or "none")
    unseen = f"{trained.unseen:,} rows that training has not seen"
    shown = _some(trained.errors)
    if any(e.rows for e in shown):
        _say("forecasts", f"mean absolute errors in {unseen}")
        _table(shown, head)
    else:
        _say("forecasts", f"not tried: nothing is known to compare with in {unseen}")
    for rival, steps in _better(shown, head).items():
        at = f"{', '.join(map(str, steps))} step{'s' if steps[-1] > 1 else ''}"
        shorter = ", or a shorter horizon" if head.horizon > 1 else ""
        _say("note", f"at {at} it is worse than the {rival}: use more data{shorter}")
    _say(
        "proof",
        f"{trained.framework}: {counted(trained.steps, 'step')}, "
        f"largest difference {trained.difference:.1e} std",
    )


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
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


def _number(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.4g}"
